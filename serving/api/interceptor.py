"""Wraps every call of our services: refuses it while draining, or when it is not Protobuf, and makes errors statuses.

The servicers behind it only raise. Health and reflection are not wrapped: they answer until the end.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import AbortError, InternalError, ServerInterceptor, ServicerContext

from serving.api.drain import Drain
from serving.api.status import code_of, status_of, trailers
from serving.errors import InvalidInput

PREFIXES = ("/inference.", "/sidecast.v1.")
"""Of the methods that are wrapped."""

LASTING = ("/inference.GRPCInferenceService/ModelStreamInfer", "/sidecast.v1.Admin/Watch")
"""Streams that may last for ever. A drain does not wait for them: they end themselves."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A request whose bytes are not the message that the method takes."""

    why: str


class Interceptor(ServerInterceptor):
    """Wraps the handlers of our services, each once."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        """By method."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The handler of a call's method, wrapped where it is one of ours."""
        method = handler_call_details.method
        if method in self._handlers:
            return self._handlers[method]
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(PREFIXES):
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
    """Wrap `behavior`, a servicer's method with one response. `many`: its request is a stream."""

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
    """Wrap `behavior`, a servicer's method with a stream of responses.

    Args:
        many: its request is a stream.
        lasting: it may last for ever, so a drain does not wait for it.
    """

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
    except InternalError as gone:  # the caller left at this moment, so no status can be sent
        raise asyncio.CancelledError() from gone
    raise AssertionError("abort returned")


def tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Make `deserialize` return an `Undecodable` where it would raise, so that the call gets a status with details."""

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
