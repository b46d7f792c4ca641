"""Computes the expected answers of every version: its artifact from the registry, on one pass of a backbone.

It shares only the model's code with a server: no weight slots, batches or cached activations.
"""

import math
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean

import torch

from benchmarks.harness.models import Loaded
from benchmarks.soak.load import AnswerValue
from benchmarks.soak.versions import make_spec
from ladder import Answer, ClassAnswer, LabelsAnswer, Row, TextAnswer, ValueAnswer, VectorAnswer, answer
from ladder.answering import plan, score
from ladder.backbone import run_backbone
from side_registry import KINDS, Registry
from training.evaluation import load_model

TOLERANCE = {"float32": 2e-4, "bfloat16": 0.1}
"""Largest error of a number, relative to it if it is above 1: batches round differently."""


class Oracle:
    """Answers of every version to all texts.

    Args:
        texts: all inputs. The tasks' template is the text alone.
    """

    def __init__(self, registry: Registry, loaded: Loaded, texts: Sequence[str]) -> None:
        self._registry, self._loaded = registry, loaded
        limit = make_spec(0).max_source_tokens
        self._ids = [tuple(ids) for ids in loaded.tokenizer.encode_batch(list(texts), limit)]
        with torch.inference_mode():
            self._pass = run_backbone(loaded.backbone, list(dict.fromkeys(self._ids)))
        self.tolerance = TOLERANCE[loaded.dtype]
        self.answers = cache(self._answers)

    def _answers(self, task: str, version: int) -> list[AnswerValue]:
        """Return a version's answer to each text."""
        with tempfile.TemporaryDirectory(prefix="sidecast-oracle-") as folder:
            artifact = self._registry.download(task, version, Path(folder))
            model = load_model(artifact, self._loaded.backbone, self._loaded.tokenizer)
        rows = [Row(ids=ids, side=model.side, answerer=model.answerer) for ids in self._ids]
        if KINDS[model.spec.kind].makes_text:
            return [_value(outcome) for outcome in answer(self._loaded.backbone, rows)]
        outcomes: dict[int, Answer | Exception] = {}
        with torch.inference_mode():
            score(self._pass, plan(rows).groups, outcomes.update)  # one module reads the inputs in the rows' order
        return [_value(outcomes[index]) for index in range(len(rows))]

    def apart(self, task: str, versions: Sequence[int]) -> float:
        """Return the share of pairs of versions, over all texts, whose answers differ by more than two tolerances.

        Such answers cannot be confused, so this is how reliably the oracle detects an answer of another version.
        """
        pairs = combinations([self.answers(task, version) for version in versions], 2)
        return mean(distance(*both) > 2 * self.tolerance for pair in pairs for both in zip(*pair, strict=True))


def distance(actual: AnswerValue, expected: AnswerValue) -> float:
    """Return the largest error of an answer's numbers, relative to the expected ones if these are above 1.

    Infinite if the lengths differ or a number is not finite. Texts: 0 if equal, else infinite.
    """
    if isinstance(actual, str) or isinstance(expected, str):
        return 0.0 if actual == expected else float("inf")
    if len(actual) != len(expected):
        return float("inf")
    if not all(map(math.isfinite, (*actual, *expected))):
        return float("inf")
    return max(abs(ours - theirs) / max(1.0, abs(theirs)) for ours, theirs in zip(actual, expected, strict=True))


def _value(answer: Answer | Exception) -> AnswerValue:
    match answer:
        case ClassAnswer() | LabelsAnswer():
            return answer.scores
        case ValueAnswer():
            return (answer.value,)
        case VectorAnswer():
            return answer.values
        case TextAnswer():
            return answer.text
        case _:
            raise TypeError(f"no answer: {answer!r}")
