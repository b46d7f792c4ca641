"""One request: which rows, which versions answer them and how, and what the answers are. Pure values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from ladder.answers import Answer
from ladder.decoding import Generation
from serving.engine import EncodedImage, FinishReason, RequestTimes, Resident
from serving.errors import InvalidInput, ServingError
from serving.scheduler import PRIORITIES, Outcome
from side_registry.errors import RegistryError
from side_registry.specs.decoding_spec import GenerationSpec
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS

if TYPE_CHECKING:
    from ladder.answering import Answerer

Ids = tuple[int, ...]
"""Tokens of one row."""
Refused = ServingError | RegistryError
"""Why a task of a request is not answered."""

LIMIT = "max_new_tokens"
MAX_ROUTE_KEY = 1_000
"""Characters."""
FOR_SAMPLING = ("temperature", "top_k", "top_p", "seed")
FOR_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt: the template is not applied."""

    text: str
    images: Mapping[str, bytes | EncodedImage] = field(default_factory=dict)
    """The bytes of each image, by its field."""


InputRow = Mapping[str, str | bytes | EncodedImage] | str | Prompt
"""Values by field, texts for the template and bytes for images; or the value of the only field; or a whole prompt. An
image that is encoded already may stand for its bytes."""


@dataclass(frozen=True, slots=True)
class DecodingOverrides:
    """What one request sets for making texts, over its task's settings. False where it sets nothing."""

    NAMES: ClassVar[tuple[str, ...]] = (*GenerationSpec.model_fields, LIMIT)
    """Of all settings."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """By name, one of NAMES."""
    where: str = "generation"
    """The part of the request that holds the settings, as error messages name it."""

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
        changed: dict[str, Any] = {"generation": Generation(**self._merged(spec).settings)}
        return replace(resident.answerer, **changed, max_new_tokens=self._limit(spec))  # type: ignore[call-arg]

    def _merged(self, spec: TaskSpec) -> GenerationSpec:
        changes = {name: value for name, value in self.settings.items() if name != LIMIT}
        try:
            merged = GenerationSpec.model_validate(spec.generation.settings | changes)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            name = str(fault["loc"][0]) if fault["loc"] else "num_beams"  # the one rule about two fields names it
            raise self._fault(name, fault["msg"].removeprefix("Value error, ").removeprefix("num_beams ")) from None
        for name in changes:
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
    """The version that answers one task of a request. Found once, so a swap meanwhile does not change it."""

    resident: Resident
    alias: str | None
    """The alias that led to the version; None where the version was pinned."""
    answerer: "Answerer"
    """The resident's, with the request's decoding settings."""
    since: int | None = None
    """The registry generation that set the alias's route; None where the alias has no route."""
    shadows: tuple[Resident, ...] = ()
    """Versions that run the same rows. Their answers are compared, never returned."""
    overrides: DecodingOverrides = field(default_factory=DecodingOverrides)
    """The request's decoding settings."""
    generation: int = -1
    """The registry generation that was served when the version was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """What a request asks for besides its tasks and rows."""

    deadline: float | None = None
    """time.monotonic() seconds."""
    decoding: DecodingOverrides = field(default_factory=DecodingOverrides)
    """Settings for making texts, over the spec's."""
    priority: int = 0
    """1, the highest, to 4; 0 for the server's default."""
    tenant: str = ""
    """Requests of different tenants share no cached activations."""
    route_key: str = ""
    """Where an alias's traffic is split, requests of one key get one version; "": at random."""
    where: str = ""
    """Goes before a field's name in error messages, such as "parameters."."""
    times: RequestTimes | None = None
    """Where the request's stages are timed; None: nobody asks."""

    def check(self) -> None:
        """Raises InvalidInput: a priority that does not exist, or a route key that is too long."""
        if self.priority and self.priority not in PRIORITIES:
            rule = f"must be 1 (the highest) to {max(PRIORITIES)}, or 0 for the server's default"
            raise InvalidInput(f"{self.where}priority", f"{rule}; got {self.priority}")
        if (count := len(self.route_key)) > MAX_ROUTE_KEY:
            fault = f"has {count} characters, at most {MAX_ROUTE_KEY} are allowed; shorten it"
            raise InvalidInput(f"{self.where}route_key", fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """Rows, and the version of each task that answers them. `PredictService.resolve` finds the versions."""

    targets: Sequence[Target | Refused]
    """One for each task, in the caller's order; the fault of a task that cannot be answered stands in its place."""
    rows: Sequence[InputRow]
    """Answered by every target."""
    options: RequestOptions = field(default_factory=RequestOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One task's answers, in the rows' order, and the version that gave all of them."""

    task: str
    version: int
    alias: str | None
    """The alias that led to the version; None where it was pinned."""
    generation: int
    """The registry's generation that was fully applied here when the request was admitted."""
    spec: TaskSpec
    answers: tuple[Answer, ...]
    truncated: tuple[bool, ...]
    """For each row, whether its text was longer than the spec's `max_source_tokens`: its end was not read."""
    input_tokens: int = 0
    """Tokens that were read, of all rows together."""

    @classmethod
    def of(
        cls, target: Target, answers: Sequence[Answer], truncated: Sequence[bool], input_tokens: int = 0
    ) -> "Prediction":
        """The prediction of `target`, with an answer for each row."""
        resident = target.resident
        return cls(
            task=resident.task,
            version=resident.version,
            alias=target.alias,
            generation=target.generation,
            spec=resident.spec,
            answers=tuple(answers),
            truncated=tuple(truncated),
            input_tokens=input_tokens,
        )


@dataclass(frozen=True, slots=True)
class Generated:
    """The end of a streamed text."""

    prediction: Prediction
    """Its only answer is the whole text."""
    finish_reason: FinishReason


def prediction_or_fault(
    target: Target, outcomes: Sequence[Outcome], truncated: Sequence[bool], input_tokens: int = 0
) -> Prediction | Refused:
    """The task's answers, or the first fault of this task among them. Any other exception is raised."""
    fault = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
    if fault is None:
        return Prediction.of(target, outcomes, truncated, input_tokens)
    if isinstance(fault, ServingError):
        return fault
    try:
        raise fault
    finally:
        del fault, outcomes  # else the error's traceback would hold this frame, and the frame the error
