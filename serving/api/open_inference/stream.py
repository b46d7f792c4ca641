"""ModelStreamInfer: many requests over one stream of the Open Inference Protocol, each answered as soon as it is ready.

A request that fails gets an error under its id, and the stream goes on, as in Triton. Knows nothing of tasks.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager

from protos import open_inference_pb2 as pb
from serving.api.call import code_name
from serving.api.drain import Drain, end_tasks
from serving.api.inbox import Messages
from serving.api.status import status_of
from serving.errors import Draining
from serving.tracing import current_trace

FINAL = "triton_final_response"
"""Parameter of a response: true on the last response of its request."""

REQUEST = "request"
"""Name of the span of one of a stream's requests."""
MAX_REQUESTS = 1024
"""Requests of one stream that run at a time; further ones are not read until one of these ends."""
MAX_UNREAD = 64
"""Responses that wait for a caller who reads slowly; above that, the stream's requests wait."""
PATIENCE_S = 0.05
"""Longest that a stream may send no request while the server shuts down."""

Answer = Callable[[pb.ModelInferRequest], AsyncGenerator[pb.ModelInferResponse, None]]


class InferStream:
    """One stream of requests, and the queue of its responses.

    Args:
        answer: yields one request's responses, or raises.
    """

    def __init__(self, answer: Answer, drain: Drain) -> None:
        self._answer = answer
        self._drain = drain
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._unread: asyncio.Queue[pb.ModelStreamInferResponse | Exception | None] = asyncio.Queue(MAX_UNREAD)
        self._running: set[asyncio.Task[None]] = set()

    async def answer(
        self, requests: Messages[pb.ModelInferRequest]
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """The responses, until the requests end and all are answered.

        Raises:
            Draining: the server shuts down, and the requests that had begun are answered.
            InvalidInput: the caller sent something that is no request.
        """
        reading = asyncio.create_task(self._read(requests))
        try:
            while (response := await self._unread.get()) is not None:
                if isinstance(response, Exception):
                    raise response
                yield response
        finally:
            response = None  # a raised one would hold this frame, and the frame it
            await end_tasks({reading, *self._running})

    async def _read(self, requests: Messages[pb.ModelInferRequest]) -> None:
        """Begin every request, and last queue how the stream ends."""
        end: Exception | None = None
        try:
            async with aclosing(self._drain.arriving(requests, PATIENCE_S)) as arriving:
                async for request in arriving:
                    await self._slots.acquire()
                    self._begin(request, requests)
        except Exception as error:
            end = error
        if self._running and (end is None or isinstance(end, Draining)):
            await asyncio.wait(self._running)
        await self._unread.put(end)
        del end  # its traceback holds this frame

    def _begin(self, request: pb.ModelInferRequest, requests: Messages[pb.ModelInferRequest]) -> None:
        task = asyncio.create_task(self._serve(request))
        self._running.add(task)
        size = requests.take_bytes()

        def end(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            self._slots.release()
            requests.give_back(size)

        task.add_done_callback(end)

    async def _serve(self, request: pb.ModelInferRequest) -> None:
        try:
            with self._drain.call(), _traced(request.id):
                async with aclosing(self._answer(request)) as responses:
                    async for response in responses:
                        await self._unread.put(pb.ModelStreamInferResponse(infer_response=response))
        except Exception as error:
            await self._unread.put(_refusal(request, error))


@contextmanager
def _traced(request_id: str) -> Iterator[None]:
    """A span for one request of the stream, below that of the stream, if that is traced. For a task of its own."""
    stream = current_trace.get()
    if stream is None:
        yield
        return
    trace = stream.request(REQUEST, request_id)
    current_trace.set(trace)
    code = "OK"
    try:
        yield
    except BaseException as error:
        code = code_name(error, None)
        raise
    finally:
        trace.end_call(code)


def _refusal(request: pb.ModelInferRequest, error: Exception) -> pb.ModelStreamInferResponse:
    response = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
    response.parameters[FINAL].bool_param = True
    return pb.ModelStreamInferResponse(error_message=status_of(error).message, infer_response=response)
