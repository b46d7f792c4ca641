"""The runs of a sweep: one for each combination of settings, and the names of their folders."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from training.errors import RecipeError
from training.job import Job
from training.recipes.recipe import Recipe

SHORT = {"learning_rate": "lr"}
"""Names of settings in folders' names, where they are not the recipe's."""
ALWAYS = ("learning_rate", "seed")
"""Settings that every folder's name tells, so that a sweep with more values goes on with the runs that it has."""


def sweep_jobs(job: Job, **values: Sequence[Any]) -> list[Job]:
    """A job for each combination of some recipe settings; the last setting varies fastest.

        sweep_jobs(job, learning_rate=(3e-4, 1e-3), seed=(0, 1, 2))

    Args:
        job: has the other settings, the data and the backbone.
        values: by the name of a field of `Recipe`: its values.

    Raises:
        RecipeError: an unknown setting, one without values or with a value twice, or a value out of its range.
    """
    for name, given in values.items():
        if name not in Recipe.names():
            raise RecipeError(name, list(given), "a setting of the recipe")
        if not given or len(set(given)) < len(given):
            raise RecipeError(name, list(given), "one value or more, each once")
    combinations = itertools.product(*values.values())
    return [
        replace(job, recipe=replace(job.recipe, **dict(zip(values, chosen, strict=True)))) for chosen in combinations
    ]


def varying(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The settings in which recipes differ; learning rate and seed in any case."""
    first = jobs[0].recipe
    differ = {name for job in jobs for name in Recipe.names() if getattr(job.recipe, name) != getattr(first, name)}
    return (*ALWAYS, *(name for name in Recipe.names() if name in differ and name not in ALWAYS))


def run_name(recipe: Recipe, names: Sequence[str]) -> str:
    """The name of a run's folder: `lr-3e-4-seed-0`, with more settings where they differ."""
    return "-".join(f"{SHORT.get(name, name.replace('_', '-'))}-{_in_words(getattr(recipe, name))}" for name in names)


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, float) and 0 < value < 0.01:
        return f"{Decimal(repr(value)).normalize():e}"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_")
