"""Scores of predictions. `scoring` has the table of metrics; the other files compute them, one subject each.

Fractions are 0 to 1 and correlations -1 to 1, never percent; CIDEr is 0 to 10. A metric's headline number has the
metric's own name, so that "the best epoch" is `max(..., key=lambda scores: scores[metric])`. Knows no task files,
models or tensors.
"""

from training.metrics.label_sets import LabelScores
from training.metrics.ranking import ranks
from training.metrics.report import Evaluation, evaluation_of
from training.metrics.scoring import METRICS, measurable, measure, rows_to_answer, score, score_values

__all__ = [
    "METRICS",
    "Evaluation",
    "LabelScores",
    "evaluation_of",
    "measurable",
    "measure",
    "ranks",
    "rows_to_answer",
    "score",
    "score_values",
]
