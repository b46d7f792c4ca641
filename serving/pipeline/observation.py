"""What the service tells of answered requests whose alias has a route, so that its versions can be compared.

Knows no torch and no gRPC, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from serving.errors import ServingError, SideFailed
from serving.pipeline.preprocessing import render_rows
from serving.pipeline.request import DecodingOverrides

if TYPE_CHECKING:
    from serving.engine import EngineRow, Resident
    from serving.pipeline.preprocessing import Encoded, InputRow
    from serving.pipeline.request import Target
    from serving.scheduler import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One task of one request, answered."""

    resident: Resident
    """Who answered."""
    alias: str
    """The alias that led there."""
    beside: tuple[Resident, ...]
    """Who is to answer the same rows, for nobody but the comparison."""
    rows: tuple[EngineRow, ...]
    """As submitted, the distinct ones, in order."""
    prompts: tuple[str, ...]
    """Of those rows."""
    outcomes: tuple[Outcome, ...]
    """Of those rows: an answer or an exception each."""
    seconds: float
    """From submitting the request's rows until all of them had outcomes."""
    since: int
    """The generation that set the alias's route; 0 unknown."""
    inputs: tuple[InputRow, ...] = ()
    """Of those rows, as the caller sent them: a version with another template makes another prompt of them."""
    overrides: DecodingOverrides = field(default_factory=DecodingOverrides)
    """What the request set."""
    refused: int = 0
    """Inputs that this version makes no prompt of, though the alias's own version does. There are no rows then."""
    left: bool = False
    """The caller's time was up, or it left, when these rows were on the device: there are no outcomes, and an answer
    would have taken `seconds` or longer."""


class Observer(Protocol):
    def observe(self, seen: Observation) -> None:
        """Called on the event loop for each. Must not block or raise."""
        ...


class Nothing:
    """An observer that does nothing."""

    def observe(self, seen: Observation) -> None:
        pass


def seen(
    encoded: Encoded,
    inputs: Sequence[InputRow],
    rows: Sequence[EngineRow],
    outcomes: Sequence[Outcome],
    seconds: float,
) -> Observation | None:
    """One task of a request; None where its alias has no route, or none of its outcomes is the version's doing.

    Args:
        inputs, rows, outcomes: in the caller's order, a repeated row as the same object each time.
    """
    target, places = encoded.target, _distinct(rows, outcomes)
    if target.alias is None or target.since is None or not places:
        return None
    return Observation(
        resident=target.resident,
        alias=target.alias,
        beside=target.beside,
        rows=tuple(rows[place] for place in places),
        prompts=tuple(encoded.prompts[place] for place in places),
        outcomes=tuple(outcomes[place] for place in places),
        seconds=seconds,
        since=target.since,
        inputs=tuple(inputs[place] for place in places),
        overrides=target.overrides,
    )


def left(encoded: Encoded, rows: Sequence[EngineRow], seconds: float) -> Observation | None:
    """One task of a request that its caller has left, with the rows that had begun; None where none had."""
    target, rows = encoded.target, tuple(dict.fromkeys(rows))
    if target.alias is None or target.since is None or not rows:
        return None
    return Observation(
        resident=target.resident,
        alias=target.alias,
        beside=(),
        rows=rows,
        prompts=(),
        outcomes=(),
        seconds=seconds,
        since=target.since,
        left=True,
    )


def refused(target: Target, own: Resident | None, inputs: Sequence[InputRow]) -> Observation | None:
    """A request of whose inputs a version with a share makes no prompts.

    None where that is no version's doing: the alias's own one (`own`) makes none of them either, or it is that one.
    """
    if target.alias is None or target.since is None or own is None or own is target.resident:
        return None
    try:
        render_rows(own.spec, inputs)
    except ServingError:
        return None
    return Observation(
        resident=target.resident,
        alias=target.alias,
        beside=(),
        rows=(),
        prompts=(),
        outcomes=(),
        seconds=0.0,
        since=target.since,
        refused=len(inputs),
    )


def tells(outcome: Outcome) -> bool:
    """Of the version that was to answer: an answer, or its own failure. Load and failed turns may be anybody's."""
    return not isinstance(outcome, Exception) or isinstance(outcome, SideFailed)


def _distinct(rows: Sequence[EngineRow], outcomes: Sequence[Outcome]) -> list[int]:
    """The first place of each row whose outcome tells of the version."""
    first: dict[EngineRow, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row, place)
    return [place for place in first.values() if tells(outcomes[place])]
