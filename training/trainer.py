"""The trainer: one side network on a frozen backbone, for one task or for several. No gradient enters the backbone.

Trains on batches of rows of similar length, validates after every epoch with the server's code and keeps the best
epoch. A run can be interrupted at any time: started again with the same settings it continues after the last whole
epoch, and ends with the same weights.
"""

import hashlib
import math
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ladder import Backbone, NotFiniteError, SideConfig, SideNetwork
from ladder.errors import is_out_of_memory
from ladder.side import as_served
from side_registry.manifest import Artifact, read_artifact
from side_registry.specs.task_kinds import KINDS
from training.artifact import complete
from training.batches import TokenizedRow, least_rows
from training.distillation import AnyTeacher, KnownAnswers, load_teacher
from training.errors import NoMemoryError, RecipeError, RunError
from training.job import Job, Progress, Silent
from training.multitask.shared import MEAN, part_lines, part_settings, shared_jobs, shared_settings, shared_side_config
from training.multitask.task_data import TaskData
from training.recipes.initialization import check_start, start_side
from training.recipes.optimizers import SCHEDULES, apply_gradients, make_optimizer
from training.recipes.run_start import load_run_start
from training.run_folder import LAST, RunFolder, optimizer_tensors, restore

DIVERGED = "training diverged, try a smaller --lr"


def train(job: Job, output: str | Path, progress: Progress | None = None) -> Artifact:
    """Train into a run folder, or continue there; a complete run is returned unchanged, or goes on with more epochs.

    Raises:
        RunError: the folder holds something else or cannot be written, too few rows, or training diverged.
        DataError: an image is missing or cannot be decoded.
        RecipeError, SideConfigError: invalid settings of the side network.
    """
    run = RunFolder(output)
    side_config = job.side_config()
    settings, teacher = begin_settings(job, run)
    with job.processes.first_before_others():
        run.begin(settings, job.backbone_source, job.vision_source)
    if run.complete:
        return read_artifact(run.path)
    scores = _train([job], run, side_config, [teacher], progress)
    if job.processes.is_first:
        complete(job, run, settings, side_config, max(scores, key=lambda line: line[job.spec.metric]))
    job.processes.wait()
    return read_artifact(run.path)


def train_shared(jobs: Sequence[Job], output: str | Path, progress: Progress | None = None) -> list[Artifact]:
    """Train one side network for several tasks; OUTPUT/TASK is then a run folder of each task, with the same weights.

    Each step trains on a batch of one task. An epoch has all batches of all tasks, in an order drawn by the seed. The
    best epoch is that with the highest mean of the tasks' metrics.

    Args:
        jobs: one for each task, in the order that the run is known by; of the same backbone and recipe.
        output: holds the state that the run goes on from, and the tasks' folders.

    Raises:
        as `train`; RecipeError also for tasks that cannot share a side network.
    """
    check_alone(jobs)
    jobs = shared_jobs(jobs)
    side_config = shared_side_config(jobs)
    run = RunFolder(output)
    begun = [begin_settings(job, run) for job in jobs]
    settings = shared_settings([settings for settings, _ in begun])
    run.begin(settings, jobs[0].backbone_source, jobs[0].vision_source)
    parts = [RunFolder(run.path / job.spec.name) for job in jobs]
    theirs = [part_settings(one, settings) for one, _ in begun]
    if all(part.holds(one) for part, one in zip(parts, theirs, strict=True)):
        return [read_artifact(part.path) for part in parts]
    scores = _train(jobs, run, side_config, [teacher for _, teacher in begun], progress)
    best = scores.index(max(scores, key=lambda line: line[MEAN]))
    artifacts: list[Artifact] = []
    for job, part, one in zip(jobs, parts, theirs, strict=True):
        lines = part_lines(scores, job.spec.name)
        part.begin_part(one, job.backbone_source, job.vision_source, run, lines)
        artifacts.append(complete(job, part, one, side_config, lines[best]))
    return artifacts


def check_alone(jobs: Sequence[Job]) -> None:
    """Raises RecipeError: jobs that only one process trains, and several are there."""
    count = max(job.processes.count for job in jobs)
    if count > 1:
        raise RecipeError("processes", count, "1 where several runs or tasks are trained together")


def begin_settings(job: Job, run: RunFolder) -> tuple[dict[str, Any], AnyTeacher | None]:
    """The settings that a run of this job is known by, and its recipe's teacher. Raises as `train`."""
    recipe = job.recipe
    teacher = None
    if recipe.distill:
        source = job.backbone_source
        teacher = load_teacher(recipe.teacher, job.spec, job.backbone, job.tokenizer, job.features, source)
    return settings_with(teacher, job, run), teacher


def settings_with(teacher: AnyTeacher | KnownAnswers | None, job: Job, run: RunFolder) -> dict[str, Any]:
    """The settings that a run of this job with this teacher is known by. Raises RunError, RecipeError."""
    recipe = job.recipe
    settings = job.settings()
    if teacher is not None:
        settings["teacher"] = teacher.identity  # not its path: a folder may move or change
    if len(job.training.examples) < least_rows(job.spec):
        raise RunError(run.path, f"{job.spec.kind} needs {least_rows(job.spec)} training rows or more, to compare them")
    check_start(recipe.init, recipe.init_order, job.backbone, job.spec)
    if job.processes.count > 1 and KINDS[job.spec.kind].target_is_input:
        rule = f"1 for {job.spec.kind}, which compares all rows of a step"
        raise RecipeError("processes", job.processes.count, rule)
    if recipe.starts_from_run:
        start = load_run_start(recipe.start, job.backbone)
        start.check(job.side_config())
        settings["recipe"]["start"] = start.identity  # not its path: a folder may move or change
    return settings


def _train(
    jobs: Sequence[Job],
    run: RunFolder,
    side_config: SideConfig,
    teachers: Sequence[AnyTeacher | None],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Train all epochs that the folder lacks; return a line of scores for each epoch."""
    backbone = jobs[0].backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(jobs[0].recipe.seed)
        side = SideNetwork(side_config, backbone.config).to(backbone.device)
        tasks = [TaskData(job, side, teacher) for job, teacher in zip(jobs, teachers, strict=True)]
        trainer = Trainer(tasks, run, side, progress or Silent())
        trainer.run_epochs()
    return trainer.scores


class Trainer:
    """State of a run while it goes: weights, optimizer, and the scores of the epochs that are done."""

    def __init__(self, tasks: Sequence[TaskData], run: RunFolder, side: SideNetwork, progress: Progress) -> None:
        """Nothing is computed yet.

        Args:
            tasks: of the same backbone and recipe.
            side: as `tasks` left it.
        """
        recipe = tasks[0].job.recipe
        self.tasks = tasks
        self.recipe = recipe
        self.backbone = tasks[0].job.backbone
        self.processes = tasks[0].job.processes
        self.run = run
        self.side = side
        self.progress = progress
        self.optimizer = make_optimizer(recipe.optimizer, side.parameters(), recipe.learning_rate, recipe.weight_decay)
        self.steps = sum(task.steps for task in tasks)
        self.headline = tasks[0].job.spec.metric if len(tasks) == 1 else MEAN
        """The score that the best epoch has most of."""
        self.scores: list[dict[str, Any]] = []
        """One line for each epoch that is done: its number from 1, loss, metrics, baseline, calibration, memory and
        seconds. Of several tasks: the mean of their metrics, and in `tasks` what is of each task, by its name."""

    def run_epochs(self) -> None:
        """Train and validate the epochs that the run folder lacks.

        Raises:
            RunError: the folder's state is damaged, or training diverged.
        """
        recipe = self.recipe
        self.go_on()
        if not self.is_done:
            for task in self.tasks:
                task.prepare(self.progress)
        self.progress.start(recipe.epochs, self.steps)
        while not self.is_done:
            epoch = len(self.scores)
            self.begin_epoch(epoch)
            started = time.monotonic()
            with self.telling_of_memory():
                loss, losses = self._train_epoch(epoch)
            self.finish_epoch(epoch, loss, losses, started)

    @property
    def is_done(self) -> bool:
        """Whether all epochs of the recipe are trained, or the last ones of its patience were no better."""
        scores = [line[self.headline] for line in self.scores]
        waited = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        return len(scores) >= self.recipe.epochs or 0 < self.recipe.patience <= waited

    def begin_epoch(self, epoch: int) -> None:
        """Draw dropout from here on as this epoch does in every attempt."""
        torch.manual_seed(_seed(self.recipe.seed, epoch, self.processes.index))
        self.side.train()

    def go_on(self) -> None:
        """Restore the state after the last whole epoch; before the first, give the side network its start."""
        last = self.run.read_last()
        if last is not None:
            self.scores = last[0]
        if len(self.scores) < self.recipe.epochs:
            for task in self.tasks:
                task.prepare_images(self.progress)
        if last is None:
            self._start()
            return
        tensors = last[1]
        try:
            restore(self.side, self.optimizer, tensors)
        except ValueError as error:
            why = f"its {LAST} is of another version of the program ({error}); choose another --output"
            raise RunError(self.run.path, why) from None
        if not all(self.headline in line for line in self.scores):
            why = f"its {LAST} does not tell {self.headline} of every epoch; choose another --output"
            raise RunError(self.run.path, why)

    def _start(self) -> None:
        """Give the side network what it starts from."""
        recipe = self.recipe
        jobs = [task.job for task in self.tasks]
        first, *others = jobs
        start_side(
            self.side,
            self.backbone,
            init=recipe.init,
            order=recipe.init_order,
            spec=first.spec,
            tokenizer=first.tokenizer,
            examples=first.training.examples,
            others=[(job.spec, job.training.examples) for job in others],
            samples=recipe.init_samples,
            seed=recipe.seed,
            features={job.spec.name: job.features for job in jobs if job.features is not None},
            progress=self.progress.ranking,
        )
        if recipe.start == "pretrained":
            self.side.silence()
        elif recipe.starts_from_run:
            load_run_start(recipe.start, self.backbone).copy_into(self.side, first.spec)
        start = {name: tensor.cpu() for name, tensor in self.side.state_dict().items()}
        self.side.load_state_dict(self.processes.from_first(start))  # a GPU's sums differ from process to process

    def _train_epoch(self, epoch: int) -> tuple[float, list[float]]:
        """One pass over the rows; the mean loss of a step, and that of each task's steps."""
        total = 0.0
        totals = [0.0] * len(self.tasks)
        for step, (number, rows, indices) in enumerate(self.batches(epoch)):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.tasks[number].add_gradients(self.side, rows, indices)
            loss = self.processes.sum_gradients(self.side, loss)
            apply_gradients(self.side, self.optimizer, self.rate(epoch, step), self.recipe.clip)
            total += loss
            totals[number] += loss
            self.check_loss(total, epoch)
            self.progress.step(epoch, step, total / (step + 1))
        return total / self.steps, [loss / task.steps for loss, task in zip(totals, self.tasks, strict=True)]

    @contextmanager
    def telling_of_memory(self) -> Iterator[None]:
        """Turn memory that runs out in a step into a NoMemoryError, which says what needs less."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            recipe, layers = self.recipe, ",".join(map(str, self.side.encoder.layers))
            rows = -(-recipe.batch_rows // recipe.accumulate)
            less = f"a larger --reduction than {recipe.reduction}, or fewer --encoder-layers than {layers}"
            if rows > 1 and not KINDS[self.tasks[0].job.spec.kind].target_is_input:
                less = f"--accumulate {2 * recipe.accumulate}, which learns the same, {less}"
            why = f"memory ran out while {rows} rows were computed; give another --output, and {less}"
            raise NoMemoryError(self.run.path, why) from error

    def check_loss(self, loss: float, epoch: int) -> None:
        """Raises RunError: the loss is not finite."""
        if not math.isfinite(loss):
            raise RunError(self.run.path, f"the loss is not finite in epoch {epoch + 1}; {DIVERGED}")

    def batches(self, epoch: int) -> Iterator[tuple[int, list[TokenizedRow], list[int]]]:
        """A task's number, its rows and the indices of a batch of them, for each step. Tasks follow in drawn order."""
        epochs = [task.epoch(epoch) for task in self.tasks]
        order = [number for number, (_, batches) in enumerate(epochs) for _ in batches]
        random.Random(f"{self.recipe.seed}:{epoch}:tasks").shuffle(order)
        left = [iter(batches) for _, batches in epochs]
        for number in order:
            yield number, epochs[number][0], next(left[number])

    def rate(self, epoch: int, step: int) -> float:
        """The learning rate of this step of this epoch, both from 0."""
        recipe = self.recipe
        share_at = SCHEDULES[recipe.optimizer]
        share = share_at(epoch * self.steps + step, self.steps * recipe.epochs, recipe.warmup, recipe.schedule)
        return recipe.learning_rate * share

    def finish_epoch(self, epoch: int, loss: float, losses: Sequence[float], started: float) -> None:
        """Score the validation rows with the weights as they would be served, and store the epoch.

        Args:
            loss: the mean of the epoch's steps.
            losses: the mean of each task's steps.
            started: when the epoch began, by `time.monotonic`.

        Raises:
            RunError: answers are not finite, or the folder cannot be written.
        """
        if self.processes.is_first:
            self._score(epoch, loss, losses, started)
        self.scores = self.processes.from_first(self.scores)

    def _score(self, epoch: int, loss: float, losses: Sequence[float], started: float) -> None:
        """As `finish_epoch`, by the first process."""
        self.side.eval()
        served = as_served(self.side, self.backbone.dtype)
        try:
            scores = [task.scores(served) for task in self.tasks]
        except NotFiniteError:
            raise RunError(self.run.path, f"its answers are not finite after epoch {epoch + 1}; {DIVERGED}") from None
        parts: dict[str, dict[str, Any]] = {}
        for task, task_loss, theirs in zip(self.tasks, losses, scores, strict=True):
            baseline = {} if task.baseline is None else {"baseline": task.baseline.score}
            thresholds = {"thresholds": task.thresholds} if task.thresholds else {}
            fitted = {} if task.calibration is None else {"calibration": asdict(task.calibration)}
            parts[task.job.spec.name] = {"loss": task_loss, **theirs, **baseline, **thresholds, **fitted}
        if len(self.tasks) == 1:
            [told] = scores
            [results] = parts.values()
        else:
            mean = sum(theirs[task.job.spec.metric] for task, theirs in zip(self.tasks, scores, strict=True))
            told = {MEAN: mean / len(self.tasks)}
            results = {"loss": loss, **told, "tasks": parts}
        best = not self.scores or told[self.headline] > max(line[self.headline] for line in self.scores)
        if best:
            self.run.save_best(self.side)
        seconds = round(time.monotonic() - started, 3)
        self.scores.append({"epoch": epoch + 1, **results, **_peak_memory(self.backbone), "seconds": seconds})
        self.run.finish_epoch(self.scores, optimizer_tensors(self.side, self.optimizer))
        self.progress.validated(epoch, told, best)


def _peak_memory(backbone: Backbone) -> dict[str, int]:
    """Most bytes that this process has held so far: resident, and on a GPU what torch allocated there."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if backbone.device.type == "cuda":
        peak["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(backbone.device)
    return peak


def _seed(seed: int, epoch: int, process: int) -> int:
    drawn = f"{seed}:{epoch}:{process}" if process else f"{seed}:{epoch}"
    return int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:6])
