"""Sidecast's services on the gRPC server that Ray Serve starts in each replica, and the context of their calls.

Ray passes a call on by the bare name of its method, with a context that knows neither the deadline nor how to abort.
So gRPC's own context is stored here when a call arrives, and `CallContext` gives the servicers what they need of both.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import AbortError, ServicerContext

from serving.access import Access
from serving.api import HEALTH, SERVICES, Drain, Inbox, intercepted, path_of, set_status
from serving.cluster.own_machine import is_own_peer, refusal
from serving.config import AccessConfig
from serving.tracing import Tracer

Metadata = list[tuple[str, str | bytes]]

_arrived: ContextVar[ServicerContext | None] = ContextVar("arrived", default=None)
"""gRPC's context of the current call; None if the call came through another process."""


class RayContext(Protocol):
    """The methods of ray.serve.grpc_util.RayServegRPCContext that are used here."""

    def invocation_metadata(self) -> Metadata:
        """The caller's metadata."""
        ...

    def peer(self) -> str | None:
        """Who is at the other end of the connection, to this process or to Ray's proxy."""
        ...

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status of the response."""
        ...

    def set_details(self, details: str) -> None:
        """Set the status's message."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Set the metadata that follows the response."""
        ...


def add_services(servicer: object, server: grpc.aio.Server) -> None:
    """Ray's `grpc_servicer_functions` entry: adds all services that a single process has on its port.

    Args:
        servicer: Ray's placeholder. Ray replaces all handlers by its own methods.
    """
    for service in SERVICES:
        handlers = {path_of(method): _handler(method) for method in service.methods}
        server.add_generic_rpc_handlers((_Arrivals(handlers),))


class _Arrivals(grpc.GenericRpcHandler):
    """A service that stores gRPC's context of each call in `_arrived`."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._method_handlers = handlers  # Ray finds and replaces them by this name

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler: Any = self._method_handlers.get(handler_call_details.method)
        if handler is None:
            return None
        kind = _kind(handler.request_streaming, handler.response_streaming)
        store_context = _storing_stream if handler.response_streaming else _storing
        return handler._replace(**{kind: store_context(getattr(handler, kind))})


@dataclass(frozen=True, slots=True)
class Arrived:
    """The bytes of a request, as Ray carries them to the replica. Ray's own process does not decode them."""

    path: str
    """Of the method."""
    data: bytes


def _handler(method: MethodDescriptor) -> grpc.RpcMethodHandler:
    make = getattr(grpc, f"{_kind(method.client_streaming, method.server_streaming)}_rpc_method_handler")
    return make(_never, request_deserializer=partial(Arrived, path_of(method)))


def _kind(many_requests: bool, many_responses: bool) -> str:
    return f"{'stream' if many_requests else 'unary'}_{'stream' if many_responses else 'unary'}"


def _never(request: object, context: object) -> NoReturn:
    raise AssertionError("Ray answers this call")


def _storing(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answer(request: Any, context: ServicerContext) -> Any:
        _arrived.set(context)
        return await behavior(request, context)

    return answer


def _storing_stream(behavior: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    async def stream(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
        _arrived.set(context)
        async for response in behavior(request, context):
            yield response

    return stream


class CallContext:
    """A call's context for the servicers, on top of Ray's: metadata, remaining time, and an end with a status."""

    def __init__(self, ray_context: RayContext) -> None:
        self._ray = ray_context
        self._arrived = _arrived.get()

    def invocation_metadata(self) -> Metadata:
        """The caller's metadata."""
        return self._ray.invocation_metadata()

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None if there is none, or if the call came through another process."""
        return self._arrived.time_remaining() if self._arrived else None

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the call's status, which Ray sends when the method returns."""
        self._ray.set_code(code)

    def set_details(self, details: str) -> None:
        """Set the status's message."""
        self._ray.set_details(details)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the metadata that follows the response."""
        self._ray.set_trailing_metadata(list(trailing_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Set the call's status, and end the method."""
        self.set_code(code)
        self.set_details(details)
        self.set_trailing_metadata(trailing_metadata)
        raise AbortError()


class Calls:
    """All methods of the servicers, behind one interceptor, by the bare names that Ray calls them by.

    Args:
        servicers: the servicer of each service.
        drain: counts the calls in flight, and refuses new ones once it has begun.
        inbox: takes the requests in.
        access: decides who may call what; None: everybody everything.
        tracer: traces the calls; None: no traces.
        own_machine: refuse calls of other machines.
    """

    def __init__(
        self,
        servicers: Mapping[ServiceDescriptor, Any],
        drain: Drain,
        inbox: Inbox,
        access: Access | None = None,
        tracer: Tracer | None = None,
        *,
        own_machine: bool = False,
    ) -> None:
        self._access = access or Access(AccessConfig())
        self._own_machine = own_machine
        self._methods: dict[str, dict[str, Callable[..., Any]]] = {}
        for service, servicer in servicers.items():
            for method in service.methods:
                by_path = self._methods.setdefault(method.name, {})
                behavior = getattr(servicer, method.name)
                by_path[path_of(method)] = intercepted(method, behavior, drain, inbox, access, tracer=tracer)

    async def answer(self, name: str, request: Any, context: RayContext) -> Message:
        """The response. If the call failed, an empty message, with the status in the context.

        Args:
            request: an Arrived, or an async iterator of them.
        """
        method, data = self._method(name, request)
        if self._refuses(name, context):
            return _NOTHING()
        try:
            response = await method(data, CallContext(context))
        except AbortError:
            response = None
        return _NOTHING() if response is None else response

    async def stream(self, name: str, request: Any, context: RayContext) -> AsyncGenerator[Message, None]:
        """The responses. If the call fails they end, with the status in the context."""
        method, data = self._method(name, request)
        if self._refuses(name, context):
            return
        try:
            async for response in method(data, CallContext(context)):
                yield response
        except AbortError:
            return

    def _refuses(self, name: str, context: RayContext) -> bool:
        """Whether the call is another machine's, which is not let in; the status is in the context then."""
        if not self._own_machine or is_own_peer(peer := context.peer()):
            return False
        [path, *_] = self._methods[name]
        set_status(CallContext(context), refusal(self._access, str(peer), path, ""))
        return True

    def _method(self, name: str, request: Any) -> tuple[Callable[..., Any], Any]:
        """The method, and the bytes of its request or of each of its requests.

        Two services may share a name: the path tells them apart. None of those methods takes a stream.
        """
        by_path = self._methods[name]
        if isinstance(request, Arrived):
            return by_path[request.path], request.data
        [method] = by_path.values()
        return method, _each_data(request)


async def _each_data(requests: AsyncIterator[Arrived]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.data


_NOTHING = GetMessageClass(HEALTH.methods_by_name["Check"].output_type)
"""Any message will do: it is not sent for a failed call."""
