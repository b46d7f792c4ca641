"""Beam search for rows of different side networks together: one backbone decoder step for all of their beams.

Equal to Hugging Face's beam search (transformers 5.23, generation/utils.py) of each row alone on the same logits, down
to its arithmetic: large negative scores mark what must not be chosen, and ties fall as they do there. With
`legacy_beams`, equal to transformers 4.6's (generation_beam_search.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone.model import Backbone, Taps
from ladder.decoding.logits import adjust
from ladder.decoding.segments import Segment, Tokens, joined, rows_of

Ended = tuple[Segment, int, Tokens | Exception]
"""A row that ended: its segment, its number in it, and its tokens or why it failed."""
OUT = -1.0e9
"""Added to scores of what must not be chosen."""


class BeamSearch:
    """The best text of every row of some segments, one token at a time for all of them.

    A row goes when nothing of it changes any more.
    """

    def __init__(self, backbone: Backbone, segments: Sequence[Segment]) -> None:
        self._backbone, self._cache = backbone, backbone.decoder_cache()
        config = backbone.config
        self._ended: list[Ended] = []  # known already, told by the next step
        self._gone: set[tuple[Segment, int]] = set()  # of the rows that are still here, those that left
        with torch.inference_mode():
            for segment in segments:
                segment.isolated(segment.begin)
            self._searches = [Search(each, config.decoder_start_token_id, config.eos_token_id) for each in segments]
            self._final, self._mask = joined(segments)
            self._tokens = torch.full((len(self._mask), 1), config.decoder_start_token_id, device=backbone.device)
            self._finish()

    def __len__(self) -> int:
        """Beams of all rows that are left."""
        gone = sum(segment.generation.num_beams for segment, _ in self._gone)
        return sum(len(search.rows) * search.beams for search in self._searches) - gone

    @property
    def is_idle(self) -> bool:
        """The next step has nothing to do and nothing to tell."""
        return not (self._searches or self._ended)

    @torch.inference_mode()
    def step(self) -> list[Ended]:
        """One token on: the rows that ended."""
        if self._gone:
            self._finish()
        if self._searches:
            self._advance()
            self._finish()
        ended, self._ended = self._ended, []
        return ended

    def leave(self, rows: Collection[tuple[Segment, int]]) -> None:
        """Rows of segments go, at whatever token they are. Nothing is told of them any more.

        Their places are freed by the next step: to move the others takes memory, which there may not be.
        """
        self._ended = [each for each in self._ended if each[:2] not in rows]
        here = set(self._rows())
        self._gone |= here & set(rows)
        if self._gone == here:
            self._searches = []
            self._gone.clear()

    def give_up(self, error: Exception) -> list[Ended]:
        """All rows end with `error`, but for those whose end is known."""
        known = self._gone | {each[:2] for each in self._ended}
        ended = self._ended + [(segment, row, error) for segment, row in self._rows() if (segment, row) not in known]
        self._ended, self._searches = [], []
        self._gone.clear()
        return ended

    def _rows(self) -> list[tuple[Segment, int]]:
        return [(search.segment, row) for search in self._searches for row in search.rows]

    def _advance(self) -> None:
        first = self._cache.length == 0
        taps = self._backbone.decode(self._tokens, self._final, self._mask, self._cache)
        parents, following, start = [], [], 0
        for search in self._searches:
            rows = slice(start, start + search.asked)
            start = rows.stop
            own, said = search.step(self._backbone, rows_of(taps, rows))
            parents.append(own + rows.start)
            following.append(said)
        order, self._tokens = torch.cat(parents), torch.cat(following)[:, None]
        self._cache.reorder(order, cross=first)
        if first:  # from here on every beam is a row
            self._final, self._mask = self._final[order], self._mask[order]

    def _finish(self) -> None:
        """Take out the rows that are done or gone, and keep what those that are done have to say."""
        done = iter(torch.cat([search.done for search in self._searches]).tolist() if self._searches else [])
        flags = [
            [next(done) or (search.segment, row) in self._gone for row in search.rows] for search in self._searches
        ]
        if not any(map(any, flags)):
            return
        kept, start = [], 0
        for search, own in zip(self._searches, flags, strict=True):
            stop = start + search.asked
            self._ended += [each for each in search.endings(own) if each[:2] not in self._gone]
            kept.append(search.keep([place for place, gone in enumerate(own) if not gone]) + start)
            start = stop
        rows = torch.cat(kept)
        self._searches = [search for search in self._searches if search.rows]
        self._cache.reorder(rows)
        self._tokens, self._final, self._mask = self._tokens[rows], self._final[rows], self._mask[rows]
        self._gone.clear()


@dataclass(slots=True, eq=False)
class Search:
    """The beams of one segment: B rows, W beams each, T tokens so far."""

    segment: Segment
    start: int
    end: int
    rows: list[int] = field(init=False)
    """Those of the segment that are left: B of them."""
    running: Tensor = field(init=False)
    """(B, W, T) texts that go on, the best first."""
    running_scores: Tensor = field(init=False)
    """(B, W) sums of log-probabilities."""
    finished: Tensor = field(init=False)
    """(B, W, T) the best finished texts, the best first; past their end, and where there is none, end tokens."""
    finished_scores: Tensor = field(init=False)
    """(B, W) divided by their lengths."""
    is_finished: Tensor = field(init=False)
    """(B, W) bool: a text is there."""
    done: Tensor = field(init=False)
    """(B,) bool: nothing of the row changes any more."""

    def __post_init__(self) -> None:
        rows, beams, device = len(self.segment), self.beams, self.segment.taps.mask.device
        self.rows = list(range(rows))
        self.running = torch.full((rows, beams, 1), self.start, device=device)
        self.finished = self.running.clone()
        self.running_scores = torch.full((rows, beams), OUT, device=device)
        self.running_scores[:, 0] = 0  # all beams start alike: only the first may have children
        self.finished_scores = torch.full((rows, beams), OUT, device=device)
        self.is_finished = torch.zeros((rows, beams), dtype=torch.bool, device=device)
        over = self.segment.limit < 1 or self.segment.failure is not None
        self.done = torch.full((rows,), over, device=device)

    @property
    def beams(self) -> int:
        return self.segment.generation.num_beams

    @property
    def asked(self) -> int:
        """Rows of the next backbone step: one a row at first, then one a beam."""
        return len(self.rows) * (1 if self.length == 0 else self.beams)

    @property
    def length(self) -> int:
        """Tokens after the start token."""
        return self.running.shape[2] - 1

    def step(self, backbone: Backbone, taps: Taps) -> tuple[Tensor, Tensor]:
        """Go one token on.

        Args:
            taps: the backbone decoder's, of `asked` rows.
        Returns:
            (B * W,) which of those rows each beam continues now, and with which token.
        """
        asked = self.asked
        outcome = self.segment.isolated(self._step, backbone, taps)
        if outcome is None:
            self.done = torch.ones_like(self.done)
            self.running = torch.cat([self.running, torch.full_like(self.running[:, :, :1], self.end)], 2)
            parents = torch.arange(len(self.rows) * self.beams, device=self.done.device)
            return parents // (len(parents) // asked), torch.full_like(parents, self.end)
        return outcome

    def endings(self, ended: Sequence[bool]) -> list[Ended]:
        """What the rows that `ended` have to say."""
        if not any(ended):
            return []
        texts, broken = self.finished[:, 0, 1:].tolist(), self.segment.broken.tolist()
        return [
            (self.segment, row, self.segment.ending(text, broken=bad, end=self.end))
            for row, text, bad, over in zip(self.rows, texts, broken, ended, strict=True)
            if over
        ]

    def keep(self, places: Sequence[int]) -> Tensor:
        """Go on with the rows in these `places` alone; (N,) which of the `asked` rows theirs are."""
        chosen, each = torch.tensor(places, dtype=torch.long, device=self.done.device), self.asked // len(self.rows)
        asked = (chosen[:, None] * each + torch.arange(each, device=chosen.device)).flatten()
        self.rows = [self.rows[place] for place in places]
        self.running, self.running_scores = self.running[chosen], self.running_scores[chosen]
        self.finished, self.finished_scores = self.finished[chosen], self.finished_scores[chosen]
        self.is_finished, self.done = self.is_finished[chosen], self.done[chosen]
        if places:
            self.segment.keep(chosen, asked)
        return asked

    def _step(self, backbone: Backbone, taps: Taps) -> tuple[Tensor, Tensor]:
        segment, first = self.segment, self.length == 0
        state = segment.side.decode(taps, segment.memory, segment.memory_mask, segment.cache)
        parents = self._advance(self._log_probabilities(backbone.logits(state[:, -1]).float(), first))
        rows, beams = parents.shape
        index = torch.arange(rows, device=parents.device)[:, None]
        order = (index.expand(rows, beams) if first else index * beams + parents).flatten()
        segment.cache.reorder(order, cross=first)
        if first:
            segment.memory, segment.memory_mask = segment.memory[order], segment.memory_mask[order]
        return order, self.running[:, :, -1].flatten()

    def _log_probabilities(self, logits: Tensor, first: bool) -> Tensor:
        """(B, W, V), adjusted; any finite numbers for rows whose `logits` (asked, V) are not finite."""
        rows, beams = self.running_scores.shape
        broken = ~torch.isfinite(logits).all(-1).view(rows, -1).all(1)
        self.segment.broken |= broken & ~self.done
        logits = logits.masked_fill(broken.repeat_interleave(len(logits) // rows)[:, None], 0)
        earlier = self.running[:, :1] if first else self.running
        scores = adjust(logits.log_softmax(-1), earlier.flatten(0, 1), self.segment.generation, self.end)
        return scores.view(rows, -1, scores.shape[-1]).expand(rows, beams, -1)

    def _advance(self, scores: Tensor) -> Tensor:
        """Take the best of all continuations; (B, W) which beam each running one continues."""
        how, (_, beams, vocabulary) = self.segment.generation, scores.shape
        best, places = (scores + self.running_scores[:, :, None]).flatten(1).topk(2 * beams)
        parents, tokens = places // vocabulary, places % vocabulary
        texts = torch.cat([_pick(self.running, parents), tokens[:, :, None]], 2)
        length = texts.shape[2] - 1
        last = length >= self.segment.limit
        ended = (tokens == self.end) | (last and not how.legacy_beams)
        going_on = best + ended * OUT
        chosen = going_on.topk(beams).indices
        self.running, self.running_scores = _pick(texts, chosen), _pick(going_on, chosen)
        self.finished = torch.cat([self.finished, torch.full_like(self.finished[:, :, :1], self.end)], 2)
        self._collect(texts, best / length**how.length_penalty, ended)
        hope = best if how.legacy_beams else self.running_scores
        self.done = self.done | self.segment.failed | ~self._can_improve(hope[:, :1], length)
        if last and how.legacy_beams:
            scores = self.running_scores / (length + 1) ** how.length_penalty  # one more: the start token
            self._collect(self.running, scores, torch.ones_like(self.is_finished))
        self.done = self.done | last
        return _pick(parents, chosen)

    def _collect(self, texts: Tensor, scores: Tensor, ended: Tensor) -> None:
        """Keep the best of the finished `texts` (B, N, T), best first. Only the first W may finish: further ones are
        there so that enough go on."""
        beams = self.running_scores.shape[1]
        ended = ended & (torch.arange(ended.shape[1], device=ended.device) < beams)
        scores = (scores + ~ended * OUT).masked_fill(self.done[:, None], float("-inf"))
        merged = torch.cat([self.finished_scores, scores], 1)
        best = merged.topk(beams).indices
        self.finished, self.finished_scores = _pick(torch.cat([self.finished, texts], 1), best), _pick(merged, best)
        self.is_finished = _pick(torch.cat([self.is_finished, ended], 1), best)

    def _can_improve(self, hope: Tensor, length: int) -> Tensor:
        """(B,) whether a text with the score `hope` (B, 1) may still become better than a finished one, as far as
        `early_stopping` cares."""
        how = self.segment.generation
        longest = self.segment.limit if how.early_stopping == "never" and how.length_penalty > 0 else length
        worst = torch.where(self.is_finished, self.finished_scores.amin(1, keepdim=True), OUT)
        possible = (hope / longest**how.length_penalty > worst).any(1)
        return possible & ~self.is_finished.all(1) if how.early_stopping is True else possible


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """(B, K, ...) the `places` (B, K) of each row's `values` (B, N, ...)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, places]
