"""What can be wrong with an image, an encoder's folder or a file of features. Each message says what to do about it."""

from typing import Any, Literal

Fault = Literal[
    "not_bytes",
    "empty",
    "too_many_bytes",
    "not_an_image",
    "format",
    "too_many_pixels",
    "animated",
    "damaged",
]


class VisionError(ValueError):
    """Root of this package's errors."""

    reason = "VISION"


class ImageError(VisionError):
    """Bytes that are no image which can be decoded here.

    Args:
        fault: what is wrong, for programs.
        what: what is wrong, for people.
        advice: what to do about it.
    """

    reason = "IMAGE"

    def __init__(self, fault: Fault, what: str, advice: str) -> None:
        super().__init__(fault, what, advice)
        self.fault: Fault = fault
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fault, self.what, self.advice)


class EncoderError(VisionError):
    """A vision encoder's folder that cannot be loaded, or a setting that it does not have."""

    reason = "ENCODER"


class FeaturesError(VisionError):
    """A file of features that cannot be read, or lacks an image."""

    reason = "FEATURES"
