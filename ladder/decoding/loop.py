"""The loop that makes texts, greedily or by drawing: one backbone decoder step for the rows of all tasks at a time.

Rows join and leave between two steps; a row's text does not depend on its neighbours. Equal to decoding each row alone
without a cache, and to Hugging Face's generate on the same logits.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladder.backbone.kv_cache import CrossKV, StaticCache
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass
from ladder.decoding.lanes import Failures, Lane, RunningRow, lane_key
from ladder.decoding.logits import adjust, draw
from ladder.decoding.segments import Tokens, not_finite
from ladder.decoding.settings import Generation


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step has brought a row."""

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

    def drop(self, gone: Collection[RunningRow]) -> None:
        left = [(row, place) for row, place in zip(self.rows, self.inputs, strict=True) if row not in gone]
        self.rows, self.inputs = [row for row, _ in left], [place for _, place in left]


class RunningRows:
    """The rows whose texts are being made on one backbone."""

    def __init__(self, backbone: Backbone) -> None:
        blocks = backbone.decoder_cache().blocks if backbone.has_decoder else 0  # without one, no row ever runs
        self._backbone, self._cache = backbone, StaticCache(blocks)
        self._rows: list[RunningRow] = []  # in the cache's order
        self._lanes: dict[object, Lane] = {}
        self._waiting: list[_Group] = []
        self._ended: list[StepResult] = []  # known already, told by the next step
        self._drawn: list[
            tuple[torch.Generator, Tensor]
        ] = []  # of this step, and where each one's numbers stood before
        self._places: dict[Lane, Tensor | None] = {}  # of a lane's rows among all; None: it has all, in their order

    def __len__(self) -> int:
        return len(self._rows) + sum(len(group.rows) for group in self._waiting)

    @property
    def bytes(self) -> int:
        """Of keys and values, the backbone's and the side networks'."""
        return self._cache.bytes + sum(lane.bytes for lane in self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """The next step has nothing to do and nothing to tell."""
        return not (self._rows or self._waiting or self._ended)

    def join(self, rows: Sequence[RunningRow], given: BackbonePass, inputs: Sequence[int]) -> None:
        """Rows begin with the next step; row i reads input `inputs[i]` of `given`, which ran the whole encoder."""
        groups: dict[object, _Group] = {}
        for row, place in zip(rows, inputs, strict=True):
            if row.limit < 1:
                self._ended.append(StepResult(row, None, ()))
                continue
            group = groups.setdefault(lane_key(row.side), _Group(given.taps))
            group.rows.append(row)
            group.inputs.append(place)
        self._waiting += groups.values()

    @torch.inference_mode()
    def leave(self, rows: Collection[RunningRow]) -> None:
        """Rows go, at whatever token they are. Nothing is told of them any more."""
        self._ended = [said for said in self._ended if said.row not in rows]
        for group in self._waiting:
            group.drop(rows)
        self._waiting = [group for group in self._waiting if group.rows]
        self._drop(rows)

    @torch.inference_mode()
    def step(self) -> list[StepResult]:
        """One token on: what each row that is running has said, and those that ended.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: the device has no room. Nothing has been said; fewer rows
                may get further.
        """
        self._admit()
        if self._rows:
            try:
                self._advance()
            except BaseException:
                self._cache.rewind()
                for lane in self._lanes.values():
                    lane.rewind()
                for numbers, state in self._drawn:
                    numbers.set_state(state)
                self._drop({said.row for said in self._ended if said.ending is not None})
                raise
            finally:
                self._drawn.clear()
        said, self._ended = self._ended, []
        self._drop({each.row for each in said if each.ending is not None})
        return said

    def _admit(self) -> None:
        while self._waiting:
            self._admit_group(self._waiting[0])
            del self._waiting[0]

    def _admit_group(self, group: _Group) -> None:
        """All of them or, if there is no room, none."""
        key = lane_key(group.rows[0].side)
        lane = self._lanes.get(key) or Lane()
        try:
            failures = dict(lane.admit(group.rows, group.taps, group.inputs))
            begun = [place for place, row in enumerate(group.rows) if row not in failures]
            if begun:
                inputs = [group.inputs[place] for place in begun]
                self._cache.admit(self._crossings(group.taps, inputs), group.taps.mask[inputs])
        except BaseException:
            lane.drop(set(group.rows))
            raise
        self._ended += [StepResult(row, None, error) for row, error in failures.items()]
        self._rows += [group.rows[place] for place in begun]
        if begun:
            self._lanes[key] = lane
        self._places.clear()

    def _crossings(self, taps: Taps, inputs: Sequence[int]) -> CrossKV:
        """What the backbone's decoder reads of each row's input, computed once for each."""
        assert taps.final is not None
        distinct = sorted(set(inputs))
        final = taps.final if distinct == list(range(len(taps.mask))) else taps.final[distinct]
        cross_kv = self._backbone.cross_kv(final)
        if distinct == list(inputs):
            return cross_kv
        where = {place: row for row, place in enumerate(distinct)}
        rows = torch.tensor([where[place] for place in inputs], device=taps.mask.device)
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
                self._ended += [StepResult(row, None, error) for row, error in failures]
                if failures:
                    self._places.clear()
            rows += lane.rows
        tokens = self._choose(torch.cat(states), rows) if states else []
        self._cache.close()
        for lane in self._lanes.values():
            lane.close()
        self._ended += [self._say(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _taps_of(self, lane: Lane, taps: Taps) -> Taps:
        if lane not in self._places:
            where = {row: place for place, row in enumerate(self._rows)}
            places = [where[row] for row in lane.rows]
            all_of_them = places == list(range(len(self._rows)))
            self._places[lane] = None if all_of_them else torch.tensor(places, device=taps.mask.device)
        places = self._places[lane]
        return taps if places is None else taps.select(places)

    def _choose(self, states: Tensor, rows: Sequence[RunningRow]) -> list[int]:
        """The next token of each row; -1 where its logits are not finite."""
        logits = self._backbone.logits(states)
        tokens = logits.argmax(-1)
        for place, row in enumerate(rows):
            if row.generation.changes_scores:
                tokens[place] = self._adjusted(logits[place : place + 1].float(), row)
        finite = logits.sum(-1, dtype=torch.float32).isfinite()  # one number that is not makes the sum so
        found = tokens.masked_fill(~finite, -1).tolist()
        for place, row in enumerate(rows):
            ends = found[place] == self._backbone.config.eos_token_id
            if ends and row.is_too_short and not row.generation.changes_scores:
                found[place] = int(self._adjusted(logits[place : place + 1].float(), row))
        return found

    def _adjusted(self, scores: Tensor, row: RunningRow) -> Tensor:
        config = self._backbone.config
        earlier = torch.tensor([[config.decoder_start_token_id, *row.tokens]], device=scores.device)
        scores = adjust(scores, earlier, row.generation, config.eos_token_id)
        if row.random is None:
            return scores[0].argmax()
        self._drawn.append((row.random, row.random.get_state()))
        return draw(scores, [0], [row.random], config.eos_token_id)[0]

    def _say(self, row: RunningRow, token: int) -> StepResult:
        if token < 0:
            return StepResult(row, None, not_finite())
        if token == self._backbone.config.eos_token_id:
            return StepResult(row, None, tuple(row.tokens))
        row.tokens.append(token)
        return StepResult(row, token, tuple(row.tokens) if len(row.tokens) >= row.limit else None)

    def _drop(self, gone: Collection[RunningRow]) -> None:
        places = {place for place, row in enumerate(self._rows) if row in gone}
        if not places:
            return
        self._places.clear()
        for lane in self._lanes.values():  # before the rows are forgotten here: what finds no room is done again
            lane.drop(gone)
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.rows}
        order = self._cache.drop(places)
        self._rows = [self._rows[row] for row in order]


def random_numbers(generation: Generation, seed: int | None, device: torch.device) -> torch.Generator | None:
    """A row's own, so that its text does not depend on its neighbours; None where nothing is drawn."""
    if not generation.do_sample:
        return None
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
