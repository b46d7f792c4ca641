"""The score of the best answer that ignores its input: what a side network must beat to have learned anything."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.data import Example, references
from training.metrics import LabelScores, score, score_values
from training.metrics.caption_words import caption_words

Gram = tuple[str, ...]
WORD = re.compile(r"\w+")

OF_CAPTIONS = ("cider", "bleu", "rouge_l")
"""Metrics of texts that are rarely equal: the commonest one says little."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """One answer for all rows, and its score."""

    answer: str | float
    """A label, the mean of the values, or a text."""
    score: float
    """By the task's metric."""

    def __str__(self) -> str:
        """`baseline 0.5092 (always "negative")`."""
        shown = f'"{self.answer[:80]}"' if isinstance(self.answer, str) else f"the mean, {self.answer:.4g}"
        return f"baseline {self.score:.4f} (always {shown})"


def baseline_of(spec: TaskSpec, examples: Sequence[Example]) -> Baseline | None:
    """The baseline on these examples: their commonest label or text, the mean of their values, or the set of labels
    that scores best.

    Of entities, each word is one, of the commonest label. Each reference of a row counts as a text. Metrics of captions
    take the most typical reference. `accuracy_f1` takes the better one of its two labels, since the positive one alone
    has an F1 above 0. None for an embedding: equal vectors rank nothing.
    """
    kind = KINDS[spec.kind]
    if kind.target_is_input:
        return None
    targets = [example.target for example in examples]
    if kind.has_thresholds:
        return _best_labels(spec, targets)
    if kind.ranks:
        return Baseline("the same score", score_values(spec, [0.0] * len(examples), examples)[spec.metric])
    if kind.has_spans:
        return _of_words(spec, examples)
    if kind.has_range:
        answers: Sequence[str | float] = [sum(targets) / len(targets)]
    elif spec.metric == "accuracy_f1":
        answers = spec.labels
    elif spec.metric in OF_CAPTIONS:
        answers = [_most_typical([text for target in targets for text in references(target)])]
    else:
        answers = [Counter(text for target in targets for text in references(target)).most_common(1)[0][0]]
    scored = [Baseline(answer, _score(spec, answer, targets)) for answer in answers]
    return max(scored, key=lambda baseline: baseline.score)


def _best_labels(spec: TaskSpec, targets: Sequence[frozenset[str]]) -> Baseline:
    """The labels in order of their number of rows, as many as score best. Equal scores for all rows rank nothing."""
    counts = Counter(label for target in targets for label in target)
    labels = sorted(spec.labels, key=lambda label: -counts[label])
    if spec.metric == "f1_micro":
        hits = 0
        parts: list[float] = []
        for many, label in enumerate(labels, 1):
            hits += counts[label]
            parts.append(2 * hits / ((many * len(targets) + counts.total()) or 1))
        labels = labels[: parts.index(max(parts)) + 1]
    answers = [LabelScores(labels, [0.5] * len(spec.labels))] * len(targets)
    value = score(spec.metric, answers, targets, labels=spec.labels)[spec.metric]
    return Baseline(", ".join(labels), value)


def _of_words(spec: TaskSpec, examples: Sequence[Example]) -> Baseline:
    [field] = spec.fields
    counted = Counter(span["label"] for example in examples for span in example.target)
    label = counted.most_common(1)[0][0] if counted else spec.labels[0]
    words = [
        [{"start": word.start(), "end": word.end(), "label": label} for word in WORD.finditer(example.fields[field])]
        for example in examples
    ]
    targets = [example.target for example in examples]
    return Baseline(label, score(spec.metric, words, targets, labels=spec.labels)[spec.metric])


def _most_typical(texts: Sequence[str]) -> str:
    """The text that is most like all texts on average: by the cosine of words and pairs of words, weighed by how few
    texts have them. The first of equals."""
    counted = [_counts(text) for text in texts]
    having = Counter(gram for counts in counted for gram in counts)
    units: list[dict[Gram, float]] = []
    together: defaultdict[Gram, float] = defaultdict(float)
    for counts in counted:
        weights = {gram: count * math.log(len(texts) / having[gram]) for gram, count in counts.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        units.append({gram: weight / length for gram, weight in weights.items()})
        for gram, weight in units[-1].items():
            together[gram] += weight
    likeness = [sum(weight * together[gram] for gram, weight in unit.items()) for unit in units]
    return texts[likeness.index(max(likeness))]


def _counts(text: str) -> Counter[Gram]:
    words = caption_words(text)
    return Counter([*((word,) for word in words), *pairwise(words)])


def _score(spec: TaskSpec, answer: str | float, targets: Sequence[Any]) -> float:
    return score(spec.metric, [answer] * len(targets), targets, labels=spec.labels)[spec.metric]
