"""Recipes by name: `default`, whose values measured best, and `paper`, the LST paper's as far as a recipe can say them.

The paper's values come from the scripts of its authors (github.com/ylsung/Ladder-Side-Tuning).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from side_registry.specs.task_kinds import KINDS
from training.errors import RecipeError
from training.recipes.recipe import Recipe

if TYPE_CHECKING:  # torch takes seconds to import, and `sidecast train --help` needs the names alone
    from ladder.config import BackboneConfig
    from side_registry.specs.task import TaskSpec

RecipeName = Literal["default", "paper"]

LONG = ("cola", "mrpc", "rte", "stsb")
"""GLUE tasks of few rows, which the paper trains 20 epochs."""
WARMUP_STEPS = 500
"""Of the paper's text tasks."""
LAYERS = {12: (1, 2, 3, 5, 6, 7, 9, 10, 11), 24: tuple(range(1, 24, 2))}
"""Blocks that the paper keeps, of both stacks, by their number: T5-base and T5-large."""
T5 = ("t5", "mt5")
"""Types of backbones that the authors' order of cutting weights is for."""
LARGEST_FF = 16384
"""d_ff of T5-3B, of which the paper keeps the last block alone."""

BOTH: dict[str, Any] = {
    "learning_rate": 3e-3,
    "optimizer": "reference",
    "gate": "learnable",
    "gate_temperature": 0.1,
    "gate_start": 0.0,
    "tap_norm": "none",
    "pair": "together",
    "dropout": 0.1,
    "bias": True,
}
TEXT: dict[str, Any] = {**BOTH, "batch_rows": 100, "weight_decay": 0.0, "clip": 1.0, "reduction": 8}
IMAGES: dict[str, Any] = {"learning_rate": 3e-3, "dropout": 0.0}
"""What measured best for tasks with images (docs/LOG.md)."""
ENTITIES: dict[str, Any] = {"learning_rate": 3e-3}
"""What measured best for token classification (docs/LOG.md)."""
VISUAL: dict[str, Any] = {
    **BOTH,
    "epochs": 20,
    "warmup": 0.1,
    "weight_decay": 0.03,
    "clip": 5.0,
    "reduction": 4,
    "init": "magnitude",
    "image_tokens": 36,
    "image_gate": "damped",
}


def named_recipe(
    name: str,
    specs: Sequence["TaskSpec"],
    given: Mapping[str, Any],
    rows: Sequence[int] | None = None,
    backbone: "BackboneConfig | None" = None,
) -> Recipe:
    """The recipe of this name, with some settings given.

    Args:
        specs: the task, or all that share the side network: they get the smallest batch and the most epochs among them.
        given: settings that replace the recipe's.
        rows: training rows of each task; None where they are not read yet: the paper's warmup depends on them.
        backbone: None where it is not loaded yet: the paper's layers and start depend on it.

    Raises:
        RecipeError: an unknown name, or a setting out of its range.
    """
    if name not in get_args(RecipeName):
        raise RecipeError("recipe", name, " or ".join(get_args(RecipeName)))
    if name == "default":
        return Recipe(**{**_measured(specs), **given})
    values = _visual(specs) if specs[0].images else _text(specs)
    if all("text" in KINDS[spec.kind].heads for spec in specs):
        values["head"] = "text"
    has_text_head = (given.get("head") or values.get("head")) == "text"
    if backbone is not None:
        values |= _of_backbone(backbone, specs, has_text_head)
    if given.get("init", "fisher") != "fisher":
        values.pop("init_samples", None)
    if given.get("init") == "random":
        values.pop("init_order", None)
    values |= given
    if rows is not None and "warmup" not in values:
        steps = values["epochs"] * sum(math.ceil(count / values["batch_rows"]) for count in rows)
        values["warmup"] = min(1.0, WARMUP_STEPS / steps)
    return Recipe(**values)


def _measured(specs: Sequence["TaskSpec"]) -> dict[str, Any]:
    """What the default recipe has besides a recipe's own defaults."""
    if specs[0].images:
        return IMAGES
    return ENTITIES if KINDS[specs[0].kind].has_spans else {}


def _text(specs: Sequence["TaskSpec"]) -> dict[str, Any]:
    return {**TEXT, "epochs": 20 if any(spec.name in LONG for spec in specs) else 10}


def _visual(specs: Sequence["TaskSpec"]) -> dict[str, Any]:
    return {**VISUAL, "batch_rows": min(_visual_batch(spec) for spec in specs)}


def _visual_batch(spec: "TaskSpec") -> int:
    """The paper's batch for VQA, NLVR2 and captions, of the task that is most like this one."""
    if len(spec.images) > 1 or set(spec.labels) == {"false", "true"}:
        return 100
    return 300 if spec.fields else 250


def _of_backbone(config: "BackboneConfig", specs: Sequence["TaskSpec"], has_text_head: bool) -> dict[str, Any]:
    """What the paper sets by the size of T5, and what only some backbones can have."""
    order = "reference" if config.model_type in T5 else "consistent"
    if specs[0].images:
        return {"init_order": order}
    values: dict[str, Any] = {}
    kinds = [KINDS[spec.kind] for spec in specs]
    if config.num_decoder_layers and not any(kind.target_is_input or kind.has_spans for kind in kinds):
        values = {"init": "fisher", "init_samples": 1024, "init_order": order}
    layers = LAYERS.get(config.num_layers)
    if config.num_layers == max(LAYERS) and config.d_ff >= LARGEST_FF:
        layers = (config.num_layers - 1,)
    values["encoder_layers"] = "all" if layers is None else layers
    if layers is not None and has_text_head and config.num_decoder_layers == config.num_layers:
        values["decoder_layers"] = layers
    return values
