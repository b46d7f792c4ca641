"""Bootstrap intervals: how far a score would move with other rows of the same kind.

Rows are drawn with replacement, 1,000 times, from a fixed seed; the interval has the middle 95 % of the scores. CIDEr's
document frequencies stay those of the whole file, and an embedding's targets stay all candidates. Of a
ranking, queries are drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.data import Example, references
from training.metrics.bleu import bleu_of_statistics, bleu_statistics
from training.metrics.calibration import calibration_error
from training.metrics.cider import cider_rows
from training.metrics.classes import accuracy, accuracy_f1, matthews, pairs_of
from training.metrics.correlation import correlations
from training.metrics.entities import entity_counts
from training.metrics.label_sets import resampler
from training.metrics.ranking import ranks, recall_and_mrr
from training.metrics.relevance import by_query, ranking_scores
from training.metrics.rouge import rouge_l
from training.metrics.texts import exact_match
from training.metrics.vqa import vqa_accuracy

RESAMPLES = 1000
SEED = 0
LEVEL = 0.95
Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], Mapping[str, float]]
"""Scores by name, of the rows with these indices, (N,)."""

ROW_MEANS: Mapping[str, Callable[[Sequence[str], Sequence[tuple[str, ...]]], float]] = {
    "exact_match": exact_match,
    "vqa_accuracy": vqa_accuracy,
    "rouge_l": rouge_l,
}
"""Scores that are the mean of those of single rows."""


def intervals(
    spec: TaskSpec,
    values: Sequence[Any],
    examples: Sequence[Example],
    names: Sequence[str],
    confidences: Sequence[float] | None = None,
) -> dict[str, Interval]:
    """The interval of each score.

    Args:
        values: as `score_values` takes them.
        names: some of `measurable(spec)`.
        confidences: the probability of each answered label, for `ece`.
    """
    if KINDS[spec.kind].ranks:
        queries = [example.fields[spec.fields[0]] for example in examples]
        of_queries = ranking_scores(by_query(queries, values, [example.target for example in examples]))
        rows = len(of_queries["ndcg_at_10"])
        found = _bootstrap(lambda drawn: {name: float(each[drawn].mean()) for name, each in of_queries.items()}, rows)
        return {name: found[name] for name in names}
    if KINDS[spec.kind].has_thresholds:
        statistic = resampler(values, [example.target for example in examples], spec.labels)
    elif KINDS[spec.kind].has_spans:
        statistic = _of_entities(values, [example.target for example in examples])
    elif KINDS[spec.kind].has_labels:
        return _of_labels(spec, values, examples, names, confidences)
    elif KINDS[spec.kind].has_range:
        statistic = _of_values(values, [example.target for example in examples])
    elif KINDS[spec.kind].target_is_input:
        [field] = spec.fields
        statistic = _of_ranks(ranks([(example.fields[field], str(example.target)) for example in examples], values))
    else:
        statistic = _of_texts([str(value) for value in values], [references(each.target) for each in examples], names)
    found = _bootstrap(statistic, len(examples))
    return {name: found[name] for name in names}


def _of_labels(
    spec: TaskSpec,
    values: Sequence[Any],
    examples: Sequence[Example],
    names: Sequence[str],
    confidences: Sequence[float] | None,
) -> dict[str, Interval]:
    """Scores of labels depend on counts alone: drawing rows is drawing the counts, whatever the number of rows."""
    targets = [example.target for example in examples]
    pairs = pairs_of(values, targets)
    counts = np.array(list(pairs.values()))
    drawn = np.random.default_rng(SEED).multinomial(counts.sum(), counts / counts.sum(), RESAMPLES).tolist()
    resampled = [dict(zip(pairs, row, strict=True)) for row in drawn]
    functions: dict[str, Callable[[Any], float]] = {
        "accuracy": accuracy,
        "matthews": matthews,
        "accuracy_f1": lambda each: sum(accuracy_f1(each, spec.labels)) / 2,
        "f1": lambda each: accuracy_f1(each, spec.labels)[1],
    }
    found: dict[str, Interval] = {}
    for name in names:
        if name == "ece":
            assert confidences is not None
            found |= _bootstrap(_of_confidences(values, targets, confidences), len(targets))
        else:
            found[name] = _middle([functions[name](each) for each in resampled])
    return found


def _of_confidences(values: Sequence[Any], targets: Sequence[Any], confidences: Sequence[float]) -> Statistic:
    confidence = np.asarray(confidences, np.float64)
    right = np.array([value == target for value, target in zip(values, targets, strict=True)])

    def scores(rows: np.ndarray) -> Mapping[str, float]:
        return {"ece": calibration_error(confidence[rows], right[rows])}

    return scores


def _of_values(values: Sequence[Any], targets: Sequence[Any]) -> Statistic:
    answered = np.asarray(values, np.float64)
    right = np.asarray(targets, np.float64)

    def scores(rows: np.ndarray) -> Mapping[str, float]:
        pearson, spearman = correlations(answered[rows], right[rows])
        return {"pearson_spearman": (pearson + spearman) / 2, "pearson": pearson, "spearman": spearman}

    return scores


def _of_entities(values: Sequence[Any], targets: Sequence[Any]) -> Statistic:
    counts = np.array([entity_counts(found, right) for found, right in zip(values, targets, strict=True)])

    def scores(rows: np.ndarray) -> Mapping[str, float]:
        hits, answered, expected = counts[rows].sum(0)
        return {
            "entity_f1": 2 * hits / max(answered + expected, 1),
            "precision": hits / max(answered, 1),
            "recall": hits / max(expected, 1),
        }

    return scores


def _of_ranks(target_ranks: Sequence[int]) -> Statistic:
    counted = np.asarray(target_ranks)

    def scores(rows: np.ndarray) -> Mapping[str, float]:
        recall, mrr = recall_and_mrr(counted[rows])
        return {"recall_at_1": recall, "mrr": mrr}

    return scores


def _of_texts(texts: Sequence[str], right: Sequence[tuple[str, ...]], names: Sequence[str]) -> Statistic:
    of_rows: dict[str, np.ndarray] = {}
    for name in names:
        if name == "cider":
            of_rows[name] = np.asarray(cider_rows(texts, right))
        elif name in ROW_MEANS:
            one = ROW_MEANS[name]
            of_rows[name] = np.asarray([one([text], [row]) for text, row in zip(texts, right, strict=True)])
    statistics = bleu_statistics(texts, right) if "bleu" in names else None

    def scores(rows: np.ndarray) -> Mapping[str, float]:
        found = {name: float(values[rows].mean()) for name, values in of_rows.items()}
        return found if statistics is None else {**found, "bleu": bleu_of_statistics(statistics[rows].sum(0))}

    return scores


def _bootstrap(statistic: Statistic, rows: int) -> dict[str, Interval]:
    random = np.random.default_rng(SEED)
    drawn = [statistic(random.integers(0, rows, rows)) for _ in range(RESAMPLES)]
    return {name: _middle([scores[name] for scores in drawn]) for name in drawn[0]}


def _middle(scores: Sequence[float]) -> Interval:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(scores, [outside, 1 - outside])
    return float(low), float(high)
