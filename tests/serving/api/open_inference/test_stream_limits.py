"""How much of one stream of requests runs, and how much of its answers waits for a caller who reads slowly."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from protos import open_inference_pb2 as pb
from serving.api.drain import Drain
from serving.api.inbox import Inbox, Messages
from serving.api.open_inference import stream
from serving.api.open_inference.stream import InferStream

SENT = 7


async def test_requests_beyond_the_limit_are_not_read_and_a_slow_reader_stops_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_REQUESTS", 3)
    monkeypatch.setattr(stream, "MAX_UNREAD", 2)
    read: list[int] = []
    begun: list[str] = []
    may_answer = asyncio.Event()

    async def sent() -> AsyncIterator[bytes]:
        for number in range(SENT):
            read.append(number)
            yield pb.ModelInferRequest(id=str(number)).SerializeToString()

    async def answer(request: pb.ModelInferRequest) -> AsyncGenerator[pb.ModelInferResponse, None]:
        begun.append(request.id)
        await may_answer.wait()
        yield pb.ModelInferResponse(id=request.id)

    inbox = Inbox()
    answers = InferStream(answer, Drain()).answer(Messages(inbox, sent(), pb.ModelInferRequest))
    first = asyncio.create_task(anext(answers))
    await settled()
    assert (begun, read) == (["0", "1", "2"], [0, 1, 2, 3])  # one more waits for its turn
    may_answer.set()
    got = [(await first).infer_response.id]
    await settled()
    # nobody reads: two answers are kept, three requests wait to give theirs, and one for its turn
    assert (len(begun), len(read)) == (1 + 2 + 3, SENT)
    got += [response.infer_response.id async for response in answers]
    assert sorted(got) == [str(number) for number in range(SENT)]
    inbox.close()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)
