"""Distillation: a side network learns from a teacher's answers as well as from the rows' targets, or from them alone.

The loss is (1 - w) * task loss + w * T^2 * KL(teacher || student), both distributions softened by the temperature T
(Hinton et al., arXiv:1503.02531); over the labels for classification, over the vocabulary at each token for text. For
regression it is the mean squared error to the teacher's values.

A frozen teacher answers the same in every epoch: its labels and values are computed once, before the first. A text's
distributions are too large to keep, and are computed with each batch.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ladder import (
    Answerer,
    Backbone,
    BackbonePass,
    Classify,
    Generate,
    LabelTrie,
    Regress,
    SideNetwork,
    Tokenizer,
    load_backbone,
    load_tokenizer,
    run_backbone,
)
from ladder.answering import IGNORED, forced_taps
from ladder.backbone.model import Taps
from ladder.backbone.passes import padded
from side_registry.manifest import MANIFEST, SIDE_NETWORK, read_artifact
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.errors import RecipeError, RunError
from training.evaluation import BATCH_TOKENS, Model, check_vision, length_batches, load_model
from training.images import ImageFeatures
from training.methods.rows import Batch
from training.methods.trained import TrainedModel, load_trained
from training.recipes.recipe import Recipe
from training.run_folder import SETTINGS, SWEEP

Tokens = tuple[int, ...]
Complete = Callable[[Taps, Sequence[int]], Taps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A frozen model that answers the same task: a backbone's own LM head, or side networks of the run's backbone.

    The answer of several side networks is the mean of theirs: of probabilities, or of values.
    """

    identity: str
    """Names the teacher's weights: a run goes on with the same teacher only."""
    backbone: Backbone
    trie: LabelTrie | None = None
    """The labels as token ids, where its LM head answers a classification."""
    models: tuple[Model, ...] = ()
    """The side networks; none where the LM head itself answers."""

    @property
    def depth(self) -> int | None:
        """Encoder blocks of its backbone that it needs, as in SideNetwork.encoder_depth."""
        depths = [model.side.encoder_depth for model in self.models]
        known = [depth for depth in depths if depth is not None]
        return max(known) if known and len(known) == len(depths) else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Encoder blocks of the run's own backbone that it reads."""
        return tuple(sorted({layer for model in self.models for layer in model.side.encoder.layers}))

    def answers(self, backbone_pass: BackbonePass) -> Tensor:
        """Its log probabilities of the labels, (B, labels), or its values, (B,); float32.

        Args:
            backbone_pass: of the teacher's own backbone over B rows.
        """
        if not self.models:
            assert self.trie is not None
            return self.trie.log_probabilities(lambda prefix, tokens: _own_logits(backbone_pass, prefix, tokens))
        answers: list[Tensor] = []
        for model in self.models:
            side, answerer = model.side, model.answerer
            if isinstance(answerer, Regress):
                answers.append(answerer.values(backbone_pass, side))
            else:
                assert isinstance(answerer, Classify)
                answers.append(answerer.log_probabilities(backbone_pass, side))
        return torch.stack(answers).mean(0) if answers[0].dim() == 1 else mean_probabilities(answers)

    def token_logits(self, backbone_pass: BackbonePass, targets: Tensor) -> Tensor:
        """Its logits (B, T, V) for each token of the targets (B, T), when it reads the tokens before it."""
        backbone = backbone_pass.backbone
        taps = forced_taps(backbone_pass, targets)
        if not self.models:
            assert taps.final is not None
            return backbone.logits(taps.final)
        read = backbone_pass.taps
        sides = [model.side for model in self.models]
        logits = [backbone.logits(side.decode(taps, side.encode(read), side.memory_mask(read))) for side in sides]
        return logits[0] if len(logits) == 1 else mean_probabilities([one.float().log_softmax(-1) for one in logits])


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodTeacher:
    """A model that `sidecast compare` trained on the run's backbone: it reads the same tokens."""

    backbone: Backbone
    model: TrainedModel

    @property
    def identity(self) -> str:
        """As `Teacher.identity`."""
        return self.model.identity

    @property
    def depth(self) -> int:
        """As `Teacher.depth`; it has an encoder of its own."""
        return 0

    @property
    def layers(self) -> tuple[int, ...]:
        """Encoder blocks of the run's own backbone that it reads: none."""
        return ()


AnyTeacher = Teacher | MethodTeacher


def mean_probabilities(answers: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of probabilities, of log probabilities of one shape."""
    return torch.stack(list(answers)).logsumexp(0) - math.log(len(answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAnswers:
    """The answers of a teacher that is no longer at hand, to the training rows of a run in their order."""

    identity: str
    """As `Teacher.identity`."""
    answers: Tensor
    """(N, labels) log probabilities or (N,) values; float32, on the backbone's device."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Encoder blocks of the run's own backbone that it reads: none."""
        return ()


def _own_logits(backbone_pass: BackbonePass, prefix: Tokens, tokens: Tokens) -> Tensor:
    """(B, N) logits of the backbone itself for N tokens after `prefix`."""
    state = backbone_pass.decoder_taps(prefix).final
    assert state is not None
    return backbone_pass.backbone.logits(state[:, -1], torch.tensor(tokens, device=state.device))


def load_teacher(
    source: str,
    spec: TaskSpec,
    backbone: Backbone,
    tokenizer: Tokenizer,
    features: ImageFeatures | None = None,
    backbone_source: str = "",
) -> AnyTeacher:
    """The teacher of a recipe: "backbone", a run's folder, a file of `sidecast compare`, another T5's folder or hub id.

    Args:
        features: of a task with images: a run that teaches it reads the same ones. An LM head reads none.
        backbone_source: the folder or hub id of the backbone, from which a model of `sidecast compare` is made.

    Raises:
        RecipeError: it has no answers for this kind of task.
        RunError: a run of another task, backbone or vision encoder, or an unfinished one.
        BackboneError: neither a run nor a T5.
    """
    folder = Path(source).expanduser()
    if source != "backbone" and (folder / MANIFEST).is_file():
        return _from_run(folder, spec, backbone, tokenizer, features)
    if source != "backbone" and (folder / SWEEP).is_file():
        runs = [_from_run(run, spec, backbone, tokenizer, features) for run in _sweep_runs(folder)]
        identity = hashlib.sha256(" ".join(run.identity for run in runs).encode()).hexdigest()
        models = tuple(model for run in runs for model in run.models)
        return Teacher(identity=f"sha256:{identity}", backbone=backbone, models=models)
    if source != "backbone" and (folder / SETTINGS).is_file():
        raise RunError(folder, "is not finished, so it cannot teach; run it again to its end")
    if source != "backbone" and folder.is_file():
        return MethodTeacher(backbone=backbone, model=load_trained(folder, spec, backbone, backbone_source))
    if not KINDS[spec.kind].lm_head_teaches:
        raise RecipeError("teacher", source, f"a finished run's folder for {spec.kind}: an LM head says words alone")
    model = backbone
    identity = "backbone"
    if source != "backbone":
        model = load_backbone(source, device=backbone.device, dtype=str(backbone.dtype).removeprefix("torch."))
        identity = model.fingerprint
        if load_tokenizer(source).fingerprint != tokenizer.fingerprint:
            raise RecipeError("teacher", source, f"a model with the tokenizer of {backbone.name}")
    if not model.config.num_decoder_layers:
        raise RecipeError("teacher", source, "a run's folder or a backbone with a decoder: this one says nothing")
    words = tuple(map(tuple, tokenizer.encode_targets(spec.labels)))
    return Teacher(identity=identity, backbone=model, trie=LabelTrie(words) if words else None)


def _sweep_runs(folder: Path) -> list[Path]:
    """The folders of a sweep's runs that did not fail."""
    try:
        runs = json.loads((folder / SWEEP).read_text(encoding="utf-8"))["runs"]
        return [folder / run["run"] for run in runs if run["error"] is None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(folder, f"its {SWEEP} does not read ({error}); train the runs again") from None


def _from_run(
    folder: Path, spec: TaskSpec, backbone: Backbone, tokenizer: Tokenizer, features: ImageFeatures | None
) -> Teacher:
    artifact = read_artifact(folder)
    for name in ("kind", "template", "labels", "images"):
        taught = getattr(artifact.manifest.spec, name)
        if taught != getattr(spec, name):
            raise RunError(folder, f"cannot teach {spec.name}: its task has another {name}, {taught!r}")
    model = load_model(artifact, backbone, tokenizer)
    visual = model.side.config.visual
    if features is not None and visual is not None:
        vision = features.inputs.vision
        if vision is not None:
            check_vision(artifact, vision.fingerprint, vision.name)
        if (visual.features, visual.tokens) != (features.width, features.tokens):
            taught = f"{visual.tokens} tokens of {visual.features} features"
            why = f"reads images of {taught}, and these have {features.tokens} of {features.width}"
            raise RunError(folder, f"{why}; give --image-tokens {visual.tokens} and its encoder")
    return Teacher(
        identity=f"sha256:{artifact.manifest.files[SIDE_NETWORK].sha256}", backbone=backbone, models=(model,)
    )


class Distillation:
    """The loss of a run that has a teacher."""

    def __init__(
        self,
        teacher: AnyTeacher | KnownAnswers,
        inputs: Sequence[Tokens],
        *,
        weight: float,
        temperature: float,
        complete: Complete | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            inputs: the training rows' token ids.
            weight: w, the teacher's share of the loss, within 0 and 1.
            temperature: T, above 0; regression uses none.
            complete: adds to taps what side networks read besides, by the rows' indices among the inputs.
        """
        self._teacher = teacher
        self._inputs = inputs
        self._weight = weight
        self._temperature = temperature
        self._complete = complete
        self._answers = teacher.answers if isinstance(teacher, KnownAnswers) else None

    @torch.no_grad()
    def prepare(self, step: Callable[[int, int], None]) -> None:
        """Compute the teacher's answers to every row, for classification and regression. A second call does nothing.

        Args:
            step: called with rows done and rows in all.
        """
        if self._answers is not None:
            return
        teacher = self._teacher
        assert not isinstance(teacher, KnownAnswers)
        parts: list[Tensor] = []
        order: list[int] = []
        for indices in length_batches([len(ids) for ids in self._inputs], BATCH_TOKENS):
            inputs = [self._inputs[index] for index in indices]
            backbone_pass = run_backbone(teacher.backbone, inputs, teacher.depth)
            if self._complete is not None:
                backbone_pass.taps = self._complete(backbone_pass.taps, indices)
            if isinstance(teacher, Teacher):
                parts.append(teacher.answers(backbone_pass))
            else:
                ids, mask = padded(teacher.backbone, inputs)
                parts.append(teacher.model.answers(Batch(ids, mask, backbone_pass.taps.pairs)))
            order += indices
            step(len(order), len(self._inputs))
        answers = torch.cat(parts)
        self._answers = torch.empty_like(answers)
        self._answers[order] = answers

    def loss(
        self, answerer: Answerer, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor, rows: Sequence[int]
    ) -> Tensor:
        """The mixed loss of one batch, a scalar.

        Args:
            answerer, backbone_pass, side, targets: as the answerer's own loss takes them.
            rows: indices of the batch's rows among the inputs.
        """
        if isinstance(answerer, Generate):
            return self._token_loss(backbone_pass, side, targets, rows)
        assert self._answers is not None
        teacher = self._answers[list(rows)]
        if isinstance(answerer, Classify):
            student = answerer.log_probabilities(backbone_pass, side)
            return self._mix(F.nll_loss(student, targets), divergence(student, teacher, self._temperature))
        assert isinstance(answerer, Regress)
        unit = answerer.unit
        values = answerer.values(backbone_pass, side) / unit
        return self._mix(F.mse_loss(values, targets / unit), F.mse_loss(values, teacher / unit))

    def _token_loss(
        self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor, rows: Sequence[int]
    ) -> Tensor:
        backbone = backbone_pass.backbone
        taps = backbone_pass.taps
        real = targets != IGNORED
        state = side.decode(forced_taps(backbone_pass, targets), side.encode(taps), side.memory_mask(taps))
        student = backbone.logits(state[real]).float()
        with torch.no_grad():
            teacher = self._teacher
            assert isinstance(teacher, Teacher)  # answers that are kept are of labels and values, not of tokens
            teacher_pass = backbone_pass
            if teacher.backbone is not backbone:
                teacher_pass = run_backbone(teacher.backbone, [self._inputs[row] for row in rows])
            theirs = teacher.token_logits(teacher_pass, targets)[real].float()
        shared = min(student.shape[-1], theirs.shape[-1])  # rows past the tokenizer's are padding of their matrices
        soft = divergence(student[:, :shared], theirs[:, :shared], self._temperature)
        return self._mix(F.cross_entropy(student, targets[real]), soft)

    def _mix(self, task: Tensor, soft: Tensor) -> Tensor:
        return (1 - self._weight) * task + self._weight * soft


def distillation_of(
    recipe: Recipe,
    teacher: AnyTeacher | KnownAnswers | None,
    inputs: Sequence[Tokens],
    complete: Complete | None = None,
) -> Distillation | None:
    """The distillation that a recipe asks for; None without a teacher."""
    if teacher is None:
        return None
    return Distillation(
        teacher, inputs, weight=recipe.distill, temperature=recipe.distill_temperature, complete=complete
    )


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student), the mean over rows.

    T^2 keeps the gradients' size whatever the temperature.

    Args:
        student, teacher: (N, K), logits or log probabilities.
    """
    log_student = torch.log_softmax(student / temperature, -1)
    log_teacher = torch.log_softmax(teacher / temperature, -1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
