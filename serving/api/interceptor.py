"""Wraps every call: asks who calls, takes its bytes in, refuses it while draining, and makes errors statuses.

The servicers behind it only raise. Health and reflection are wrapped too, but they answer until the end.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc.aio import AbortError, ServerInterceptor, ServicerContext

from serving.access import REQUEST_ID, Access, request_id_of
from serving.api.drain import Drain
from serving.api.guard import Guard, GuardedCall, headers_of
from serving.api.inbox import Inbox, Messages
from serving.api.status import code_of, status_of, trailers
from serving.config import AccessConfig
from serving.errors import ServingError
from serving.logs import request_id
from serving.tracing import RequestTrace, Tracer, current_trace

OUR_SERVICES = ("/inference.", "/sidecast.v1.")
"""Begin the methods that are refused while the server drains."""
PREDICTIONS = ("/sidecast.v1.Sidecast/", "/inference.GRPCInferenceService/ModelInfer")
"""Begin the methods whose calls are counted as requests."""

LASTING = ("/inference.GRPCInferenceService/ModelStreamInfer", "/sidecast.v1.Admin/Watch")
"""Streams that may last for ever. A drain does not wait for them: they end themselves."""


class Interceptor(ServerInterceptor):
    """Wraps the handlers of a server, each once."""

    def __init__(
        self,
        drain: Drain,
        inbox: Inbox,
        access: Access | None = None,
        *,
        allows_changes: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._allows_changes = allows_changes
        self._drain = drain
        self._inbox = inbox
        self._access = access
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        """By method."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The wrapped handler of a call's method."""
        name = handler_call_details.method
        if name in self._handlers:
            return self._handlers[name]
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        return self._handlers.setdefault(name, self._wrapped(handler, method_of(name)))

    def _wrapped(self, handler: Any, method: MethodDescriptor) -> grpc.RpcMethodHandler:
        requests = "stream" if handler.request_streaming else "unary"
        kind = f"{requests}_{'stream' if handler.response_streaming else 'unary'}"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        behavior = intercepted(
            method, getattr(handler, kind), self._drain, self._inbox, self._access, self._allows_changes, self._tracer
        )
        return make(behavior, response_serializer=handler.response_serializer)  # no deserializer: it takes bytes


def path_of(method: MethodDescriptor) -> str:
    """gRPC's name of a method: /package.Service/Method."""
    return f"/{method.containing_service.full_name}/{method.name}"


def method_of(path: str) -> MethodDescriptor:
    """The method of this name."""
    service, _, name = path.removeprefix("/").rpartition("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]


def intercepted(
    method: MethodDescriptor,
    behavior: Callable[..., Any],
    drain: Drain,
    inbox: Inbox,
    access: Access | None = None,
    allows_changes: bool = True,
    tracer: Tracer | None = None,
) -> Callable[..., Any]:
    """Wrap `behavior`, a servicer's method, so that it takes bytes and raises nothing.

    Args:
        access: decides who may call it; None: everybody.
        allows_changes: whether this port may change the registry.
        tracer: traces the calls, but for health and reflection; None: no traces.
    """
    path = path_of(method)
    is_ours = path.startswith(OUR_SERVICES)
    call = _Call(
        drain=drain if is_ours else Drain(),  # one that never begins
        inbox=inbox,
        guard=Guard(access or Access(AccessConfig()), path, allows_changes),
        kind=GetMessageClass(method.input_type),
        many=method.client_streaming,
        lasting=not is_ours or path in LASTING,
        counted=path.startswith(PREDICTIONS),
        name=path.removeprefix("/"),
        tracer=tracer if is_ours else None,
    )
    return call.streaming(behavior) if method.server_streaming else call.answering(behavior)


class _Call:
    """How calls of one method are wrapped.

    Args:
        kind: of its requests.
        many: its request is a stream.
        lasting: it may last for ever, so a drain does not wait for it.
        counted: a request that is refused here counts in the metrics.
        name: of its spans.
    """

    def __init__(
        self,
        *,
        drain: Drain,
        inbox: Inbox,
        guard: Guard,
        kind: type[Message],
        many: bool,
        lasting: bool,
        counted: bool,
        name: str,
        tracer: Tracer | None,
    ) -> None:
        self._name = name
        self._tracer = tracer
        self._drain = drain
        self._inbox = inbox
        self._guard = guard
        self._kind = kind
        self._many = many
        self._lasting = lasting
        self._counted = counted

    def answering(self, behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Wrap a method with one response. A call that failed gives None, with the status in the context."""

        async def answer(data: Any, context: ServicerContext) -> Any:
            call: GuardedCall | None = None
            trace = self._arrive(context)
            code = grpc.StatusCode.OK.name
            try:
                with self._drain.call(lasting=self._lasting):
                    call = await self._begin(context)
                    async with self._received(data, call) as request:
                        response = await behavior(request, context)
                    if call:
                        await call.show(response)
                        call.end()
                    return response
            except AbortError:
                code = grpc.StatusCode.UNKNOWN.name
                raise
            except BaseException as error:
                code = _code_name(error)
                if call:
                    call.end(error)
                if not isinstance(error, Exception):
                    raise
                set_status(context, error)
            finally:
                if trace is not None:
                    trace.end_call(code)

        return answer

    def streaming(self, behavior: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
        """Wrap a method with a stream of responses."""

        async def stream(data: Any, context: ServicerContext) -> AsyncGenerator[Any, None]:
            trace = self._arrive(context)
            code = grpc.StatusCode.OK.name
            try:
                with self._drain.call(lasting=self._lasting):
                    call = await self._begin(context)
                    async with (
                        self._received(data, call) as request,
                        contextlib.aclosing(behavior(request, context)) as made,
                    ):
                        async for response in made:
                            if call:
                                await call.show(response)
                            yield response
            except AbortError:
                code = grpc.StatusCode.UNKNOWN.name
                raise
            except BaseException as error:
                code = _code_name(error)
                if not isinstance(error, Exception):
                    raise
                set_status(context, error)
            finally:
                if trace is not None:
                    trace.end_call(code)

        return stream

    def _arrive(self, context: ServicerContext) -> RequestTrace | None:
        """Note the call's id, which also goes back to the caller, and begin its span if it is traced."""
        headers = headers_of(context)
        name = request_id_of(headers)
        request_id.set(name)
        context.set_trailing_metadata(((REQUEST_ID, name),))
        if self._tracer is None:
            return None
        attributes = {"rpc.system.name": "grpc", "rpc.method": self._name, "sidecast.request_id": name}
        trace = self._tracer.request(self._name, headers, attributes)
        current_trace.set(trace)
        return trace

    async def _begin(self, context: ServicerContext) -> GuardedCall | None:
        """Find out who calls, before anything is decoded."""
        try:
            return await self._guard.begin(context)
        except ServingError as error:
            if self._counted:
                self._inbox.count_refusal(error)
            raise

    @contextlib.asynccontextmanager
    async def _received(self, data: Any, call: GuardedCall | None) -> AsyncIterator[Any]:
        """The request, checked and counted as in flight within the block; of a stream, its messages."""
        if self._many:
            is_checked_here = call and not call.is_checked_singly
            messages = Messages(self._inbox, data, self._kind, call.check if call and is_checked_here else None)
            try:
                yield messages
            finally:
                await messages.aclose()
            return
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._inbox.hold(len(data)))
                request = await self._inbox.decode(data, self._kind)
                if call:
                    await call.check(request)
            except ServingError as error:
                if self._counted:
                    self._inbox.count_refusal(error)
                raise
            yield request


def set_status(context: Any, error: Exception) -> None:
    """Have a call end with the error's status, once its method has returned.

    Not `abort`: gRPC's error then holds the call's frames, and with them the request, until garbage is collected.
    """
    name = request_id.get()
    status = status_of(error, name)
    context.set_code(code_of(error))
    context.set_details(status.message)
    context.set_trailing_metadata((*trailers(status), (REQUEST_ID, name)) if name else trailers(status))


def _code_name(error: BaseException) -> str:
    is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return (grpc.StatusCode.CANCELLED if is_cancelled else code_of(error)).name
