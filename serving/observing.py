"""What the service tells of answered requests whose alias has a route, so that its versions can be compared.

Knows no torch and no gRPC, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from serving.errors import Cancelled, DeadlineExpired, NotServed

if TYPE_CHECKING:
    from serving.admission import Encoded
    from serving.engine import EngineRow
    from serving.pool import Resident
    from serving.prompts import InputRow
    from serving.row_queue import Outcome

LOAD = (NotServed, DeadlineExpired, Cancelled)
"""Rows that fail with these tell nothing of the version that was to answer them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
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


class Observer(Protocol):
    def observe(self, seen: Seen) -> None:
        """Called on the event loop for each. Must not block or raise."""
        ...


class Nothing:
    """An observer that does nothing."""

    def observe(self, seen: Seen) -> None:
        pass


def seen(
    encoded: Encoded,
    inputs: Sequence[InputRow],
    rows: Sequence[EngineRow],
    outcomes: Sequence[Outcome],
    seconds: float,
) -> Seen | None:
    """One task of a request; None where its alias has no route, or load alone decided its outcomes.

    Args:
        inputs, rows, outcomes: in the caller's order, a repeated row as the same object each time.
    """
    target, places = encoded.target, _distinct(rows, outcomes)
    if target.alias is None or target.since is None or not places:
        return None
    return Seen(
        resident=target.resident,
        alias=target.alias,
        beside=target.beside,
        rows=tuple(rows[place] for place in places),
        prompts=tuple(encoded.prompts[place] for place in places),
        outcomes=tuple(outcomes[place] for place in places),
        seconds=seconds,
        since=target.since,
        inputs=tuple(inputs[place] for place in places),
    )


def _distinct(rows: Sequence[EngineRow], outcomes: Sequence[Outcome]) -> list[int]:
    """The first place of each row that has an outcome of its own."""
    first: dict[EngineRow, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row, place)
    return [place for place in first.values() if not isinstance(outcomes[place], LOAD)]
