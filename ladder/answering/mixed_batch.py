"""Answers a mixed batch: rows of many tasks read one backbone pass, those of stacked side networks together."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ladder.answering.answerers import Answerer, Classify, Generate, Scoring
from ladder.answering.reading import OwnReading
from ladder.answers import Answer
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass, DecoderTaps, run_backbone
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.errors import is_out_of_memory
from ladder.side.network import mean_of_real
from ladder.stacked.grouping import group_rows, take
from ladder.stacked.heads import StackedLinear
from ladder.stacked.layout import StackShape
from ladder.stacked.network import Side, StackedBatch, StackedSide

Deliver = Callable[[Sequence[tuple[int, Answer | Exception]]], None]
"""Told rows by their places, and their answers or why they have none."""
Prefix = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input for one side network."""

    ids: tuple[int, ...]
    """Token ids with the end token, not padded, at least one."""
    side: Side
    answerer: Answerer
    salt: str = ""
    """Rows of different salts share no input, though the tokens be the same."""


@dataclass(slots=True, eq=False)
class Group:
    """The rows of one side network that are answered alike."""

    side: Side
    answerer: Scoring
    places: list[int]
    """Where its rows stand among all rows."""
    inputs: list[int]
    """The pass's row that each of them reads."""

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        return self.answerer.prefixes if isinstance(self.answerer, Classify) else ()


class _Decoder:
    """The backbone decoder's taps after each prefix, run once for all the inputs that need it, and for them alone."""

    def __init__(self, given: BackbonePass, groups: Sequence[Group]) -> None:
        self._given = given
        self._needed: dict[Prefix, set[int]] = {}
        for group in groups:
            for prefix in group.prefixes:
                self._needed.setdefault(prefix, set()).update(group.inputs)
        self._heard: dict[Prefix, DecoderTaps] = {}

    def after(self, prefix: Prefix) -> DecoderTaps:
        if prefix not in self._heard:
            self._heard[prefix] = self._given.hear(sorted(self._needed[prefix]), prefix)
        return self._heard[prefix]


def score(given: BackbonePass, rows: Sequence[Row], inputs: Sequence[int], deliver: Deliver) -> None:
    """Answer all rows but those that make texts.

    Args:
        inputs: the row of `given` that each row reads.
        deliver: told group by group; side networks that are computed together first.
    """
    groups = _groups(rows, inputs)
    decoder = _Decoder(given, groups)
    for team in _teams(groups):
        _answer_team(given, decoder, team, deliver)
    for group in groups:
        if not isinstance(group.side, StackedSide):
            _deliver(group, _guarded(group, lambda group=group: _answer_alone(given, decoder, group)), deliver)


def _groups(rows: Sequence[Row], inputs: Sequence[int]) -> list[Group]:
    groups: dict[tuple[int, int], Group] = {}
    for place, (row, read) in enumerate(zip(rows, inputs, strict=True)):
        if isinstance(row.answerer, Generate):
            continue
        group = groups.setdefault((id(row.side), id(row.answerer)), Group(row.side, row.answerer, [], []))
        group.places.append(place)
        group.inputs.append(read)
    return list(groups.values())


def _teams(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups of each shape that can be stacked."""
    teams: dict[StackShape, list[Group]] = {}
    for group in groups:
        if isinstance(group.side, StackedSide):
            teams.setdefault(group.side.shape, []).append(group)
    return list(teams.values())


def _answer_team(given: BackbonePass, decoder: _Decoder, team: list[Group], deliver: Deliver) -> None:
    try:
        readings = read_together(given, decoder.after, team)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if len(team) == 1:
            return _deliver(team[0], [error] * len(team[0].places), deliver)
        for group in team:  # one of them is at fault: the others shall not suffer for it
            _answer_team(given, decoder, [group], deliver)
        return None
    for group, reading in zip(team, readings, strict=True):
        _deliver(group, _guarded(group, lambda g=group, r=reading: g.answerer.answers(r)), deliver)
    return None


def _answer_alone(given: BackbonePass, decoder: _Decoder, group: Group) -> list[Answer | Exception]:
    def hear(prefix: Prefix) -> Taps:
        return decoder.after(prefix).select(group.inputs)

    return group.answerer.answers(OwnReading(given.select(group.inputs), group.side, hear))


def _guarded(group: Group, compute: Callable[[], list[Answer | Exception]]) -> list[Answer | Exception]:
    try:
        return compute()
    except Exception as error:  # a side network's fault must not reach its neighbours
        if is_out_of_memory(error):
            raise  # the device's fault, not this side network's
        return [error] * len(group.places)


def _deliver(group: Group, answers: Sequence[Answer | Exception], deliver: Deliver) -> None:
    deliver(list(zip(group.places, answers, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamReading:
    """One group's part of what was computed together; see `ladder.answering.reading.Reading`."""

    backbone: Backbone
    side: StackedSide
    memory: Tensor
    mask: Tensor
    means: Tensor | None
    """(B, d), of a linear head: the mean of the side encoder's real tokens."""
    words: Callable[[], Tensor]
    """(B, D): the mean of the real tokens' embeddings."""
    states: dict[Prefix, Tensor]

    def outputs(self) -> Tensor:
        head = self.side.head
        assert head is not None
        if isinstance(head, StackedLinear) and self.means is not None:
            return head.of_mean(self.means)
        return head.read(self.memory, self.mask)

    def all_outputs(self) -> Tensor:
        said, head = self.outputs(), self.side.head
        if isinstance(head, StackedLinear) and head.words is not None:
            said = said + head.of_words(self.words())
        return said

    def state_after(self, prefix: Prefix) -> Tensor:
        return self.states[prefix]


class _Team:
    """Groups of one shape, and their rows in the order in which they are computed."""

    def __init__(self, given: BackbonePass, groups: Sequence[Group]) -> None:
        owners = [group for group in groups for _ in group.places]
        inputs = [read for group in groups for read in group.inputs]
        order, _ = group_rows([_side(group).place for group in owners])
        self.given, self.groups = given, groups
        self.inputs = [inputs[row] for row in order]
        self.sides = [_side(owners[row]) for row in order]
        self.rows: dict[Group, list[int]] = {group: [] for group in groups}
        for place, row in enumerate(order):
            self.rows[owners[row]].append(place)
        self.line = StackedBatch(self.sides)
        self.memory = self.line.encode(given.taps, self.inputs)
        self.mask = take(given.taps.mask, self.inputs)

    def means(self) -> Tensor | None:
        """(B, d) that linear heads read; None where no group has one."""
        linear = any(isinstance(_side(group).head, StackedLinear) for group in self.groups)
        return mean_of_real(self.memory, self.mask) if linear else None

    def words(self, rows: Sequence[int]) -> Tensor:
        """(rows, D): the mean of the real tokens' embeddings."""
        inputs = [self.inputs[row] for row in rows]
        return mean_of_real(take(self.given.taps.embeddings, inputs), take(self.mask, rows))

    def states(self, prefix: Prefix, hear: Callable[[Prefix], DecoderTaps]) -> dict[Group, Tensor]:
        """What says the token after a prefix, (rows, D), for each group that needs it."""
        speaking = [group for group in self.groups if prefix in group.prefixes]
        rows = sorted(row for group in speaking for row in self.rows[group])
        taps = hear(prefix).select([self.inputs[row] for row in rows])
        line = self.line if len(rows) == len(self.sides) else StackedBatch([self.sides[row] for row in rows])
        said = line.decode(taps, take(self.memory, rows), take(self.mask, rows))[:, -1]
        place = {row: at for at, row in enumerate(rows)}
        return {group: take(said, [place[row] for row in self.rows[group]]) for group in speaking}


def read_together(
    given: BackbonePass, hear: Callable[[Prefix], DecoderTaps], groups: Sequence[Group]
) -> list[TeamReading]:
    """What the side network of each group says, all of one shape, computed for all of them at once."""
    team = _Team(given, groups)
    prefixes = dict.fromkeys(prefix for group in groups for prefix in group.prefixes)
    states, means = {prefix: team.states(prefix, hear) for prefix in prefixes}, team.means()
    return [
        TeamReading(
            backbone=given.backbone,
            side=_side(group),
            memory=take(team.memory, rows),
            mask=take(team.mask, rows),
            means=None if means is None else take(means, rows),
            words=partial(team.words, rows),
            states={prefix: states[prefix][group] for prefix in group.prefixes},
        )
        for group, rows in team.rows.items()
    ]


def _side(group: Group) -> StackedSide:
    assert isinstance(group.side, StackedSide)
    return group.side


Observe = Callable[[str, float], None]
"""Told a stage ("backbone", "side", "decode") and its seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch needs of the backbone."""

    inputs: list[tuple[str, tuple[int, ...]]]
    """The distinct inputs: salt and tokens. Ordered as side networks are computed, so that they read them in place."""
    places: list[int]
    """Of each row, the input that it reads."""
    depth: int | None
    """The deepest block that any side network reads; None where one needs the decoder."""


def plan(rows: Sequence[Row]) -> Plan:
    """The distinct inputs of rows of any tasks, and how deep the backbone must run for them."""
    inputs: dict[tuple[str, tuple[int, ...]], int] = {}
    places = [0] * len(rows)
    for row in _in_order(rows):
        places[row] = inputs.setdefault((rows[row].salt, rows[row].ids), len(inputs))
    depths = [row.side.encoder_depth for row in rows]
    known = [depth for depth in depths if depth is not None]
    return Plan(list(inputs), places, max(known, default=0) if len(known) == len(depths) else None)


def _in_order(rows: Sequence[Row]) -> list[int]:
    """The rows in the order in which they will be computed, as far as that is known."""
    alike: dict[object, list[int]] = {}
    modules: dict[int, int] = {}
    for place, row in enumerate(rows):
        kind = row.side.shape if isinstance(row.side, StackedSide) else None
        alike.setdefault((kind, isinstance(row.answerer, Generate)), []).append(place)
    ordered = []
    for members in alike.values():
        inside, _ = group_rows([_slot(rows[place].side, modules) for place in members])
        ordered.extend(members[each] for each in inside)
    return ordered


def _slot(side: Side, modules: dict[int, int]) -> tuple[int, int]:
    """Where it is computed among others: a module, when it first comes."""
    return side.place if isinstance(side, StackedSide) else (-1, modules.setdefault(id(side), len(modules)))


@dataclass(slots=True, eq=False)
class _Texts:
    """The rows of one side network whose texts are made alike."""

    side: Side
    answerer: Generate
    places: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)


@torch.inference_mode()
def answer(backbone: Backbone, rows: Sequence[Row], observe: Observe | None = None) -> list[Answer | Exception]:
    """Answers in the rows' order; an exception in place of a row that its side network failed."""
    if not rows:
        return []
    planned = plan(rows)
    clock = _Clock(observe, backbone.device)
    with clock.stage("backbone"):
        given = run_backbone(backbone, [ids for _, ids in planned.inputs], planned.depth)
    results: list[Answer | Exception] = [RuntimeError("not answered")] * len(rows)

    def deliver(answered: Sequence[tuple[int, Answer | Exception]]) -> None:
        for place, outcome in answered:
            results[place] = outcome

    with clock.stage("side"):
        score(given, rows, planned.places, deliver)
    texts = _texts(rows, planned.places)
    if texts:
        with clock.stage("decode"):
            _generate(backbone, given, texts, deliver)
    return results


def _texts(rows: Sequence[Row], inputs: Sequence[int]) -> list[_Texts]:
    groups: dict[tuple[int, Generate], _Texts] = {}
    for place, row in enumerate(rows):
        if isinstance(row.answerer, Generate):
            key = id(row.side), row.answerer.unseeded
            group = groups.setdefault(key, _Texts(row.side, row.answerer))
            group.places.append(place)
            group.inputs.append(inputs[place])
            group.seeds.append(row.answerer.generation.seed)
    return list(groups.values())


def _generate(backbone: Backbone, given: BackbonePass, groups: Sequence[_Texts], deliver: Deliver) -> None:
    segments = []
    for group in groups:
        limit, how = group.answerer.max_new_tokens, group.answerer.generation
        taps = given.select(group.inputs).taps
        segments.append(Segment(side=group.side, taps=taps, limit=limit, generation=how, seeds=group.seeds))
    for group, decoded in zip(groups, generate(backbone, segments), strict=True):
        deliver(list(zip(group.places, group.answerer.finish(decoded), strict=True)))


@dataclass(frozen=True, slots=True)
class _Clock:
    """Times stages for an observer, if there is one; on a GPU until the work is done, not until it is launched."""

    observe: Observe | None
    device: torch.device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.observe is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.observe(name, time.perf_counter() - started)
