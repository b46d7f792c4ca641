"""Scores of predictions: accuracy, Matthews correlation, F1, Pearson and Spearman correlation, exact match, ranks.

`rows_to_answer` says which rows a model has to answer, `score_values` what its answers are worth. Fractions are 0 to 1
and correlations -1 to 1, never percent. A metric's headline number has the metric's own name, so that "the best epoch"
is `max(..., key=lambda scores: scores[metric])`. Knows no task files, models or tensors.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from side_registry.task import TaskSpec
from side_registry.task_kinds import KINDS
from training.data import Example, as_fields
from training.errors import MetricError

CHUNK = 1024
"""Rows whose similarities are in memory together."""


def rows_to_answer(spec: TaskSpec, examples: Sequence[Example]) -> list[dict[str, str]]:
    """The rows that a model has to answer: the examples' own; for an embedding, their distinct targets after them."""
    rows = [example.fields for example in examples]
    if KINDS[spec.kind].target_is_input:
        rows += [as_fields(spec, text) for text in dict.fromkeys(str(example.target) for example in examples)]
    return rows


def score_values(spec: TaskSpec, values: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
    """Score a model's answers by the spec's metric; the headline under the metric's own name.

    Args:
        values: labels, numbers, texts or vectors, one for each of `rows_to_answer(spec, examples)`.
    Raises:
        MetricError: as `score`.
    """
    targets = [example.target for example in examples]
    if KINDS[spec.kind].target_is_input:
        [field] = spec.fields
        values = ranks([(example.fields[field], str(example.target)) for example in examples], values)
    return score(spec.metric, values, targets, labels=spec.labels)


def score(
    metric: str, predictions: Sequence[str | float], targets: Sequence[str | float], *, labels: Sequence[str] = ()
) -> dict[str, float]:
    """Score predictions against targets of the same order.

    Args:
        metric: one of METRICS.
        predictions: label texts, texts or values. A text that is no label is an invalid output: it counts as wrong.
            For recall_at_1 and mrr: the rank that each target came out at, from 1.
        targets: what they should be.
        labels: the task's labels in the spec's order. `accuracy_f1` needs its two, the second being the positive one.
    Returns:
        The headline number under the metric's own name, then its parts if it has any.
    Raises:
        MetricError: unknown metric, nothing to score, unequal lengths, a value that is not a finite number.
    """
    if metric not in METRICS:
        raise MetricError(metric, f"unknown; give one of {', '.join(METRICS)}")
    if len(predictions) != len(targets):
        raise MetricError(metric, f"{len(predictions)} predictions for {len(targets)} targets")
    if not targets:
        raise MetricError(metric, "nothing to score: 0 predictions")
    return METRICS[metric](predictions, targets, labels)


def _accuracy(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    return {"accuracy": _share_equal(predictions, targets)}


def _matthews(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """An invalid output is one more class, which is never right. 0 when predictions or targets are all the same."""
    rows = len(targets)
    answered = Counter(predictions)
    right = Counter(targets)
    hits = sum(prediction == target for prediction, target in zip(predictions, targets, strict=True))
    covariance = hits * rows - sum(count * answered[value] for value, count in right.items())
    spread_answered = rows**2 - sum(count**2 for count in answered.values())
    spread_right = rows**2 - sum(count**2 for count in right.values())
    spread = math.sqrt(spread_answered * spread_right)
    return {"matthews": covariance / spread if spread else 0.0}


def _accuracy_f1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """An invalid output counts as the opposite of its target, as in T5's own evaluation."""
    if len(labels) != 2:
        raise MetricError(
            "accuracy_f1", f"needs the task's two labels, the second is the positive one; got {len(labels)}"
        )
    right = [target == labels[1] for target in targets]
    answered = [
        prediction == labels[1] if prediction in labels else not positive
        for prediction, positive in zip(predictions, right, strict=True)
    ]
    accuracy = _share_equal(answered, right)
    hits = sum(one and other for one, other in zip(answered, right, strict=True))
    positives = sum(answered) + sum(right)
    f1 = 2 * hits / positives if positives else 0.0
    return {"accuracy_f1": (accuracy + f1) / 2, "accuracy": accuracy, "f1": f1}


def _pearson_spearman(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """0 where a correlation is not defined: one row, or constant predictions or targets."""
    answered = _finite("predictions", predictions)
    right = _finite("targets", targets)
    pearson = _correlation(answered, right)
    spearman = _correlation(_average_ranks(answered), _average_ranks(right))
    return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def _exact_match(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """Runs of white space count as one space: a T5 tokenizer cannot tell them apart."""
    answered = [" ".join(str(text).split()) for text in predictions]
    right = [" ".join(str(text).split()) for text in targets]
    return {"exact_match": _share_equal(answered, right)}


def _recall_at_1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """The share of rows whose own target ranks first."""
    target_ranks = np.asarray(predictions, dtype=np.float64)
    if not (target_ranks >= 1).all():
        raise MetricError("recall_at_1", f"ranks start at 1, got {target_ranks.min():g}")
    return {"recall_at_1": float(np.mean(target_ranks == 1)), "mrr": float(np.mean(1 / target_ranks))}


def _mrr(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    """The mean reciprocal rank of each row's own target."""
    scores = _recall_at_1(predictions, targets, labels)
    return {"mrr": scores["mrr"], "recall_at_1": scores["recall_at_1"]}


def _share_equal(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
    return float(np.mean([prediction == target for prediction, target in zip(predictions, targets, strict=True)]))


def _finite(what: str, values: Sequence[Any]) -> np.ndarray:
    for index, value in enumerate(values):
        if isinstance(value, str) or not math.isfinite(value):
            raise MetricError("pearson_spearman", f"{what}[{index}] is {value!r}, not a finite number")
    return np.asarray(values, dtype=np.float64)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of two (N,) arrays; 0 where one of them is constant."""
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x = _unit(x)
    y = _unit(y)
    return float(np.clip(x @ y, -1.0, 1.0))


def _unit(values: np.ndarray) -> np.ndarray:
    """(N,) to (N,) of mean 0 and length 1. Dividing by the largest first keeps squares of huge values finite."""
    values = values / np.abs(values).max()
    centred = values - values.mean()
    length = np.linalg.norm(centred)
    return centred / length if length else centred


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """(N,) to the (N,) ranks from 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[str]], dict[str, float]]

METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "matthews": _matthews,
        "accuracy_f1": _accuracy_f1,
        "pearson_spearman": _pearson_spearman,
        "exact_match": _exact_match,
        "recall_at_1": _recall_at_1,
        "mrr": _mrr,
    }
)
"""By name: a function of predictions, targets and labels, as `score` takes them."""


def ranks(pairs: Sequence[tuple[str, str]], vectors: Sequence[Sequence[float]]) -> list[int]:
    """Rank each pair's own target among all distinct targets, by how near it is to the pair's text.

    1 where it is the nearest, 2 where one other is as near or nearer, and so on. Two kinds of targets are no wrong
    answers, so not counted: the text itself, and the targets that the same text has in other pairs.

    Args:
        pairs: N texts, each with its target.
        vectors: of length 1; the texts', in the pairs' order, and then each distinct target's, in order of appearance.
    Returns:
        N ranks from 1.
    """
    candidates = {text: index for index, text in enumerate(dict.fromkeys(target for _, target in pairs))}
    right: defaultdict[str, set[int]] = defaultdict(set)
    for text, target in pairs:
        right[text] |= {candidates[target], candidates.get(text, candidates[target])}
    matrix = np.asarray(vectors, np.float32)
    texts = matrix[: len(pairs)]
    targets = matrix[len(pairs) :]
    target_ranks: list[int] = []
    for start in range(0, len(pairs), CHUNK):
        similarities = texts[start : start + CHUNK] @ targets.T
        for (text, target), row in zip(pairs[start : start + CHUNK], similarities, strict=True):
            similarity = row[candidates[target]]
            row[list(right[text])] = -np.inf
            target_ranks.append(1 + int(np.count_nonzero(row >= similarity)))
    return target_ranks
