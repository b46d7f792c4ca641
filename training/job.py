"""What one training run needs, and the callbacks by which it reports its progress."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ladder import Backbone, Tokenizer
from side_registry.task import TaskSpec
from training.data import Labelled
from training.recipe import Recipe


class Progress(Protocol):
    """Callbacks of a run, in the order in which they come; rows are those done, of `total`."""

    def ranking(self, rows: int, total: int) -> None:
        """Fisher importances are computed, for a pruned start."""

    def reading(self, rows: int, total: int) -> None:
        """The backbone's activations are computed, to be kept for all epochs."""

    def teaching(self, rows: int, total: int) -> None:
        """The teacher answers the rows."""

    def start(self, epochs: int, steps: int) -> None:
        """The first epoch that is left begins; `steps` are those of one epoch."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A step is done; epoch and step from 0, `loss` the mean of this epoch's steps so far."""

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        """An epoch is done and stored; `best` where its weights are the best so far. `scores`: the metric's first."""


class Silent:
    """Reports nothing: base of a Progress that needs some of the callbacks."""

    def ranking(self, rows: int, total: int) -> None:
        """Ignore the call."""

    def reading(self, rows: int, total: int) -> None:
        """Ignore the call."""

    def teaching(self, rows: int, total: int) -> None:
        """Ignore the call."""

    def start(self, epochs: int, steps: int) -> None:
        """Ignore the call."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Ignore the call."""

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        """Ignore the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one run needs, loaded."""

    spec: TaskSpec
    backbone: Backbone
    backbone_source: str
    """The folder or hub id that it was loaded from."""
    tokenizer: Tokenizer
    training: Labelled
    validation: Labelled
    recipe: Recipe
    reading: Mapping[str, Any] = field(default_factory=dict)
    """How the rows were taken from their files, JSON-ready: renamed columns, the share that validates."""

    def settings(self) -> dict[str, Any]:
        """What a run is made of, JSON-ready: two runs with equal settings give equal weights."""
        task = json.loads(self.spec.model_dump_json())
        task.pop("label_index", None)  # says how files are read: so that runs from before this field continue
        settings = {
            "task": task,
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "data": [self.training.sha256, self.validation.sha256],
            "recipe": {name: value for name, value in self.recipe.to_dict().items() if name != "teacher"},
        }
        if self.backbone.quantization != "none":  # left out otherwise: so that runs from before this setting continue
            settings["quantize"] = self.backbone.quantization
        if self.reading:
            settings["reading"] = dict(self.reading)
        return settings
