"""The trainer: one side network, one task, on a frozen backbone. No gradient enters the backbone.

Trains on batches of rows of similar length, validates after every epoch with the server's code and keeps the best
epoch. A run can be interrupted at any time: started again with the same settings it continues after the last whole
epoch, and ends with the same weights.
"""

import hashlib
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ladder import Images, NotFiniteError, SideNetwork
from ladder.side import as_served
from side_registry.manifest import Artifact, read_artifact
from side_registry.task_kinds import KINDS
from training.artifact import complete
from training.baseline import baseline_of
from training.batches import (
    TokenizedRow,
    all_inputs,
    count_batches,
    draw_references,
    input_indices,
    least_rows,
    shuffled_batches,
    target_tensor,
    tokenize,
)
from training.distillation import Teacher, distillation_of, load_teacher
from training.errors import RunError
from training.evaluation import Model, make_answerer, predict, score_answers
from training.images.inputs import image_ids
from training.initialization import check_start, start_at_targets, start_at_words, start_side
from training.job import Job, Progress, Silent
from training.metrics import rows_to_answer
from training.optimizers import SCHEDULES, make_optimizer, update
from training.run_folder import RunFolder, optimizer_tensors, restore
from training.taps_cache import TapsCache

DIVERGED = "training diverged, try a smaller --lr"


def train(job: Job, output: str | Path, progress: Progress | None = None) -> Artifact:
    """Train into a run folder, or continue there; a complete run is returned unchanged, or goes on with more epochs.

    Raises:
        RunError: the folder holds something else or cannot be written, too few rows, or training diverged.
        DataError: an image is missing or cannot be decoded.
        RecipeError, SideConfigError: invalid settings of the side network.
    """
    run = RunFolder(output)
    settings = job.settings()
    recipe = job.recipe
    side_config = job.side_config()
    teacher = None
    if recipe.distill:
        teacher = load_teacher(recipe.teacher, job.spec, job.backbone, job.tokenizer, job.features)
    if teacher is not None:
        settings["teacher"] = teacher.identity  # not its path: a folder may move or change
    if len(job.training.examples) < least_rows(job.spec):
        raise RunError(run.path, f"{job.spec.kind} needs {least_rows(job.spec)} training rows or more, to compare them")
    check_start(recipe.init, recipe.init_order, job.backbone, job.spec)
    encoder_source = None if job.images is None else job.images.encoder_source
    run.begin(settings, job.backbone_source, None if encoder_source is None else encoder_source.to_dict())
    if run.complete:
        return read_artifact(run.path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        side = SideNetwork(side_config, job.backbone.config).to(job.backbone.device)
        trainer = Trainer(job, run, side, teacher, progress or Silent())
        trainer.run_epochs()
    return complete(job, run, settings, trainer.scores)


class Trainer:
    """State of a run while it goes: weights, optimizer, and the scores of the epochs that are done."""

    def __init__(
        self, job: Job, run: RunFolder, side: SideNetwork, teacher: Teacher | None, progress: Progress
    ) -> None:
        """Tokenizes the rows; nothing is computed by the backbone yet.

        Args:
            side: as `SideNetwork(...)` made it, on the backbone's device.
            teacher: None where the rows' targets alone teach.
        """
        recipe = job.recipe
        self.job = job
        self.run = run
        self.side = side
        self.progress = progress
        self.rows: list[TokenizedRow] = tokenize(job.spec, job.tokenizer, job.training.examples)
        self.image_ids = image_ids(job.spec, [example.fields for example in job.training.examples])
        inputs = all_inputs(self.rows)
        unit = start_at_targets(side, job.training.examples) if KINDS[job.spec.kind].has_range else 1.0
        if side.config.words:
            start_at_words(side, job.backbone, inputs)
        self.answerer = make_answerer(job.spec, side, job.tokenizer, unit)
        self.optimizer = make_optimizer(recipe.optimizer, side.parameters(), recipe.learning_rate, recipe.weight_decay)
        layers = teacher.layers if teacher else ()
        self.cache = TapsCache(job.backbone, side, inputs, layers, distinct=bool(job.spec.images))
        images = None if job.features is None else self._images
        self.distillation = distillation_of(recipe, teacher, inputs, images)
        self.inputs_per_row = len(self.rows[0].inputs)
        self.least_rows = least_rows(job.spec)
        self.steps = count_batches(len(self.rows), recipe.batch_rows, self.least_rows)
        self.scores: list[dict[str, Any]] = []
        """One line for each epoch that is done: its number from 1, loss, metrics, baseline, memory and seconds."""
        self.baseline = baseline_of(job.spec, job.validation.examples)

    def run_epochs(self) -> None:
        """Train and validate the epochs that the run folder lacks.

        Raises:
            RunError: the folder's state is damaged, or training diverged.
        """
        recipe = self.job.recipe
        self._go_on()
        if len(self.scores) < recipe.epochs:
            if self.job.features is not None:
                ids = self.job.image_ids(self.job.training, self.job.validation)
                self.job.features.prepare(ids, self.progress.images)
            if recipe.cache_bytes:
                self.cache.fill(recipe.cache_bytes, recipe.batch_rows, self.progress.reading)
            if self.distillation and not KINDS[self.job.spec.kind].makes_text:
                self.distillation.prepare(self.progress.teaching)
        self.progress.start(recipe.epochs, self.steps)
        for epoch in range(len(self.scores), recipe.epochs):
            torch.manual_seed(_seed(recipe.seed, epoch))  # dropout, the same after an interruption
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            self._validate(epoch, loss, started)

    def _go_on(self) -> None:
        """Restore the state after the last whole epoch; before the first, give the side network its start."""
        last = self.run.read_last()
        if last is None:
            self._start()
            return
        self.scores, tensors = last
        restore(self.side, self.optimizer, tensors)

    def _start(self) -> None:
        job = self.job
        recipe = job.recipe
        start_side(
            self.side,
            job.backbone,
            init=recipe.init,
            order=recipe.init_order,
            spec=job.spec,
            tokenizer=job.tokenizer,
            examples=job.training.examples,
            samples=recipe.init_samples,
            seed=recipe.seed,
            progress=self.progress.ranking,
        )
        if recipe.start == "pretrained":
            self.side.silence()

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the rows; the mean loss."""
        recipe = self.job.recipe
        total = 0.0
        self.side.train()
        rows = draw_references(self.rows, f"{recipe.seed}:{epoch}")
        batches = shuffled_batches(rows, recipe.batch_rows, f"{recipe.seed}:{epoch}", self.least_rows)
        for step, indices in enumerate(batches):
            loss = self._loss(rows, indices)
            self._update(loss, epoch * self.steps + step)
            total += loss.item()
            if not math.isfinite(total):
                raise RunError(self.run.path, f"the loss is not finite in epoch {epoch + 1}; {DIVERGED}")
            self.progress.step(epoch, step, total / (step + 1))
        return total / self.steps

    def _loss(self, rows: Sequence[TokenizedRow], indices: Sequence[int]) -> torch.Tensor:
        """Of the rows with these indices, a scalar; with a teacher, mixed with the distance to its answers."""
        targets = target_tensor(self.job.spec, [rows[index] for index in indices], self.job.backbone.device)
        backbone_pass = self.cache.run(input_indices(indices, self.inputs_per_row))
        if self.job.features is not None:
            backbone_pass.taps = replace(backbone_pass.taps, images=self._images(indices))
        if self.distillation is None:
            return self.answerer.loss(backbone_pass, self.side, targets)
        return self.distillation.loss(self.answerer, backbone_pass, self.side, targets, indices)

    def _images(self, indices: Sequence[int]) -> Images:
        """The images of the rows with these indices."""
        assert self.job.features is not None
        return self.job.features.images([self.image_ids[index] for index in indices], self.job.backbone.device)

    def _update(self, loss: torch.Tensor, step: int) -> None:
        recipe = self.job.recipe
        share = SCHEDULES[recipe.optimizer](step, self.steps * recipe.epochs, recipe.warmup)
        update(self.side, self.optimizer, loss, recipe.learning_rate * share, recipe.clip)

    def _validate(self, epoch: int, loss: float, started: float) -> None:
        """Score the validation rows with the weights as they would be served, and store the epoch."""
        job = self.job
        metric = job.spec.metric
        self.side.eval()
        served = as_served(self.side, job.backbone.dtype)
        model = Model(spec=job.spec, side=served, answerer=self.answerer)
        fields = rows_to_answer(job.spec, job.validation.examples)
        try:
            read_images = None if job.features is None else job.features.read
            answers = predict(model, job.backbone, job.tokenizer, fields, read_images=read_images)
        except NotFiniteError:
            raise RunError(self.run.path, f"its answers are not finite after epoch {epoch + 1}; {DIVERGED}") from None
        scores = score_answers(job.spec, answers, job.validation.examples)
        best = not self.scores or scores[metric] > max(line[metric] for line in self.scores)
        if best:
            self.run.save_best(self.side)
        baseline = {} if self.baseline is None else {"baseline": self.baseline.score}
        seconds = round(time.monotonic() - started, 3)
        line = {"epoch": epoch + 1, "loss": loss, **scores, **baseline, **_peak_memory(job), "seconds": seconds}
        self.scores.append(line)
        self.run.finish_epoch(self.scores, optimizer_tensors(self.side, self.optimizer))
        self.progress.validated(epoch, scores, best)


def _peak_memory(job: Job) -> dict[str, int]:
    """Most bytes that this process has held so far: resident, and on a GPU what torch allocated there."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if job.backbone.device.type == "cuda":
        peak["peak_cuda_bytes"] = torch.cuda.max_memory_allocated(job.backbone.device)
    return peak


def _seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:6])
