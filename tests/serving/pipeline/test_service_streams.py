"""The service's streams, priorities and tenants, and requests that share a call of the tokenizer."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from ladder.answering.answerers import Generate
from ladder.answers import TextAnswer
from serving.config import BatchConfig
from serving.engine.detokenizer import Piece
from serving.engine.rows import EngineRow
from serving.errors import InvalidInput, SideFailed
from serving.metrics import Metrics
from serving.pipeline.request import DecodingOverrides, Generated
from serving.pipeline.service import PredictService
from serving.scheduler.batcher import Batcher
from serving.versions.placement import add
from serving.versions.pool import SidePool
from side_registry import TaskRef, UnknownTask
from tests.serving.kit import empty_resident, make_spec, predict, predict_tasks, stream
from tests.serving.versions.test_pool import task_state

TEXT = "löng enough"


class Speller:
    """A worker: spells each row's prompt in capitals, a letter a turn. `whole` tells no pieces; `poison` fails."""

    def __init__(self) -> None:
        self.running: list[list[Any]] = []
        self.gone: list[EngineRow] = []
        self.rows: list[EngineRow] = []
        self.may_step = threading.Event()
        self.may_step.set()
        self.steps = 0

    def step(self, rows: Sequence[EngineRow], gone: Sequence[EngineRow], deliver: Any) -> bool:
        self.may_step.wait(10)
        self.steps += 1
        self.rows.extend(rows)
        self.gone.extend(gone)
        self.running += [[row, self.spell(row), 0] for row in rows]
        self.running = [each for each in self.running if each[0] not in gone]
        for each in list(self.running):
            row, text, said = each
            limit = min(len(text), row.how.max_new_tokens)
            if "POISON" in text and said == 3:
                event: Any = SideFailed(row.task, 1, "poisoned")
            elif said == limit:
                event = TextAnswer(text=text[:limit], tokens=tuple(range(limit)))
            else:
                event, each[2] = Piece((said,), text[said]), said + 1
                if "WHOLE" in text or not row.streams:
                    continue
            deliver([(row, event)])
            if not isinstance(event, Piece):
                self.running.remove(each)
        return bool(self.running)

    def spell(self, row: EngineRow) -> str:
        return bytes(row.ids).decode().upper()


class ByteTokenizer:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()

    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        self.calls.append(list(texts))
        assert self.open.wait(10)
        if any("untokenizable" in text for text in texts):
            raise RuntimeError("boom")
        ids = [list(text.encode()) for text in texts]
        return [each[:max_tokens] for each in ids], [len(each) > (max_tokens or len(each)) for each in ids]


class House:
    def __init__(self) -> None:
        self.worker, self.tokenizer, self.pool, self.metrics = Speller(), ByteTokenizer(), SidePool(), Metrics()
        self.batcher = Batcher(self.worker, BatchConfig(max_wait_s=0))
        self.service = PredictService(self.pool, self.batcher, self.tokenizer, metrics=self.metrics)
        answerer = Generate(max_new_tokens=64, decode=str)
        titles = replace(empty_resident("titles", spec=make_spec("titles", "text")), answerer=answerer)
        state = replace(self.pool.snapshot(), generation=0, wanted=0)
        for resident in (titles, empty_resident("sst2")):
            task = task_state(1, {"production": (1,)}, name=resident.task)
            state = add(replace(state, tasks={**state.tasks, resident.task: task}), resident)
        self.pool.replace(state)

    async def stream(self, row: Any = TEXT, **how: Any) -> tuple[list[Piece], Generated]:
        *pieces, end = [event async for event in stream(self.service, "titles", row, **how)]
        return pieces, end  # type: ignore[return-value]

    async def until(self, condition: Any) -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for happens on other threads
            await asyncio.sleep(0.001)


@pytest.fixture
async def house():
    house = House()
    yield house
    house.worker.may_step.set()
    house.tokenizer.open.set()
    await house.service.close()


async def test_the_pieces_joined_are_the_text_that_predict_gives(house: House) -> None:
    pieces, end = await house.stream()
    [answer] = (await predict(house.service, "titles", [TEXT])).answers
    assert "".join(piece.text for piece in pieces) == answer.text == TEXT.upper()  # type: ignore[union-attr]
    assert end.prediction.answers == (answer,)
    assert [token for piece in pieces for token in piece.tokens] == list(answer.tokens)  # type: ignore[union-attr]
    assert (end.prediction.version, end.prediction.alias, end.finish_reason) == (1, "production", "end")
    assert house.metrics.registry.get_sample_value("sidecast_first_piece_seconds_count") == 1


async def test_a_text_that_its_limit_ends_says_so(house: House) -> None:
    pieces, end = await house.stream(decoding=DecodingOverrides({"max_new_tokens": 4}))
    assert ("".join(piece.text for piece in pieces), end.finish_reason) == ("LÖNG", "length")


async def test_a_text_that_was_made_as_a_whole_is_one_piece(house: House) -> None:
    pieces, end = await house.stream("whole text")
    assert pieces == [Piece(tuple(range(10)), "WHOLE TEXT")]
    assert end.prediction.answers[0].text == "WHOLE TEXT"  # type: ignore[union-attr]


async def test_what_cannot_be_streamed_is_refused(house: House) -> None:
    for task, row, says in (("sst2", "a", "'sst2' is classification"), ("titles", "", "row.sentence: is empty")):
        with pytest.raises(InvalidInput, match=says):
            await anext(stream(house.service, task, row))
    with pytest.raises(UnknownTask):
        await anext(stream(house.service, "nope", "a"))
    with pytest.raises(InvalidInput, match="priority: must be 1"):
        await anext(stream(house.service, "titles", "a", priority=5))
    assert house.worker.rows == []


async def test_a_text_that_fails_raises_after_its_pieces(house: House) -> None:
    told = []

    async def listen() -> None:
        async for event in stream(house.service, "titles", "poison"):
            told.append(event)

    with pytest.raises(SideFailed):
        await listen()
    assert "".join(piece.text for piece in told) == "POI"


async def test_to_leave_a_stream_frees_its_slot(house: House) -> None:
    async with aclosing(stream(house.service, "titles", TEXT * 5)) as events:
        await anext(events)
    await house.until(lambda: house.worker.gone)
    assert house.worker.gone == house.worker.rows
    assert house.batcher.running_rows == 0


async def test_priority_and_tenant_reach_the_batcher_and_the_engine(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def remember(original: Any) -> Any:
        def call(row: Any, *, priority: int, **how: Any) -> Any:
            seen.append(priority)
            return original(row, priority=priority, **how)

        return call

    monkeypatch.setattr(house.batcher, "submit", remember(house.batcher.submit))
    monkeypatch.setattr(house.batcher, "stream", remember(house.batcher.stream))
    await predict(house.service, "titles", ["a"], priority=1, tenant="t")
    await predict_tasks(house.service, [TaskRef("titles")], ["b"], priority=4)
    await house.stream("c", priority=2, tenant="u")
    assert seen == [1, 4, 2]
    assert [(row.salt, row.streams) for row in house.worker.rows] == [("t", False), ("", False), ("u", True)]


async def test_settings_touch_only_the_tasks_that_make_texts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def submit(rows: Sequence[EngineRow], **_: Any) -> list[Any]:
        return [row.how for row in rows]

    monkeypatch.setattr(house.batcher, "submit", submit)
    refs, settings = [TaskRef("titles"), TaskRef("sst2")], DecodingOverrides({"max_new_tokens": 3})
    titles, sst2 = await predict_tasks(house.service, refs, ["a"], decoding=settings)
    assert titles.answers[0].max_new_tokens == 3  # type: ignore[union-attr]
    assert sst2.answers == (house.pool.resolve("sst2").answerer,)  # type: ignore[union-attr]
    [wrong, _] = await predict_tasks(house.service, refs, ["a"], decoding=DecodingOverrides({"max_new_tokens": 65}))
    assert isinstance(wrong, InvalidInput)


# --- the tokenizer


async def test_requests_that_arrive_together_share_a_call_of_the_tokenizer(house: House) -> None:
    texts = [f"text {number}" for number in range(8)]
    found = await asyncio.gather(*[predict(house.service, "titles", [text]) for text in texts])
    assert house.tokenizer.calls == [texts]
    assert [each.answers[0].text for each in found] == [text.upper() for text in texts]  # type: ignore[union-attr]


async def test_what_arrives_while_the_tokenizer_works_waits_for_it_together(house: House) -> None:
    house.tokenizer.open.clear()
    first = [asyncio.create_task(predict(house.service, "titles", [text])) for text in ("a", "b")]
    await house.until(lambda: len(house.tokenizer.calls) == 1)
    second = [asyncio.create_task(predict(house.service, "titles", [text])) for text in ("c", "d")]
    await house.until(lambda: len(house.tokenizer.calls) == 2)
    third = [asyncio.create_task(predict(house.service, "titles", [text])) for text in ("e", "f", "g")]
    third[0].cancel()
    await asyncio.sleep(0.01)
    house.tokenizer.open.set()
    await asyncio.gather(*first, *second, *third[1:])
    assert house.tokenizer.calls == [["a", "b"], ["c", "d"], ["f", "g"]]


async def test_many_rows_do_not_hold_small_requests_back(house: House) -> None:
    large, small = [f"row {number}" for number in range(300)], ["small"]
    await asyncio.gather(predict(house.service, "titles", large), predict(house.service, "titles", small))
    assert sorted(map(len, house.tokenizer.calls)) == [1, 300]


async def test_a_prompt_that_fails_the_tokenizer_fails_its_request_alone(house: House) -> None:
    bad, good = await asyncio.gather(
        predict(house.service, "titles", ["untokenizable"]),
        predict(house.service, "titles", ["fine"]),
        return_exceptions=True,
    )
    assert isinstance(bad, RuntimeError)
    assert good.answers[0].text == "FINE"  # type: ignore[union-attr]


class Tasks(dict[str, Any]):
    """A dict that a weak reference can watch."""


async def test_a_stream_keeps_nothing_of_the_pool_but_its_own_version(house: House) -> None:
    state = house.pool.snapshot()
    tasks = Tasks(state.tasks)
    house.pool.replace(replace(state, tasks=tasks, generation=7))
    held = weakref.ref(tasks)
    async with aclosing(stream(house.service, "titles", TEXT)) as events:
        await anext(events)
        house.pool.replace(state)
        del tasks
        gc.collect()
        assert held() is None
        *_, end = [event async for event in events]
    assert isinstance(end, Generated)
    assert end.prediction.generation == 7
