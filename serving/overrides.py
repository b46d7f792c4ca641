"""A request's own settings for making texts, over those of its task's spec, field by field."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ladder.generation import Generation
from serving.errors import InvalidInput
from serving.pool import Resident
from side_registry.generation import GenerationSpec
from side_registry.task import TaskSpec

if TYPE_CHECKING:
    from ladder.answerers import Answerer

LIMIT = "max_new_tokens"
FIELDS = (*GenerationSpec.model_fields, LIMIT)

FOR_SAMPLING = ("temperature", "top_k", "top_p", "seed")
FOR_BEAMS = ("length_penalty", "early_stopping")


@dataclass(frozen=True, slots=True)
class Overrides:
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
        if spec.kind != "text":
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
