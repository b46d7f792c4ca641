"""Answers that need no text, for rows of any tasks from one backbone pass: side networks of one shape together.

A side network's failure is its own rows': what it computes never reaches its neighbours' numbers, and where a joint
computation raises, it is done again for each side network alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ladder.answerers import Answerer, Classify, Generate, Scoring
from ladder.answers import Answer
from ladder.backbone import Backbone, Taps
from ladder.backbone_pass import BackbonePass, Heard
from ladder.errors import is_out_of_memory
from ladder.reading import OwnReading
from ladder.side import mean_of_real
from ladder.stack_heads import StackedLinear
from ladder.stack_layout import StackShape
from ladder.stack_reads import take
from ladder.stack_runs import arrange
from ladder.stacked import Lineup, Side, StackedSide

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
        self._heard: dict[Prefix, Heard] = {}

    def after(self, prefix: Prefix) -> Heard:
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
    """One group's part of what was computed together; see `ladder.reading.Reading`."""

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
        order, _ = arrange([_side(group).place for group in owners])
        self.given, self.groups = given, groups
        self.inputs = [inputs[row] for row in order]
        self.sides = [_side(owners[row]) for row in order]
        self.rows: dict[Group, list[int]] = {group: [] for group in groups}
        for place, row in enumerate(order):
            self.rows[owners[row]].append(place)
        self.line = Lineup(self.sides)
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

    def states(self, prefix: Prefix, hear: Callable[[Prefix], Heard]) -> dict[Group, Tensor]:
        """What says the token after a prefix, (rows, D), for each group that needs it."""
        speaking = [group for group in self.groups if prefix in group.prefixes]
        rows = sorted(row for group in speaking for row in self.rows[group])
        taps = hear(prefix).select([self.inputs[row] for row in rows])
        line = self.line if len(rows) == len(self.sides) else Lineup([self.sides[row] for row in rows])
        said = line.decode(taps, take(self.memory, rows), take(self.mask, rows))[:, -1]
        place = {row: at for at, row in enumerate(rows)}
        return {group: take(said, [place[row] for row in self.rows[group]]) for group in speaking}


def read_together(given: BackbonePass, hear: Callable[[Prefix], Heard], groups: Sequence[Group]) -> list[TeamReading]:
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
