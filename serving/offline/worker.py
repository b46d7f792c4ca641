"""One replica of a run: holds a device, the backbone and the run's side networks, and answers one shard per call.

It reads, tokenizes and writes on the threads that call it, so that one shard is prepared while the device computes
another. Faults are returned as data, so that Ray neither retries them in vain nor wraps them.
"""

import json
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ladder import Backbone, load_backbone, load_tokenizer
from ladder.backbone import pack_backbone
from serving.config import EngineConfig, LoadConfig
from serving.engine import Engine
from serving.metrics import Metrics
from serving.offline.errors import UnreadableInput
from serving.offline.images import TableEncoder
from serving.offline.inputs import Shard, read
from serving.offline.outputs import Output
from serving.offline.table import Counts, OfflineTask, Outcome, PassLimits, TableAnswerer
from serving.offline.tokenized import TokenizedTable
from serving.versions import Loader
from side_registry import Registry
from table_files import open_images
from vision import load_encoder

log = logging.getLogger(__name__)

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """All that a replica must know. It is sent to other processes."""

    input: str
    schema: pa.Schema
    output: str
    format: str
    run: str
    """The run's id, as in `_batch.json`."""
    tasks: tuple[OfflineTask, ...]
    registry: str
    backbone: str
    device: str
    dtype: str
    quantization: str
    threads: int
    """Torch's threads on a CPU."""
    limits: PassLimits
    vision: str | None = None
    """The folder of the vision encoder, where a task reads images."""
    vision_layer: int | None = None
    vision_size: int | None = None
    images: str | None = None
    """The folder or file of images that rows name; None: the columns hold the images."""


class Replica:
    """Called by Ray Data, from several threads, with one shard at a time."""

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._metrics = Metrics()
        self._output = Output(config.output)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")

    def __call__(self, batch: Columns) -> dict[str, list[Any]]:
        """Answer one shard, given as `as_row` makes it. Returns its report, as columns of one row."""
        shard = shard_of(batch)
        try:
            counts = self.run(shard)
            reason = ""
            why = ""
        except Exception as error:
            log.exception("shard %d failed", shard.index)
            counts = Counts()
            reason = str(getattr(error, "reason", type(error).__name__))
            why = " ".join(str(error).split()) or reason
        report = {
            "shard": shard.index,
            "rows": counts.rows,
            "prompts": counts.prompts,
            "passes": counts.passes,
            "images": counts.images,
            "failures": json.dumps(counts.failures),
            "truncated": json.dumps(counts.truncated),
            "reason": reason,
            "why": why,
        }
        return {name: [value] for name, value in report.items()}

    def run(self, shard: Shard) -> Counts:
        """Answer a shard and write its part. Raises every error that is not a single row's."""
        table = read(self._config.input, shard, self._config.schema)
        answerer = self._device.submit(lambda: self._answerer).result()
        tokenized = answerer.tokenize(table)
        outcomes, passes, images = self._device.submit(self._answer, answerer, tokenized).result()
        answered, counts = answerer.to_table(tokenized, outcomes)
        try:
            self._output.write_part(shard.index, answered, self._config.format, self._config.run)
        except UnicodeDecodeError as error:  # of texts within lists
            rows = f"rows {shard.start} to {shard.start + shard.rows - 1}"
            raise UnreadableInput(shard.path, f"{rows} hold text that is not UTF-8 ({error.reason})") from None
        counts.passes = passes
        counts.images = images
        return counts

    def _answer(self, answerer: TableAnswerer, tokenized: TokenizedTable) -> tuple[list[list[Outcome]], int, int]:
        """Each task's outcomes, and the numbers of inputs and of images that were computed for them."""
        passes = self._count("sidecast_batch_rows_sum")
        images = self._count("sidecast_images_encoded_total")
        outcomes = answerer.answer(tokenized)
        passes = self._count("sidecast_batch_rows_sum") - passes
        return outcomes, passes, self._count("sidecast_images_encoded_total") - images

    def _count(self, metric: str) -> int:
        """A metric of this process: the inputs or the images that were computed so far."""
        return int(self._metrics.registry.get_sample_value(metric) or 0)

    @cached_property
    def _answerer(self) -> TableAnswerer:
        """Loads everything on the device thread when the first shard comes."""
        config = self._config
        torch.set_num_threads(config.threads)
        backbone = load_backbone(
            config.backbone, device=config.device, dtype=config.dtype, quantize=config.quantization
        )
        pack_backbone(backbone)
        tokenizer = load_tokenizer(config.backbone)
        encoder = self._encoder(backbone)
        loader = Loader(Registry.open(config.registry), backbone, tokenizer, LoadConfig(), images=encoder)
        residents = [loader.load(task.task, task.version) for task in config.tasks]
        engine = Engine(backbone, self._metrics, EngineConfig(cache_bytes=0, side_timeout_s=math.inf))
        source = open_images(config.images) if config.images else None
        return TableAnswerer(engine, tokenizer, config.tasks, residents, config.limits, encoder, source)

    def _encoder(self, backbone: Backbone) -> TableEncoder | None:
        config = self._config
        if config.vision is None:
            return None
        encoder = load_encoder(
            config.vision,
            layer=config.vision_layer,
            size=config.vision_size,
            device=backbone.device,
            dtype=str(backbone.dtype).removeprefix("torch."),
        )
        return TableEncoder(encoder, self._metrics, config.threads)


def as_row(shard: Shard) -> dict[str, Any]:
    """A shard as a row of a Ray dataset."""
    return asdict(shard)


def shard_of(row: Columns) -> Shard:
    """The shard that `as_row` made this row of; Ray Data gives it as columns of numpy values."""
    return Shard(**{field.name: field.type(row[field.name][0]) for field in fields(Shard)})  # type: ignore[operator]
