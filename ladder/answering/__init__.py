"""From outputs to answers and losses: the seam that trainer and server share."""

from ladder.answering.answerers import IGNORED, Answerer, Classify, Generate, build_answerer, forced_taps
from ladder.answering.batch_plan import Group, Plan, Row, plan
from ladder.answering.mixed_batch import ReadInputs, score

__all__ = [
    "IGNORED",
    "Answerer",
    "Classify",
    "Generate",
    "Group",
    "Plan",
    "ReadInputs",
    "Row",
    "build_answerer",
    "forced_taps",
    "plan",
    "score",
]
