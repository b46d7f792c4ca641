"""A task of three versions on a real engine, for tests of shadows."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ladder import Answer, Backbone, SideNetwork, Tokenizer
from serving.config import BatchConfig, EngineConfig, ShadowConfig
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Resident
from serving.metrics import Metrics
from serving.pipeline.observation import Observation
from serving.pipeline.service import PredictService
from serving.rollout.comparison import Compared, Comparison, Comparisons, routed_of
from serving.rollout.shadow import ShadowRunner
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import ShadowRequest
from serving.versions.placement import add
from serving.versions.pool import SidePool
from side_registry.route import Route
from side_registry.specs.task import TaskSpec
from tests.serving.kit import make_resident, make_spec, predict
from tests.serving.versions.test_pool import task_state
from tests.serving.visual_kit import VISUAL

TEXTS = [f"film number {n} is {'a gripping one' if n % 3 else 'dull'}" for n in range(8)]
OWN, OTHER, THIRD = 1, 2, 3


class House:
    """One task with three versions on a real engine; the alias production is on the first."""

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, spec: TaskSpec | None = None, **shadow: Any) -> None:
        self.backbone, self.tokenizer, self.spec = backbone, tokenizer, spec or make_spec("sst2")
        self.metrics, self.pool = Metrics(), SidePool()
        self.metrics.know([self.spec.name])
        self.engine = Engine(backbone, self.metrics, EngineConfig())
        config = ShadowConfig(**{"shadow_wait_s": 0.0, "keep_inputs": True} | shadow)
        self.batcher = Batcher(self.engine, BatchConfig(max_wait_s=0), self.metrics, shadow=config)
        self.comparisons = Comparisons(lambda *alias: routed_of(self.pool.snapshot(), *alias), kept=5)
        self.shadowing = ShadowRunner(self.batcher, self.comparisons, tokenizer, config, self.metrics)
        self.service = PredictService(self.pool, self.batcher, tokenizer, None, self.metrics, self.shadowing)
        self.generation = 0
        self.residents = {version: self.make(version) for version in (OWN, OTHER, THIRD)}
        self.route(Route())

    def make(self, version: int, seed: int | None = None, **changes: Any) -> Resident:
        """Make a version; equal seeds give equal weights."""
        seed = version if seed is None else seed
        torch.manual_seed(seed)  # the initial weights of a side network are drawn from torch's generator
        spec = self.spec.model_copy(update=changes)
        shape = {"visual": VISUAL} if spec.images else {}
        return make_resident(self.backbone, self.tokenizer, spec, version, seed, **shape)

    def route(self, route: Route, **residents: Resident) -> None:
        self.residents |= {resident.version: resident for resident in residents.values()}
        self.generation += 1
        routes = {} if route.is_plain else {"production": route}
        task = task_state(THIRD, {"production": (OWN,)}, name=self.spec.name, routes=routes)
        task = replace(task, routed=dict.fromkeys(routes, self.generation))
        state = replace(self.pool.snapshot(), generation=self.generation, tasks={self.spec.name: task}, residents={})
        for resident in self.residents.values():
            state = add(state, resident)
        self.pool.replace(state)

    async def ask(self, texts: Sequence[str] = TEXTS, **how: Any) -> tuple[int, tuple[Answer, ...]]:
        prediction = await predict(self.service, self.spec.name, texts, **how)
        return prediction.version, prediction.answers

    async def ask_all(self, times: int = 1, **how: Any) -> list[Answer]:
        """Ask every text in a request of its own, `times` times."""
        results = [await self.ask([text], **how) for _ in range(times) for text in TEXTS]
        return [answers[0] for _, answers in results]

    async def settle(self) -> None:
        """Wait until no shadow row is left."""
        await asyncio.sleep(0)  # lets the service pass on its last answers
        async with asyncio.timeout(20):
            while self.shadowing._tasks or self.batcher._shadows or self.batcher._on_device:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def compared(self) -> Compared:
        compared = self.comparisons.read(self.spec.name, "production")
        assert compared is not None
        return compared

    def of(self, version: int) -> Comparison:
        return next(comparison for comparison in self.compared().comparisons if comparison.version == version)

    def alone(self, version: int, texts: Sequence[str] = TEXTS) -> list[Any]:
        """Return the answers of a version, each row in its own batch."""
        resident = self.residents[version]
        prompts = [resident.spec.render({"sentence": text}) for text in texts]
        rows = [EngineRow(tuple(self.tokenizer.encode(prompt, 128)), resident) for prompt in prompts]
        return [answer for row in rows for answer in self.engine.predict([row])]

    def counted(self, version: int, outcome: str) -> float:
        labels = {"task": self.spec.name, "version": str(version), "outcome": outcome}
        return self.metrics.registry.get_sample_value("sidecast_shadow_rows_total", labels) or 0.0


def breaks(resident: Resident, value: float = float("nan")) -> Resident:
    """Fill the weights with `value`, and return the resident."""
    assert isinstance(resident.side, SideNetwork)
    with torch.no_grad():
        for parameter in resident.side.parameters():
            parameter.fill_(value)
    return resident


class Kept:
    """A batcher that only records shadow requests."""

    def __init__(self) -> None:
        self.requests: list[ShadowRequest] = []

    def shadow(self, request: ShadowRequest) -> None:
        self.requests.append(request)


def seen_of(house: House, **changes: Any) -> Observation:
    """Return the observation of one row that production's version answered."""
    resident = house.residents[OWN]
    values: dict[str, Any] = {
        "resident": resident,
        "alias": "production",
        "shadows": (house.residents[OTHER],),
        "rows": (EngineRow((3, 4, 1), resident, salt="tenant"),),
        "prompts": ("p",),
        "outcomes": tuple(house.alone(OWN, TEXTS[:1])),
        "seconds": 0.1,
        "since": house.generation,
        "inputs": ("p",),
    }
    return Observation(**values | changes)
