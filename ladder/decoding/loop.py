"""The loop that makes texts, greedily or by sampling: one backbone decoder step for the rows of all tasks at a time.

Rows join and leave between two steps; a row's text does not depend on its neighbours. Equal to decoding each row alone
without a cache, and to Hugging Face's generate on the same logits.

A step first computes and then commits. Computing may find no memory at any point; until the commit (`_close`), keys and
values of the new token are written past the end of the caches and random numbers are drawn from copies, so the next
step simply does it again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone.images import Images
from ladder.backbone.kv_cache import CrossKV, StaticCache
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass
from ladder.decoding.lanes import Failures, Lane, RunningRow, lane_key
from ladder.decoding.logits import adjust, draw
from ladder.decoding.segments import Tokens, not_finite
from ladder.decoding.settings import Generation


@dataclass(frozen=True, slots=True)
class StepResult:
    """One row's result of a step."""

    row: RunningRow
    token: int | None
    """The new one; None where the row ended without one."""
    ending: Tokens | Exception | None = None
    """All of its tokens, without start and end tokens, or why it failed; None: it goes on."""


@dataclass(slots=True, eq=False)
class _Group:
    """Rows of one lane that join together."""

    taps: Taps
    rows: list[RunningRow] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    images: Images | None = None
    """Of its rows; None: those of the rows of `taps` that they read."""

    def drop(self, gone: Collection[RunningRow]) -> None:
        left = [number for number, row in enumerate(self.rows) if row not in gone]
        self.rows = [self.rows[number] for number in left]
        self.inputs = [self.inputs[number] for number in left]
        self.images = None if self.images is None else self.images.select(left)


class RunningRows:
    """The rows whose texts are being made on one backbone."""

    def __init__(self, backbone: Backbone) -> None:
        blocks = backbone.decoder_cache().blocks if backbone.has_decoder else 0  # without one, no row ever runs
        self._backbone, self._cache = backbone, StaticCache(blocks)
        self._rows: list[RunningRow] = []  # in the cache's order
        self._lanes: dict[object, Lane] = {}
        self._waiting: list[_Group] = []
        self._results: list[StepResult] = []  # known, not yet returned by a step
        self._indices: dict[Lane, Tensor | None] = {}  # of a lane's rows in `_rows`; None: it has all, in their order

    def __len__(self) -> int:
        return len(self._rows) + sum(len(group.rows) for group in self._waiting)

    @property
    def bytes(self) -> int:
        """Bytes of the backbone's and the side networks' keys and values."""
        return self._cache.bytes + sum(lane.bytes for lane in self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """True where the next step has nothing to do and nothing to return."""
        return not (self._rows or self._waiting or self._results)

    def join(
        self,
        rows: Sequence[RunningRow],
        backbone_pass: BackbonePass,
        inputs: Sequence[int],
        images: Images | None = None,
    ) -> None:
        """Add rows, which begin with the next step. Rows with too few or too many images fail alone.

        Args:
            backbone_pass: of the whole encoder.
            inputs: for each row, the index of the input in `backbone_pass` that it reads.
            images: of these rows; None: those of the inputs that they read.
        """
        groups: dict[object, list[int]] = {}
        for number, row in enumerate(rows):
            if row.limit < 1:
                self._results.append(StepResult(row, None, ()))
                continue
            count = 0 if images is None else len(images.rows[number])
            groups.setdefault((lane_key(row.side), count), []).append(number)
        for numbers in groups.values():
            self._waiting.append(
                _Group(
                    backbone_pass.taps,
                    [rows[number] for number in numbers],
                    [inputs[number] for number in numbers],
                    None if images is None else images.select(numbers),
                )
            )

    @torch.inference_mode()
    def leave(self, rows: Collection[RunningRow]) -> None:
        """Remove rows, at any token. No step returns them any more.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: no memory to move the others. Call it again then.
        """
        self._results = [result for result in self._results if result.row not in rows]
        for group in self._waiting:
            group.drop(rows)
        self._waiting = [group for group in self._waiting if group.rows]
        self._drop(rows)
        self._settle()

    @torch.inference_mode()
    def step(self) -> list[StepResult]:
        """Decode one token for each running row: its token, or its ending.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: the device has no memory. No result is lost, and the next
                step does again what this one has not finished. Fewer rows may need less.
        """
        self._settle()
        self._admit()
        if self._rows:
            self._advance()
        self._settle()
        results, self._results = self._results, []
        return results

    def _settle(self) -> None:
        """Drop rows that ended, and from lanes those that did not join: an earlier step may have found no memory."""
        self._drop({result.row for result in self._results if result.ending is not None})
        if sum(len(lane.rows) for lane in self._lanes.values()) > len(self._rows):
            joined = set(self._rows)
            for lane in self._lanes.values():
                lane.drop([row for row in lane.rows if row not in joined])
            self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}

    def _admit(self) -> None:
        while self._waiting:
            self._admit_group(self._waiting[0])
            del self._waiting[0]

    def _admit_group(self, group: _Group) -> None:
        """Have all of them join or, without memory, none: `_settle` takes them out of the lane then."""
        key = lane_key(group.rows[0].side)
        lane = self._lanes.get(key) or Lane()
        failures = dict(lane.admit(group.rows, group.taps, group.inputs, group.images))
        joining = [(row, index) for row, index in zip(group.rows, group.inputs, strict=True) if row not in failures]
        if joining:
            inputs = [index for _, index in joining]
            self._cache.admit(self._cross_kv(group.taps, inputs), group.taps.mask[inputs])
            self._lanes[key] = lane
        self._results += [StepResult(row, None, error) for row, error in failures.items()]
        self._rows += [row for row, _ in joining]
        self._indices.clear()

    def _cross_kv(self, taps: Taps, inputs: Sequence[int]) -> CrossKV:
        """The backbone decoder's keys and values of each row's input, computed once for each distinct input."""
        assert taps.final is not None
        distinct = sorted(set(inputs))
        final = taps.final if distinct == list(range(len(taps.mask))) else taps.final[distinct]
        cross_kv = self._backbone.cross_kv(final)
        if distinct == list(inputs):
            return cross_kv
        row_of = {index: row for row, index in enumerate(distinct)}
        rows = torch.tensor([row_of[index] for index in inputs], device=taps.mask.device)
        return [(keys[rows], values[rows]) for keys, values in cross_kv]

    def _advance(self) -> None:
        start, device = self._backbone.config.decoder_start_token_id, self._backbone.device
        newest = torch.tensor([[row.tokens[-1] if row.tokens else start] for row in self._rows], device=device)
        self._cache.open()
        taps = self._backbone.decode(newest, newest[:0], self._cache.memory_mask, self._cache)
        states, rows = [], []
        for lane in self._lanes.values():
            failures: Failures = []
            try:
                states += lane.decode(self._taps_of(lane, taps), failures)
            finally:
                self._results += [StepResult(row, None, error) for row, error in failures]
                if failures:
                    self._indices.clear()
            rows += lane.rows
        random = {row: row.random.clone_state() for row in rows if row.random is not None}
        tokens = self._choose(torch.cat(states), rows, random) if states else []
        self._close(rows, tokens, random)

    def _close(
        self, rows: Sequence[RunningRow], tokens: Sequence[int], random: Mapping[RunningRow, torch.Generator]
    ) -> None:
        """Make the tokens part of the texts. Takes no memory on the device, so that a step does this whole or not."""
        self._cache.close()
        for lane in self._lanes.values():
            lane.close()
        for row, generator in random.items():
            row.random = generator
        self._results += [self._result(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _taps_of(self, lane: Lane, taps: Taps) -> Taps:
        if lane not in self._indices:
            index_of = {row: index for index, row in enumerate(self._rows)}
            indices = [index_of[row] for row in lane.rows]
            all_of_them = indices == list(range(len(self._rows)))
            self._indices[lane] = None if all_of_them else torch.tensor(indices, device=taps.mask.device)
        chosen = self._indices[lane]
        return taps if chosen is None else taps.select(chosen)

    def _choose(
        self, states: Tensor, rows: Sequence[RunningRow], random: Mapping[RunningRow, torch.Generator]
    ) -> list[int]:
        """The next token of each row; -1 where its logits are not finite.

        Args:
            random: copies of the generators of rows that are sampled; drawing changes them.
        """
        logits = self._backbone.logits(states)
        tokens = logits.argmax(-1)
        for index, row in enumerate(rows):
            if row.decoding.changes_scores:
                tokens[index] = self._adjusted(logits[index : index + 1].float(), row, random.get(row))
        finite = logits.sum(-1, dtype=torch.float32).isfinite()  # a sum with one number that is not finite is not
        chosen = tokens.masked_fill(~finite, -1).tolist()
        for index, row in enumerate(rows):
            ends = chosen[index] == self._backbone.config.eos_token_id
            if ends and row.is_too_short and not row.decoding.changes_scores:
                chosen[index] = int(self._adjusted(logits[index : index + 1].float(), row, None))
        return chosen

    def _adjusted(self, scores: Tensor, row: RunningRow, random: torch.Generator | None) -> Tensor:
        config = self._backbone.config
        earlier = torch.tensor([[config.decoder_start_token_id, *row.tokens]], device=scores.device)
        scores = adjust(scores, earlier, row.decoding, config.eos_token_id)
        if random is None:
            return scores[0].argmax()
        return draw(scores, [0], [random], config.eos_token_id)[0]

    def _result(self, row: RunningRow, token: int) -> StepResult:
        if token < 0:
            return StepResult(row, None, not_finite())
        if token == self._backbone.config.eos_token_id:
            return StepResult(row, None, tuple(row.tokens))
        row.tokens.append(token)
        return StepResult(row, token, tuple(row.tokens) if len(row.tokens) >= row.limit else None)

    def _drop(self, gone: Collection[RunningRow]) -> None:
        indices = {index for index, row in enumerate(self._rows) if row in gone}
        if not indices:
            return
        self._indices.clear()
        for lane in self._lanes.values():  # `_rows` changes last: a call that finds no memory is done again
            lane.drop(gone)
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}
        order = self._cache.drop(indices)
        self._rows = [self._rows[row] for row in order]


def random_numbers(decoding: Generation, seed: int | None, device: torch.device) -> torch.Generator | None:
    """A generator for one row, so that its text does not depend on its neighbours; None without sampling."""
    if not decoding.do_sample:
        return None
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
