"""Answers beside callers' answers: what they are compared with, and that no caller ever notices. On a tiny T5."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from ladder import Answer, Backbone, SideNetwork, TextAnswer, Tokenizer
from ladder.answering.answerers import Generate
from serving.config import BatchConfig, EngineConfig, ShadowConfig
from serving.engine.circuit_breaker import FAILURES, REST_S, Resting
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Resident
from serving.errors import Draining
from serving.metrics import Metrics
from serving.pipeline.observation import Observation
from serving.pipeline.request import DecodingOverrides
from serving.pipeline.service import PredictService
from serving.rollout.comparison import Compared, Comparison, Comparisons, routed_of
from serving.rollout.shadow import ShadowRunner
from serving.scheduler.batcher import Batcher
from serving.scheduler.requests import ShadowRequest
from serving.versions.placement import add
from serving.versions.pool import SidePool
from side_registry import GenerationSpec
from side_registry.route import Bounds, Route
from side_registry.task import TaskSpec
from tests.serving.kit import make_resident, make_spec, predict, stream
from tests.serving.versions.test_pool import task_state

TEXTS = [f"film number {n} is {'a gripping one' if n % 3 else 'dull'}" for n in range(8)]
OWN, OTHER, THIRD = 1, 2, 3


class House:
    """One task of three versions, the first of them production's own, on a real engine."""

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
        """A version; equal seeds are equal weights."""
        seed = version if seed is None else seed
        torch.manual_seed(seed)  # the side network's own start draws from torch's
        return make_resident(self.backbone, self.tokenizer, self.spec.model_copy(update=changes), version, seed)

    def route(self, route: Route, **residents: Resident) -> None:
        self.residents |= {each.version: each for each in residents.values()}
        self.generation += 1
        routes = {} if route.is_plain else {"production": route}
        task = task_state(THIRD, {"production": (OWN,)}, name=self.spec.name, routes=routes)
        task = replace(task, routed=dict.fromkeys(routes, self.generation))
        state = replace(self.pool.snapshot(), generation=self.generation, tasks={self.spec.name: task}, residents={})
        for resident in self.residents.values():
            state = add(state, resident)
        self.pool.replace(state)

    async def ask(self, texts: Sequence[str] = TEXTS, **how: Any) -> tuple[int, tuple[Answer, ...]]:
        found = await predict(self.service, self.spec.name, texts, **how)
        return found.version, found.answers

    async def ask_all(self, times: int = 1, **how: Any) -> list[Answer]:
        """Each text in a request of its own."""
        found = [await self.ask([text], **how) for _ in range(times) for text in TEXTS]
        return [answers[0] for _, answers in found]

    async def settle(self) -> None:
        """Until nothing is left in shadow."""
        await asyncio.sleep(0)  # what was answered just now is observed
        async with asyncio.timeout(20):
            while self.shadowing._tasks or self.batcher._shadows or self.batcher._on_device:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def compared(self) -> Compared:
        found = self.comparisons.read(self.spec.name, "production")
        assert found is not None
        return found

    def of(self, version: int) -> Comparison:
        return next(each for each in self.compared().comparisons if each.version == version)

    def alone(self, version: int, texts: Sequence[str] = TEXTS) -> list[Any]:
        """What a version answers by itself."""
        resident = self.residents[version]
        prompts = [resident.spec.render({"sentence": text}) for text in texts]
        rows = [EngineRow(tuple(self.tokenizer.encode(prompt, 128)), resident) for prompt in prompts]
        return [answer for row in rows for answer in self.engine.predict([row])]

    def counted(self, version: int, outcome: str) -> float:
        labels = {"task": self.spec.name, "version": str(version), "outcome": outcome}
        return self.metrics.registry.get_sample_value("sidecast_shadow_rows_total", labels) or 0.0


@pytest.fixture
async def house(backbone: Backbone, tokenizer: Tokenizer) -> AsyncIterator[House]:
    house = House(backbone, tokenizer)
    yield house
    await house.service.close()
    house.shadowing.close()


def breaks(resident: Resident, value: float = float("nan")) -> Resident:
    """With weights that make no number."""
    assert isinstance(resident.side, SideNetwork)
    with torch.no_grad():
        for parameter in resident.side.parameters():
            parameter.fill_(value)
    return resident


async def test_a_shadow_is_compared_on_every_row(house: House) -> None:
    pairs = list(zip(house.alone(OWN), house.alone(OTHER), strict=True))
    agreed = sum(left.label == right.label for left, right in pairs)
    drift = sum(abs(left.scores[0] - right.scores[0]) for left, right in pairs) / len(pairs)
    house.route(Route(shadows=(OTHER,)))
    await house.ask()
    await house.ask_all()
    await house.settle()
    await house.ask(version=OWN)  # the turns before have ended, and their time is known
    seen = house.of(OTHER)
    assert (seen.rows, seen.failed, seen.compared, seen.agreed) == (16, 0, 16, 2 * agreed)
    assert seen.drift == pytest.approx(drift, abs=1e-4)
    assert (seen.answers, seen.latency_seconds, seen.dropped) == (False, 0.0, 0)
    assert seen.cost_seconds > 0
    own = house.of(OWN)
    assert (own.rows, own.failed, own.compared, own.answers) == (16, 0, 0, True)
    assert own.latency_seconds > 0
    assert house.counted(OTHER, "agreed") + house.counted(OTHER, "disagreed") == 16
    assert house.counted(OTHER, "agreed") == seen.agreed


async def test_a_shadow_with_the_same_weights_agrees_to_the_last_bit(house: House) -> None:
    house.route(Route(shadows=(OTHER,)), twin=house.make(OTHER, seed=OWN))
    await house.ask_all()
    await house.settle()
    assert (house.of(OTHER).agreed, house.of(OTHER).drift) == (8, pytest.approx(0.0, abs=1e-6))


async def test_disagreements_are_kept_with_their_prompts(house: House) -> None:
    flipped = house.make(OTHER, seed=OWN, labels=("positive", "negative"))
    house.route(Route(shadows=(OTHER,)), flipped=flipped)
    [own] = house.alone(OWN, TEXTS[:1])
    await house.ask(TEXTS[:1])
    await house.settle()
    if own.label == house.alone(OTHER, TEXTS[:1])[0].label:
        assert not house.compared().disagreements
    else:
        [told] = house.compared().disagreements
        assert (told.version, told.prompt) == (OTHER, TEXTS[0])
        assert told.expected.startswith(own.label)
        assert not told.found.startswith(own.label)


async def test_answers_are_the_same_bits_with_and_without_shadows(house: House) -> None:
    """Sent one by one, so that a row's batch is the same; only shadows come between."""
    before = await house.ask_all(2)
    house.engine.cache.clear()
    house.route(Route(shadows=(OTHER, THIRD)))
    beside: list[Answer] = []
    for text in TEXTS + TEXTS:
        beside += (await house.ask([text]))[1]
        await house.settle()
    assert beside == before
    assert house.of(OTHER).compared == house.of(THIRD).compared == 16


async def test_a_canary_is_compared_with_the_own_version_that_answers_beside_it(house: House) -> None:
    route = Route(shares={OTHER: 5000}, shadows=(THIRD,), bounds=Bounds(disagreement=0.5, min_rows=1))
    house.route(route)
    versions = [(await house.ask([text], route_key=f"{n}"))[0] for n, text in enumerate(TEXTS * 2)]
    await house.settle()
    canary, own, shadow = house.of(OTHER), house.of(OWN), house.of(THIRD)
    answered = versions.count(OTHER)
    assert 0 < answered < 16
    assert (canary.rows, canary.compared, canary.answers) == (answered, answered, True)
    assert (own.rows, own.answered) == (16, 16 - answered)
    assert (shadow.rows, shadow.compared) == (16, 16)  # beside the canary's rows too: the own version is there
    agree = [left.label == right.label for left, right in zip(house.alone(OWN), house.alone(THIRD), strict=True)]
    assert shadow.agreed == 2 * sum(agree)
    assert canary.latency_seconds > 0


async def test_without_a_bound_on_it_nobody_is_asked_beside_a_canary(house: House) -> None:
    house.route(Route(shares={OTHER: 9999}, shadows=(THIRD,), bounds=Bounds(error_rate=0.1)))
    keys = [f"{n}" for n in range(5)]
    assert [(await house.ask(TEXTS[:1], route_key=key))[0] for key in keys] == [OTHER] * 5
    await house.settle()
    assert (house.of(OTHER).rows, house.of(OTHER).compared, house.of(OWN).rows, house.of(THIRD).rows) == (5, 0, 0, 0)


@pytest.mark.parametrize("beside", ["shadow", "canary's own"])
async def test_a_version_that_makes_no_numbers_is_counted_and_hurts_nobody(house: House, beside: str) -> None:
    expected = await house.ask_all()
    broken = breaks(house.make(OTHER))
    if beside == "shadow":
        house.route(Route(shadows=(OTHER, THIRD)), broken=broken)
        assert await house.ask_all() == expected
        await house.settle()
        assert (house.of(OTHER).rows, house.of(OTHER).failed, house.of(OTHER).compared) == (8, 8, 0)
        assert (house.of(THIRD).failed, house.of(THIRD).compared) == (0, 8)
        assert house.counted(OTHER, "failed") == 8
    else:
        house.route(Route(shares={OTHER: 9999}, bounds=Bounds(disagreement=0.1)), broken=broken)
        for n in range(5):
            with pytest.raises(Exception, match="finite"):
                await house.ask(TEXTS[:1], route_key=f"{n}")
        await house.settle()
        assert (house.of(OTHER).rows, house.of(OTHER).failed, house.of(OTHER).compared) == (5, 5, 0)
        assert (house.of(OWN).rows, house.of(OWN).failed) == (5, 0)


async def test_a_version_with_another_template_gets_its_own_prompt(house: House) -> None:
    other = house.make(OTHER, template="review: {sentence} It was")
    house.route(Route(shadows=(OTHER,)), other=other)
    expected = [left.label == right.label for left, right in zip(house.alone(OWN), house.alone(OTHER), strict=True)]
    await house.ask()
    await house.settle()
    assert (house.of(OTHER).compared, house.of(OTHER).agreed) == (8, sum(expected))


async def test_a_version_whose_template_needs_more_than_callers_send_fails(house: House) -> None:
    house.route(Route(shadows=(OTHER,)), other=house.make(OTHER, template="{sentence} {title}"))
    await house.ask()
    await house.settle()
    assert (house.of(OTHER).rows, house.of(OTHER).failed) == (8, 8)


async def test_texts_are_made_as_their_caller_wanted_them(backbone: Backbone, tokenizer: Tokenizer) -> None:
    house = House(backbone, tokenizer, make_spec("titles", kind="text", max_new_tokens=6))
    house.route(Route(shadows=(OTHER,)))
    few = DecodingOverrides({"max_new_tokens": 2})
    _, found = await house.ask(TEXTS[:3], decoding=few)
    await house.settle()
    owns, others = [house.alone(version, TEXTS[:3]) for version in (OWN, OTHER)]
    assert [answer.tokens for answer in found if isinstance(answer, TextAnswer)] == [own.tokens[:2] for own in owns]
    agreed = sum(own.tokens[:2] == other.tokens[:2] for own, other in zip(owns, others, strict=True))
    assert (house.of(OTHER).compared, house.of(OTHER).agreed) == (3, agreed)
    assert all(len(each.found) <= 8 for each in house.compared().disagreements)
    await house.ask(
        TEXTS[:3], decoding=DecodingOverrides({"do_sample": True})
    )  # drawn anew each time: nothing to compare
    await house.settle()
    assert (house.of(OTHER).rows, house.of(OWN).rows) == (3, 6)
    patient = house.make(OTHER, generation=GenerationSpec(num_beams=2))
    house.route(Route(shadows=(OTHER,)), patient=patient)
    await house.ask(TEXTS[:3])  # the version's own settings, where the caller has none
    await house.settle()
    others = house.alone(OTHER, TEXTS[:3])
    agreed = sum(own.text == other.text for own, other in zip(owns, others, strict=True))
    assert (house.of(OTHER).compared, house.of(OTHER).agreed) == (3, agreed)
    streamed = [event async for event in stream(house.service, "titles", TEXTS[0])]
    assert streamed
    await house.settle()
    assert house.of(OTHER).compared == 4
    await house.service.close()
    house.shadowing.close()


async def test_pinned_requests_and_those_of_an_earlier_route_are_not_seen(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    await house.ask(version=OWN)
    late = asyncio.create_task(house.ask())
    await asyncio.sleep(0)  # it is admitted
    house.route(Route(shadows=(THIRD,)))
    await late
    await house.settle()
    assert [(each.version, each.rows) for each in house.compared().comparisons] == [(OWN, 0), (THIRD, 0)]


async def test_a_swap_does_not_disturb_what_is_being_compared(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    await house.ask()
    house.route(Route())
    del house.residents[OTHER]
    await house.settle()
    assert house.comparisons.read("sst2", "production") is None


async def test_inputs_are_read_from_the_cache_and_not_encoded_again(house: House) -> None:
    value = house.metrics.registry.get_sample_value
    house.route(Route(shadows=(OTHER, THIRD)))
    await house.ask()
    await house.settle()
    assert value("sidecast_batch_rows_sum") == 8
    assert value("sidecast_cache_hits_total") == 8  # both shadows in one turn


class Kept:
    """A batcher that keeps what it is to answer."""

    def __init__(self) -> None:
        self.requests: list[ShadowRequest] = []

    def shadow(self, request: ShadowRequest) -> None:
        self.requests.append(request)


def seen_of(house: House, **changes: Any) -> Observation:
    """One row that production's own version answered."""
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


async def test_a_tenants_rows_are_asked_with_its_salt(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(seen_of(house))
    assert not kept.requests  # not before the caller has its answer
    await asyncio.sleep(0)
    [request] = kept.requests
    assert [(each.ids, each.salt) for each in request.rows] == [((3, 4, 1), "tenant")]
    assert request.rows[0] is not seen_of(house).rows[0]


async def test_what_load_ended_is_dropped_and_no_failure(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer, metrics=house.metrics).observe(seen_of(house))
    await asyncio.sleep(0)
    kept.requests[0].settle(0, Draining())
    assert (house.of(OTHER).failed, house.of(OTHER).dropped, house.counted(OTHER, "dropped")) == (0, 1, 1)


async def test_a_failed_turn_is_no_failure_of_the_version_but_it_rests_when_there_are_many(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    shadowing = ShadowRunner(kept, house.comparisons, house.tokenizer, metrics=house.metrics)
    for _ in range(FAILURES + 1):
        shadowing.observe(seen_of(house))
        await asyncio.sleep(0)
        if len(kept.requests) <= FAILURES and not kept.requests[-1].is_over:
            kept.requests[-1].settle(0, RuntimeError("the turn failed"))
    assert (house.of(OTHER).failed, house.of(OTHER).dropped, len(kept.requests)) == (0, FAILURES + 1, FAILURES)


async def test_a_caller_who_left_counts_for_latency_alone(house: House) -> None:
    house.route(Route(shares={OTHER: 5000}, shadows=(THIRD,)))
    kept = Kept()
    left = seen_of(house, outcomes=(), prompts=(), inputs=(), seconds=0.7, is_abandoned=True)
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(left)
    await asyncio.sleep(0)
    assert (house.of(OWN).latency_seconds, house.of(OWN).answered, house.of(OWN).rows) == (0.7, 1, 0)
    assert kept.requests == []


async def test_inputs_that_a_canary_makes_no_prompt_of_count_as_failed_and_take_no_time(house: House) -> None:
    house.route(Route(shares={OTHER: 5000}))
    nothing = {"rows": (), "outcomes": (), "prompts": (), "inputs": (), "seconds": 0.0}
    house.shadowing.observe(seen_of(house, resident=house.residents[OTHER], unrendered=3, **nothing))
    await asyncio.sleep(0)
    found = house.of(OTHER)
    assert (found.rows, found.failed, found.error_rate, found.latency_seconds) == (3, 3, 1.0, 0.0)


async def test_rows_of_a_route_that_is_over_are_not_wanted(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(seen_of(house))
    await asyncio.sleep(0)
    assert kept.requests[0].is_wanted
    house.route(Route(shadows=(OTHER, THIRD)))
    assert not kept.requests[0].is_wanted


async def test_another_version_answers_by_its_own_settings_with_what_the_request_sets(
    backbone: Backbone, tokenizer: Tokenizer
) -> None:
    house = House(backbone, tokenizer, make_spec("titles", kind="text", max_new_tokens=6))
    patient = house.make(OTHER, max_new_tokens=4, generation=GenerationSpec(num_beams=2))
    house.route(Route(shadows=(OTHER,)), patient=patient)
    kept = Kept()
    shadowing = ShadowRunner(kept, house.comparisons, tokenizer)
    for limit in (3, 5):  # it makes no 5 tokens, so there is nothing to compare
        overrides = DecodingOverrides({"max_new_tokens": limit})
        rows = (EngineRow((3, 4, 1), house.residents[OWN], overrides.answerer(house.residents[OWN])),)
        shadowing.observe(seen_of(house, rows=rows, overrides=overrides))
        await asyncio.sleep(0)
    [request] = kept.requests
    how = request.rows[0].how  # type: ignore[attr-defined]
    assert isinstance(how, Generate)
    assert (how.generation.num_beams, how.max_new_tokens) == (2, 3)
    await house.service.close()
    house.shadowing.close()


async def test_a_comparison_that_fails_is_logged_and_no_more(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(seen_of(house))
    await asyncio.sleep(0)
    [answer] = house.alone(OTHER, TEXTS[:1])
    kept.requests[0].settle(0, replace(answer, scores=(1.0,)))  # fewer scores than labels
    assert "cannot be compared" in caplog.text


async def test_a_version_that_fails_over_and_over_is_left_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.route(Route(shadows=(OTHER,)), broken=breaks(house.make(OTHER)))
    for _ in range(FAILURES // len(TEXTS) + 1):
        await house.ask()
        await house.settle()
    assert (house.of(OTHER).failed, house.of(OTHER).dropped) == (FAILURES, len(TEXTS))
    assert f"sst2:2 failed {FAILURES} times in a row" in caplog.text


async def test_a_version_that_is_slow_is_left_alone(
    backbone: Backbone, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(backbone, tokenizer, shadow_timeout_s=1e-9)
    house.route(Route(shadows=(OTHER,)))
    for _ in range(3):
        await house.ask()
        await house.settle()
    assert (house.of(OTHER).compared, house.of(OTHER).dropped, house.of(OTHER).failed) == (8, 16, 0)
    assert "sst2:2 took" in caplog.text
    await house.service.close()
    house.shadowing.close()


def test_who_is_slow_is_asked_apart_and_then_rests_longer_each_time() -> None:
    now = 0.0
    resting = Resting(1.0, lambda: now)
    bad, good = ("sst2", 7), ("sst2", 8)
    for key in (bad, good):
        resting.took(key, 2.0, alone=False)
    assert resting.is_suspect(bad)
    assert not resting.rests(bad)
    resting.took(good, 0.1, alone=True)
    assert not resting.is_suspect(good)
    rests = []
    for _ in range(9):
        resting.took(bad, 2.0, alone=True)
        began = now
        while resting.rests(bad):
            now += 10.0
        rests.append(now - began)
        assert resting.is_suspect(bad)
    assert rests == [min(REST_S[0] * 2**n, REST_S[1]) for n in range(9)]


def test_versions_that_are_gone_are_forgotten() -> None:
    there = {("sst2", 7), ("sst2", 8)}
    resting = Resting(1.0, lambda: 0.0, there.__contains__)
    for version in (7, 8):
        resting.took(("sst2", version), 2.0, alone=True)
    there.remove(("sst2", 7))
    there.add(("sst2", 9))
    resting.ended(("sst2", 9), RuntimeError("boom"))
    assert list(resting._troubles) == [("sst2", 8), ("sst2", 9)]


def test_one_answer_ends_a_row_of_failures() -> None:
    resting, key = Resting(1.0, lambda: 0.0), ("sst2", 7)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            resting.ended(key, RuntimeError("boom"))
        resting.ended(key, None)
    assert not resting.rests(key)
    for _ in range(FAILURES):
        resting.ended(key, RuntimeError("boom"))
    assert resting.rests(key)
