"""What can be wrong with a model's files and shapes. Each message says what to do about it."""

import torch

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no room: no model's fault, and another try with less may succeed. On a CPU, and in some
    libraries of a GPU, torch raises a RuntimeError that only its words tell apart."""
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
    """A backbone's folder without a tokenizer: it runs on token ids, not on text."""


class SideConfigError(LadderError):
    """Side network settings that make no side network."""

    reason = "SIDE_CONFIG"


class CheckpointError(LadderError):
    """A side network file that does not fit, or is damaged."""

    reason = "CHECKPOINT"


class LabelError(LadderError):
    """Labels that no decoder can tell apart."""

    reason = "LABELS"


class NotFiniteError(LadderError):
    """A side network answered with NaN or infinity."""

    reason = "NOT_FINITE"


class GenerationError(LadderError):
    """Settings of decoding that mean nothing, or contradict each other."""

    reason = "GENERATION"


class InputsError(LadderError):
    """Token ids or labels that a backbone cannot take."""

    reason = "INPUTS"
