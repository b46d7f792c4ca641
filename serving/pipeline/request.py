"""One request: what it asks for, whom it leads to, and what it comes to. Pure values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from serving.engine import Resident
from serving.errors import ServingError
from side_registry.errors import RegistryError
from side_registry.task_kinds import KINDS

if TYPE_CHECKING:
    from ladder.answering import Answerer
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ladder.answers import Answer
from ladder.decoding import Generation
from serving.engine import FinishReason
from serving.errors import InvalidInput
from serving.scheduler import PRIORITIES, Outcome
from side_registry.decoding_spec import GenerationSpec
from side_registry.task import TaskSpec

Ids = tuple[int, ...]
"""Tokens of one row."""
Refused = ServingError | RegistryError
"""Why a task of a request is not answered."""

LIMIT = "max_new_tokens"
FIELDS = (*GenerationSpec.model_fields, LIMIT)

FOR_SAMPLING = ("temperature", "top_k", "top_p", "seed")
FOR_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True, slots=True)
class DecodingOverrides:
    """None where there are no settings."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """By their names, those of FIELDS."""
    where: str = "generation"
    """What the request calls the place of the settings."""

    def __bool__(self) -> bool:
        return bool(self.settings)

    def answerer(self, resident: Resident) -> "Answerer":
        """The resident's answerer, with these settings.

        Raises:
            InvalidInput: a value out of bounds, without effect, or for a task that makes no texts.
        """
        if not self:
            return resident.answerer
        spec = resident.spec
        if not KINDS[spec.kind].makes_text:
            raise self._fault(next(iter(self.settings)), f"is for text; task {spec.name!r} is {spec.kind}")
        given = {name: value for name, value in self.settings.items() if name != LIMIT}
        changed: dict[str, Any] = {"generation": Generation(**self._merged(spec, given).settings)}
        return replace(resident.answerer, **changed, max_new_tokens=self._limit(spec))  # type: ignore[call-arg]

    def _merged(self, spec: TaskSpec, given: Mapping[str, Any]) -> GenerationSpec:
        try:
            merged = GenerationSpec.model_validate(spec.generation.settings | dict(given))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            name = str(fault["loc"][0]) if fault["loc"] else "num_beams"  # the one rule about two fields names it
            raise self._fault(name, fault["msg"].removeprefix("Value error, ").removeprefix("num_beams ")) from None
        for name in given:
            if name in FOR_SAMPLING and not merged.do_sample:
                raise self._fault(name, "is for sampling; set do_sample too")
            if name in FOR_BEAMS and merged.num_beams == 1:
                raise self._fault(name, "is for beams; set num_beams above 1 too")
        return merged

    def _limit(self, spec: TaskSpec) -> int:
        limit = self.settings.get(LIMIT, spec.max_new_tokens)
        if not (type(limit) is int and 1 <= limit <= spec.max_new_tokens):
            raise self._fault(LIMIT, f"must be 1 to {spec.max_new_tokens}, the task's own limit, got {str(limit)[:80]}")
        return limit

    def _fault(self, name: str, why: str) -> InvalidInput:
        return InvalidInput(f"{self.where}.{name}", why)


@dataclass(frozen=True, slots=True)
class Target:
    """One task of a request, found in the pool."""

    resident: Resident
    alias: str | None
    """The alias that led to it; None where the version was pinned."""
    answerer: "Answerer"
    """The resident's, with what the request sets."""
    since: int | None = None
    """The generation that set the alias's route; None where it has none."""
    beside: tuple[Resident, ...] = ()
    """Who answers the same for the comparison of the route's versions."""
    overrides: DecodingOverrides = field(default_factory=DecodingOverrides)
    """What the request sets."""
    generation: int = -1
    """The registry's that was served when it was found."""


MAX_ROUTE_KEY = 1_000
"""Characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    deadline: float | None = None
    """time.monotonic() seconds."""
    generation: DecodingOverrides = field(default_factory=DecodingOverrides)
    """Settings for making texts, over the spec's."""
    priority: int = 0
    """1, the highest, to 4; 0 for the server's default."""
    tenant: str = ""
    """Requests of different ones share no cached activations."""
    route_key: str = ""
    """Where an alias's traffic is split, requests of one key get one version; "": at random."""
    target: Target | None = None
    """Who is to answer, where whoever asks has found it already."""

    def check(self) -> None:
        """Raises InvalidInput."""
        check_priority(self.priority)
        if (count := len(self.route_key)) > MAX_ROUTE_KEY:
            raise InvalidInput("route_key", f"has {count} characters, at most {MAX_ROUTE_KEY} are allowed; shorten it")


def check_priority(priority: int, where: str = "priority") -> None:
    """Raises InvalidInput, naming the field `where`."""
    if priority and priority not in PRIORITIES:
        rule = f"must be 1 (the highest) to {max(PRIORITIES)}, or 0 for the server's default"
        raise InvalidInput(where, f"{rule}; got {priority}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One task's answers, in the rows' order, and which version gave them: one gave all."""

    task: str
    version: int
    alias: str | None
    """The alias that led to the version; None where it was pinned."""
    generation: int
    """The registry's generation that was fully applied here when the request was admitted."""
    spec: TaskSpec
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The end of a streamed text."""

    prediction: Prediction
    """Its only answer is the whole text."""
    finish_reason: FinishReason


def prediction_or_fault(target: Target, outcomes: Sequence[Outcome]) -> Prediction | Refused:
    """The task's answers, or the first fault among them. A fault that is nobody's in particular is raised."""
    for outcome in outcomes:
        if isinstance(outcome, ServingError):
            return outcome
        if isinstance(outcome, Exception):
            raise outcome
    return predicted(target, outcomes)


def predicted(target: Target, answers: Sequence[Answer]) -> Prediction:
    resident = target.resident
    return Prediction(
        task=resident.task,
        version=resident.version,
        alias=target.alias,
        generation=target.generation,
        spec=resident.spec,
        answers=tuple(answers),
    )
