"""One task of a run: its rows as tokens, the backbone's activations of them, and how its answers are taught and scored.

A run has one of these, or several where tasks share a side network.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ladder import SideNetwork
from ladder.backbone.model import Taps
from ladder.side.pairs import pair_tensor
from side_registry.task_kinds import KINDS
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
from training.distillation import Teacher, distillation_of
from training.evaluation import Model, calibrate, make_answerer, predict, score_answers
from training.images.inputs import image_ids
from training.initialization import start_at_targets, start_at_words
from training.job import Job, Progress
from training.metrics import rows_to_answer
from training.metrics.calibration import Fitted
from training.taps_cache import TapsCache
from training.thresholds import choose_again, fit_thresholds


class TaskData:
    """What the trainer needs of one task. The side network is not part of it."""

    def __init__(self, job: Job, side: SideNetwork, teacher: Teacher | None) -> None:
        """Tokenizes the rows, and starts the head where it starts at them; nothing is computed by the backbone yet.

        Args:
            side: as `SideNetwork(...)` made it, on the backbone's device.
            teacher: None where the rows' targets alone teach.
        """
        recipe = job.recipe
        self.job = job
        self.rows: list[TokenizedRow] = tokenize(job.spec, job.tokenizer, job.training.examples)
        self.image_ids = image_ids(job.spec, [example.fields for example in job.training.examples])
        inputs = all_inputs(self.rows)
        unit = start_at_targets(side, job.training.examples) if KINDS[job.spec.kind].has_range else 1.0
        if side.config.words:
            start_at_words(side, job.backbone, inputs)
        self.answerer = make_answerer(job.spec, side, job.tokenizer, unit)
        layers = teacher.layers if teacher else ()
        self.cache = TapsCache(job.backbone, side, inputs, layers, distinct=bool(job.spec.images))
        self.distillation = distillation_of(recipe, teacher, inputs, self._complete)
        self.inputs_per_row = len(self.rows[0].inputs)
        self.least_rows = least_rows(job.spec)
        self.steps = count_batches(len(self.rows), recipe.batch_rows, self.least_rows)
        """Batches of an epoch."""
        self.baseline = baseline_of(job.spec, job.validation.examples)
        self.thresholds: dict[str, float] = {}
        """By label, as the last `scores` fitted them on the validation rows; of a kind with thresholds."""
        self.calibration: Fitted | None = None
        """Of the weights that were scored last."""

    def prepare_images(self, progress: Progress) -> None:
        """Compute the features of all images."""
        job = self.job
        if job.features is not None:
            job.features.prepare(job.image_ids(job.training, job.validation), progress.images)

    def prepare(self, progress: Progress) -> None:
        """Compute what else all epochs read: the backbone's activations, and the teacher's answers."""
        job = self.job
        cache_bytes = job.recipe.cache_bytes // job.sharing
        if cache_bytes:
            self.cache.fill(cache_bytes, job.recipe.batch_rows, progress.reading)
        if self.distillation and not KINDS[job.spec.kind].makes_text:
            self.distillation.prepare(progress.teaching)

    def epoch(self, epoch: int) -> tuple[list[TokenizedRow], list[list[int]]]:
        """The rows with this epoch's targets, and the indices of the rows of each batch, in order."""
        recipe = self.job.recipe
        seed = f"{recipe.seed}:{epoch}"
        rows = draw_references(self.rows, seed)
        return rows, list(shuffled_batches(rows, recipe.batch_rows, seed, self.least_rows))

    def loss(self, side: SideNetwork, rows: Sequence[TokenizedRow], indices: Sequence[int]) -> torch.Tensor:
        """Of the rows with these indices, a scalar; with a teacher, mixed with the distance to its answers."""
        targets = target_tensor(self.job.spec, [rows[index] for index in indices], self.job.backbone.device)
        backbone_pass = self.cache.run(input_indices(indices, self.inputs_per_row))
        backbone_pass.taps = self._complete(backbone_pass.taps, indices)
        if self.distillation is None:
            return self.answerer.loss(backbone_pass, side, targets)
        return self.distillation.loss(self.answerer, backbone_pass, side, targets, indices)

    def scores(self, served: SideNetwork) -> dict[str, float]:
        """Scores on the validation rows, the task's metric among them. A classification is calibrated on them too.

        Args:
            served: the weights as they would be served.

        Raises:
            NotFiniteError: an answer is no number.
        """
        job = self.job
        model = Model(spec=job.spec, side=served, answerer=self.answerer)
        fields = rows_to_answer(job.spec, job.validation.examples)
        read_images = None if job.features is None else job.features.read
        answers = predict(model, job.backbone, job.tokenizer, fields, read_images=read_images)
        if KINDS[job.spec.kind].has_thresholds:
            self.thresholds = fit_thresholds(job.spec.labels, answers, job.validation.examples)
            answers = choose_again(self.answerer, list(self.thresholds.values()), answers)
        self.calibration = calibrate(job.spec, answers, job.validation.examples)
        return score_answers(job.spec, answers, job.validation.examples)

    def _complete(self, taps: Taps, indices: Sequence[int]) -> Taps:
        """The taps of the rows with these indices, with what else side networks read: images and pairs of texts."""
        device = taps.mask.device
        if self.job.spec.has_pair and self.inputs_per_row == 1:
            taps = replace(taps, pairs=pair_tensor([self.rows[index].pair for index in indices], device))
        if self.job.features is not None:
            images = self.job.features.images([self.image_ids[index] for index in indices], device)
            taps = replace(taps, images=images)
        return taps
