"""Train many runs of one task together, each into its own run folder, with the numbers that it has alone.

All runs read the same backbone activations. Runs of one seed and shape are computed together, step by step; the others
one after another. All go on epoch by epoch, so that an interruption loses one epoch at most. A run that diverges ends
alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ladder import SideNetwork
from side_registry.manifest import read_artifact
from training.artifact import complete
from training.batches import TokenizedRow
from training.distillation import AnyTeacher
from training.errors import RecipeError, RunError
from training.job import Job, Progress, Silent
from training.multitask.task_data import TaskData, TaskInputs
from training.recipes.optimizers import apply_gradients
from training.run_folder import SETTINGS, RunFolder
from training.sweep.grid import run_name, varying
from training.sweep.results import Sweep, SweepRun
from training.sweep.stacked_step import StackedSides, stack_key
from training.trainer import Trainer, begin_settings, check_alone


def train_many(jobs: Sequence[Job], output: str | Path, progress: Progress | None = None) -> Sweep:
    """Train a run for each job into OUTPUT/NAME, or go on with those that are there; see `Sweep` for the results.

    OUTPUT/sweep.json has the results, and OUTPUT/best links to the run with the highest score.

    Args:
        jobs: of one task, backbone and data, whose recipes differ; see `sweep_jobs`.
        progress: its epochs are those of all runs together; each run's step counts as one.

    Raises:
        RunError: as `train`; a run that diverges fails alone, and this is raised only if all do.
        RecipeError, SideConfigError: invalid settings, or jobs that do not belong together.
    """
    return _Sweep(jobs, Path(output).expanduser(), progress or Silent()).train()


@dataclass(kw_only=True)
class _Active:
    """A run that is not complete."""

    run: SweepRun
    trainer: Trainer
    loss: float = 0.0
    """Sum over the steps of the current epoch."""


class _Sweep:
    def __init__(self, jobs: Sequence[Job], output: Path, progress: Progress) -> None:
        _check(jobs, output)
        names = varying(jobs)
        self.output = output
        self.progress = progress
        self.runs = [
            SweepRun(
                name=run_name(job.recipe, names),
                job=job,
                settings={name: getattr(job.recipe, name) for name in names},
            )
            for job in jobs
        ]
        self.folders = [RunFolder(output / run.name) for run in self.runs]
        self._epochs_done = 0

    def train(self) -> Sweep:
        """Train all runs, and write the results."""
        configs = [run.job.side_config() for run in self.runs]  # every setting is checked before a folder is made
        begun = [begin_settings(run.job, folder) for run, folder in zip(self.runs, self.folders, strict=True)]
        for run, folder, (settings, _) in zip(self.runs, self.folders, begun, strict=True):
            folder.begin(settings, run.job.backbone_source, run.job.vision_source)
            if folder.complete:
                run.artifact = read_artifact(folder.path)
        if any(run.artifact is None for run in self.runs):
            with torch.random.fork_rng(devices=[]):
                active = self._start([teacher for _, teacher in begun])
                self._run_epochs(list(active.values()))
            for number, one in active.items():
                if one.run.error is None:
                    best = max(one.trainer.scores, key=lambda line: line[one.run.job.spec.metric])
                    settings, _ = begun[number]
                    artifact = complete(one.run.job, self.folders[number], settings, configs[number], best)
                    one.run.artifact = artifact
        errors = [run.error for run in self.runs if run.error is not None]
        if len(errors) == len(self.runs):
            raise errors[0]
        sweep = Sweep(folder=self.output, runs=self.runs)
        sweep.write()
        return sweep

    def _start(self, teachers: Sequence[AnyTeacher | None]) -> dict[int, _Active]:
        """The runs that are not complete, by their number, each with its start or with the state that its folder has.

        What is kept of the backbone depends on all runs, so that it is the same after an interruption.
        """
        sides: list[SideNetwork] = []
        states: list[torch.Tensor] = []
        for run in self.runs:
            torch.manual_seed(run.job.recipe.seed)
            sides.append(SideNetwork(run.job.side_config(), run.job.backbone.config).to(run.job.backbone.device))
            states.append(torch.get_rng_state())
        layers = sorted({layer for teacher in teachers if teacher is not None for layer in teacher.layers})
        inputs = TaskInputs(self.runs[0].job, sides, layers)
        active: dict[int, _Active] = {}
        for number, run in enumerate(self.runs):
            if run.artifact is not None:
                continue
            torch.set_rng_state(states[number])
            task = TaskData(run.job, sides[number], teachers[number], inputs)
            trainer = Trainer([task], self.folders[number], sides[number], self.progress)
            trainer.go_on()
            active[number] = _Active(run=run, trainer=trainer)
        return active

    def _run_epochs(self, active: Sequence[_Active]) -> None:
        left = [one for one in active if not one.trainer.is_done]
        for one in left:
            one.trainer.tasks[0].prepare(self.progress)
        epochs = sum(one.trainer.recipe.epochs - len(one.trainer.scores) for one in left)
        self.progress.start(epochs, max((one.trainer.steps for one in left), default=0))
        while left:
            epoch = min(len(one.trainer.scores) for one in left)
            first, *others = [one for one in left if len(one.trainer.scores) == epoch]
            key = stack_key(first.trainer)
            together = [one for one in others if key is not None and stack_key(one.trainer) == key]
            with first.trainer.telling_of_memory():
                self._train_epoch([first, *together], epoch)
            left = [one for one in left if one.run.error is None and not one.trainer.is_done]

    def _train_epoch(self, group: Sequence[_Active], epoch: int) -> None:
        """One epoch of one run, or of several that read the same batches."""
        started = time.monotonic()
        for one in group:
            one.trainer.begin_epoch(epoch)
            one.loss = 0.0
        left = list(group)
        stacked = StackedSides([one.trainer.side for one in left]) if len(left) > 1 else None
        for step, (_, rows, indices) in enumerate(group[0].trainer.batches(epoch)):
            losses = _gradients(left, stacked, rows, indices)
            for one, loss in zip(left, losses, strict=True):
                self._step(one, epoch, step, loss)
            going = [one for one in left if one.run.error is None]
            if len(going) < len(left):
                left = going
                stacked = StackedSides([one.trainer.side for one in left]) if len(left) > 1 else None
            if not left:
                break
        seconds = (time.monotonic() - started) / len(group)
        for one in left:
            loss = one.loss / one.trainer.steps
            try:
                one.trainer.finish_epoch(epoch, loss, [loss], time.monotonic() - seconds)
            except RunError as error:
                one.run.error = error
        self._epochs_done += len(group)

    def _step(self, one: _Active, epoch: int, step: int, loss: float) -> None:
        """Take the step of the gradients that the run's side network holds; a loss that is no number ends the run."""
        trainer = one.trainer
        one.loss += loss
        try:
            trainer.check_loss(one.loss, epoch)
        except RunError as error:
            one.run.error = error
            return
        apply_gradients(trainer.side, trainer.optimizer, trainer.rate(epoch, step), trainer.recipe.clip)
        self.progress.step(self._epochs_done, step, one.loss / (step + 1))


def _gradients(
    group: Sequence[_Active], stacked: StackedSides | None, rows: Sequence[TokenizedRow], indices: Sequence[int]
) -> list[float]:
    """The loss of each run on one batch; the gradients are in its side network's parameters."""
    first = group[0].trainer
    [task] = first.tasks
    if stacked is not None:
        return stacked.gradients(task, rows, indices)
    first.optimizer.zero_grad(set_to_none=True)
    return [task.add_gradients(first.side, rows, indices)]


def _check(jobs: Sequence[Job], output: Path) -> None:
    if not jobs:
        raise RecipeError("jobs", 0, "one or more")
    check_alone(jobs)
    first = jobs[0]
    for job in jobs[1:]:
        same_data = (job.training.sha256, job.validation.sha256) == (first.training.sha256, first.validation.sha256)
        if job.spec != first.spec or job.backbone is not first.backbone or not same_data:
            raise RecipeError("jobs", job.spec.name, "of one task, one backbone and the same data")
    recipes = [job.recipe for job in jobs]
    if twice := [recipe for recipe in recipes if recipes.count(recipe) > 1]:
        raise RecipeError("jobs", run_name(twice[0], varying(jobs)), "of different recipes, each once")
    if (output / SETTINGS).exists():
        raise RunError(output, "holds a single run, and a sweep makes a folder of runs; choose another --output")
