"""What one training run needs, and whom it tells how it goes."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from ladder import Backbone, Tokenizer
from side_registry.task import TaskSpec
from training.data import Labelled
from training.recipe import Recipe


class Progress(Protocol):
    """Told how a run goes; see `Silent`."""

    def ranking(self, rows: int, total: int) -> None: ...
    def reading(self, rows: int, total: int) -> None: ...
    def teaching(self, rows: int, total: int) -> None: ...
    def start(self, epochs: int, steps: int) -> None: ...
    def step(self, epoch: int, step: int, loss: float) -> None: ...
    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None: ...


class Silent:
    """Says nothing."""

    def ranking(self, rows: int, total: int) -> None: ...
    def reading(self, rows: int, total: int) -> None: ...
    def teaching(self, rows: int, total: int) -> None: ...
    def start(self, epochs: int, steps: int) -> None: ...
    def step(self, epoch: int, step: int, loss: float) -> None: ...
    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None: ...


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

    def settings(self) -> dict[str, Any]:
        """What makes a run this run and no other, JSON-ready."""
        settings = {
            "task": json.loads(self.spec.model_dump_json()),
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "data": [self.training.sha256, self.validation.sha256],
            "recipe": {name: value for name, value in self.recipe.to_dict().items() if name != "teacher"},
        }
        if self.backbone.quantization != "none":  # left out otherwise: runs of before it existed go on
            settings["quantize"] = self.backbone.quantization
        return settings
