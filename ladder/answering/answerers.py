"""Answerers: how a side network's output becomes an answer, and the loss that trains it. Trainer and server share them.

An answerer holds what the task's spec fixes (labels, range, length) and no weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ladder.answering.label_trie import LabelTrie
from ladder.answering.reading import Reading, SingleReading
from ladder.answering.tagging import IGNORED, TagWords
from ladder.answers import Answer, ClassAnswer, LabelsAnswer, RelevanceAnswer, TextAnswer, ValueAnswer, VectorAnswer
from ladder.backbone.model import Taps
from ladder.backbone.passes import BackbonePass
from ladder.backbone.tokenizer import Tokenizer
from ladder.config import Head
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.decoding.settings import Generation
from ladder.errors import LabelError, NotFiniteError
from ladder.side.network import SideNetwork


@dataclass(frozen=True, kw_only=True)
class Classify:
    """One of the labels. With a trie, words of the LM head; without, a head with an output for each label."""

    labels: tuple[str, ...]
    trie: LabelTrie | None = None
    temperature: float = 1.0
    """The logits of an answer's scores are divided by it (arXiv:1706.04599). It changes neither the label nor the
    loss."""

    def log_probabilities(self, backbone_pass: BackbonePass, side: SideNetwork) -> Tensor:
        """(B, K) in float32."""
        return self._log_probabilities(SingleReading(backbone_pass, side))

    def _log_probabilities(self, reading: Reading) -> Tensor:
        if self.trie is None:
            return torch.log_softmax(reading.outputs().float(), -1)

        def logits_after(prefix: tuple[int, ...], tokens: tuple[int, ...]) -> Tensor:
            state = reading.state_after(prefix)
            return reading.backbone.logits(state, torch.tensor(tokens, device=state.device))

        return self.trie.log_probabilities(logits_after)

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Mean cross entropy; `targets` (B,) are label indices, or IGNORED: such rows teach nothing."""
        log_probabilities = self.log_probabilities(backbone_pass, side)
        total = F.nll_loss(log_probabilities, targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)  # torch's mean of no rows is not a number

    def answers(self, reading: Reading) -> list[Answer | Exception]:
        """Answer each input; an exception in place of one that is not finite."""
        log_probabilities = self._log_probabilities(reading)
        probabilities = log_probabilities.exp().tolist()
        if self.temperature == 1.0:
            return [self._row(row, row) for row in probabilities]
        tempered = torch.log_softmax(log_probabilities / self.temperature, -1).exp().tolist()
        return [self._row(row, scores) for row, scores in zip(probabilities, tempered, strict=True)]

    @property
    def prefixes(self) -> tuple[tuple[int, ...], ...]:
        """The decoder's tokens so far at each point where labels differ in the next one."""
        return () if self.trie is None else tuple(branch.prefix for branch in self.trie.branches)

    def _row(self, probabilities: list[float], scores: list[float]) -> Answer | Exception:
        """The label is that of the untempered probabilities: rounding could make two tempered ones equal."""
        if not all(score == score for score in scores):  # NaN
            return NotFiniteError("the side network's scores are not finite numbers")
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return ClassAnswer(label=self.labels[best], score=scores[best], scores=tuple(scores))


@dataclass(frozen=True, kw_only=True)
class Regress:
    """A number from a linear, attention or mlp head with one output, clipped to the spec's range."""

    low: float | None = None
    high: float | None = None
    unit: float = 1.0
    """Standard deviation of the training targets: scales the loss, not the answer."""

    def values(self, backbone_pass: BackbonePass, side: SideNetwork) -> Tensor:
        """(B,) in float32, not clipped."""
        return self._values(SingleReading(backbone_pass, side))

    def _values(self, reading: Reading) -> Tensor:
        return reading.outputs()[:, 0].float()

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Mean squared error in `unit`s; `targets` (B,)."""
        return F.mse_loss(self.values(backbone_pass, side) / self.unit, targets / self.unit)

    def answers(self, reading: Reading) -> list[Answer | Exception]:
        """Answer each input; an exception in place of one that is not finite."""
        return [self._row(value) for value in self._values(reading).tolist()]

    def _row(self, value: float) -> Answer | Exception:
        if not abs(value) < float("inf"):
            return NotFiniteError("the side network's value is not a finite number")
        low = value if self.low is None else max(value, self.low)
        return ValueAnswer(value=low if self.high is None else min(low, self.high))


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Text, decoded through the LM head; `generation` has the decoding settings, greedy by default."""

    max_new_tokens: int
    decode: Callable[[Sequence[int]], str]
    """The tokenizer's: ids to text."""
    generation: Generation = field(default_factory=Generation)

    @property
    def unseeded(self) -> "Generate":
        """The same without a seed; rows whose answerers are equal then are decoded together."""
        return self if self.generation.seed is None else replace(self, generation=replace(self.generation, seed=None))

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Mean cross entropy per token; `targets` (B, T) end in the end token and are padded with IGNORED."""
        taps = backbone_pass.taps
        logits = backbone_pass.backbone.logits(
            side.decode(forced_taps(backbone_pass, targets), side.encode(taps), side.memory_mask(taps))
        )
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    def answer(self, backbone_pass: BackbonePass, side: SideNetwork) -> list[Answer | Exception]:
        """Decode the texts of all inputs of a pass; an exception in place of one that failed."""
        segment = Segment(side=side, taps=backbone_pass.taps, limit=self.max_new_tokens, decoding=self.generation)
        [rows] = generate(backbone_pass.backbone, [segment])
        return self.finish(rows)

    def finish(self, rows: Sequence[tuple[int, ...] | Exception]) -> list[Answer | Exception]:
        """Make answers of one segment's decoded tokens; a row that failed keeps its exception."""
        return [row if isinstance(row, Exception) else TextAnswer(text=self.decode(row), tokens=row) for row in rows]


def forced_taps(backbone_pass: BackbonePass, targets: Tensor) -> Taps:
    """Run the backbone's decoder with teacher forcing: its taps at position t predict target t.

    Args:
        targets: (B, T), padded with IGNORED.
    """
    backbone = backbone_pass.backbone
    taps = backbone_pass.taps
    assert taps.final is not None
    config = backbone.config
    start = torch.full_like(targets[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, targets[:, :-1]], 1)
    return backbone.decode(shifted.masked_fill(shifted == IGNORED, config.pad_token_id), taps.final, taps.mask)


@dataclass(frozen=True, kw_only=True)
class Embed:
    """A vector of length 1 from a linear or mlp head: texts with the same meaning have similar vectors."""

    temperature: float = 0.1
    """Of the loss, not the answer. With 0.05, usual for whole encoders, a side network overfits on few pairs."""

    def vectors(self, backbone_pass: BackbonePass, side: SideNetwork) -> Tensor:
        """(B, E) in float32."""
        return self._vectors(SingleReading(backbone_pass, side))

    def _vectors(self, reading: Reading) -> Tensor:
        return F.normalize(reading.all_outputs().float(), dim=-1)

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Symmetric InfoNCE over a batch's pairs: each text is to find its partner among the other pairs' texts.

        Args:
            backbone_pass: of 2B inputs: the first text of each pair, then the second text of each.
            targets: (2B,) a number for each distinct text. Pairs that share a text are no negatives of each other.
        """
        firsts, seconds = self.vectors(backbone_pass, side).chunk(2)
        texts = targets.view(2, -1)
        shared = (texts[:, :, None, None] == texts[None, None]).any(0).any(1)
        pairs = torch.arange(len(firsts), device=firsts.device)
        shared[pairs, pairs] = False
        scores = (firsts @ seconds.T / self.temperature).masked_fill(shared, -torch.inf)
        return (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2

    def answers(self, reading: Reading) -> list[Answer | Exception]:
        """Answer each input; an exception in place of one that is not finite, or is 0."""
        vectors = self._vectors(reading)
        lengths = vectors.norm(dim=-1).tolist()
        return [self._row(values, length) for values, length in zip(vectors.tolist(), lengths, strict=True)]

    def _row(self, values: list[float], length: float) -> Answer | Exception:
        if not abs(length - 1) < 1e-3:  # NaN; or 0, where the head's outputs were all 0 or overflowed
            return NotFiniteError("the side network's vector is not of finite numbers with a length above 0")
        return VectorAnswer(values=tuple(values))


@dataclass(frozen=True, kw_only=True)
class ChooseLabels:
    """Any number of the labels, from a head with an output for each: the sigmoid of it is the score."""

    labels: tuple[str, ...]
    thresholds: tuple[float, ...] = ()
    """For each label, the score from which it is part of an answer; empty: 0.5 for all."""

    def logits(self, backbone_pass: BackbonePass, side: SideNetwork) -> Tensor:
        """(B, K) in float32."""
        return SingleReading(backbone_pass, side).outputs().float()

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Mean binary cross entropy over rows and labels; `targets` (B, K) are 1 for labels that are right, else 0."""
        return F.binary_cross_entropy_with_logits(self.logits(backbone_pass, side), targets)

    def answers(self, reading: Reading) -> list[Answer | Exception]:
        """Answer each input; an exception in place of one that is not finite."""
        return [self._row(row) for row in reading.outputs().float().sigmoid().tolist()]

    def choose(self, scores: Sequence[float]) -> LabelsAnswer:
        """Make the answer of the scores of all labels."""
        thresholds = self.thresholds or (0.5,) * len(self.labels)
        chosen = [index for index, score in enumerate(scores) if score >= thresholds[index]]
        chosen.sort(key=lambda index: -scores[index])
        return LabelsAnswer(labels=tuple(self.labels[index] for index in chosen), scores=tuple(scores))

    def _row(self, scores: list[float]) -> Answer | Exception:
        if not all(score == score for score in scores):  # NaN
            return NotFiniteError("the side network's scores are not finite numbers")
        return self.choose(scores)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The relevance of a passage for a query, from a head with one output: the sigmoid of it."""

    def logits(self, backbone_pass: BackbonePass, side: SideNetwork) -> Tensor:
        """(B,) in float32."""
        return SingleReading(backbone_pass, side).outputs().float()[:, 0]

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Mean binary cross entropy; `targets` (B,) are relevances, 0 to 1."""
        return F.binary_cross_entropy_with_logits(self.logits(backbone_pass, side), targets)

    def answers(self, reading: Reading) -> list[Answer | Exception]:
        """Answer each input; an exception in place of one that is not finite."""
        return [
            RelevanceAnswer(relevance=score)
            if score == score
            else NotFiniteError("the side network's score is not a finite number")
            for [score] in reading.outputs().float().sigmoid().tolist()
        ]


Scoring = Classify | Regress | Embed | ChooseLabels | TagWords | Rank
"""Answerers that make no text."""
Answerer = Scoring | Generate


HEADS: Mapping[str, tuple[Head, ...]] = {
    "classification": ("linear", "text", "attention", "mlp"),
    "regression": ("linear", "attention", "mlp"),
    "text": ("text",),
    "embedding": ("linear", "mlp"),
    "multilabel": ("linear", "attention", "mlp"),
    "token_classification": ("linear",),
    "ranking": ("linear", "attention", "mlp"),
}
"""By kind of task, the heads that can answer it; the first is the usual one. As KINDS in
`side_registry/specs/task_kinds.py`, which this package does not import."""


def build_answerer(
    *,
    kind: str,
    labels: Sequence[str],
    low: float | None,
    high: float | None,
    max_new_tokens: int,
    head: str,
    tokenizer: Tokenizer,
    unit: float = 1.0,
    temperature: float = 1.0,
    generation: Generation | None = None,
    thresholds: Sequence[float] = (),
) -> Answerer:
    """Build the answerer of a task: `kind`, `labels`, range and length as in its spec, `head` as in its side network,
    `thresholds` as in its manifest.

    Args:
        unit: of a regression's loss.
        temperature: of a classification's scores.

    Raises:
        LabelError: labels that tokenize alike, an unknown kind, or a kind that this head cannot answer.
    """
    heads = HEADS.get(kind)
    if heads and head not in heads:
        raise LabelError(f"a {kind} task cannot be answered by a {head} head; use {heads[0]}")
    match kind:
        case "classification":
            words = tuple(map(tuple, tokenizer.encode_targets(labels))) if head == "text" else None
            trie = LabelTrie(words) if words else None
            return Classify(labels=tuple(labels), trie=trie, temperature=temperature)
        case "regression":
            return Regress(low=low, high=high, unit=unit)
        case "text":
            how = generation or Generation()
            return Generate(max_new_tokens=max_new_tokens, decode=tokenizer.decode, generation=how)
        case "embedding":
            return Embed()
        case "multilabel":
            return ChooseLabels(labels=tuple(labels), thresholds=tuple(thresholds))
        case "token_classification":
            return TagWords(labels=tuple(labels))
        case "ranking":
            return Rank()
        case _:
            raise LabelError(f"{kind!r} is not a kind of task; use {', '.join(HEADS)}")
