"""Our services on the gRPC server that Ray Serve starts in each replica, and the context that its calls have there.

Ray hands a call on by its method's bare name, with a context of its own that knows neither the caller's deadline nor
how to abort. So each call is remembered here as it arrives, and `CallContext` gives our doors what they need of both.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import AbortError, ServicerContext

from serving.api import HEALTH, LASTING, SERVICES, Drain, answering, streaming, tolerant

OFFERED = SERVICES

Metadata = list[tuple[str, str | bytes]]

_arrived: ContextVar[ServicerContext | None] = ContextVar("arrived", default=None)
"""The call that is being answered, as gRPC knows it; None where it came through another process."""


class RayContext(Protocol):
    """What is used of ray.serve.grpc_util.RayServegRPCContext."""

    def invocation_metadata(self) -> Metadata: ...
    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None: ...


def add_services(servicer: object, server: grpc.aio.Server) -> None:
    """Ray's `grpc_servicer_functions` entry: all that a single process offers on its port.

    Args:
        servicer: Ray's stand-in. It puts methods of its own in the place of all handlers.
    """
    for service in OFFERED:
        server.add_generic_rpc_handlers((_Arrivals({path(each): _handler(each) for each in service.methods}),))


def path(method: MethodDescriptor) -> str:
    """As gRPC names it: /package.Service/Method."""
    return f"/{method.containing_service.full_name}/{method.name}"


class _Arrivals(grpc.GenericRpcHandler):
    """A service whose calls are remembered in `_arrived`."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._method_handlers = handlers  # by this name Ray finds and replaces them

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler: Any = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        kind = _kind(handler.request_streaming, handler.response_streaming)
        remember = _remembering_stream if handler.response_streaming else _remembering
        return handler._replace(**{kind: remember(getattr(handler, kind))})


def _handler(method: MethodDescriptor) -> grpc.RpcMethodHandler:
    request = GetMessageClass(method.input_type)
    make = getattr(grpc, f"{_kind(method.client_streaming, method.server_streaming)}_rpc_method_handler")
    return make(_never, request_deserializer=tolerant(request.FromString))


def _kind(many_requests: bool, many_responses: bool) -> str:
    return f"{'stream' if many_requests else 'unary'}_{'stream' if many_responses else 'unary'}"


def _never(request: object, context: object) -> NoReturn:
    raise AssertionError("Ray answers this call")


def _remembering(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answer(request: Any, context: ServicerContext) -> Any:
        _arrived.set(context)
        return await behavior(request, context)

    return answer


def _remembering_stream(behavior: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def stream(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
        _arrived.set(context)
        async for response in behavior(request, context):
            yield response

    return stream


class CallContext:
    """A call's context for our doors, over Ray's: metadata, the time that is left, and an end with a status."""

    def __init__(self, ray_context: RayContext) -> None:
        self._ray, self._arrived = ray_context, _arrived.get()

    def invocation_metadata(self) -> Metadata:
        return self._ray.invocation_metadata()

    def time_remaining(self) -> float | None:
        """Seconds; None where there is no deadline, or where the call came through another process."""
        return self._arrived.time_remaining() if self._arrived else None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Give the call its status, which Ray sends once its method returns."""
        self._ray.set_code(code)
        self._ray.set_details(details)
        self._ray.set_trailing_metadata(list(trailing_metadata))
        raise AbortError()


class Calls:
    """All methods of our doors, behind one gate, by the bare names that Ray calls them by.

    Args:
        doors: the servicer of each service.
    """

    def __init__(self, doors: Mapping[ServiceDescriptor, Any], drain: Drain) -> None:
        self._methods: dict[str, dict[type[Message], Callable[..., Any]]] = {}
        for service, servicer in doors.items():
            for method in service.methods:
                by_request = self._methods.setdefault(method.name, {})
                by_request[GetMessageClass(method.input_type)] = _guarded(method, servicer, drain)

    async def answer(self, name: str, request: Any, context: RayContext) -> Message:
        """One response. Where the call failed an empty one, with its status in the context."""
        try:
            return await self._method(name, request)(request, CallContext(context))
        except AbortError:
            return _NOTHING()

    async def stream(self, name: str, request: Any, context: RayContext) -> AsyncGenerator[Message, None]:
        """The responses until the call failed, with its status in the context."""
        try:
            async for response in self._method(name, request)(request, CallContext(context)):
                yield response
        except AbortError:
            return

    def _method(self, name: str, request: Any) -> Callable[..., Any]:
        """Two services may have a method of one name: the request tells which. One that is no message fails anyway."""
        by_request = self._methods[name]
        return by_request.get(type(request)) or next(iter(by_request.values()))


_NOTHING = GetMessageClass(HEALTH.methods_by_name["Check"].output_type)
"""Any message: of a failed call none is sent."""


def _guarded(method: MethodDescriptor, servicer: Any, drain: Drain) -> Callable[..., Any]:
    behavior, many = getattr(servicer, method.name), method.client_streaming
    lasting = path(method) in LASTING
    if method.containing_service is HEALTH:
        drain, lasting = Drain(), True  # one that never begins: health answers until the end
    if method.server_streaming:
        return streaming(drain, behavior, many=many, lasting=lasting)
    return answering(drain, behavior, many=many)
