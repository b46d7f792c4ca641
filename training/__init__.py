"""Training and evaluation: side networks for one task or several, on a frozen backbone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.builtin_tasks import load_task
    from training.data import read_examples, read_labelled, split
    from training.job import Job
    from training.loaded_run import LoadedRun, load_run
    from training.publishing import publish
    from training.recipes.recipe import Recipe
    from training.sweep import Sweep, SweepRun, sweep_jobs, train_many
    from training.trainer import train, train_shared

__all__ = [
    "Job",
    "LoadedRun",
    "Recipe",
    "Sweep",
    "SweepRun",
    "load_run",
    "load_task",
    "publish",
    "read_examples",
    "read_labelled",
    "split",
    "sweep_jobs",
    "train",
    "train_many",
    "train_shared",
]

_HOMES = {
    "builtin_tasks": ("load_task",),
    "data": ("read_examples", "read_labelled", "split"),
    "job": ("Job",),
    "loaded_run": ("LoadedRun", "load_run"),
    "publishing": ("publish",),
    "recipes.recipe": ("Recipe",),
    "sweep": ("Sweep", "SweepRun", "sweep_jobs", "train_many"),
    "trainer": ("train", "train_shared"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: torch takes seconds, and the settings of a recipe need none of it."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"training.{home}"), name)
    raise AttributeError(f"module 'training' has no attribute {name!r}")
