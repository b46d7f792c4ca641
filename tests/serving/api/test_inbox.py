"""Bytes of requests in flight are bounded, and large requests are decoded on a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protos import sidecast_pb2 as pb
from serving.api import inbox as module
from serving.api.inbox import COUNTED_BYTES, INLINE_BYTES, SMALL_BYTES, Inbox, Messages
from serving.errors import InvalidInput, TooManyBytes
from serving.metrics import Metrics

LARGE = SMALL_BYTES + 1


def request(size: int) -> bytes:
    return pb.PredictRequest(task="x" * size).SerializeToString()


def image(size: int) -> bytes:
    return pb.PredictRequest(rows=[pb.Row(images={"image": b"\xff" * size})]).SerializeToString()


def many_values(size: int) -> bytes:
    return pb.PredictRequest(rows=[pb.Row()] * (size // 2)).SerializeToString()


async def test_requests_past_the_limit_are_refused_until_there_is_room() -> None:
    metrics = Metrics()
    inbox = Inbox(3 * LARGE, metrics)
    with inbox.hold(2 * LARGE):
        with pytest.raises(TooManyBytes) as caught, inbox.hold(LARGE + 1):
            pass
        assert (caught.value.used, caught.value.limit) == (2 * LARGE, 3 * LARGE)
        with inbox.hold(SMALL_BYTES), inbox.hold(SMALL_BYTES):
            assert metrics.registry.get_sample_value("sidecast_in_flight_bytes") == 2 * LARGE + 2 * SMALL_BYTES
        with inbox.hold(LARGE):
            pass
    assert inbox.bytes == 0
    assert metrics.registry.get_sample_value("sidecast_shed_requests_total", {"reason": "bytes"}) == 1


async def test_a_request_does_not_wait_for_one_whose_values_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(module, "check_values", lambda *_: go_on.wait(60))
    inbox = Inbox()
    counted = asyncio.ensure_future(inbox.decode(many_values(2 * COUNTED_BYTES), pb.PredictRequest))
    try:
        read = await asyncio.wait_for(inbox.decode(request(INLINE_BYTES), pb.PredictRequest), 30)
        assert len(read.task) == INLINE_BYTES
        seen = await asyncio.wait_for(inbox.decode(image(2 * COUNTED_BYTES), pb.PredictRequest), 30)
        assert len(seen.rows[0].images["image"]) == 2 * COUNTED_BYTES
        assert not counted.done()
    finally:
        go_on.set()
    assert len((await counted).rows) == COUNTED_BYTES


async def test_a_request_that_is_alone_is_never_too_large() -> None:
    inbox = Inbox(LARGE)
    with inbox.hold(100 * LARGE), pytest.raises(TooManyBytes), inbox.hold(LARGE):
        pass


async def test_only_large_requests_go_to_a_thread_and_only_larger_ones_of_many_values_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[str] = []
    counted: list[int] = []

    def decoded(data: bytes, kind: Any) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return whole(data, kind)

    whole = module._decoded
    monkeypatch.setattr(module, "_decoded", decoded)
    monkeypatch.setattr(module, "check_values", lambda data, kind: counted.append(len(data)))
    inbox = Inbox()
    for size in (INLINE_BYTES // 2, 2 * INLINE_BYTES):
        assert (await inbox.decode(request(size), pb.PredictRequest)).task == "x" * size
    assert (await inbox.decode(image(2 * COUNTED_BYTES), pb.PredictRequest)).rows
    assert len((await inbox.decode(many_values(2 * COUNTED_BYTES), pb.PredictRequest)).rows) == COUNTED_BYTES
    assert threads == ["MainThread", "decoder", "decoder", "decoder"]
    assert counted == [2 * COUNTED_BYTES]


async def test_a_name_that_is_too_long_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidInput, match="task: has 524,288 bytes"):
        await Inbox().decode(request(2 * COUNTED_BYTES), pb.PredictRequest)


async def test_bytes_that_are_no_message_are_invalid() -> None:
    for data in (b"\xff", b"\xff" * 2 * INLINE_BYTES):
        with pytest.raises(InvalidInput, match="not the message of this method"):
            await Inbox().decode(data, pb.PredictRequest)


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for chunk in data:
        yield chunk


async def test_a_streams_message_counts_until_the_next_one_and_waits_for_room() -> None:
    inbox = Inbox(3 * LARGE)
    messages = Messages(inbox, chunks(request(LARGE), request(LARGE + 1)), pb.PredictRequest)
    with inbox.hold(2 * LARGE + SMALL_BYTES):
        first = asyncio.create_task(anext(messages))
        await asyncio.sleep(0.01)
        assert not first.done()
    assert len((await first).task) == LARGE
    taken = messages.take_bytes()  # its answer is still being made
    assert len((await anext(messages)).task) == LARGE + 1
    assert inbox.bytes > 2 * LARGE
    await messages.aclose()
    assert inbox.bytes == taken
    messages.give_back(taken)
    assert inbox.bytes == 0
