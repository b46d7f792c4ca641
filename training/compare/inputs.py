"""What all runs of a comparison share: the task, its rows, the backbone, and the settings."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ladder import Backbone, Tokenizer
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.compare.forgetting import Continuations
from training.data import Labelled
from training.methods.errors import CompareError
from training.methods.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The same for every method and seed."""

    epochs: int = 3
    batch_rows: int = 32
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises; it falls to 0 linearly then."""
    clip: float = 1.0
    """Largest gradient norm."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Loaded, and read by every run."""

    spec: TaskSpec
    backbone: Backbone
    """In float32, as all methods are trained."""
    source: str
    """The folder or hub id that it was loaded from."""
    tokenizer: Tokenizer
    training: Labelled
    validation: Labelled
    test: Labelled | None
    """Rows that count; None: the validation rows do."""
    settings: Settings

    @property
    def scored(self) -> Labelled:
        """The rows that count."""
        return self.validation if self.test is None else self.test

    @cached_property
    def training_rows(self) -> Rows:
        """Of the training file."""
        return Rows(self.spec, self.backbone, self.tokenizer, self.training)

    @cached_property
    def validation_rows(self) -> Rows:
        """Of the validation file."""
        return Rows(self.spec, self.backbone, self.tokenizer, self.validation)

    @cached_property
    def scored_rows(self) -> Rows:
        """Of the rows that count."""
        return self.validation_rows if self.test is None else Rows(self.spec, self.backbone, self.tokenizer, self.test)

    @cached_property
    def continuations(self) -> Continuations:
        """Sentences that forgetting is measured on."""
        return Continuations(self.backbone, self.tokenizer)

    def document(self) -> dict[str, Any]:
        """What two comparisons with equal results share, JSON-ready."""
        settings = self.settings
        return {
            "task": self.spec.model_dump(mode="json"),
            "backbone": self.backbone.fingerprint,
            "device": self.backbone.device.type,
            "train": self.training.sha256,
            "validation": self.validation.sha256,
            "test": None if self.test is None else self.test.sha256,
            "epochs": settings.epochs,
            "batch_rows": settings.batch_rows,
            "warmup": settings.warmup,
            "clip": settings.clip,
        }


def check_task(spec: TaskSpec) -> None:
    """Raises CompareError: a task that the methods' heads cannot answer."""
    kind = KINDS[spec.kind]
    if spec.images or kind.makes_text or kind.has_spans or kind.has_dimensions:
        raise CompareError(spec.name, "compare takes classification and regression of texts; give another task")
