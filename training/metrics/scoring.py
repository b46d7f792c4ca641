"""The table of metrics by name, and what scores a task's answers by it.

`rows_to_answer` says which rows a model has to answer, `score_values` what its answers are worth.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.data import Example, as_fields, references
from training.errors import MetricError
from training.metrics.bleu import bleu
from training.metrics.calibration import calibration_error
from training.metrics.cider import cider
from training.metrics.classes import accuracy, accuracy_f1, matthews, pairs_of
from training.metrics.correlation import pearson_and_spearman
from training.metrics.entities import entity_scores
from training.metrics.label_sets import score_label_sets
from training.metrics.ranking import ranks, recall_and_mrr
from training.metrics.relevance import by_query, ranking_scores
from training.metrics.rouge import rouge_l
from training.metrics.texts import exact_match
from training.metrics.vqa import vqa_accuracy


def rows_to_answer(spec: TaskSpec, examples: Sequence[Example]) -> list[dict[str, str]]:
    """The rows that a model has to answer: the examples' own; for an embedding, their distinct targets after them."""
    rows = [example.fields for example in examples]
    if KINDS[spec.kind].target_is_input:
        rows += [as_fields(spec, text) for text in dict.fromkeys(str(example.target) for example in examples)]
    return rows


def score_values(spec: TaskSpec, values: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
    """Score a model's answers by the spec's metric; the headline under the metric's own name.

    Args:
        values: labels, numbers, texts, vectors, LabelScores or relevances, one for each of
            `rows_to_answer(spec, examples)`.
    Raises:
        MetricError: as `score`.
    """
    targets = [example.target for example in examples]
    if KINDS[spec.kind].target_is_input:
        [field] = spec.fields
        values = ranks([(example.fields[field], str(example.target)) for example in examples], values)
    if KINDS[spec.kind].ranks:
        rankings = by_query([example.fields[spec.fields[0]] for example in examples], values, targets)
        return score(spec.metric, rankings, rankings)
    return score(spec.metric, values, targets, labels=spec.labels)


def score(
    metric: str, predictions: Sequence[Any], targets: Sequence[Any], *, labels: Sequence[str] = ()
) -> dict[str, float]:
    """Score predictions against targets of the same order.

    Args:
        metric: one of METRICS.
        predictions: label texts, texts or values. A text that is no label is an invalid output: it counts as wrong.
            For entity_f1: lists of objects with start, end and label, as the targets are.
            For recall_at_1 and mrr: the rank that each target came out at, from 1. For several labels: `LabelScores`.
        targets: what they should be. Of a text, a tuple of several references too, each of which is right. For
            several labels: sets of them.
            For ndcg_at_10 and mrr_at_10 both are the `Ranked` of each query.
        labels: the task's labels in the spec's order. `accuracy_f1` needs its two, the second being the positive one.
    Returns:
        The headline number under the metric's own name, then its parts if it has any, or other metrics of its family.
    Raises:
        MetricError: unknown metric, nothing to score, unequal lengths, a value that is not a finite number.
    """
    if metric not in METRICS:
        raise MetricError(metric, f"unknown; give one of {', '.join(METRICS)}")
    if len(predictions) != len(targets):
        raise MetricError(metric, f"{len(predictions)} predictions for {len(targets)} targets")
    if not targets and metric not in RANKINGS:
        raise MetricError(metric, "nothing to score: 0 predictions")
    return METRICS[metric](predictions, targets, labels)


def _accuracy(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    return {"accuracy": accuracy(pairs_of(predictions, targets))}


def _matthews(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    return {"matthews": matthews(pairs_of(predictions, targets))}


def _accuracy_f1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    right, f1 = accuracy_f1(pairs_of(predictions, targets), labels)
    return {"accuracy_f1": (right + f1) / 2, "accuracy": right, "f1": f1}


def _pearson_spearman(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    pearson, spearman = pearson_and_spearman(predictions, targets)
    return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}


def _recall_at_1(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    recall, mrr = recall_and_mrr(predictions)
    return {"recall_at_1": recall, "mrr": mrr}


def _mrr(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
    recall, mrr = recall_and_mrr(predictions)
    return {"mrr": mrr, "recall_at_1": recall}


def _label_sets(
    headline: str, predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]
) -> dict[str, float]:
    scores = score_label_sets(predictions, targets, labels)
    return {headline: scores[headline], **scores}


def _rankings(
    headline: str, predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]
) -> dict[str, float]:
    scores = {name: float(values.mean()) for name, values in ranking_scores(predictions).items()}
    return {headline: scores[headline], **scores}


RANKINGS = ("ndcg_at_10", "mrr_at_10")
"""Metrics of passages by query."""

Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[str]], dict[str, float]]


def _of_texts(*family: Callable[[Sequence[str], Sequence[tuple[str, ...]]], float]) -> Metric:
    """The scores of texts by each function of `family`, under its name; each takes all references of each row."""

    def compute(predictions: Sequence[Any], targets: Sequence[Any], labels: Sequence[str]) -> dict[str, float]:
        texts = [str(prediction) for prediction in predictions]
        right = [references(target) for target in targets]
        return {function.__name__: function(texts, right) for function in family}

    return compute


METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "matthews": _matthews,
        "accuracy_f1": _accuracy_f1,
        "pearson_spearman": _pearson_spearman,
        "exact_match": _of_texts(exact_match),
        "vqa_accuracy": _of_texts(vqa_accuracy, exact_match),
        "cider": _of_texts(cider, bleu, rouge_l),
        "bleu": _of_texts(bleu, cider, rouge_l),
        "rouge_l": _of_texts(rouge_l, bleu, cider),
        "recall_at_1": _recall_at_1,
        "mrr": _mrr,
        "f1_micro": partial(_label_sets, "f1_micro"),
        "f1_macro": partial(_label_sets, "f1_macro"),
        "average_precision": partial(_label_sets, "average_precision"),
        "entity_f1": entity_scores,
        **{name: partial(_rankings, name) for name in RANKINGS},
    }
)
"""By name: a function of predictions, targets and labels, as `score` takes them."""

FAMILIES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "accuracy": ("accuracy",),
        "matthews": ("matthews",),
        "accuracy_f1": ("accuracy_f1", "accuracy", "f1"),
        "pearson_spearman": ("pearson_spearman", "pearson", "spearman"),
        "exact_match": ("exact_match",),
        "vqa_accuracy": ("vqa_accuracy", "exact_match"),
        "cider": ("cider", "bleu", "rouge_l"),
        "bleu": ("bleu", "cider", "rouge_l"),
        "rouge_l": ("rouge_l", "bleu", "cider"),
        "recall_at_1": ("recall_at_1", "mrr"),
        "mrr": ("mrr", "recall_at_1"),
        "f1_micro": ("f1_micro", "f1_macro", "average_precision"),
        "f1_macro": ("f1_macro", "f1_micro", "average_precision"),
        "average_precision": ("average_precision", "f1_micro", "f1_macro"),
        "entity_f1": ("entity_f1", "precision", "recall"),
        "ndcg_at_10": ("ndcg_at_10", "mrr_at_10"),
        "mrr_at_10": ("mrr_at_10", "ndcg_at_10"),
    }
)
"""The names of the scores that each of METRICS returns, known without rows."""


def measurable(spec: TaskSpec) -> dict[str, str]:
    """Every score that a task's answers can have, with the metric that computes it; the spec's own metric first."""
    metrics = dict.fromkeys((spec.metric, *KINDS[spec.kind].metrics))
    if len(spec.labels) != 2 and spec.metric != "accuracy_f1":
        metrics.pop("accuracy_f1", None)
    found: dict[str, str] = {}
    for metric in metrics:
        for name in FAMILIES[metric]:
            found.setdefault(name, metric)
    if has_probabilities(spec):
        found["ece"] = "ece"
    return found


def has_probabilities(spec: TaskSpec) -> bool:
    """Whether an answer has a probability, so that its calibration can be measured."""
    return spec.kind == "classification"


def measure(
    spec: TaskSpec,
    values: Sequence[Any],
    examples: Sequence[Example],
    names: Iterable[str],
    confidences: Sequence[float] | None = None,
) -> dict[str, float]:
    """The scores with these names, in their order.

    Args:
        values: as `score_values` takes them.
        names: some of `measurable(spec)`.
        confidences: the probability of each answered label, for `ece`.
    Raises:
        MetricError: as `score`.
    """
    computed_by = measurable(spec)
    scores: dict[str, float] = {}
    names = list(names)
    for metric in dict.fromkeys(computed_by[name] for name in names):
        if metric == "ece":
            assert confidences is not None
            right = [value == example.target for value, example in zip(values, examples, strict=True)]
            scores["ece"] = calibration_error(confidences, right)
            continue
        found = score_values(spec.model_copy(update={"metric": metric}), values, examples)
        scores |= {name: value for name, value in found.items() if name not in scores}
    return {name: scores[name] for name in names}
