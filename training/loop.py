"""The trainer: one side network, one task, on a frozen backbone. No gradient enters the backbone.

Steps over batches of like lengths, validates after each epoch through the server's own code, keeps the best, and can be
interrupted anywhere: run again with the same settings, it goes on after the last whole epoch, to the same weights.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ladder import NotFiniteError, SideNetwork
from ladder.checkpoint import as_served
from ladder.side import MlpHead
from side_registry.manifest import Artifact, read_artifact
from training.batches import (
    TokenizedRow,
    all_inputs,
    count_batches,
    input_places,
    least_rows,
    shuffled_batches,
    target_tensor,
    tokenize,
)
from training.data import Example
from training.distill import Teacher, distillation_of, load_teacher
from training.errors import RunError
from training.evaluate import Model, make_answerer, predict, score_answers
from training.finish import complete
from training.job import Job, Progress, Silent
from training.optimizers import SCHEDULES, make_optimizer, update
from training.run import RunFolder, optimizer_tensors, restore
from training.scoring import asked
from training.starts import check_start, start_side
from training.taps_cache import TapsCache
from training.words import start_at_words

DIVERGED = "training diverged, try a smaller --lr"


def train(job: Job, output: str | Path, progress: Progress | None = None) -> Artifact:
    """Train, or go on training, into a run folder; a complete one is returned as it is.

    Raises:
        RunError: the folder holds something else, too few rows, or training diverged.
        RecipeError, SideConfigError: settings that make no side network.
    """
    run, settings, recipe = RunFolder(output), job.settings(), job.recipe
    side_config = recipe.side_config(job.spec).resolve(job.backbone.config)
    teacher = load_teacher(recipe.teacher, job.spec, job.backbone, job.tokenizer) if recipe.distill else None
    if teacher is not None:
        settings["teacher"] = teacher.identity  # not its path: a folder may move, or be another one tomorrow
    if len(job.training.examples) < least_rows(job.spec):
        raise RunError(run.path, f"{job.spec.kind} needs {least_rows(job.spec)} training rows or more, to compare them")
    check_start(recipe.init, recipe.init_order, job.backbone, job.spec)
    run.begin(settings, job.backbone_source)
    if run.complete:
        return read_artifact(run.path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        side = SideNetwork(side_config, job.backbone.config).to(job.backbone.device)
        trainer = _Trainer(job, run, side, teacher, progress or Silent())
        trainer.run_epochs()
    return complete(job, run, settings, trainer.scores)


class _Trainer:
    """State of a run while it goes: weights, optimizer, scores so far."""

    def __init__(
        self, job: Job, run: RunFolder, side: SideNetwork, teacher: Teacher | None, progress: Progress
    ) -> None:
        self.job, self.run, self.side, self.progress = job, run, side, progress
        self.rows: list[TokenizedRow] = tokenize(job.spec, job.tokenizer, job.training.examples)
        unit = start_at_targets(side, job.training.examples) if job.spec.kind == "regression" else 1.0
        if side.config.words:
            start_at_words(side, job.backbone, all_inputs(self.rows))
        self.answerer = make_answerer(job.spec, side, job.tokenizer, unit)
        recipe = job.recipe
        self.optimizer = make_optimizer(recipe.optimizer, side.parameters(), recipe.learning_rate, recipe.weight_decay)
        self.cache = TapsCache(job.backbone, side, all_inputs(self.rows), teacher.layers if teacher else ())
        self.distillation = distillation_of(recipe, teacher, all_inputs(self.rows))
        self.inputs, self.least = len(self.rows[0].inputs), least_rows(job.spec)
        self.steps = count_batches(len(self.rows), recipe.batch_rows, self.least)
        self.scores: list[dict[str, Any]] = []

    def run_epochs(self) -> None:
        self._go_on()
        recipe = self.job.recipe
        epochs = recipe.epochs
        if len(self.scores) < epochs and recipe.cache_bytes:
            self.cache.fill(recipe.cache_bytes, recipe.batch_rows, self.progress.reading)
        if len(self.scores) < epochs and self.distillation and self.job.spec.kind != "text":
            self.distillation.prepare(self.progress.teaching)
        self.progress.start(epochs, self.steps)
        for epoch in range(len(self.scores), epochs):
            torch.manual_seed(_seed(recipe.seed, epoch))  # dropout, the same after an interruption
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            self._validate(epoch, loss, started)

    def _go_on(self) -> None:
        last = self.run.read_last()
        if last is None:
            self._start()
            return
        self.scores, tensors = last
        restore(self.side, self.optimizer, tensors)

    def _start(self) -> None:
        job, recipe = self.job, self.job.recipe
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
        recipe, total = self.job.recipe, 0.0
        self.side.train()
        batches = shuffled_batches(self.rows, recipe.batch_rows, f"{recipe.seed}:{epoch}", self.least)
        for step, places in enumerate(batches):
            loss = self._loss(places)
            self._update(loss, epoch * self.steps + step)
            total += loss.item()
            if not math.isfinite(total):
                raise RunError(self.run.path, f"the loss is not finite in epoch {epoch + 1}; {DIVERGED}")
            self.progress.step(epoch, step, total / (step + 1))
        return total / self.steps

    def _loss(self, places: Sequence[int]) -> torch.Tensor:
        """Of one batch; with a teacher, mixed with what it says."""
        targets = target_tensor(self.job.spec, [self.rows[place] for place in places], self.job.backbone.device)
        given = self.cache.run(input_places(places, self.inputs))
        if self.distillation is None:
            return self.answerer.loss(given, self.side, targets)
        return self.distillation.loss(self.answerer, given, self.side, targets, places)

    def _update(self, loss: torch.Tensor, step: int) -> None:
        recipe = self.job.recipe
        share = SCHEDULES[recipe.optimizer](step, self.steps * recipe.epochs, recipe.warmup)
        update(self.side, self.optimizer, loss, recipe.learning_rate * share, recipe.clip)

    def _validate(self, epoch: int, loss: float, started: float) -> None:
        self.side.eval()
        served = as_served(self.side, self.job.backbone.dtype)
        model = Model(spec=self.job.spec, side=served, answerer=self.answerer)
        fields = asked(self.job.spec, self.job.validation.examples)
        try:
            answers = predict(model, self.job.backbone, self.job.tokenizer, fields)
        except NotFiniteError:
            raise RunError(self.run.path, f"its answers are not finite after epoch {epoch + 1}; {DIVERGED}") from None
        scores = score_answers(self.job.spec, answers, self.job.validation.examples)
        headline = scores[self.job.spec.metric]
        best = not self.scores or headline > max(line[self.job.spec.metric] for line in self.scores)
        if best:
            self.run.save_best(self.side)
        seconds = round(time.monotonic() - started, 3)
        self.scores.append({"epoch": epoch + 1, "loss": loss, **scores, "seconds": seconds})
        self.run.finish_epoch(self.scores, optimizer_tensors(self.side, self.optimizer))
        self.progress.validated(epoch, scores, best)


def start_at_targets(side: SideNetwork, training: Sequence[Example]) -> float:
    """Start a regression head at the mean target; their standard deviation."""
    targets = torch.tensor([float(example.target) for example in training])
    last = side.head.out if isinstance(side.head, MlpHead) else side.head
    with torch.no_grad():
        last.bias.fill_(targets.mean().item())
    deviation = targets.std(correction=0).item()
    return deviation if deviation > 0 else 1.0


def _seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:6])
