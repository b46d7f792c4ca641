"""What the service reports about requests whose alias has a route, so that the versions can be compared.

Knows no torch and no gRPC, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from serving.errors import ServingError, SideFailed
from serving.pipeline.preprocessing import render_rows
from serving.pipeline.request import DecodingOverrides, Prompt

if TYPE_CHECKING:
    from serving.engine import EngineRow, Resident
    from serving.pipeline.preprocessing import Encoded
    from serving.pipeline.request import InputRow, Target
    from serving.scheduler import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """How one version did with one task of one request: answered, abandoned by the caller, or without a prompt."""

    resident: Resident
    """The version that was asked."""
    alias: str
    """The alias that led to the version."""
    since: int
    """The registry generation that set the alias's route; 0 unknown."""
    shadows: tuple[Resident, ...] = ()
    """Versions that are to run the same rows. Their answers are compared, never returned."""
    rows: tuple[EngineRow, ...] = ()
    """The distinct rows, as submitted, in order."""
    prompts: tuple[str, ...] = ()
    """The prompt of each row."""
    outcomes: tuple[Outcome, ...] = ()
    """The answer or the exception of each row."""
    seconds: float = 0.0
    """From submitting the request's rows until all of them had outcomes."""
    inputs: tuple[InputRow, ...] = ()
    """Each row as the caller sent it: a version with another template makes another prompt of it. Images are encoded:
    their bytes are not kept longer than the request lives."""
    overrides: DecodingOverrides = field(default_factory=DecodingOverrides)
    """The request's decoding settings."""
    unrendered: int = 0
    """Inputs of which this version makes no prompt, though the alias's main version does. There are no rows then."""
    is_abandoned: bool = False
    """The caller's time was up, or the caller left, while these rows were on the device. There are no outcomes; an
    answer would have taken `seconds` or longer."""

    @classmethod
    def of(
        cls,
        encoded: Encoded,
        inputs: Sequence[InputRow],
        rows: Sequence[EngineRow],
        outcomes: Sequence[Outcome],
        seconds: float,
    ) -> Observation | None:
        """One answered task; None where its alias has no route, or where no outcome tells of the version.

        Args:
            inputs, rows, outcomes: in the caller's order, a repeated row as the same object each time.
        """
        indices = _distinct(rows, outcomes)
        if not indices:
            return None
        return cls._routed(
            encoded.target,
            shadows=encoded.target.shadows,
            rows=tuple(rows[index] for index in indices),
            prompts=tuple(encoded.prompts[index] for index in indices),
            outcomes=tuple(outcomes[index] for index in indices),
            seconds=seconds,
            inputs=tuple(_without_bytes(inputs[index], rows[index]) for index in indices),
            overrides=encoded.target.overrides,
        )

    @classmethod
    def abandoned(cls, target: Target, rows: Sequence[EngineRow], seconds: float) -> Observation | None:
        """One task that its caller no longer waits for; None where its alias has no route.

        Args:
            rows: those that had reached the device. None of them: there is nothing to observe.
        """
        if not rows:
            return None
        return cls._routed(target, rows=tuple(dict.fromkeys(rows)), seconds=seconds, is_abandoned=True)

    @classmethod
    def unrenderable(cls, target: Target, own: Resident | None, inputs: Sequence[InputRow]) -> Observation | None:
        """One task whose version makes no prompts of the inputs.

        None where that is the inputs' fault: the alias's main version (`own`) makes no prompts of them either, or it
        is the one that was asked.
        """
        if own is None or own is target.resident:
            return None
        try:
            render_rows(own.spec, inputs)
        except ServingError:
            return None
        return cls._routed(target, unrendered=len(inputs))

    @classmethod
    def _routed(cls, target: Target, **values: Any) -> Observation | None:
        if target.alias is None or target.since is None:
            return None
        return cls(resident=target.resident, alias=target.alias, since=target.since, **values)


class Observer(Protocol):
    """What the service needs of the wing that compares versions."""

    def observe(self, observation: Observation, /) -> None:
        """Called on the event loop for each. Must not block or raise."""
        ...


class NoObserver:
    """An observer that does nothing."""

    def observe(self, observation: Observation, /) -> None:
        """Do nothing."""


def tells(outcome: Outcome) -> bool:
    """Whether an outcome says something of the version: an answer, or its own failure.

    A full queue or a failed turn of the device may have any cause.
    """
    return not isinstance(outcome, Exception) or isinstance(outcome, SideFailed)


def _without_bytes(row: InputRow, answered: EngineRow) -> InputRow:
    """The row with the encoded images that were answered in place of their bytes, and without other bytes."""
    values = row.images if isinstance(row, Prompt) else row
    if isinstance(values, str) or not any(isinstance(value, bytes) for value in values.values()):
        return row
    images = dict(zip(answered.resident.spec.images, answered.images, strict=True))
    if isinstance(row, Prompt):
        return Prompt(row.text, images)
    return {name: value for name, value in values.items() if not isinstance(value, bytes)} | images


def _distinct(rows: Sequence[EngineRow], outcomes: Sequence[Outcome]) -> list[int]:
    """The first index of each row whose outcome tells of the version."""
    first: dict[EngineRow, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row, index)
    return [index for index in first.values() if tells(outcomes[index])]
