"""Distillation: a side network learns from a teacher's answers beside the rows' targets, or instead of them.

The loss is (1 - w) * task loss + w * T^2 * KL(teacher || student), both distributions softened by the temperature T
(Hinton et al., arXiv:1503.02531); over the labels for classification, over the vocabulary at each token for text. For
regression it is the mean squared error to the teacher's values.

A frozen teacher says the same in every epoch: its labels and values are computed once, before the first. A text's
distributions are too large to keep, and are computed with each batch.
"""

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
from ladder.answerers import IGNORED, forced_taps
from side_registry.manifest import MANIFEST, SIDE_NETWORK, read_artifact
from side_registry.task import TaskSpec
from training.errors import RecipeError, RunError
from training.evaluate import BATCH_TOKENS, Model, length_batches, load_model
from training.recipe import Recipe
from training.run import SETTINGS

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A frozen model that answers the same task: a backbone's own LM head, or a side network of the run's backbone."""

    identity: str
    """What tells it from any other; a run goes on with the same teacher only."""
    backbone: Backbone
    trie: LabelTrie | None = None
    """Where its LM head is to say labels."""
    model: Model | None = None
    """The side network; None where the LM head itself answers."""

    @property
    def depth(self) -> int | None:
        """Encoder blocks of its backbone that it needs, as in SideNetwork.encoder_depth."""
        return None if self.model is None else self.model.side.encoder_depth

    @property
    def layers(self) -> tuple[int, ...]:
        """Encoder blocks of the run's own backbone that it reads."""
        return () if self.model is None else self.model.side.encoder.layers

    def answers(self, given: BackbonePass) -> Tensor:
        """Its log probabilities of the labels, (B, K), or its values, (B,); float32."""
        if self.model is None:
            assert self.trie is not None
            return self.trie.log_probabilities(lambda prefix, tokens: _said(given, prefix, tokens))
        side, answerer = self.model.side, self.model.answerer
        if isinstance(answerer, Classify):
            return answerer.log_probabilities(given, side)
        assert isinstance(answerer, Regress)
        return answerer.values(given, side)

    def token_logits(self, given: BackbonePass, targets: Tensor) -> Tensor:
        """Its logits (B, T, V) of each token of the targets (B, T), told those before."""
        taps = forced_taps(given, targets)
        if self.model is None:
            assert taps.final is not None
            return given.backbone.logits(taps.final)
        side, mask = self.model.side, given.taps.mask
        return given.backbone.logits(side.decode(taps, side.encode(given.taps), mask))


def _said(given: BackbonePass, prefix: Tokens, tokens: Tokens) -> Tensor:
    """(B, N) logits of the backbone itself."""
    state = given.decoder_taps(prefix).final
    assert state is not None
    return given.backbone.logits(state[:, -1], torch.tensor(tokens, device=state.device))


def load_teacher(source: str, spec: TaskSpec, backbone: Backbone, tokenizer: Tokenizer) -> Teacher:
    """The teacher of a recipe: "backbone", a finished run's folder, or another T5's folder or hub id.

    Raises:
        RecipeError: it has no answers for this kind of task.
        RunError: a run of another task or backbone, or an unfinished one.
        BackboneError: neither a run nor a T5.
    """
    folder = Path(source).expanduser()
    if source != "backbone" and (folder / MANIFEST).is_file():
        return _from_run(folder, spec, backbone, tokenizer)
    if source != "backbone" and (folder / SETTINGS).is_file():
        raise RunError(folder, "is not finished, so it cannot teach; run it again to its end")
    if spec.kind not in ("classification", "text"):
        raise RecipeError("teacher", source, f"a finished run's folder for {spec.kind}: an LM head says words alone")
    speaker, identity = backbone, "backbone"
    if source != "backbone":
        speaker = load_backbone(source, device=backbone.device, dtype=str(backbone.dtype).removeprefix("torch."))
        identity = speaker.fingerprint
        if load_tokenizer(source).fingerprint != tokenizer.fingerprint:
            raise RecipeError("teacher", source, f"a model with the tokenizer of {backbone.name}")
    if not speaker.config.num_decoder_layers:
        raise RecipeError("teacher", source, "a run's folder or a backbone with a decoder: this one says nothing")
    words = tuple(map(tuple, tokenizer.encode_targets(spec.labels)))
    return Teacher(identity=identity, backbone=speaker, trie=LabelTrie(words) if words else None)


def _from_run(folder: Path, spec: TaskSpec, backbone: Backbone, tokenizer: Tokenizer) -> Teacher:
    artifact = read_artifact(folder)
    theirs = artifact.manifest.spec
    for name in ("kind", "template", "labels"):
        if getattr(theirs, name) != getattr(spec, name):
            raise RunError(folder, f"cannot teach {spec.name}: its task has another {name}, {getattr(theirs, name)!r}")
    model = load_model(artifact, backbone, tokenizer)
    return Teacher(identity=f"sha256:{artifact.manifest.files[SIDE_NETWORK].sha256}", backbone=backbone, model=model)


class Distillation:
    """The loss of a run that has a teacher."""

    def __init__(self, teacher: Teacher, inputs: Sequence[Tokens], *, weight: float, temperature: float) -> None:
        """`inputs` are the training rows' token ids."""
        self._teacher, self._inputs = teacher, inputs
        self._weight, self._temperature = weight, temperature
        self._lessons: Tensor | None = None

    @torch.no_grad()
    def prepare(self, step: Callable[[int, int], None]) -> None:
        """Ask the teacher about every row; `step` is told rows done and rows in all."""
        parts, order = [], []
        for places in length_batches([len(ids) for ids in self._inputs], BATCH_TOKENS):
            given = run_backbone(self._teacher.backbone, [self._inputs[place] for place in places], self._teacher.depth)
            parts.append(self._teacher.answers(given))
            order += places
            step(len(order), len(self._inputs))
        answers = torch.cat(parts)
        self._lessons = torch.empty_like(answers)
        self._lessons[order] = answers

    def loss(
        self, answerer: Answerer, given: BackbonePass, side: SideNetwork, targets: Tensor, places: Sequence[int]
    ) -> Tensor:
        """Of one batch: as the answerer's own, and `places` are its rows among the inputs."""
        if isinstance(answerer, Generate):
            return self._of_tokens(given, side, targets, places)
        assert self._lessons is not None
        lessons = self._lessons[list(places)]
        if isinstance(answerer, Classify):
            student = answerer.log_probabilities(given, side)
            return self._mix(F.nll_loss(student, targets), divergence(student, lessons, self._temperature))
        assert isinstance(answerer, Regress)
        values, unit = answerer.values(given, side), answerer.unit
        return self._mix(F.mse_loss(values / unit, targets / unit), F.mse_loss(values / unit, lessons / unit))

    def _of_tokens(self, given: BackbonePass, side: SideNetwork, targets: Tensor, places: Sequence[int]) -> Tensor:
        backbone, real = given.backbone, targets != IGNORED
        state = side.decode(forced_taps(given, targets), side.encode(given.taps), given.taps.mask)
        student = backbone.logits(state[real]).float()
        with torch.no_grad():
            read = given
            if self._teacher.backbone is not backbone:
                read = run_backbone(self._teacher.backbone, [self._inputs[place] for place in places])
            teacher = self._teacher.token_logits(read, targets)[real].float()
        shared = min(student.shape[-1], teacher.shape[-1])  # rows past the tokenizer's are padding of their matrices
        soft = divergence(student[:, :shared], teacher[:, :shared], self._temperature)
        return self._mix(F.cross_entropy(student, targets[real]), soft)

    def _mix(self, task: Tensor, soft: Tensor) -> Tensor:
        return (1 - self._weight) * task + self._weight * soft


def distillation_of(recipe: Recipe, teacher: Teacher | None, inputs: Sequence[Tokens]) -> Distillation | None:
    if teacher is None:
        return None
    return Distillation(teacher, inputs, weight=recipe.distill, temperature=recipe.distill_temperature)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student), the mean over rows; both (N, K), logits or log probabilities.

    T^2 keeps the gradients' size whatever the temperature.
    """
    log_student = torch.log_softmax(student / temperature, -1)
    log_teacher = torch.log_softmax(teacher / temperature, -1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
