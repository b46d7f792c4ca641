"""From a publish to an answer, with nothing faked: registry, reconciler, loader, pool, batcher, engine, service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ladder import Answer, Backbone, ClassAnswer, Tokenizer
from serving.config import BatchConfig, LoadConfig
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow
from serving.errors import NotLoaded
from serving.pipeline.service import PredictService
from serving.scheduler.batcher import Batcher
from serving.versions.loader import Loader
from serving.versions.pool import SidePool
from serving.versions.reconciler import Reconciler
from side_registry import SIDE_NETWORK, Registry, TaskRef
from tests.serving.kit import ids_of, make_run, make_spec, predict, predict_tasks

TEXTS = ["dull", "a gripping film", "it is neither good nor bad, but far too long"]


class House:
    def __init__(self, folder: Path, backbone: Backbone, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.registry = Registry.open(folder / "registry", create=True)
        self.pool = SidePool()
        self.engine = Engine(backbone)
        config = LoadConfig(poll_s=0.01, retry_s=0.02, max_retry_s=0.1)
        loader = Loader(self.registry, backbone, tokenizer, config)
        self.reconciler = Reconciler(self.registry, self.pool, loader.load, config)
        self.service = PredictService(self.pool, Batcher(self.engine, BatchConfig(max_wait_s=0)), tokenizer)

    def publish(self, seed: int, task: str = "sst2", **how: Any) -> int:
        run = make_run(self.folder / f"{task}-{seed}", self.backbone, self.tokenizer, make_spec(task), seed, **how)
        return self.registry.publish(run, alias="production").version

    def blob(self, task: str, version: int) -> Path:
        digest = self.registry.manifest(task, version).files[SIDE_NETWORK].sha256
        return self.folder / "registry" / "blobs" / "sha256" / digest

    def expected(self, version: int, text: str, task: str = "sst2") -> Answer | Exception:
        """What a version answers to a row that is alone in its batch."""
        resident = self.pool.resolve(task, version=version)
        return self.engine.predict([EngineRow(ids_of(self.tokenizer, text), resident)])[0]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - another thread makes it true
                await asyncio.sleep(0.005)

    async def serving(self, version: int, task: str = "sst2") -> None:
        await self.until(lambda: self.pool.snapshot().aliases.get((task, "production")) == version)


@pytest.fixture
async def house(tmp_path: Path, backbone: Backbone, tokenizer: Tokenizer) -> AsyncIterator[House]:
    house = House(tmp_path, backbone, tokenizer)
    house.publish(1)
    house.reconciler.start()
    yield house
    await asyncio.to_thread(house.reconciler.stop)
    await house.service.close()


async def test_during_swaps_every_answer_is_that_of_the_version_it_names(house: House) -> None:
    answered: list[tuple[int, int, Answer]] = []
    stop = asyncio.Event()

    async def client(index: int) -> None:
        while not stop.is_set():
            prediction = await predict(house.service, "sst2", [TEXTS[index]])
            answered.append((prediction.version, index, prediction.answers[0]))

    clients = [asyncio.create_task(client(n % len(TEXTS))) for n in range(4)]
    for seed in (2, 3):
        await house.serving(await asyncio.to_thread(house.publish, seed))
        await house.until(lambda seed=seed: answered[-1:] and answered[-1][0] == seed)
    house.registry.rollback("sst2")
    await house.serving(2)
    await house.until(lambda: answered[-1][0] == 2)
    stop.set()
    await asyncio.gather(*clients)
    assert {version for version, _, _ in answered} == {1, 2, 3}
    assert answered[-1][0] == 2
    expected = {(v, index): house.expected(v, text) for v in (1, 2, 3) for index, text in enumerate(TEXTS)}
    for version, index, answer in answered:
        alone = expected[version, index]
        assert isinstance(answer, ClassAnswer)
        assert isinstance(alone, ClassAnswer)
        assert answer.scores == pytest.approx(alone.scores, abs=1e-4)


async def test_versions_side_by_side_in_one_request_each_answer_as_themselves(house: House) -> None:
    await house.serving(house.publish(2))
    refs = [TaskRef("sst2", version=1), TaskRef("sst2"), TaskRef("sst2", version=2)]
    one, production, two = await predict_tasks(house.service, refs, TEXTS)
    assert production.answers == two.answers  # type: ignore[union-attr]
    assert one.answers != two.answers  # type: ignore[union-attr]


async def test_a_corrupt_artifact_keeps_the_old_version_and_a_new_publish_repairs_it(
    house: House, tmp_path: Path
) -> None:
    house.reconciler.stop()
    house.publish(2)
    blob = house.blob("sst2", 2)
    data = bytearray(blob.read_bytes())
    data[-3] ^= 0x10
    blob.write_bytes(bytes(data))
    house.reconciler.step()
    await asyncio.sleep(0.02)
    house.reconciler.step()
    assert house.pool.resolve("sst2").version == 1
    with pytest.raises(NotLoaded, match=r"does not match|damaged"):
        house.pool.resolve("sst2", version=2)
    assert house.pool.snapshot().failed.keys() == {("sst2", 2)}
    assert house.registry.publish(tmp_path / "sst2-2").already
    await asyncio.sleep(0.2)
    house.reconciler.step()
    assert house.pool.resolve("sst2").version == 2


async def test_a_version_dropped_while_its_batch_runs_still_answers_it(house: House) -> None:
    """A batch holds references of its own to its residents."""
    resident = house.pool.resolve("sst2")
    expected = house.expected(1, "dull")
    house.registry.delete_task("sst2")
    await house.until(lambda: "sst2" not in house.pool.snapshot().tasks)
    assert house.engine.predict([EngineRow(ids_of(house.tokenizer, "dull"), resident)]) == [expected]
