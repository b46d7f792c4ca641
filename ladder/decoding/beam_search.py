"""Beam search for rows of different side networks: one backbone decoder step for the beams of all of them.

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

    A row is dropped as soon as its best text is final.
    """

    def __init__(self, backbone: Backbone, segments: Sequence[Segment]) -> None:
        self._backbone = backbone
        self._cache = backbone.decoder_cache()
        config = backbone.config
        self._ended: list[Ended] = []  # known, not yet returned by a step
        self._gone: set[tuple[Segment, int]] = set()  # rows that left but are not dropped yet
        with torch.inference_mode():
            for segment in segments:
                segment.isolated(segment.begin)
            start, end = config.decoder_start_token_id, config.eos_token_id
            self._searches = [Search(segment, start, end) for segment in segments]
            self._final, self._mask = joined(segments)
            self._tokens = torch.full((len(self._mask), 1), start, device=backbone.device)
            self._finish()

    def __len__(self) -> int:
        """Beams of all remaining rows."""
        gone = sum(segment.decoding.num_beams for segment, _ in self._gone)
        return sum(len(search.rows) * search.beams for search in self._searches) - gone

    @property
    def is_idle(self) -> bool:
        """True where the next step has nothing to do and nothing to return."""
        return not (self._searches or self._ended)

    @torch.inference_mode()
    def step(self) -> list[Ended]:
        """Decode one token of every beam, and return the rows that ended."""
        if self._gone:
            self._finish()
        if self._searches:
            self._advance()
            self._finish()
        ended, self._ended = self._ended, []
        return ended

    def leave(self, rows: Collection[tuple[Segment, int]]) -> None:
        """Remove rows, at any token: no step returns them any more.

        The next step drops them: to move the others takes memory, which may be short now.
        """
        self._ended = [ended for ended in self._ended if ended[:2] not in rows]
        here = set(self._rows())
        self._gone |= here & set(rows)
        if self._gone == here:
            self._searches = []
            self._gone.clear()

    def give_up(self, error: Exception) -> list[Ended]:
        """End all rows with `error`, except those whose ending is known."""
        known = self._gone | {ended[:2] for ended in self._ended}
        ended = self._ended + [(segment, row, error) for segment, row in self._rows() if (segment, row) not in known]
        self._ended = []
        self._searches = []
        self._gone.clear()
        return ended

    def _rows(self) -> list[tuple[Segment, int]]:
        return [(search.segment, row) for search in self._searches for row in search.rows]

    def _advance(self) -> None:
        first = self._cache.length == 0
        taps = self._backbone.decode(self._tokens, self._final, self._mask, self._cache)
        parents, following, start = [], [], 0
        for search in self._searches:
            rows = slice(start, start + search.backbone_rows)
            start = rows.stop
            search_parents, tokens = search.step(self._backbone, rows_of(taps, rows))
            parents.append(search_parents + rows.start)
            following.append(tokens)
        order, self._tokens = torch.cat(parents), torch.cat(following)[:, None]
        self._cache.reorder(order, cross=first)
        if first:  # from now on every beam is a row
            self._final = self._final[order]
            self._mask = self._mask[order]

    def _finish(self) -> None:
        """Drop the rows that are done or gone, and note the endings of those that are done."""
        done = iter(torch.cat([search.done for search in self._searches]).tolist() if self._searches else [])
        flags = [
            [next(done) or (search.segment, row) in self._gone for row in search.rows] for search in self._searches
        ]
        if not any(map(any, flags)):
            return
        kept, start = [], 0
        for search, is_over in zip(self._searches, flags, strict=True):
            stop = start + search.backbone_rows
            self._ended += [ended for ended in search.endings(is_over) if ended[:2] not in self._gone]
            kept.append(search.keep([index for index, over in enumerate(is_over) if not over]) + start)
            start = stop
        rows = torch.cat(kept)
        self._searches = [search for search in self._searches if search.rows]
        self._cache.reorder(rows)
        self._tokens = self._tokens[rows]
        self._final = self._final[rows]
        self._mask = self._mask[rows]
        self._gone.clear()


@dataclass(slots=True, eq=False)
class Search:
    """The beams of one segment: B rows, W beams each, T tokens so far."""

    segment: Segment
    start: int
    end: int
    rows: list[int] = field(init=False)
    """Remaining rows of the segment: B of them."""
    running: Tensor = field(init=False)
    """(B, W, T) unfinished texts, the best first."""
    running_scores: Tensor = field(init=False)
    """(B, W) sums of log-probabilities."""
    finished: Tensor = field(init=False)
    """(B, W, T) the best finished texts, the best first; after their end, and where there is none, end tokens."""
    finished_scores: Tensor = field(init=False)
    """(B, W) sums of log-probabilities, divided by the length penalty."""
    is_finished: Tensor = field(init=False)
    """(B, W) bool: there is a finished text."""
    done: Tensor = field(init=False)
    """(B,) bool: the row's best text is final."""

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
        """W, the beams of each row."""
        return self.segment.decoding.num_beams

    @property
    def backbone_rows(self) -> int:
        """Rows of the next backbone step: one for each row at first, then one for each beam."""
        return len(self.rows) * (1 if self.length == 0 else self.beams)

    @property
    def length(self) -> int:
        """Tokens after the start token."""
        return self.running.shape[2] - 1

    def step(self, backbone: Backbone, taps: Taps) -> tuple[Tensor, Tensor]:
        """Decode one token of every beam.

        Args:
            taps: the backbone decoder's, of `backbone_rows` rows.
        Returns:
            For each beam, (B * W,): the row that it continues, and its token.
        """
        backbone_rows = self.backbone_rows
        outcome = self.segment.isolated(self._step, backbone, taps)
        if outcome is None:
            self.done = torch.ones_like(self.done)
            self.running = torch.cat([self.running, torch.full_like(self.running[:, :, :1], self.end)], 2)
            parents = torch.arange(len(self.rows) * self.beams, device=self.done.device)
            return parents // (len(parents) // backbone_rows), torch.full_like(parents, self.end)
        return outcome

    def endings(self, ended: Sequence[bool]) -> list[Ended]:
        """The endings of the rows that `ended`."""
        if not any(ended):
            return []
        texts = self.finished[:, 0, 1:].tolist()
        broken = self.segment.broken.tolist()
        return [
            (self.segment, row, self.segment.ending(text, broken=bad, end=self.end))
            for row, text, bad, over in zip(self.rows, texts, broken, ended, strict=True)
            if over
        ]

    def keep(self, indices: Sequence[int]) -> Tensor:
        """Keep the rows with these indices alone, and return the indices of their backbone rows, (N,)."""
        chosen = torch.tensor(indices, dtype=torch.long, device=self.done.device)
        width = self.backbone_rows // len(self.rows)
        backbone_rows = (chosen[:, None] * width + torch.arange(width, device=chosen.device)).flatten()
        self.rows = [self.rows[index] for index in indices]
        self.running = self.running[chosen]
        self.running_scores = self.running_scores[chosen]
        self.finished = self.finished[chosen]
        self.finished_scores = self.finished_scores[chosen]
        self.is_finished = self.is_finished[chosen]
        self.done = self.done[chosen]
        if indices:
            self.segment.keep(chosen, backbone_rows)
        return backbone_rows

    def _step(self, backbone: Backbone, taps: Taps) -> tuple[Tensor, Tensor]:
        segment, first = self.segment, self.length == 0
        state = segment.side.decode(taps, segment.memory, segment.memory_mask, segment.cache)
        parents = self._advance(self._log_probabilities(backbone.logits(state[:, -1]).float(), first))
        rows, beams = parents.shape
        index = torch.arange(rows, device=parents.device)[:, None]
        order = (index.expand(rows, beams) if first else index * beams + parents).flatten()
        segment.cache.reorder(order, cross=first)
        if first:
            segment.memory = segment.memory[order]
            segment.memory_mask = segment.memory_mask[order]
        return order, self.running[:, :, -1].flatten()

    def _log_probabilities(self, logits: Tensor, first: bool) -> Tensor:
        """(B, W, V), adjusted; any finite numbers for rows whose `logits` (backbone rows, V) are not finite."""
        rows, beams = self.running_scores.shape
        broken = ~torch.isfinite(logits).all(-1).view(rows, -1).all(1)
        self.segment.broken |= broken & ~self.done
        logits = logits.masked_fill(broken.repeat_interleave(len(logits) // rows)[:, None], 0)
        earlier = self.running[:, :1] if first else self.running
        scores = adjust(logits.log_softmax(-1), earlier.flatten(0, 1), self.segment.decoding, self.end)
        return scores.view(rows, -1, scores.shape[-1]).expand(rows, beams, -1)

    def _advance(self, scores: Tensor) -> Tensor:
        """Take the best of all continuations; the beam that each running one continues, (B, W)."""
        decoding = self.segment.decoding
        _, beams, vocabulary = scores.shape
        best, candidates = (scores + self.running_scores[:, :, None]).flatten(1).topk(2 * beams)
        parents = candidates // vocabulary
        tokens = candidates % vocabulary
        texts = torch.cat([_pick(self.running, parents), tokens[:, :, None]], 2)
        length = texts.shape[2] - 1
        last = length >= self.segment.limit
        ended = (tokens == self.end) | (last and not decoding.legacy_beams)
        going_on = best + ended * OUT
        chosen = going_on.topk(beams).indices
        self.running, self.running_scores = _pick(texts, chosen), _pick(going_on, chosen)
        self.finished = torch.cat([self.finished, torch.full_like(self.finished[:, :, :1], self.end)], 2)
        self._collect(texts, best / length**decoding.length_penalty, ended)
        hope = best if decoding.legacy_beams else self.running_scores
        self.done = self.done | self.segment.failed | ~self._can_improve(hope[:, :1], length)
        if last and decoding.legacy_beams:
            scores = self.running_scores / (length + 1) ** decoding.length_penalty  # one more: the start token
            self._collect(self.running, scores, torch.ones_like(self.is_finished))
        self.done = self.done | last
        return _pick(parents, chosen)

    def _collect(self, texts: Tensor, scores: Tensor, ended: Tensor) -> None:
        """Keep the best of the finished `texts` (B, N, T), best first.

        Only the first W may finish; the others are there so that enough beams remain.
        """
        beams = self.running_scores.shape[1]
        ended = ended & (torch.arange(ended.shape[1], device=ended.device) < beams)
        scores = (scores + ~ended * OUT).masked_fill(self.done[:, None], float("-inf"))
        merged = torch.cat([self.finished_scores, scores], 1)
        best = merged.topk(beams).indices
        self.finished, self.finished_scores = _pick(torch.cat([self.finished, texts], 1), best), _pick(merged, best)
        self.is_finished = _pick(torch.cat([self.is_finished, ended], 1), best)

    def _can_improve(self, hope: Tensor, length: int) -> Tensor:
        """(B,) whether a text with the score `hope` (B, 1) may still become better than a finished one.

        `early_stopping` says how strictly that is judged.
        """
        decoding = self.segment.decoding
        longest = self.segment.limit if decoding.early_stopping == "never" and decoding.length_penalty > 0 else length
        worst = torch.where(self.is_finished, self.finished_scores.amin(1, keepdim=True), OUT)
        possible = (hope / longest**decoding.length_penalty > worst).any(1)
        return possible & ~self.is_finished.all(1) if decoding.early_stopping is True else possible


def _pick(values: Tensor, indices: Tensor) -> Tensor:
    """Take (B, K, ...) of `values` (B, N, ...), each row by its own `indices` (B, K)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, indices]
