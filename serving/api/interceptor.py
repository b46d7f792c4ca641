"""What every call of our services passes: refusal while draining, requests that are not Protobuf, errors to statuses.

The servicers behind it just raise. Health and reflection do not pass here: they answer until the end.
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

OURS = ("/inference.", "/sidecast.v1.")

LASTING = ("/inference.GRPCInferenceService/ModelStreamInfer", "/sidecast.v1.Admin/Watch")
"""Streams that may last for ever, so they are not waited for: they end themselves when the server drains."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands for a request whose bytes are not the message they should be."""

    why: str


class Interceptor(ServerInterceptor):
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
