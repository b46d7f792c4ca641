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
from serving.config import BatchConfig, EngineConfig, ImageConfig, LoadConfig, ServeConfig
from serving.engine import Engine, SpareCores
from serving.metrics import Metrics
from serving.pipeline.request import RequestOptions, Target
from side_registry import Registry, TaskRef, UnknownTask
from tests.ladder.counting import Counting
from tests.serving.kit import TEXTS, make_run, make_spec, predict
from tests.vision.folders import make_model, save
from vision import EncoderError, load_encoder


@asynccontextmanager
async def assembled(
    backbone: Path,
    registry: Path,
    images: ImageConfig | None = None,
    load: LoadConfig | None = None,
    threads: int = 1,
    **engine: Any,
) -> AsyncIterator[Components]:
    config = ServeConfig(
        backbone=str(backbone),
        registry=str(registry),
        dtype="float32",
        threads=threads,
        batch=BatchConfig(max_batch_rows=8, max_batch_tokens=512),  # few shapes to compile
        engine=EngineConfig(**engine),
        images=images or ImageConfig(),
        load=load or LoadConfig(),
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


async def test_a_server_answers_for_tasks_that_are_still_loading_and_notes_their_calls(
    tmp_path: Path, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    for task in ("cola", "sst2"):
        registry.publish(make_run(tmp_path / task, backbone, tokenizer, make_spec(task)))
    load = LoadConfig(first_loads_s=0)
    async with assembled(tiny_t5, tmp_path / "registry", load=load, warmup_s=0) as parts:
        assert parts.service.ready
        assert parts.pool.snapshot().generation == 2
        targets = await parts.service.find_tasks([TaskRef("cola"), TaskRef("sst2", version=1)], RequestOptions())
        assert [target.resident.key for target in targets if isinstance(target, Target)] == [("cola", 1), ("sst2", 1)]
    assert registry.recent_tasks() == ("sst2", "cola")


async def test_the_vision_encoder_is_loaded_with_its_settings_or_the_start_says_why_not(
    tmp_path: Path, tiny_t5: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path / "dino", "dinov2", make_model("dinov2"))
    images = ImageConfig(vision=str(folder), vision_layer=1, vision_size=16)
    caplog.set_level("INFO", "serving.components")
    async with assembled(tiny_t5, tmp_path / "new", images, warmup_s=0.1):
        encoder = load_encoder(folder, layer=1, size=16)
        assert f"vision encoder dino, 2 x 2 tokens of 16 features, {encoder.fingerprint}" in caplog.text
    for wrong, says in ((tmp_path / "gone", "has no config.json"), (folder, "hidden layer|layers")):
        with pytest.raises(EncoderError, match=says):
            async with assembled(tiny_t5, tmp_path / "new", ImageConfig(vision=str(wrong), vision_layer=99)):
                pass


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


@pytest.mark.parametrize(("threads", "steps_on"), [(0, 1), (2, 2)])
async def test_steps_leave_cores_to_neighbours_unless_the_number_of_threads_is_set(
    tmp_path: Path,
    tiny_t5: Path,
    backbone: Backbone,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    steps_on: int,
) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    registry.publish(make_run(tmp_path / "sst2", backbone, tokenizer, make_spec("sst2")))
    monkeypatch.setattr(SpareCores, "count", lambda self: 1)
    seen: list[int] = []
    step = Engine.step

    def record(self: Engine, *args: Any) -> bool:
        seen.append(torch.get_num_threads())
        return step(self, *args)

    monkeypatch.setattr(Engine, "step", record)
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        async with assembled(tiny_t5, tmp_path / "registry", threads=threads, warmup_s=0) as parts:
            await predict(parts.service, "sst2", ["a"])
    finally:
        torch.set_num_threads(usual)
    assert seen[-1] == steps_on
