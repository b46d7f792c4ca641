"""Which version of a route answers a request, and what is observed: on a device that names the version."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder.answering.answerers import Generate
from ladder.answers import ClassAnswer, TextAnswer
from serving.config import BatchConfig, LimitConfig
from serving.engine.detokenizer import Piece
from serving.engine.rows import EngineRow, Resident
from serving.errors import DeadlineExpired, InvalidInput, SideFailed, TaskOverloaded
from serving.metrics import Metrics
from serving.pipeline.observation import Observation
from serving.pipeline.request import Generated, Prediction, PredictRequest, Prompt, RequestOptions
from serving.pipeline.service import PredictService
from serving.scheduler.batcher import Batcher
from serving.versions.placement import add
from serving.versions.pool import PoolState, SidePool
from side_registry import TaskRef
from side_registry.route import WHOLE, Bounds, Route
from tests.serving.kit import empty_resident, make_spec, predict, predict_tasks, stream
from tests.serving.versions.test_pool import task_state

KEYS = [f"caller {number}" for number in range(4000)]


def pool_state(route: Route, *loaded: int, versions: int = 4) -> PoolState:
    """Of `sst2`, whose production is at version 1."""
    task = task_state(versions, {"production": (1,), "steady": (1,)}, routes={"production": route})
    state = PoolState(generation=7, wanted=7, tasks={"sst2": task})
    for version in loaded or range(1, versions + 1):
        state = add(state, empty_resident("sst2", version))
    return state


def chosen(state: PoolState, keys: Sequence[str] = KEYS) -> dict[str, int]:
    return {key: state.resolve("sst2", key=key).version for key in keys}


# --- the split


def test_keys_are_split_by_the_shares() -> None:
    counts = Counter(chosen(pool_state(Route(shares={2: 500, 3: 2000}))).values())
    assert counts[2] / len(KEYS) == pytest.approx(0.05, abs=0.02)
    assert counts[3] / len(KEYS) == pytest.approx(0.20, abs=0.04)
    assert counts[1] / len(KEYS) == pytest.approx(0.75, abs=0.05)


def test_requests_without_a_key_are_split_at_random() -> None:
    random.seed(20)
    state = pool_state(Route(shares={2: 2500}))
    counts = Counter(state.resolve("sst2", key="").version for _ in range(4000))
    assert counts[2] / 4000 == pytest.approx(0.25, abs=0.04)
    assert set(counts) == {1, 2}


@settings(max_examples=30, deadline=None)
@given(shares=st.lists(st.integers(1, WHOLE - 1), min_size=2, max_size=2, unique=True))
def test_a_growing_share_keeps_the_keys_it_had(shares: list[int]) -> None:
    small, large = (chosen(pool_state(Route(shares={2: share})), KEYS[:500]) for share in sorted(shares))
    assert all(large[key] == 2 for key, version in small.items() if version == 2)


def test_a_share_that_is_not_loaded_falls_to_the_alias_itself_and_moves_no_other_key() -> None:
    route = Route(shares={2: 2000, 3: 3000})
    whole, lacking = chosen(pool_state(route)), chosen(pool_state(route, 1, 3))
    assert Counter(whole.values())[2] > 0
    assert lacking == {key: 1 if version == 2 else version for key, version in whole.items()}


def test_who_pins_a_version_or_calls_another_alias_is_not_split() -> None:
    state = pool_state(Route(shares={2: 9000}))
    assert {state.resolve("sst2", version=1, key=key).version for key in KEYS[:50]} == {1}
    assert {state.resolve("sst2", alias="steady", key=key).version for key in KEYS[:50]} == {1}


def test_who_describes_a_task_sees_the_aliass_own_version() -> None:
    state = pool_state(Route(shares={2: 9999}))
    assert {state.resolve("sst2").version for _ in range(20)} == {1}


def test_a_suspended_route_gives_no_shares_until_the_registry_has_another() -> None:
    pool, state = SidePool(), pool_state(Route(shares={2: 5000}, shadows=(3,)))
    pool.replace(state)
    pool.suspend("sst2", "production", 5)
    assert set(chosen(pool.snapshot()).values()) == {1}
    assert [resident.version for resident in pool.snapshot().shadows("sst2", "production", 1)] == [3]
    pool.replace(replace(state, generation=8))  # by the writer, who took it before
    assert set(chosen(pool.snapshot()).values()) == {1}
    task = replace(state.tasks["sst2"], routed={"production": 9})
    pool.replace(replace(pool.snapshot(), tasks={"sst2": task}))
    assert set(chosen(pool.snapshot()).values()) == {1, 2}


def test_routes_that_are_over_are_suspended_no_longer() -> None:
    pool = SidePool()
    pool.replace(pool_state(Route(shares={2: 5000})))
    pool.suspend("sst2", "gone", 1)
    pool.suspend("sst2", "production", 5)
    assert pool.snapshot().suspended_routes == {("sst2", "production"): 5}


@pytest.mark.parametrize(
    ("route", "chosen", "shadows"),
    [
        (Route(shadows=(3, 2)), 1, [3, 2]),
        (Route(shares={2: 500}), 2, []),
        (Route(shares={2: 500}, bounds=Bounds(error_rate=0.1)), 2, []),
        (Route(shares={2: 500}, bounds=Bounds(disagreement=0.1)), 2, [1]),
        (Route(shares={2: 500}, bounds=Bounds(disagreement=0.1)), 1, []),
        (Route(shares={2: 500}, shadows=(4,), bounds=Bounds(disagreement=0.1)), 2, [1, 4]),
    ],
)
def test_which_versions_shadow_the_chosen_one(route: Route, chosen: int, shadows: list[int]) -> None:
    state = pool_state(route)
    assert [resident.version for resident in state.shadows("sst2", "production", chosen)] == shadows
    assert state.shadows("sst2", "steady", chosen) == ()
    assert state.routed_since("sst2", "production", chosen) == 5


def test_a_version_that_the_route_does_not_lead_to_is_not_followed() -> None:
    state = pool_state(Route(shares={2: 500}, shadows=(3,)))
    assert state.routed_since("sst2", "production", 3) is None
    assert state.routed_since("sst2", "steady", 1) is None


# --- the service


class Device:
    """Answers a class with the prompt and its version, and a text with its prompt, piece by piece where streamed."""

    def __init__(self) -> None:
        self.slow: list[EngineRow] = []

    def step(self, rows: Sequence[EngineRow], gone: Sequence[EngineRow], deliver: Any) -> bool:
        for row in rows:
            text = bytes(row.ids).decode()
            answer: Any = ClassAnswer(label=f"{text}|{row.resident.version}", score=1.0, scores=(1.0,))
            if row.resident.spec.kind == "text":
                answer = TextAnswer(text=text, tokens=row.ids)
            if "slow" in text:
                self.slow.append(row)  # it is never answered
                continue
            if "broken" in text:
                raise RuntimeError("the turn failed")
            if "poison" in text:
                answer = SideFailed(row.task, row.resident.version, "poisoned")
            if row.streams:
                deliver([(row, Piece(row.ids[:1], text[:1]))])
            deliver([(row, answer)])
        self.slow = [row for row in self.slow if row not in gone]
        return bool(self.slow)


class Bytes:
    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        ids = [list(text.encode()) for text in texts]
        return [each[:max_tokens] for each in ids], [len(each) > (max_tokens or len(each)) for each in ids]


class Recorder:
    """An observer that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.raises = False

    def observe(self, seen: Observation) -> None:
        self.seen.append(seen)
        if self.raises:
            raise KeyError("broken")


class House:
    """`sst2` and the text task `titles`, versions 1 to 3 of each, on a service with an observer."""

    def __init__(self, limits: LimitConfig | None = None) -> None:
        self.pool, self.recorder, metrics = SidePool(), Recorder(), Metrics()
        self.batcher = Batcher(Device(), BatchConfig(max_wait_s=0), metrics, limits)
        self.service = PredictService(self.pool, self.batcher, Bytes(), metrics=metrics, observer=self.recorder)

    def route(self, route: Route, own: int = 1, generation: int = 9) -> None:
        """Of both tasks' production."""
        state = PoolState(generation=generation, wanted=generation)
        for name in ("sst2", "titles"):
            task = task_state(
                3, {"production": (own,)}, name=name, routes={} if route.is_plain else {"production": route}
            )
            state = replace(state, tasks={**state.tasks, name: task})
            for version in (1, 2, 3):
                state = add(state, resident(name, version))
        self.pool.replace(state)

    async def ask(self, *texts: Any, **how: Any) -> Prediction:
        return await predict(self.service, "sst2", texts, **how)


def resident(name: str, version: int) -> Resident:
    if name == "sst2":
        return empty_resident(name, version)
    found = empty_resident(name, version, make_spec(name, kind="text"))
    return replace(found, answerer=Generate(max_new_tokens=20, decode=str))


@pytest.fixture
async def house():
    house = House()
    house.route(Route(shares={2: 5000}))
    yield house
    await house.service.close()


def key_of(house: House, version: int, task: str = "sst2") -> str:
    return next(key for key in KEYS if house.pool.resolve(task, key=key).version == version)


def labels(prediction: Prediction) -> list[str]:
    return [answer.label for answer in prediction.answers if isinstance(answer, ClassAnswer)]


async def test_all_rows_of_a_request_get_one_version_which_is_told(house: House) -> None:
    found = await asyncio.gather(*[house.ask("a", "b", "c") for _ in range(60)])
    for each in found:
        assert labels(each) == [f"{row}|{each.version}" for row in "abc"]
        assert (each.alias, each.generation) == ("production", 9)
    assert {each.version for each in found} == {1, 2}


async def test_requests_of_one_key_get_one_version(house: House) -> None:
    for version in (1, 2):
        key = key_of(house, version)
        assert {(await house.ask("a", route_key=key)).version for _ in range(10)} == {version}


async def test_while_routes_change_no_answer_is_a_mixture(house: House) -> None:
    """Every answer is whole, from a version that its generation allowed."""
    allowed, over = {9: {1, 2}}, asyncio.Event()

    async def change() -> None:
        generation = 9
        while not over.is_set():
            generation += 1
            own, canary = 1 + generation % 3, 1 + (generation + 1) % 3
            allowed[generation] = {own, canary}
            house.route(Route(shares={canary: 5000}), own, generation)
            await asyncio.sleep(0)

    async def call() -> list[Prediction]:
        return [await house.ask("a", "b", "c") for _ in range(10)]

    changing = asyncio.create_task(change())
    calls = await asyncio.gather(*[call() for _ in range(8)])
    over.set()
    await changing
    found = [prediction for called in calls for prediction in called]
    assert len({each.generation for each in found}) >= 10
    for each in found:
        assert each.version in allowed[each.generation]
        assert {label.split("|")[1] for label in labels(each)} == {str(each.version)}


async def test_a_task_named_twice_in_one_request_gets_one_version(house: House) -> None:
    refs = [TaskRef("sst2"), TaskRef("sst2", alias="production")]
    pairs = [await predict_tasks(house.service, refs, ["a"]) for _ in range(40)]
    assert {tuple(each.version for each in pair) for pair in pairs} == {(1, 1), (2, 2)}  # type: ignore[union-attr]
    key = key_of(house, 2)
    kept = [await predict_tasks(house.service, refs, ["a"], route_key=key) for _ in range(5)]
    assert {each.version for pair in kept for each in pair} == {2}  # type: ignore[union-attr]


async def test_a_key_is_bounded(house: House) -> None:
    assert (await house.ask("a", route_key="k" * 1000)).version in (1, 2)
    for call in (
        house.ask("a", route_key="k" * 1001),
        predict_tasks(house.service, [TaskRef("sst2")], ["a"], route_key="k" * 1001),
        anext(stream(house.service, "titles", "a", route_key="k" * 1001)),
    ):
        with pytest.raises(InvalidInput, match="route_key: has 1001 characters, at most 1000"):
            await call
    assert (await house.ask("a", route_key="half \ud83d")).version in (1, 2)


# --- the observer


async def test_the_observer_sees_each_distinct_row_and_who_else_is_to_answer(house: House) -> None:
    house.route(Route(shares={2: 5000}, shadows=(3,), bounds=Bounds(disagreement=0.1)))
    rows = ["a", Prompt("b"), {"sentence": "a"}]
    await house.ask(*rows, route_key=key_of(house, 2))
    [seen] = house.recorder.seen
    assert (seen.resident.version, seen.alias, seen.since) == (2, "production", 4)
    assert [each.version for each in seen.shadows] == [1, 3]
    assert seen.prompts == ("a", "b")
    assert seen.inputs == ("a", Prompt("b"))
    assert [bytes(row.ids).decode() for row in seen.rows] == ["a", "b"]
    assert [outcome.label for outcome in seen.outcomes] == ["a|2", "b|2"]
    assert seen.seconds > 0


async def test_the_own_version_is_observed_too(house: House) -> None:
    await house.ask("a", route_key=key_of(house, 1))
    [seen] = house.recorder.seen
    assert (seen.resident.version, seen.shadows) == (1, ())


async def test_each_task_of_a_request_is_observed(house: House) -> None:
    refs = [TaskRef("sst2"), TaskRef("titles"), TaskRef("sst2", version=1), TaskRef("nope")]
    await predict_tasks(house.service, refs, ["a"])
    assert [seen.resident.task for seen in house.recorder.seen] == ["sst2", "titles"]


async def test_what_no_route_led_to_is_not_observed(house: House) -> None:
    await house.ask("a", version=2)
    house.route(Route())
    await house.ask("a")
    assert house.recorder.seen == []


async def test_the_resolved_version_answers_whatever_is_swapped_meanwhile(house: House) -> None:
    options = RequestOptions(route_key=key_of(house, 2))
    target = house.service.resolve(TaskRef("sst2"), options)
    house.pool.replace(PoolState(generation=10))  # the task is deleted
    found = await house.service.predict(PredictRequest(targets=(target,), rows=["a"], options=options))
    assert (found.version, found.alias, found.generation, labels(found)) == (2, "production", 9, ["a|2"])
    [seen] = house.recorder.seen
    assert (seen.resident.version, seen.since) == (2, 4)


async def test_a_row_that_its_version_fails_is_observed(house: House) -> None:
    with pytest.raises(SideFailed):
        await house.ask("fine", "poison", route_key=key_of(house, 2))
    [seen] = house.recorder.seen
    assert [type(outcome) for outcome in seen.outcomes] == [ClassAnswer, SideFailed]


async def test_a_canary_that_makes_no_prompt_of_what_its_alias_takes_is_observed(house: House) -> None:
    state = house.pool.snapshot()
    own = state.residents["sst2", 2]
    other = replace(own, spec=own.spec.model_validate(own.spec.model_dump() | {"template": "{other}"}))
    house.pool.replace(replace(state, residents={**state.residents, ("sst2", 2): other}))
    for rows, told in (([{"sentence": "a"}, {"sentence": "b"}], [(2, 2)]), ([{"nothing": "a"}], [])):
        house.recorder.seen.clear()
        with pytest.raises(InvalidInput):
            await predict(house.service, "sst2", rows, route_key=key_of(house, 2))
        assert [(seen.resident.version, seen.unrendered) for seen in house.recorder.seen] == told
    house.recorder.seen.clear()
    with pytest.raises(InvalidInput):  # the caller's own doing
        await predict(house.service, "sst2", [{"sentence": "a"}], version=2)
    with pytest.raises(InvalidInput):
        await predict(house.service, "sst2", [{"other": "a"}], route_key=key_of(house, 1))
    assert house.recorder.seen == []


async def test_what_load_decided_is_not_observed() -> None:
    house = House(LimitConfig(max_task_requests=1))
    house.route(Route(shares={2: 5000}))
    first, *others = await asyncio.gather(*[house.ask("a") for _ in range(3)], return_exceptions=True)
    with pytest.raises(DeadlineExpired):
        await house.ask("a", deadline=0.0)
    assert isinstance(first, Prediction)
    assert [type(each) for each in others] == [TaskOverloaded, TaskOverloaded]
    assert len(house.recorder.seen) == 1
    await house.service.close()


async def test_a_turn_that_fails_is_no_fault_of_the_version(house: House) -> None:
    with pytest.raises(RuntimeError, match="the turn failed"):
        await house.ask("broken")
    with pytest.raises(RuntimeError, match="the turn failed"):
        [event async for event in stream(house.service, "titles", "broken")]
    assert house.recorder.seen == []


async def begun(house: House) -> None:
    """Until a row is on the device."""
    while not house.batcher._on_device:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("streamed", [False, True])
async def test_how_long_a_version_kept_a_caller_waiting_who_left_is_observed(house: House, streamed: bool) -> None:
    async def ask(**how: Any) -> None:
        if streamed:
            async for _ in stream(house.service, "titles", "slow", route_key=key_of(house, 2, "titles"), **how):
                pass
        else:
            await house.ask("slow", "slow", "fine", route_key=key_of(house, 2), **how)

    with pytest.raises(DeadlineExpired):
        await ask(deadline=asyncio.get_running_loop().time() + 0.05)
    while house.batcher._on_device:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    cancelled = asyncio.create_task(ask())
    await begun(house)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    for seen in house.recorder.seen:
        assert (seen.is_abandoned, seen.resident.version, seen.alias, seen.outcomes) == (True, 2, "production", ())
        assert len(seen.rows) == (1 if streamed else 2)
    late, _ = house.recorder.seen
    assert late.seconds > 0


async def test_a_caller_who_leaves_the_queue_tells_nothing_of_a_version(house: House) -> None:
    house.batcher._device = ThreadPoolExecutor(1)
    held = threading.Event()
    house.batcher._device.submit(held.wait)
    first = asyncio.create_task(house.ask("slow"))  # the turn that it is in
    await begun(house)
    with pytest.raises(DeadlineExpired):
        await house.ask("a", deadline=asyncio.get_running_loop().time() + 0.05)
    assert house.recorder.seen == []
    held.set()
    first.cancel()


async def test_an_observer_that_raises_takes_no_answer_away(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.recorder.raises = True
    assert (await house.ask("a")).version in (1, 2)
    assert "the observer of sst2 failed" in caplog.text


async def test_a_stream_follows_the_route_and_is_observed_with_its_whole_text(house: House) -> None:
    key = key_of(house, 2, "titles")
    *pieces, end = [event async for event in stream(house.service, "titles", "abc", route_key=key)]
    assert isinstance(end, Generated)
    assert (end.prediction.version, "".join(piece.text for piece in pieces)) == (2, "abc")  # type: ignore[union-attr]
    [seen] = house.recorder.seen
    assert (seen.resident.version, seen.prompts) == (2, ("abc",))
    assert seen.outcomes == end.prediction.answers


async def test_a_stream_that_its_version_fails_is_observed_and_one_that_is_left_is_not(house: House) -> None:
    with pytest.raises(SideFailed):
        [event async for event in stream(house.service, "titles", "poison")]
    [seen] = house.recorder.seen
    assert isinstance(seen.outcomes[0], SideFailed)
    left = stream(house.service, "titles", "abc")
    await anext(left)
    await left.aclose()
    assert len(house.recorder.seen) == 1


async def test_the_time_that_a_streams_caller_takes_is_not_the_versions(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("serving.pipeline.service.perf_counter", lambda: clock[0])
    async for _ in stream(house.service, "titles", "abc"):
        clock[0] += 60
    assert [seen.seconds for seen in house.recorder.seen] == [0]
