"""The images of one request: which ones its tasks read, and the features that each task's rows get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from serving.engine import EncodedImage
from serving.errors import InvalidInput, NotLoaded
from serving.images import ImageOutcome
from serving.pipeline.preprocessing import Encoded, read_images
from serving.pipeline.request import InputRow, Prompt, Refused, Target


@dataclass(slots=True, eq=False)
class RequestImages:
    """The images that some task of a request reads."""

    rows: Sequence[InputRow]
    needed: list[bytes] = field(default_factory=list)
    """Their bytes. An image that several tasks read is there once."""
    _outcomes: dict[int, ImageOutcome] = field(default_factory=dict)
    """What came of each, by the `id` of its bytes."""

    @classmethod
    def of(cls, targets: Sequence[Target | Refused], rows: Sequence[InputRow]) -> Self | None:
        """The images of a request; None where none of its tasks reads any.

        Tasks whose rows lack an image add nothing: they are refused later, with the reason.
        """
        specs = [target.resident.spec for target in targets if isinstance(target, Target)]
        readers = [spec for spec in specs if spec.images]
        if not readers:
            return None
        distinct: dict[int, bytes] = {}
        for spec in readers:
            if len(rows) > spec.max_rows:
                continue
            try:
                images = read_images(spec, rows)
            except InvalidInput:
                continue
            distinct |= {id(image): image for row in images for image in row if isinstance(image, bytes)}
        return cls(rows, list(distinct.values()))

    def take(self, outcomes: Sequence[ImageOutcome]) -> None:
        """Take what came of each image that is needed, in that order."""
        self._outcomes = {id(data): outcome for data, outcome in zip(self.needed, outcomes, strict=True)}

    def give(self, encoded: Encoded | Refused) -> Encoded | Refused:
        """A task's rows with their images, or the fault of the first image that has no features."""
        if isinstance(encoded, Exception) or not encoded.target.resident.spec.images:
            return encoded
        resident = encoded.target.resident
        images: list[tuple[EncodedImage, ...]] = []
        for index, row in enumerate(read_images(resident.spec, self.rows)):
            outcomes = [self._outcomes.get(id(image)) if isinstance(image, bytes) else image for image in row]
            for name, outcome in zip(resident.spec.images, outcomes, strict=True):
                if isinstance(outcome, InvalidInput):
                    return InvalidInput(f"rows[{index}].{name}", outcome.why)
                if isinstance(outcome, Exception):
                    return outcome
                if outcome is None:
                    why = "the server has no vision encoder; start it with --vision"
                    return NotLoaded(resident.task, resident.version, why)
            images.append(tuple(outcome for outcome in outcomes if isinstance(outcome, EncodedImage)))
        return replace(encoded, images=images)


def first_image(rows: Sequence[InputRow]) -> str | None:
    """The path of the first image in a request's rows, such as `rows[3].image`; None where there is none."""
    for index, row in enumerate(rows):
        values = row.images if isinstance(row, Prompt) else row
        if isinstance(values, str) or not isinstance(values, Mapping):  # what is neither is refused with the prompts
            continue
        for name, value in values.items():
            if isinstance(value, bytes):
                return f"rows[{index}].{name}"
    return None
