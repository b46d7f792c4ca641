"""What one training run needs, and the callbacks by which it reports its progress."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ladder import Backbone, SideConfig, Tokenizer
from side_registry.specs.task import TaskSpec
from training.data import Labelled
from training.images import ImageFeatures, ImageInputs
from training.images.inputs import image_ids
from training.processes import ALONE, Processes
from training.recipes.recipe import Recipe


class Progress(Protocol):
    """Callbacks of a run, in the order in which they come; rows are those done, of `total`."""

    def images(self, images: int, total: int) -> None:
        """The images are decoded and encoded, each once; numbers are of images."""

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

    def images(self, images: int, total: int) -> None:
        """Ignore the call."""

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


@dataclass(frozen=True, kw_only=True)
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

    images: ImageInputs | None = None
    """Of a task whose rows have images."""
    sharing: int = 1
    """Tasks that share the side network, and in equal parts the memory of `Recipe.cache_gb`."""
    processes: Processes = ALONE
    """Those that train the run together; each has the memory of `Recipe.cache_gb`."""

    def side_config(self) -> SideConfig:
        """The side network's shape, resolved. Raises RecipeError, SideConfigError."""
        width = None if self.images is None else self.images.width
        return self.recipe.side_config(self.spec, width).resolve(self.backbone.config)

    @property
    def vision_source(self) -> dict[str, Any] | None:
        """Where the vision encoder was loaded from, JSON-ready; None where there is none."""
        source = None if self.images is None else self.images.encoder_source
        return None if source is None else source.to_dict()

    @cached_property
    def features(self) -> ImageFeatures | None:
        """Features of the rows' images, not computed yet; None where there are no images. Raises RecipeError."""
        if self.images is None or not self.spec.images:
            return None
        return ImageFeatures(self.images, self.recipe.image_tokens, int(self.recipe.cache_gb * 1e9) // self.sharing)

    def image_ids(self, *parts: Labelled) -> list[str]:
        """The ids of the images of all rows of some parts, each once, in order."""
        rows = [example.fields for part in parts for example in part.examples]
        return list(dict.fromkeys(one for ids in image_ids(self.spec, rows) for one in ids))

    def settings(self) -> dict[str, Any]:
        """What a run is made of, JSON-ready: two runs with equal settings give equal weights."""
        task = json.loads(self.spec.model_dump_json())
        task.pop("label_index", None)  # says how files are read: so that runs from before this field continue
        left_out = {"teacher"} if self.spec.images else {"teacher", "image_tokens", "image_gate"}
        settings: dict[str, Any] = {
            "task": task,
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "data": [self.training.sha256, self.validation.sha256],
            "recipe": {name: value for name, value in self.recipe.to_dict().items() if name not in left_out},
        }
        if self.images is not None and self.spec.images:
            vision = self.images.vision
            settings["vision"] = None if vision is None else vision.fingerprint
            settings["images"] = self.images.identity(self.image_ids(self.training, self.validation))
        if self.backbone.quantization != "none":  # left out otherwise: so that runs from before this setting continue
            settings["quantize"] = self.backbone.quantization
        if self.processes.count > 1:  # their sums are rounded in another way, and dropout draws others
            settings["processes"] = self.processes.count
        if self.reading:
            settings["reading"] = dict(self.reading)
        return settings
