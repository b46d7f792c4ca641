"""How a batch of many tasks is computed: its rows in groups, in the order of computation, and the inputs they read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ladder.answering.answerers import Answerer, Classify, Generate
from ladder.answering.words import Words
from ladder.backbone.tokenizer import Pair
from ladder.stacked.grouping import Grouping, Run, group_rows
from ladder.stacked.network import Side, StackedSide
from ladder.stacked.products import Chunk

Prefix = tuple[int, ...]
"""Tokens after the start token."""
Input = tuple[str, tuple[int, ...]]
"""Salt and token ids."""
Image = tuple[str, str]
"""Salt and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input for one side network."""

    ids: tuple[int, ...]
    """Token ids with the end token, not padded, at least one."""
    side: Side
    answerer: Answerer
    salt: str = ""
    """Rows of different salts share no input and no image, though their tokens and names be equal."""
    images: tuple[str, ...] = ()
    """Names of its images, in their order. A side network that reads no images ignores them."""
    pair: Pair | None = None
    """Where the two texts of a pair lie, for a side network that reads them apart; others ignore it."""
    words: Words | None = None
    """The words of its text, for a task that tags them."""


@dataclass(slots=True, eq=False)
class Answered:
    """The rows of one side network in a group that one answerer answers."""

    side: Side
    answerer: Answerer
    positions: list[int] = field(default_factory=list)
    """Of its rows, in the group."""

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The decoder's tokens so far at each point where the answerer's labels differ in the next one."""
        return self.answerer.prefixes if isinstance(self.answerer, Classify) else ()


@dataclass(slots=True, eq=False)
class Group:
    """Rows that are computed as one: of stacked side networks of one shape, or of one other side network.

    Either all of them make texts or none does. The lists are in the order of computation.
    """

    rows: Sequence[Row]
    indices: Sequence[int]
    """Each row's index in the batch."""
    inputs: Sequence[int]
    """The row of the backbone pass that each row reads."""
    runs: Sequence[Run[Chunk]]
    """How `StackedBatch` computes the rows; empty where the side network is not stacked."""
    images: Sequence[tuple[int, ...]] = ()
    """For each row, which of the plan's images it reads; empty where the rows name none, or their side networks read
    none."""
    parts: list[Answered] = field(init=False)

    def __post_init__(self) -> None:
        parts: dict[tuple[int, int], Answered] = {}
        for position, row in enumerate(self.rows):
            key = id(row.side), id(row.answerer)
            parts.setdefault(key, Answered(row.side, row.answerer)).positions.append(position)
        self.parts = list(parts.values())

    @property
    def makes_texts(self) -> bool:
        """True where the rows' answers are texts."""
        return isinstance(self.rows[0].answerer, Generate)

    @property
    def is_stacked(self) -> bool:
        """True where the side networks are stacked."""
        return isinstance(self.rows[0].side, StackedSide)

    @property
    def has_one_side(self) -> bool:
        """True where all rows are of one side network."""
        return all(row.side is self.rows[0].side for row in self.rows)

    def select(self, positions: Sequence[int]) -> "Group":
        """Make the group of some of its rows, which are ordered anew."""
        grouping = _grouping([self.rows[position] for position in positions])
        ordered = [positions[index] for index in grouping.order]
        return Group(
            [self.rows[position] for position in ordered],
            [self.indices[position] for position in ordered],
            [self.inputs[position] for position in ordered],
            grouping.runs,
            [self.images[position] for position in ordered] if self.images else (),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch needs of the backbone, and how its rows are computed."""

    inputs: list[Input]
    """The distinct inputs. Ordered as rows are computed, so that side networks read taps without a copy."""
    depth: int | None
    """The deepest block that any side network reads; None where one needs the decoder."""
    groups: list[Group]
    """Stacked side networks first, then the others, then those that make texts."""
    images: list[Image]
    """The distinct images that some side network reads."""

    @property
    def first_step_inputs(self) -> list[int]:
        """Indices of the inputs whose first decoder step some task reads; it is the same for all tasks."""
        reads = {
            group.inputs[position]
            for group in self.groups
            for part in group.parts
            if () in part.prefixes
            for position in part.positions
        }
        return sorted(reads)

    def select(self, inputs: Sequence[int]) -> list[Group]:
        """List the groups of the rows that read some of the inputs, for a backbone pass over those, in that order."""
        if list(inputs) == list(range(len(self.inputs))):
            return self.groups
        pass_rows = {index: row for row, index in enumerate(inputs)}
        groups = []
        for group in self.groups:
            positions = [position for position, index in enumerate(group.inputs) if index in pass_rows]
            if positions:
                part = group.select(positions)
                part.inputs = [pass_rows[index] for index in part.inputs]
                groups.append(part)
        return groups


def plan(rows: Sequence[Row]) -> Plan:
    """Group the rows of any tasks, and number their distinct inputs and images.

    The rows of a group have equally many images: one with too few or too many fails without the others.
    """
    alike: dict[tuple[int, object, int], list[int]] = {}
    for index, row in enumerate(rows):
        stacked = isinstance(row.side, StackedSide)
        stage = 2 if isinstance(row.answerer, Generate) else 0 if stacked else 1
        key = stage, row.side.shape if stacked else id(row.side), len(row.images)
        alike.setdefault(key, []).append(index)
    inputs: dict[Input, int] = {}
    images: dict[Image, int] = {}
    groups = []
    for _, indices in sorted(alike.items(), key=lambda item: item[0][0]):
        grouping = _grouping([rows[index] for index in indices])
        ordered = [indices[position] for position in grouping.order]
        members = [rows[index] for index in ordered]
        reads = [inputs.setdefault((row.salt, row.ids), len(inputs)) for row in members]
        seen: Sequence[tuple[int, ...]] = ()
        if members[0].images and members[0].side.config.visual is not None:
            seen = [tuple(images.setdefault((row.salt, name), len(images)) for name in row.images) for row in members]
        groups.append(Group(members, ordered, reads, grouping.runs, seen))
    depths = [row.side.encoder_depth for row in rows]
    known = [depth for depth in depths if depth is not None]
    return Plan(list(inputs), max(known, default=0) if len(known) == len(depths) else None, groups, list(images))


def _grouping(rows: Sequence[Row]) -> Grouping[Chunk]:
    slots = [(row.side.chunk, row.side.slot) for row in rows if isinstance(row.side, StackedSide)]
    return group_rows(slots) if slots else Grouping(range(len(rows)), ())
