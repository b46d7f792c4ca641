"""Train a side network for each of several tasks at once, all of which read the same rows.

A batch runs through the backbone once, and then through each side network, whose own teacher's answers to these rows
teach it. All go on epoch by epoch: an interruption loses one epoch at most. Dropout is drawn for one after another.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ladder import SideConfig, SideNetwork
from side_registry.manifest import Artifact, read_artifact
from training.artifact import complete
from training.distillation import KnownAnswers
from training.job import Job, Progress
from training.multitask.task_data import TaskData, TaskInputs
from training.recipes.optimizers import update
from training.run_folder import RunFolder
from training.trainer import Trainer, settings_with


@dataclass(kw_only=True)
class _Active:
    """A run that is not complete."""

    number: int
    """Of its job."""
    trainer: Trainer
    loss: float = 0.0
    """Sum over the steps of the current epoch."""


def train_together(
    jobs: Sequence[Job], teachers: Sequence[KnownAnswers], folders: Sequence[Path], progress: Progress
) -> list[Artifact]:
    """Train a run for each job into its folder, or go on with those that are there.

    Args:
        jobs: of one backbone and recipe, whose rows have the same prompts; the targets differ.
        teachers: of the jobs, in their order; each has answers to the training rows.

    Raises:
        RunError, RecipeError, SideConfigError: as `training.trainer.train`.
    """
    configs = [job.side_config() for job in jobs]
    runs = [RunFolder(folder) for folder in folders]
    settings = [settings_with(*each) for each in zip(teachers, jobs, runs, strict=True)]
    for job, run, theirs in zip(jobs, runs, settings, strict=True):
        run.begin(theirs, job.backbone_source)
    if not all(run.complete for run in runs):
        with torch.random.fork_rng(devices=[]):
            active = _start(jobs, teachers, runs, configs, progress)
            _run_epochs(active, progress)
        for one in active:
            job, number = jobs[one.number], one.number
            best = max(one.trainer.scores, key=lambda line: line[one.trainer.headline])
            complete(job, runs[number], settings[number], configs[number], best)
    return [read_artifact(run.path) for run in runs]


def _start(
    jobs: Sequence[Job],
    teachers: Sequence[KnownAnswers],
    runs: Sequence[RunFolder],
    configs: Sequence[SideConfig],
    progress: Progress,
) -> list[_Active]:
    """The runs that are not complete, each with its start or with the state that its folder has."""
    sides: list[SideNetwork] = []
    for job, config in zip(jobs, configs, strict=True):
        torch.manual_seed(job.recipe.seed)
        sides.append(SideNetwork(config, job.backbone.config).to(job.backbone.device))
    first: TaskInputs | None = None
    active: list[_Active] = []
    for number, (job, teacher, run, side) in enumerate(zip(jobs, teachers, runs, sides, strict=True)):
        inputs = TaskInputs(job, sides, passes=first)
        first = first or inputs
        if run.complete:
            continue
        torch.manual_seed(job.recipe.seed)
        trainer = Trainer([TaskData(job, side, teacher, inputs)], run, side, progress)
        trainer.go_on()
        active.append(_Active(number=number, trainer=trainer))
    return active


def _run_epochs(active: Sequence[_Active], progress: Progress) -> None:
    left = [one for one in active if not one.trainer.is_done]
    for one in left:
        one.trainer.tasks[0].prepare(progress)
    if left:
        progress.start(left[0].trainer.recipe.epochs, left[0].trainer.steps)
    while left:
        epoch = min(len(one.trainer.scores) for one in left)
        _train_epoch([one for one in left if len(one.trainer.scores) == epoch], epoch, progress)
        left = [one for one in left if not one.trainer.is_done]


def _train_epoch(group: Sequence[_Active], epoch: int, progress: Progress) -> None:
    """One epoch of runs whose rows and seeds are the same, so that their batches are too."""
    started = time.monotonic()
    for one in group:
        one.trainer.begin_epoch(epoch)
        one.loss = 0.0
    tasks = [one.trainer.tasks[0] for one in group]
    rows = [task.epoch(epoch)[0] for task in tasks]
    for step, (_, _, indices) in enumerate(group[0].trainer.batches(epoch)):
        backbone_pass = tasks[0].inputs.read(indices)
        for one, task, theirs in zip(group, tasks, rows, strict=True):
            trainer = one.trainer
            loss = task.loss(trainer.side, theirs, indices, backbone_pass)
            update(trainer.side, trainer.optimizer, loss, trainer.rate(epoch, step), trainer.recipe.clip)
            one.loss += loss.item()
            trainer.check_loss(one.loss, epoch)
        progress.step(epoch, step, sum(one.loss for one in group) / len(group) / (step + 1))
    for one in group:
        loss = one.loss / one.trainer.steps
        one.trainer.finish_epoch(epoch, loss, [loss], started)
