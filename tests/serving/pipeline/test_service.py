"""The service: admission, validation, tokens, batches and typed answers, on a fake device and on a tiny T5."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ladder import Backbone, ClassAnswer, Tokenizer, ValueAnswer
from serving.config import BatchConfig, RequestConfig
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Key, Resident
from serving.errors import (
    DeadlineExpired,
    Draining,
    InvalidInput,
    NotLoaded,
    Overloaded,
    SideFailed,
    TooManyRows,
    VersionRefused,
)
from serving.metrics import Metrics
from serving.pipeline.request import Prediction, Prompt, RequestOptions, Target
from serving.pipeline.service import PredictService
from serving.pipeline.tokenizer_pool import TokenizerPool
from serving.scheduler.batcher import Batcher
from serving.versions.arrivals import Arrivals
from serving.versions.placement import add
from serving.versions.pool import Failure, PoolState, SidePool
from side_registry import TaskRef, UnknownAlias, UnknownTask, UnknownVersion
from tests.serving.kit import empty_resident, make_resident, make_spec, predict, predict_tasks
from tests.serving.scheduler.batch_kit import AnswersAtOnce
from tests.serving.versions.test_pool import task_state

PAIR = make_spec("qnli", template="question: {question} sentence: {sentence}")


class ByteTokenizer:
    """Bytes as tokens; remembers on which threads it ran, and what it was asked."""

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.asked: list[str] = []

    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        self.threads.add(threading.current_thread().name)
        self.asked.extend(texts)
        ids = [list(text.encode()) for text in texts]
        return [each[:max_tokens] for each in ids], [len(each) > (max_tokens or len(each)) for each in ids]


class Device:
    """Answers with the text it got and the version that answered."""

    def __init__(self) -> None:
        self.batches: list[list[EngineRow]] = []
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def predict(self, rows: list[EngineRow]) -> list[Any]:
        self.batches.append(rows)
        self.entered.set()
        assert self.open.wait(10)
        return [self._answer(row) for row in rows]

    def _answer(self, row: EngineRow) -> Any:
        text = bytes(row.ids).decode()
        if "poison" in text:
            return SideFailed(row.resident.task, row.resident.version, "poisoned")
        if "explode" in text:
            return RuntimeError("boom")
        return ClassAnswer(label=f"{text}|{row.resident.task}:{row.resident.version}", score=1.0, scores=(1.0,))


class House:
    def __init__(self, **limits: int) -> None:
        self.device, self.tokenizer, self.pool, self.metrics = Device(), ByteTokenizer(), SidePool(), Metrics()
        self.batcher = Batcher(
            AnswersAtOnce(self.device.predict), BatchConfig(max_wait_s=0, max_queued_rows=20), self.metrics
        )
        self.service = PredictService(self.pool, self.batcher, self.tokenizer, RequestConfig(**limits), self.metrics)
        self.serve(empty_resident("sst2"), empty_resident("cola"), empty_resident("qnli", spec=PAIR))

    def serve(self, *residents: Resident) -> None:
        """Make these resident, each task's production at its newest."""
        state = self.pool.snapshot()
        state = replace(state, generation=state.generation + 1, wanted=state.wanted + 1)
        for resident in residents:
            task = task_state(resident.version, {"production": (resident.version,)}, name=resident.task)
            state = add(replace(state, tasks={**state.tasks, resident.task: task}), resident)
        self.pool.replace(state)

    async def ask(self, *texts: Any, task: str = "sst2", **how: Any) -> list[str]:
        return labels(await predict(self.service, task, texts, **how))


def labels(prediction: Any) -> list[str]:
    assert isinstance(prediction, Prediction)
    return [answer.label for answer in prediction.answers if isinstance(answer, ClassAnswer)]


@pytest.fixture
async def house():
    house = House(max_request_rows=20, max_request_tasks=5)
    yield house
    house.device.open.set()
    await house.service.close()


async def test_rows_are_answered_in_order_by_a_named_version(house: House) -> None:
    found = await predict(house.service, "sst2", ["good", {"sentence": "bad"}, Prompt("as it is")])
    assert labels(found) == ["good|sst2:1", "bad|sst2:1", "as it is|sst2:1"]
    assert (found.task, found.version, found.alias, found.generation) == ("sst2", 1, "production", 0)
    assert found.spec.name == "sst2"


async def test_the_template_is_applied_to_fields_and_not_to_a_prompt(house: House) -> None:
    row = {"sentence": "S", "question": "Q"}
    assert await house.ask(row, Prompt("whole"), task="qnli") == ["question: Q sentence: S|qnli:1", "whole|qnli:1"]


async def test_a_pinned_version_has_no_alias(house: House) -> None:
    found = await predict(house.service, "sst2", ["x"], version=1)
    assert (found.version, found.alias) == (1, None)
    assert (await predict(house.service, "sst2", ["x"], alias="production")).alias == "production"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"task": "sst3"}, UnknownTask),
        ({"task": "sst2", "version": 7}, UnknownVersion),
        ({"task": "sst2", "alias": "canary"}, UnknownAlias),
    ],
)
async def test_what_is_not_there_is_said_so(house: House, asked: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await house.ask("x", **asked)
    assert house.device.batches == []


@pytest.mark.parametrize(
    ("task", "row", "field"),
    [
        ("sst2", "", "rows[1].sentence"),
        ("sst2", " \n", "rows[1].sentence"),
        ("sst2", "x" * 20_001, "rows[1].sentence"),
        ("sst2", "a\0b", "rows[1].sentence"),
        ("sst2", "half \ud83d", "rows[1].sentence"),
        ("sst2", {}, "rows[1].sentence"),
        ("sst2", {"sentense": "x"}, "rows[1].sentence"),
        ("sst2", {f"{'a' * 9999}{n}": "x" for n in range(99)}, "rows[1].sentence"),
        ("sst2", {"\ud83d\0" * 99: "x"}, "rows[1].sentence"),
        ("sst2", {"sentence": 3}, "rows[1].sentence"),
        ("sst2", 3, "rows[1]"),
        ("sst2", None, "rows[1]"),
        ("sst2", Prompt(""), "rows[1].text"),
        ("sst2", Prompt("a\0b"), "rows[1].text"),
        ("sst2", Prompt("half \udc00"), "rows[1].text"),
        ("sst2", Prompt("x" * 30_000), "rows[1].text"),
        ("sst2", Prompt(b"bytes"), "rows[1].text"),  # type: ignore[arg-type]
        ("qnli", "which field?", "rows[1]"),
        ("qnli", {"question": "x"}, "rows[1].sentence"),
    ],
)
async def test_a_bad_row_is_refused_by_its_place(house: House, task: str, row: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await house.ask(Prompt("fine"), row, task=task)
    assert caught.value.field == field
    assert len(str(caught.value)) < 500
    str(caught.value).encode()
    assert house.device.batches == []


async def test_a_bad_row_does_not_touch_its_neighbours_requests(house: House) -> None:
    bad, good = await asyncio.gather(house.ask("fine", ""), house.ask("good"), return_exceptions=True)
    assert isinstance(bad, InvalidInput)
    assert good == ["good|sst2:1"]


async def test_no_rows_and_too_many_rows_are_refused(house: House) -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        await house.ask()
    with pytest.raises(TooManyRows, match="21 rows"):
        await house.ask(*["x"] * 21)
    house.serve(empty_resident("small", spec=make_spec("small", max_rows=2)))
    with pytest.raises(TooManyRows, match="limit is 2"):
        await house.ask("x", "x", "x", task="small")


async def test_tokens_are_made_off_the_event_loop(house: House) -> None:
    await house.ask("x")
    assert house.tokenizer.threads
    assert all(name.startswith("tokenizer") for name in house.tokenizer.threads)
    assert house.metrics.registry.get_sample_value("sidecast_stage_seconds_count", {"stage": "tokenize"}) == 1


async def test_repeated_rows_are_tokenized_and_computed_once(house: House) -> None:
    assert await house.ask("x", "y", "x") == ["x|sst2:1", "y|sst2:1", "x|sst2:1"]
    assert house.tokenizer.asked == ["x", "y"]
    assert [len(batch) for batch in house.device.batches] == [2]


async def test_many_tasks_on_the_same_rows_share_one_batch_and_their_tokens(house: House) -> None:
    refs = [TaskRef("sst2"), TaskRef("cola", version=1), TaskRef("sst2", alias="production")]
    found = await predict_tasks(house.service, refs, ["x", "y"])
    assert [labels(each) for each in found] == [
        ["x|sst2:1", "y|sst2:1"],
        ["x|cola:1", "y|cola:1"],
        ["x|sst2:1", "y|sst2:1"],
    ]
    assert house.tokenizer.asked == ["x", "y"]
    [batch] = house.device.batches
    assert len(batch) == 4
    assert len({row.ids for row in batch}) == 2


async def test_a_tasks_fault_stands_in_its_place_and_the_others_are_answered(house: House) -> None:
    house.serve(empty_resident("short", spec=make_spec("short", max_chars=3)))
    refs = [TaskRef("nope"), TaskRef("sst2"), TaskRef("qnli"), TaskRef("short"), TaskRef("sst2", version=9)]
    unknown, good, fields, long, version = await predict_tasks(house.service, refs, ["hello"])
    assert isinstance(unknown, UnknownTask)
    assert labels(good) == ["hello|sst2:1"]
    assert isinstance(fields, InvalidInput)
    assert isinstance(long, InvalidInput)
    assert isinstance(version, UnknownVersion)


async def test_a_request_with_no_good_task_computes_nothing(house: House) -> None:
    found = await predict_tasks(house.service, [TaskRef("nope"), TaskRef("nada")], ["x"])
    assert all(isinstance(each, UnknownTask) for each in found)
    assert house.device.batches == []


async def test_no_tasks_too_many_tasks_and_too_many_rows_in_all_are_refused(house: House) -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        await predict_tasks(house.service, [], ["x"])
    with pytest.raises(InvalidInput, match="limit is 5"):
        await predict_tasks(house.service, [TaskRef("sst2")] * 6, ["x"])
    with pytest.raises(TooManyRows, match="24 rows"):
        await predict_tasks(house.service, [TaskRef("sst2")] * 4, ["x"] * 6)


async def test_a_failed_side_network_fails_its_task_alone(house: House) -> None:
    with pytest.raises(SideFailed, match="sst2:1"):
        await house.ask("fine", "poison")
    found = await predict_tasks(house.service, [TaskRef("sst2"), TaskRef("cola")], ["poison"])
    assert [type(each) for each in found] == [SideFailed, SideFailed]


async def test_a_fault_of_the_engine_is_raised_as_it_is(house: House) -> None:
    with pytest.raises(RuntimeError, match="boom"):
        await house.ask("explode")


async def test_a_request_in_flight_is_answered_by_the_version_it_was_admitted_with(house: House) -> None:
    house.device.open.clear()
    before = asyncio.create_task(predict(house.service, "sst2", [f"row {n}" for n in range(10)]))
    assert await asyncio.to_thread(house.device.entered.wait, 10)
    house.serve(empty_resident("sst2", version=2))
    after = asyncio.create_task(predict(house.service, "sst2", ["new"]))
    await asyncio.sleep(0.01)
    house.device.open.set()
    old, new = await before, await after
    assert (old.version, old.generation) == (1, 0)
    assert {label.split("|")[1] for label in labels(old)} == {"sst2:1"}
    assert (new.version, new.generation, labels(new)) == (2, 1, ["new|sst2:2"])


async def test_deadlines_and_overload_come_through(house: House) -> None:
    with pytest.raises(DeadlineExpired):
        await house.ask("x", deadline=time.monotonic() - 1)
    house.device.open.clear()
    waiting = [asyncio.create_task(house.ask("first"))]
    assert await asyncio.to_thread(house.device.entered.wait, 10)
    waiting += [asyncio.create_task(house.ask(*[f"{n} {m}" for m in range(9)])) for n in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await house.ask("x", "y", "z")
    with pytest.raises(DeadlineExpired):
        await house.ask("z", deadline=time.monotonic() + 0.05)
    house.device.open.set()
    await asyncio.gather(*waiting)


async def test_a_slow_tokenizer_does_not_outlast_the_deadline(house: House) -> None:
    told = threading.Event()

    def slow(texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        assert told.wait(60)  # the caller is told while this goes on
        return [[1]] * len(texts), [False] * len(texts)

    house.tokenizer.encode_cut = slow  # type: ignore[method-assign]
    try:
        with pytest.raises(DeadlineExpired):
            await house.ask("x", deadline=time.monotonic() + 0.03)
    finally:
        told.set()


async def test_rows_whose_texts_are_cut_are_flagged_and_counted(house: House) -> None:
    house.metrics.know(["sst2", "cola"])
    limit = make_spec().max_source_tokens
    texts = ["x" * limit, "x" * (limit + 1), "dull", "x" * (limit + 1)]
    assert (await predict(house.service, "sst2", texts)).truncated == (False, True, False, True)
    counted = [
        house.metrics.registry.get_sample_value("sidecast_truncated_rows_total", {"task": task})
        for task in ("sst2", "cola")
    ]
    assert counted == [2, None]


async def test_nothing_is_ready_before_the_first_generation() -> None:
    pool, batcher = SidePool(), Batcher(AnswersAtOnce(lambda rows: rows), BatchConfig())
    service = PredictService(pool, batcher, ByteTokenizer())
    assert not service.ready
    pool.replace(PoolState(generation=0))
    assert service.ready
    await service.close()


async def test_a_closed_service_refuses_requests(house: House) -> None:
    await house.service.close()
    with pytest.raises(Draining):
        await house.ask("x")


async def test_on_a_real_backbone_many_requests_equal_the_rows_alone(backbone: Backbone, tokenizer: Tokenizer) -> None:
    pool, engine = SidePool(), Engine(backbone)
    specs = [make_spec("sst2"), make_spec("stsb", "regression", low=-4, high=4), make_spec("cola")]
    residents = [make_resident(backbone, tokenizer, spec, seed=seed) for seed, spec in enumerate(specs)]
    state = PoolState(generation=3, wanted=3)
    for resident in residents:
        task = task_state(1, {"production": (1,)}, name=resident.task)
        state = add(replace(state, tasks={**state.tasks, resident.task: task}), resident)
    pool.replace(state)
    service = PredictService(pool, Batcher(engine, BatchConfig(max_batch_rows=5)), tokenizer)
    texts = ["dull", "a gripping film", "far too long " * 4]
    refs = [TaskRef(resident.task) for resident in residents]
    one_by_one = [await predict(service, ref.task, [text]) for ref in refs for text in texts]
    crowd = await asyncio.gather(
        predict_tasks(service, refs, texts), *[predict(service, ref.task, [text]) for ref in refs for text in texts]
    )
    together = [answer for found in crowd[0] for answer in found.answers]  # type: ignore[union-attr]
    for alone, other in zip(one_by_one, crowd[1:], strict=True):
        assert_close(alone.answers[0], other.answers[0])  # type: ignore[union-attr]
    for alone, answer in zip(one_by_one, together, strict=True):
        assert_close(alone.answers[0], answer)
    await service.close()


def assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(ours, ValueAnswer):
        assert ours.value == pytest.approx(theirs.value, abs=1e-4)
    else:
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)


# --- rows at the tokenizer


async def test_rows_at_the_tokenizer_count_as_queued(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    free, whole = threading.Event(), house.tokenizer.encode_cut

    def slow(texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        assert free.wait(10)
        return whole(texts, max_tokens)

    monkeypatch.setattr(house.tokenizer, "encode_cut", slow)
    first = asyncio.create_task(house.ask(*map(str, range(15))))
    await asyncio.sleep(0)
    second = asyncio.create_task(house.ask(*"abcde"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await house.ask("one more")
    free.set()
    assert len(await first) == 15
    assert len(await second) == 5
    assert await house.ask("now") == ["now|sst2:1"]
    assert house.service._tokenizers.rows == 0
    assert house.metrics.registry.get_sample_value("sidecast_shed_requests_total", {"reason": "queue"}) == 1


async def test_a_caller_that_goes_away_leaves_no_rows_at_the_tokenizer(house: House) -> None:
    call = asyncio.create_task(house.ask("a", "b"))
    await asyncio.sleep(0)
    assert house.service._tokenizers.rows == 2
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert house.service._tokenizers.rows == 0


async def test_a_closed_tokenizer_takes_nothing(house: House) -> None:
    tokenizers = TokenizerPool(house.tokenizer, 1, house.metrics)
    tokenizers.close()
    with pytest.raises(Draining):
        await tokenizers.encode([], ["late"])


async def test_requests_wait_for_a_version_that_is_still_loading_and_for_no_other(house: House) -> None:
    asked: list[Key] = []
    used: list[str] = []
    arrivals = Arrivals(house.pool, asked.append)
    service = PredictService(house.pool, house.batcher, house.tokenizer, arrivals=arrivals, used=used.append)
    state = house.pool.snapshot()
    tasks = {name: task_state(1, {"production": (1,)}, name=name) for name in ("late", "never")}
    failure = Failure(reason="LOAD_FAILED", why="it is broken", attempts=1, transient=False, at=0.0)
    state = replace(state, tasks={**state.tasks, **tasks}, failed={("never", 1): failure})
    house.pool.replace(state)
    options = RequestOptions()
    one = asyncio.create_task(service.find(TaskRef("late"), options))
    refs = [TaskRef("sst2"), TaskRef("late", version=1), TaskRef("never"), TaskRef("unknown")]
    many = asyncio.create_task(service.find_tasks(refs, options))
    await asyncio.sleep(0)
    with pytest.raises(NotLoaded, match="it is broken"):
        await service.find(TaskRef("never"), options)
    assert (await service.find(TaskRef("sst2"), options)).resident.task == "sst2"
    assert not one.done()
    assert not many.done()
    assert asked == [("late", 1)]
    loaded = add(state, empty_resident("late"))
    arrivals.notify(house.pool.replace(loaded), loaded)
    assert (await one).resident.key == ("late", 1)
    found = await many
    assert [target.resident.task for target in found[:2] if isinstance(target, Target)] == ["sst2", "late"]
    assert [type(target) for target in found[2:]] == [VersionRefused, UnknownTask]
    assert {"sst2", "late"} == set(used)


async def test_a_request_for_a_version_that_is_still_loading_ends_at_its_deadline(house: House) -> None:
    service = PredictService(
        house.pool, house.batcher, house.tokenizer, arrivals=Arrivals(house.pool, lambda key: None)
    )
    state = house.pool.snapshot()
    late = task_state(1, {"production": (1,)}, name="late")
    house.pool.replace(replace(state, tasks={**state.tasks, "late": late}))
    with pytest.raises(DeadlineExpired):
        await service.find(TaskRef("late"), RequestOptions(deadline=time.monotonic() + 0.01))
