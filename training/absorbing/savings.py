"""What is saved by one backbone with side networks in the place of many models: measured here, not estimated."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ladder import Row, answer
from side_registry.manifest import SIDE_NETWORK
from training.absorbing.teacher import tensor_bytes
from training.batches import locate_pairs
from training.loaded_run import LoadedRun

LATENCY_ROWS = 24
"""Rows, one at a time, of which a latency is the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of answering all tasks about one row."""

    weight_bytes: int
    """Of all weights in memory."""
    file_bytes: int
    """Of all files of weights."""
    seconds: float
    """Median, one row at a time: of the models one after another, or of one backbone pass for all side networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Before: each model on its own. After: one backbone with a side network for each."""

    models: int
    before: Cost
    after: Cost
    backbone_bytes: int
    """Of the backbone's weights alone, in `after.weight_bytes` too."""
    threads: int
    """That torch computed with."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @property
    def text(self) -> str:
        """As lines for a person."""
        names = f"{self.models} models" if self.models > 1 else "1 model"
        sides = f"{self.models} side networks" if self.models > 1 else "1 side network"
        lines = [
            f"before: {names}; after: one backbone and {sides}",
            f"  weights in memory  {_mb(self.before.weight_bytes)} -> {_mb(self.after.weight_bytes)}"
            f" ({_mb(self.backbone_bytes)} of it the backbone, which further tasks share)",
            f"  files of weights   {_mb(self.before.file_bytes)} -> {_mb(self.after.file_bytes)}",
            f"  all answers to one text  {self.before.seconds * 1e3:.1f} ms -> {self.after.seconds * 1e3:.1f} ms"
            f" (median, {self.threads} threads)",
        ]
        return "\n".join(lines)


def cost_after(runs: Sequence[LoadedRun], backbone_file_bytes: int, rows: Sequence[Mapping[str, str]]) -> Cost:
    """Of one backbone with the side networks of some runs, which answer each row together."""
    first = runs[0]
    _answer_all(runs, rows[0])  # the first call is slower
    taken: list[float] = []
    for row in rows:
        started = time.perf_counter()
        _answer_all(runs, row)
        taken.append(time.perf_counter() - started)
    return Cost(
        weight_bytes=tensor_bytes(first.backbone) + sum(tensor_bytes(run.side) for run in runs),
        file_bytes=backbone_file_bytes + sum(run.manifest.files[SIDE_NETWORK].size for run in runs),
        seconds=statistics.median(taken),
    )


def _answer_all(runs: Sequence[LoadedRun], fields: Mapping[str, str]) -> None:
    first = runs[0]
    spec = first.spec
    encoded, _ = first.tokenizer.encode_cut([spec.render(fields)], spec.max_source_tokens)
    [pair] = locate_pairs(spec, first.tokenizer, [fields], encoded)
    ids = tuple(encoded[0])
    answer(first.backbone, [Row(ids=ids, side=run.side, answerer=run.answerer, pair=pair) for run in runs])


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
