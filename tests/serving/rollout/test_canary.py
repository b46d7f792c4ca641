"""A version with a share that answers otherwise than it should loses it by itself, in a whole server's parts."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import torch

from ladder import Backbone, Tokenizer
from serving.components import Components, _auto_rollback, assemble
from serving.config import EngineConfig, LoadConfig, ServeConfig, ShadowConfig
from serving.metrics import Metrics
from serving.rollout.comparison import Comparisons
from serving.versions.pool import SidePool
from side_registry import Registry
from side_registry.route import Bounds, Route
from tests.serving.kit import TEXTS, make_run, make_spec, predict


@pytest.fixture
async def parts(tmp_path: Path, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer) -> AsyncIterator[Components]:
    registry = Registry.open(tmp_path / "registry", create=True)
    labels = {1: ("negative", "positive"), 2: ("positive", "negative")}  # version 2 turns every answer around
    for seed in (1, 2):
        spec = make_spec("sst2", labels=labels[seed])
        torch.manual_seed(0)  # equal weights: the side network's own start draws from torch's
        run = make_run(tmp_path / f"run-{seed}", backbone, tokenizer, spec, head="linear", change=None)
        registry.publish(run, alias="production" if seed == 1 else None)
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=str(tmp_path / "registry"),
        dtype="float32",
        engine=EngineConfig(warmup_s=0),
        load=LoadConfig(poll_s=0.02, replay_examples=False),
        shadow=ShadowConfig(shadow_wait_s=0.0, keep_inputs=True),
    )
    parts = await asyncio.to_thread(assemble, config, Metrics())
    yield parts
    await parts.service.close()
    await asyncio.to_thread(parts.stop)


async def until_routed(parts: Components, routed: bool) -> None:
    async with asyncio.timeout(20):
        while bool(parts.pool.snapshot().routes) != routed:  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.01)


async def test_a_canary_that_disagrees_is_rolled_back(parts: Components) -> None:
    bounds = Bounds(disagreement=0.2, min_rows=6)
    parts.registry.set_route("sst2", "production", Route(shares={2: 5000}, bounds=bounds))
    await until_routed(parts, True)
    answered = {1: 0, 2: 0}
    async with asyncio.timeout(20):
        while parts.pool.snapshot().routes:
            found = await predict(parts.service, "sst2", TEXTS)
            answered[found.version] += 1
            compared = parts.comparisons.read("sst2", "production")
    assert answered[2] >= 2
    assert compared is None or [each.version for each in compared.comparisons] == [1, 2]
    [rollback] = [commit for commit in parts.registry.history() if commit.message.startswith("automatic rollback")]
    assert rollback.message.startswith("automatic rollback: version 2: disagreement 100% > 20% after ")
    assert rollback.author == "sidecast serve@127.0.0.1:8001"
    for _ in range(5):
        assert (await predict(parts.service, "sst2", TEXTS)).version == 1
    assert parts.comparisons.read("sst2", "production") is None


async def test_a_shadow_that_disagrees_is_told_and_stays(parts: Components) -> None:
    parts.registry.set_route("sst2", "production", Route(shadows=(2,)))
    await until_routed(parts, True)
    for _ in range(5):
        assert (await predict(parts.service, "sst2", TEXTS)).version == 1
    async with asyncio.timeout(20):
        while True:
            compared = parts.comparisons.read("sst2", "production")
            assert compared is not None
            if compared.comparisons[1].compared == 5 * len(TEXTS):
                break
            await asyncio.sleep(0.01)
    own, shadow = compared.comparisons
    assert (own.version, shadow.version, shadow.agreed, shadow.answers) == (1, 2, 0, False)
    assert {each.prompt for each in compared.disagreements} == set(TEXTS)
    assert compared.since == parts.registry.state().generation


def test_whoever_rolls_back_is_named_by_the_address_that_the_server_announces() -> None:
    config = ServeConfig(backbone="none", registry="none", host="0.0.0.0", port=8443)
    judging = _auto_rollback(cast(Registry, None), Comparisons(), SidePool(), config, lambda: None, Metrics())
    assert judging._author == f"sidecast serve@{socket.gethostname()}:8443"
