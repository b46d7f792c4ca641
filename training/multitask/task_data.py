"""One task of a run: its rows as tokens, the backbone's activations of them, and how its answers are taught and scored.

A run has a `TaskData`, or several where tasks share a side network. Runs of one task may share their `TaskInputs`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ladder import BackbonePass, SideNetwork
from ladder.backbone.model import Taps
from ladder.side.pairs import pair_tensor
from side_registry.specs.task_kinds import KINDS
from training.baseline import baseline_of
from training.batches import (
    TokenizedRow,
    all_inputs,
    count_batches,
    count_targets,
    draw_references,
    input_indices,
    least_rows,
    shuffled_batches,
    target_tensor,
    tokenize,
)
from training.distillation import AnyTeacher, Distillation, KnownAnswers, distillation_of
from training.evaluation import Model, calibrate, make_answerer, predict, score_answers
from training.images.inputs import image_ids
from training.job import Job, Progress
from training.metrics import rows_to_answer
from training.metrics.calibration import Fitted
from training.multitask.kept_passes import KeptPasses
from training.multitask.thresholds import choose_again, fit_thresholds
from training.recipes.initialization import start_at_targets, start_at_words
from training.recipes.recipe import Recipe
from training.taps_cache import TapsCache


class TaskInputs:
    """What all runs of one task read: its rows as tokens, images, and the backbone's activations of both parts."""

    def __init__(
        self,
        job: Job,
        sides: Sequence[SideNetwork],
        layers: Sequence[int] = (),
        passes: "TaskInputs | None" = None,
    ) -> None:
        """Tokenizes the training rows; nothing is computed by the backbone yet.

        Args:
            job: of one of the runs; they differ in what the backbone does not know.
            sides: of all runs.
            layers: more encoder blocks that a teacher reads.
            passes: of another task with the same inputs and side networks, whose activations are read and kept.
        """
        self.job = job
        self._passes = passes
        self.rows: list[TokenizedRow] = tokenize(job.spec, job.tokenizer, job.training.examples)
        self.inputs = all_inputs(self.rows)
        self.per_row = len(self.rows[0].inputs)
        self.image_ids = image_ids(job.spec, [example.fields for example in job.training.examples])
        self.features = job.features
        self.cache = (
            passes.cache
            if passes is not None
            else TapsCache(job.backbone, sides, self.inputs, layers, distinct=bool(job.spec.images))
        )
        scores_words = job.spec.kind == "classification" and any(side.config.head == "text" for side in sides)
        self.kept = passes.kept if passes is not None else KeptPasses(sides, first_step=scores_words)
        self.baseline = baseline_of(job.spec, job.validation.examples)
        self._runs = len(sides)
        self._images_prepared = False
        self._prepared = False
        self._distillations: dict[tuple[str, float, float], Distillation | None] = {}

    def prepare_images(self, progress: Progress) -> None:
        """Compute the features of all images. A second call does nothing."""
        if self._images_prepared:
            return
        self._images_prepared = True
        if self.features is not None:
            self.features.prepare(self.job.image_ids(self.job.training, self.job.validation), progress.images)

    def prepare(self, progress: Progress) -> None:
        """Compute what else all epochs of all runs read: the backbone's activations. A second call does nothing."""
        if self._passes is not None:
            self._passes.prepare(progress)
            return
        if self._prepared:
            return
        self._prepared = True
        job = self.job
        recipe = job.recipe
        cache_bytes = (recipe.cache_bytes if self._runs == 1 else recipe.max_cache_bytes) // job.sharing
        if cache_bytes:
            own = job.processes.own(range(len(self.rows)))
            read = None if job.processes.count == 1 else input_indices(own, self.per_row)
            self.cache.fill(cache_bytes, recipe.batch_rows, progress.reading, read)
        self.kept.max_bytes = max(0, cache_bytes - self.cache.kept_bytes)

    def distillation(self, recipe: Recipe, teacher: AnyTeacher | KnownAnswers | None) -> Distillation | None:
        """Of runs with equal settings of it, one; None without a teacher."""
        key = (recipe.teacher, recipe.distill, recipe.distill_temperature)
        if key not in self._distillations:
            self._distillations[key] = distillation_of(recipe, teacher, self.inputs, self._complete)
        return self._distillations[key]

    def read(self, indices: Sequence[int]) -> BackbonePass:
        """The backbone's pass over the training rows with these indices, with their images and pairs of texts."""
        backbone_pass = self.cache.run(input_indices(indices, self.per_row))
        backbone_pass.taps = self._complete(backbone_pass.taps, indices)
        return backbone_pass

    def _complete(self, taps: Taps, indices: Sequence[int]) -> Taps:
        """The taps of the rows with these indices, with what else side networks read: images and pairs of texts."""
        device = taps.mask.device
        if self.job.spec.has_pair and self.per_row == 1:
            taps = replace(taps, pairs=pair_tensor([self.rows[index].pair for index in indices], device))
        if self.features is not None:
            images = self.features.images([self.image_ids[index] for index in indices], device)
            taps = replace(taps, images=images)
        return taps


class TaskData:
    """What the trainer needs of one task. The side network is not part of it."""

    def __init__(
        self,
        job: Job,
        side: SideNetwork,
        teacher: AnyTeacher | KnownAnswers | None,
        inputs: TaskInputs | None = None,
    ) -> None:
        """Starts the head where it starts at the rows; nothing is computed by the backbone yet.

        Args:
            side: as `SideNetwork(...)` made it, on the backbone's device.
            teacher: None where the rows' targets alone teach.
            inputs: those that several runs share; None: of this run alone.
        """
        recipe = job.recipe
        self.job = job
        self.inputs = inputs or TaskInputs(job, [side], teacher.layers if teacher else ())
        self.rows = self.inputs.rows
        unit = start_at_targets(side, job.training.examples) if KINDS[job.spec.kind].has_range else 1.0
        if side.config.words:
            start_at_words(side, job.backbone, self.inputs.inputs)
        self.answerer = make_answerer(job.spec, side, job.tokenizer, unit)
        self.distillation = self.inputs.distillation(recipe, teacher)
        self.least_rows = least_rows(job.spec)
        self.steps = count_batches(len(self.rows), recipe.batch_rows, self.least_rows)
        """Batches of an epoch."""
        self.baseline = self.inputs.baseline
        self.thresholds: dict[str, float] = {}
        """By label, as the last `scores` fitted them on the validation rows; of a kind with thresholds."""
        self.calibration: Fitted | None = None
        """Of the weights that were scored last."""

    def prepare_images(self, progress: Progress) -> None:
        """Compute the features of all images."""
        self.inputs.prepare_images(progress)

    def prepare(self, progress: Progress) -> None:
        """Compute what else all epochs read: the backbone's activations, and the teacher's answers."""
        self.inputs.prepare(progress)
        if self.distillation and not KINDS[self.job.spec.kind].makes_text:
            self.distillation.prepare(progress.teaching)

    def epoch(self, epoch: int) -> tuple[list[TokenizedRow], list[list[int]]]:
        """The rows with this epoch's targets, and the indices of the rows of each batch, in order."""
        recipe = self.job.recipe
        seed = f"{recipe.seed}:{epoch}"
        rows = draw_references(self.rows, seed)
        return rows, list(shuffled_batches(rows, recipe.batch_rows, seed, self.least_rows))

    def loss(
        self,
        side: SideNetwork,
        rows: Sequence[TokenizedRow],
        indices: Sequence[int],
        backbone_pass: BackbonePass | None = None,
    ) -> torch.Tensor:
        """Of the rows with these indices, a scalar; with a teacher, mixed with the distance to its answers.

        Args:
            backbone_pass: over the rows with these indices; None: it is computed, or read from the cache.
        """
        targets = self.targets(rows, indices)
        backbone_pass = backbone_pass or self.inputs.read(indices)
        if self.distillation is None:
            return self.answerer.loss(backbone_pass, side, targets)
        return self.distillation.loss(self.answerer, backbone_pass, side, targets, indices)

    def add_gradients(self, side: SideNetwork, rows: Sequence[TokenizedRow], indices: Sequence[int]) -> float:
        """Add the gradients of a step's loss to those that the side network holds. Return the loss."""
        total = 0.0
        for part, share in self.parts(rows, indices):
            loss = self.loss(side, rows, part) * share
            loss.backward()
            total += loss.item()
        return total

    def parts(self, rows: Sequence[TokenizedRow], indices: Sequence[int]) -> list[tuple[Sequence[int], float]]:
        """The parts in which this process computes its rows of a step, each with its share of the step's loss."""
        wanted = self.job.recipe.accumulate
        processes = self.job.processes
        if wanted == processes.count == 1:
            return [(indices, 1.0)]
        own = processes.own(indices)
        size = max(1, -(-len(own) // wanted))
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        taught = max(1, count_targets(self.targets(rows, indices)))
        return [(part, count_targets(self.targets(rows, part)) / taught) for part in parts]

    def targets(self, rows: Sequence[TokenizedRow], indices: Sequence[int]) -> torch.Tensor:
        """Of the rows with these indices, as the answerer's loss takes them."""
        return target_tensor(self.job.spec, [rows[index] for index in indices], self.job.backbone.device)

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
        read_images = None if self.inputs.features is None else self.inputs.features.read
        read_inputs = self.inputs.kept.run
        answers = predict(model, job.backbone, job.tokenizer, fields, read_images=read_images, read_inputs=read_inputs)
        if KINDS[job.spec.kind].has_thresholds:
            self.thresholds = fit_thresholds(job.spec.labels, answers, job.validation.examples)
            answers = choose_again(self.answerer, list(self.thresholds.values()), answers)
        self.calibration = calibrate(job.spec, answers, job.validation.examples)
        return score_answers(job.spec, answers, job.validation.examples)
