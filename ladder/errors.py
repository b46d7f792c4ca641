"""Errors in a model's files and shapes. Each message says what to do about it."""

import torch

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device ran out of memory; a smaller batch may succeed.

    On a CPU, and in some GPU libraries, torch raises a RuntimeError that only its message identifies.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


class LadderError(ValueError):
    """Root of this package's errors."""

    reason = "MODEL"


class BackboneError(LadderError):
    """A backbone folder or id that cannot be loaded."""

    reason = "BACKBONE"


class NoTokenizerError(BackboneError):
    """A backbone's folder has no tokenizer: the backbone takes token ids, not text."""


class SideConfigError(LadderError):
    """Invalid settings of a side network."""

    reason = "SIDE_CONFIG"


class CheckpointError(LadderError):
    """A side network's file is damaged, or does not fit the backbone or its own settings."""

    reason = "CHECKPOINT"


class LabelError(LadderError):
    """Labels that a decoder cannot distinguish."""

    reason = "LABELS"


class NotFiniteError(LadderError):
    """A side network's output is NaN or infinity."""

    reason = "NOT_FINITE"


class GenerationError(LadderError):
    """Decoding settings that are invalid or contradict each other."""

    reason = "GENERATION"


class InputsError(LadderError):
    """Token ids or labels that a backbone cannot take."""

    reason = "INPUTS"
