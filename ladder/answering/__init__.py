"""From outputs to answers and losses: the seam that trainer and server share."""

from ladder.answering.answerers import Answerer, Classify, Generate, build_answerer, forced_taps
from ladder.answering.batch_plan import Group, Plan, Row, plan
from ladder.answering.mixed_batch import ReadInputs, score
from ladder.answering.tagging import IGNORED, TagWords
from ladder.answering.words import Framed, OffsetTokenizer, WindowedText, Words, split_texts

__all__ = [
    "IGNORED",
    "Answerer",
    "Classify",
    "Framed",
    "Generate",
    "Group",
    "OffsetTokenizer",
    "Plan",
    "ReadInputs",
    "Row",
    "TagWords",
    "WindowedText",
    "Words",
    "build_answerer",
    "forced_taps",
    "plan",
    "score",
    "split_texts",
]
