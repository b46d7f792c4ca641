"""What every call of our services passes: refusal while draining, requests that are not Protobuf, errors to statuses.

The servicers behind it just raise. Health and reflection do not pass here: they answer until the end.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import AbortError, InternalError, ServerInterceptor, ServicerContext

from serving.errors import Draining, InvalidInput
from serving.status import code_of, status_of, trailers

OURS = ("/inference.", "/sidecast.v1.")

LASTING = ("/inference.GRPCInferenceService/ModelStreamInfer", "/sidecast.v1.Admin/Watch")
"""Streams that may last for ever, so they are not waited for: they end themselves when the server drains."""

Request = TypeVar("Request")


class Drain:
    """Counts calls in flight, and refuses new ones once the server shuts down. Lives on one event loop.

    Before that a server may `leave`, again and again: what lasts and was begun before ends, so that it holds up
    nothing. What is begun after it is served as ever.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._draining, self._idle, self._ending = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self.left = 0
        """How often it was left: what lasts remembers the number of its beginning."""

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def begin(self) -> None:
        self._draining.set()
        self._ending.set()

    def leave(self) -> None:
        """Have end what lasts now."""
        self.left += 1
        self._ending.set()
        if not self.draining:
            self._ending = asyncio.Event()

    async def begun(self) -> None:
        """Wait until the server begins to shut down."""
        await self._draining.wait()

    async def pause(self, seconds: float, since: int | None = None) -> None:
        """Wait that long, or shorter where the server leaves.

        Args:
            since: `left` when what pauses began.

        Raises:
            Draining: the server shuts down, or has left since then.
        """
        if since in (None, self.left):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), seconds)
        if self.draining or since not in (None, self.left):
            raise Draining()

    async def arriving(self, requests: AsyncIterator[Request], patience_s: float) -> AsyncGenerator[Request, None]:
        """A stream's requests. Raises Draining when the server leaves or shuts down and none comes for `patience_s`."""
        ending, nothing = asyncio.create_task(self._ending.wait()), object()
        tasks: set[asyncio.Task[Any]] = {ending}
        try:
            while True:
                tasks = {ending, coming := asyncio.create_task(_next(requests, nothing))}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    await asyncio.wait({coming}, timeout=patience_s)
                if not coming.done():
                    raise Draining()
                if (request := coming.result()) is nothing:
                    return
                yield request
        finally:
            await end_tasks(tasks)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when `timeout_s` passes first."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextlib.contextmanager
    def call(self, *, lasting: bool = False) -> Iterator[None]:
        """Let a call in; one that is `lasting` is not counted. Raises Draining."""
        if self.draining:
            raise Draining()
        if lasting:
            yield
            return
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands for a request whose bytes are not the message they should be."""

    why: str


class Gate(ServerInterceptor):
    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        """By method: wrapped once."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(OURS):
            return handler
        return self._handlers.setdefault(method, self._guarded(handler, method in LASTING))

    def _guarded(self, handler: Any, lasting: bool) -> grpc.RpcMethodHandler:
        codecs = {
            "request_deserializer": tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        many = handler.request_streaming
        if handler.response_streaming:
            behavior = handler.stream_stream or handler.unary_stream
            make = grpc.stream_stream_rpc_method_handler if many else grpc.unary_stream_rpc_method_handler
            return make(streaming(self._drain, behavior, many=many, lasting=lasting), **codecs)
        make = grpc.stream_unary_rpc_method_handler if many else grpc.unary_unary_rpc_method_handler
        return make(answering(self._drain, handler.stream_unary or handler.unary_unary, many=many), **codecs)


def answering(drain: Drain, behavior: Callable[..., Awaitable[Any]], *, many: bool) -> Callable[..., Awaitable[Any]]:
    """`behavior`, a servicer's method with one response, behind the gate. `many`: its request is a stream."""

    async def answer(request: Any, context: ServicerContext) -> Any:
        try:
            with drain.call():
                return await behavior(_each_decoded(request) if many else _decoded(request), context)
        except Exception as error:
            await abort(context, error)

    return answer


def streaming(
    drain: Drain, behavior: Callable[..., AsyncGenerator[Any, None]], *, many: bool, lasting: bool
) -> Callable[..., AsyncGenerator[Any, None]]:
    """`behavior`, a servicer's method with a stream of responses, behind the gate."""

    async def stream(request: Any, context: ServicerContext) -> AsyncGenerator[Any, None]:
        try:
            with drain.call(lasting=lasting):
                responses = behavior(_each_decoded(request) if many else _decoded(request), context)
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        yield response
        except Exception as error:
            await abort(context, error)

    return stream


async def abort(context: ServicerContext, error: Exception) -> NoReturn:
    """End a call with the error's status."""
    if isinstance(error, AbortError):
        raise error
    status = status_of(error)
    try:
        await context.abort(code_of(error), status.message, trailers(status))
    except InternalError as gone:  # the caller went in this very moment: there is nobody to be told
        raise asyncio.CancelledError() from gone
    raise AssertionError("abort returned")


async def end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel them, and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(requests: AsyncIterator[Any], otherwise: Any) -> Any:
    return await anext(requests, otherwise)


def tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Gives an `Undecodable` where it would raise: the gate answers it."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Undecodable(str(error))

    return parse


def _decoded(request: Any) -> Any:
    if isinstance(request, Undecodable):
        raise InvalidInput(
            "request", f"is not the message of this method, or a string in it is not UTF-8 ({request.why})"
        )
    return request


async def _each_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(request)
