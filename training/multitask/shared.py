"""Several tasks that share one side network, as in the LST authors' multi-task setting.

Every task is answered through the backbone's LM head: a classification by its labels as words, a text by generation.
So the side network has no part of a single task, and the run folder of each task holds the same weights.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ladder import SideConfig
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.errors import RecipeError
from training.job import Job
from training.recipes.recipe import Recipe

MEAN = "mean"
"""Of the tasks' metrics, each as it is: a metric with a larger range counts more."""
COMMON = ("backbone", "dtype", "recipe", "quantize")
"""Settings that all tasks of a shared run have in common."""


def shared_recipe(recipe: Recipe, specs: Sequence[TaskSpec]) -> Recipe:
    """The recipe with the text head.

    Raises:
        RecipeError: another head, tasks that no LM head answers, or tasks with images beside tasks without.
    """
    if recipe.head not in ("auto", "text"):
        raise RecipeError("head", recipe.head, "text where tasks share a side network")
    for spec in specs:
        if "text" not in KINDS[spec.kind].heads:
            able = " or ".join(name for name, kind in KINDS.items() if "text" in kind.heads)
            rule = f"of kind {able}, which the LM head answers, to share a side network"
            raise RecipeError(f"task {spec.name}", spec.kind, rule)
    seeing = [spec.name for spec in specs if spec.images]
    if seeing and len(seeing) < len(specs):
        raise RecipeError(
            "shared tasks", [spec.name for spec in specs], f"all with images, as {', '.join(seeing)}, or all without"
        )
    return replace(recipe, head="text")


def shared_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The jobs as parts of one run, which divide the memory for activations. Raises RecipeError."""
    first = jobs[0]
    names = [job.spec.name for job in jobs]
    if len(set(names)) < len(names):
        raise RecipeError("shared tasks", names, "different tasks")
    if any(job.backbone is not first.backbone or job.recipe != first.recipe for job in jobs):
        raise RecipeError("shared tasks", names, "of one backbone and one recipe")
    recipe = shared_recipe(first.recipe, [job.spec for job in jobs])
    settings = {"recipe": recipe, "sharing": len(jobs)}
    as_parts = all(job.recipe == recipe and job.sharing == len(jobs) for job in jobs)
    return list(jobs) if as_parts else [replace(job, **settings) for job in jobs]


def shared_side_config(jobs: Sequence[Job]) -> SideConfig:
    """The shape of the side network, resolved: it reads as many images as the task with the most.

    Raises:
        RecipeError: images that different encoders read.
        SideConfigError: settings that make no side network.
    """
    configs = [job.side_config() for job in jobs]
    visuals = [config.visual for config in configs if config.visual is not None]
    if not visuals:
        return configs[0]
    if len({(job.images.vision, job.images.width) for job in jobs if job.images is not None}) > 1:
        raise RecipeError("shared tasks", [job.spec.name for job in jobs], "of images that one encoder reads")
    return replace(configs[0], visual=replace(visuals[0], images=max(visual.images for visual in visuals)))


def shared_settings(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a shared run is made of, JSON-ready, from the settings of its tasks."""
    common = {name: tasks[0][name] for name in COMMON if name in tasks[0]}
    parts = [{name: value for name, value in one.items() if name not in COMMON} for one in tasks]
    return {**common, "tasks": parts}


def part_settings(task: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The settings of one task's run folder: its own, the names of all tasks, and a digest of all settings."""
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]
    return {**task, "shared_with": [part["task"]["name"] for part in shared["tasks"]], "shared_run": digest}


def part_lines(lines: Sequence[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Each epoch's line as the task's own run folder has it; `mean` is that of all tasks."""
    made: list[dict[str, Any]] = []
    for line in lines:
        rest = {name: value for name, value in line.items() if name not in ("epoch", "loss", MEAN, "tasks")}
        made.append({"epoch": line["epoch"], **line["tasks"][task], MEAN: line[MEAN], **rest})
    return made
