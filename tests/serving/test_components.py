"""A server's components, put together from settings: a new registry, and a compiled encoder."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder import Backbone, ClassAnswer, Tokenizer
from ladder.backbone.compiled import CompiledEncoder
from serving import components
from serving.components import Components, assemble
from serving.config import BatchConfig, EngineConfig, ServeConfig
from serving.metrics import Metrics
from side_registry import Registry, UnknownTask
from tests.ladder.counting import Counting
from tests.serving.kit import TEXTS, make_run, make_spec, predict


@asynccontextmanager
async def assembled(backbone: Path, registry: Path, **engine: Any) -> AsyncIterator[Components]:
    config = ServeConfig(
        backbone=str(backbone),
        registry=str(registry),
        dtype="float32",
        threads=1,
        batch=BatchConfig(max_batch_rows=8, max_batch_tokens=512),  # few shapes to compile
        engine=EngineConfig(**engine),
    )
    parts = await asyncio.to_thread(assemble, config, Metrics())
    yield parts
    await parts.service.close()
    await asyncio.to_thread(parts.stop)


async def test_a_registry_that_is_not_there_yet_is_made_and_served(tmp_path: Path, tiny_t5: Path) -> None:
    async with assembled(tiny_t5, tmp_path / "new", warmup_s=0) as parts:
        assert parts.service.ready
        assert (parts.pool.snapshot().generation, parts.pool.snapshot().residents) == (0, {})
        with pytest.raises(UnknownTask, match="nothing is published yet"):
            await predict(parts.service, "sst2", ["a"])


@pytest.mark.slow
async def test_a_compiled_encoder_answers_as_the_eager_one_and_compiles_no_more_after_its_warm_up(
    tmp_path: Path, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    registry.publish(make_run(tmp_path / "run", backbone, tokenizer, make_spec("sst2")))
    backend = Counting()
    monkeypatch.setattr(components, "CompiledEncoder", partial(CompiledEncoder, backend=backend))
    async with assembled(tiny_t5, tmp_path / "registry", compile=True, cache_bytes=0) as parts:
        compiled = backend.compiled
        calls = backend.calls
        assert compiled > 0
        found = await predict(parts.service, "sst2", TEXTS)
        assert backend.calls > calls, "the device thread runs the compiled code"
        assert backend.compiled == compiled
    torch.compiler.reset()
    for answer, example in zip(found.answers, registry.manifest("sst2", 1).examples, strict=True):
        assert isinstance(answer, ClassAnswer)
        assert answer.scores == pytest.approx(example.expected["scores"], abs=1e-4)
