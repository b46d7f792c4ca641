"""What every version answers: its artifact from the registry, as a module of its own, on one pass of a backbone.

Shares nothing with a server but the model's code: neither slots, nor batches, nor kept activations.
"""

import math
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean

import torch

from benchmarks.models import Loaded
from benchmarks.soak.load import Said
from benchmarks.soak.versions import make_spec
from ladder import Answer, ClassAnswer, Row, TextAnswer, ValueAnswer, VectorAnswer, answer
from ladder.answering import score
from ladder.backbone import run_backbone
from side_registry import KINDS, Registry
from training.evaluation import load_model

TOLERANCE = {"float32": 2e-4, "bfloat16": 0.1}
"""How far a number of an answer may be off, in parts of it where it is above 1: batches round differently."""


class Oracle:
    """
    Args:
        texts: all inputs, which the tasks' common template leaves as they are.
    """

    def __init__(self, registry: Registry, loaded: Loaded, texts: Sequence[str]) -> None:
        self._registry, self._loaded = registry, loaded
        limit = make_spec(0).max_source_tokens
        self._ids = [tuple(ids) for ids in loaded.tokenizer.encode_batch(list(texts), limit)]
        with torch.inference_mode():
            self._given = run_backbone(loaded.backbone, self._ids)
        self.tolerance = TOLERANCE[loaded.dtype]
        self.answers = cache(self._answers)

    def _answers(self, task: str, version: int) -> list[Said]:
        """What a version says of each text."""
        with tempfile.TemporaryDirectory(prefix="sidecast-oracle-") as folder:
            artifact = self._registry.download(task, version, Path(folder))
            model = load_model(artifact, self._loaded.backbone, self._loaded.tokenizer)
        rows = [Row(ids=ids, side=model.side, answerer=model.answerer) for ids in self._ids]
        if KINDS[model.spec.kind].makes_text:
            return [_said(each) for each in answer(self._loaded.backbone, rows)]
        found: dict[int, Answer | Exception] = {}
        with torch.inference_mode():
            score(self._given, rows, range(len(rows)), found.update)
        return [_said(found[place]) for place in range(len(rows))]

    def apart(self, task: str, versions: Sequence[int]) -> float:
        """The share of pairs of versions, over all texts, whose answers lie so far apart that none passes for the
        other's: how sharp this oracle is."""
        pairs = combinations([self.answers(task, version) for version in versions], 2)
        return mean(distance(*both) > 2 * self.tolerance for pair in pairs for both in zip(*pair, strict=True))


def distance(found: Said, expected: Said) -> float:
    """The largest difference of two answers' numbers, in parts of them where they are above 1. Of texts 0 or inf.

    Infinite too where one has another number of numbers, or says what is no number.
    """
    if isinstance(found, str) or isinstance(expected, str):
        return 0.0 if found == expected else float("inf")
    if len(found) != len(expected):
        return float("inf")
    if not all(map(math.isfinite, (*found, *expected))):
        return float("inf")
    return max(abs(ours - theirs) / max(1.0, abs(theirs)) for ours, theirs in zip(found, expected, strict=True))


def _said(answer: Answer | Exception) -> Said:
    match answer:
        case ClassAnswer():
            return answer.scores
        case ValueAnswer():
            return (answer.value,)
        case VectorAnswer():
            return answer.values
        case TextAnswer():
            return answer.text
        case _:
            raise TypeError(f"no answer: {answer!r}")
