"""One replica of a run: it has a device, the backbone and the run's side networks, and takes one shard after the other.

Reads, tokenizes and writes on the threads that call it: one shard is prepared while the device computes another.
Every fault comes back as data, so that Ray neither tries in vain again nor wraps it.
"""

import json
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ladder import load_backbone, load_tokenizer
from serving.config import EngineConfig, LoadConfig
from serving.engine import Engine
from serving.metrics import Metrics
from serving.offline.errors import UnreadableInput
from serving.offline.inputs import Shard, read
from serving.offline.outputs import Output
from serving.offline.table import Asked, Counts, OfflineTask, Outcome, PassLimits, TableAnswerer
from serving.versions import Loader
from side_registry import Registry

log = logging.getLogger(__name__)

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a replica must know; it goes to other processes."""

    input: str
    schema: pa.Schema
    output: str
    format: str
    run: str
    """The run's id."""
    tasks: tuple[OfflineTask, ...]
    registry: str
    backbone: str
    device: str
    dtype: str
    quantization: str
    threads: int
    """Of torch on a CPU."""
    limits: PassLimits


class Replica:
    """Called by Ray Data, from several threads, with one shard at a time."""

    def __init__(self, work: Work) -> None:
        self._work, self._metrics, self._output = work, Metrics(), Output(work.output)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")

    def __call__(self, batch: Columns) -> dict[str, list[Any]]:
        """The report of a shard, as columns of one row each; the shard as `as_row` made it."""
        shard = shard_of(batch)
        try:
            counts, reason, why = self.run(shard), "", ""
        except Exception as error:
            log.exception("shard %d failed", shard.index)
            reason = str(getattr(error, "reason", type(error).__name__))
            counts, why = Counts(), " ".join(str(error).split()) or reason
        report = {
            "shard": shard.index,
            "rows": counts.rows,
            "prompts": counts.prompts,
            "passes": counts.passes,
            "failures": json.dumps(counts.failures),
            "reason": reason,
            "why": why,
        }
        return {name: [value] for name, value in report.items()}

    def run(self, shard: Shard) -> Counts:
        """Answer a shard and write its part. Raises whatever is no single row's fault."""
        table = read(self._work.input, shard, self._work.schema)
        answerers = self._device.submit(lambda: self._answerers).result()
        asked = answerers.ask(table)
        outcomes, passes = self._device.submit(self._answer, answerers, asked).result()
        told, counts = answerers.told(asked, outcomes)
        try:
            self._output.write_part(shard.index, told, self._work.format, self._work.run)
        except UnicodeDecodeError as error:  # of texts within lists
            where = f"rows {shard.start} to {shard.start + shard.rows - 1}"
            raise UnreadableInput(shard.path, f"{where} hold text that is not UTF-8 ({error.reason})") from None
        counts.passes = passes
        return counts

    def _answer(self, answerers: TableAnswerer, asked: Asked) -> tuple[list[list[Outcome]], int]:
        before = self._passes()
        outcomes = answerers.answer(asked)
        return outcomes, self._passes() - before

    def _passes(self) -> int:
        """Inputs that the backbone computed here."""
        return int(self._metrics.registry.get_sample_value("sidecast_batch_rows_sum") or 0)

    @cached_property
    def _answerers(self) -> TableAnswerer:
        """On the device thread: loads everything, when the first shard comes."""
        work = self._work
        torch.set_num_threads(work.threads)
        backbone = load_backbone(work.backbone, device=work.device, dtype=work.dtype, quantize=work.quantization)
        tokenizer = load_tokenizer(work.backbone)
        loader = Loader(Registry.open(work.registry), backbone, tokenizer, LoadConfig())
        residents = [loader.load(task.task, task.version) for task in work.tasks]
        engine = Engine(backbone, self._metrics, EngineConfig(cache_bytes=0, side_timeout_s=math.inf))
        return TableAnswerer(engine, tokenizer, work.tasks, residents, work.limits)


def as_row(shard: Shard) -> dict[str, Any]:
    return {each.name: getattr(shard, each.name) for each in fields(shard)}


def shard_of(row: Columns) -> Shard:
    return Shard(**{each.name: each.type(row[each.name][0]) for each in fields(Shard)})  # type: ignore[operator]
