"""The HTTP API as an ASGI application: its routes, and what each request passes on its way to one of them."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from http import HTTPMethod, HTTPStatus
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from serving.access import LOOPBACK, Access
from serving.api import Drain, Inbox
from serving.config import ServeConfig
from serving.errors import DeadlineExpired, Draining, InvalidInput, ServingError, Unauthenticated
from serving.http.body import Body, check_headers, parse
from serving.http.call import CallerGone, HttpCall, Receive, read_body
from serving.http.errors import MethodNotAllowed, NoRoute
from serving.http.openapi import openapi
from serving.http.operation import Operation, Reply
from serving.http.operations.admin import Admin
from serving.http.operations.console import Console, check_origin
from serving.http.operations.groups import Groups
from serving.http.operations.open_inference import HEADER_LENGTH, OpenInference
from serving.http.operations.openai import OpenAI
from serving.http.operations.pages import Pages
from serving.http.operations.rerank import Rerank
from serving.http.operations.residents import Residents
from serving.http.operations.statistics import ServerState
from serving.http.operations.tasks import Tasks
from serving.http.problem import problem_response
from serving.http.replies import EventStream, json_bytes
from serving.http.services import Services
from serving.logs import request_id
from serving.metrics import Metrics
from serving.ports import Allow, StatusPages
from serving.tracing import RequestTrace, Tracer, current_trace

log = logging.getLogger(__name__)

App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""
UNTRACED = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Paths of probes and scrapes, which have no spans."""
MAX_PATH = 200
"""Characters of a path in a span."""
CALL = "sidecast.call"
"""Key of the HttpCall in ASGI's scope."""


def make_app(
    servicers: Mapping[ServiceDescriptor, Any],
    drain: Drain,
    inbox: Inbox,
    pages: StatusPages,
    config: ServeConfig,
    access: Access,
    allow: Allow,
    metrics: Metrics,
    *,
    echo_id: bool = True,
) -> App:
    """The application. Use it on the event loop of the servicers.

    Args:
        servicers: gRPC's, of each service.
        drain, inbox: gRPC's: calls in flight and their bytes count together.
        access: decides who may call what.
        allow: decides who may read the metrics.
        metrics: the servicers'; its tracer traces the requests.
        echo_id: send each request's id back in a header; Ray does it by itself.
    """
    services = Services(
        servicers, config.request.max_request_rows, access, allows_changes=config.access.admin_port is None
    )
    parts = (
        Tasks(services),
        Groups(services),
        Residents(services),
        Admin(services),
        ServerState(services, metrics, config, access),
        OpenInference(services),
        OpenAI(services),
        Rerank(services),
        Pages(pages, allow),
    )
    operations = [operation for part in parts for operation in part.operations()]
    operations.append(_document(operations))
    operations += Console().operations()
    is_local = not access.asks and bool(LOOPBACK.fullmatch(config.host))
    endpoints = [
        Endpoint(operation, drain, inbox, access, config.max_message_bytes, is_local) for operation in operations
    ]
    routes = [Route(each.operation.path, each, methods=[each.operation.method]) for each in endpoints]
    return Requests(Router(routes, redirect_slashes=False, default=_no_route), echo_id, metrics.tracer)


class Requests:
    """Makes an HttpCall of each request, and a problem of each error. All requests pass here, before anything is read.

    Args:
        app: the routes.
        echo_id: send each request's id back in a header.
        tracer: traces the requests; None: no traces.
    """

    def __init__(self, app: App, echo_id: bool, tracer: Tracer | None = None) -> None:
        self._app = app
        self._tracer = tracer
        self._echo_id = echo_id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            return
        call = HttpCall(scope)
        request_id.set(call.request_id)
        trace = None if self._tracer is None else _begin_trace(self._tracer, scope["method"], call)
        current_trace.set(trace)
        try:
            await self._answer(call, scope, receive, send, trace)
        finally:
            if trace is not None:
                trace.end(fault=str(call.status) if call.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "")

    async def _answer(self, call: HttpCall, scope: Any, receive: Any, send: Any, trace: RequestTrace | None) -> None:
        scope |= {CALL: call, "app": self}
        started = False

        async def send_with_id(event: Any) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                started = True
                call.status = event["status"]
                if trace is not None:
                    trace.set(http__response__status_code=call.status)
                if self._echo_id:
                    event["headers"] = [*event.get("headers", ()), (b"x-request-id", call.request_id.encode())]
            await send(event)

        try:
            await self._app(scope, receive, send_with_id)
        except CallerGone:
            log.debug("the caller of request %s has gone", call.request_id)
        except Exception as error:
            if started:
                raise
            response = problem_response(_route_error(error, scope), call.request_id, call.path)
            await response(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if started:
                raise
            response = problem_response(Draining(), call.request_id, call.path)
            await response(scope, receive, send_with_id)


class Endpoint:
    """Answers the requests of one operation: takes the body in, and ends the call where nobody waits for it any more.

    Args:
        max_bytes: of a body.
        is_local: the server is for callers on this machine, who need no token.
    """

    def __init__(
        self,
        operation: Operation,
        drain: Drain,
        inbox: Inbox,
        access: Access,
        max_bytes: int,
        is_local: bool = False,
    ) -> None:
        self.operation = operation
        self._drain = drain if not operation.lasting else Drain()  # one that never begins
        self._inbox = inbox
        self._access = access
        self._max_bytes = max_bytes
        self._is_local = is_local

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Answer one request, as ASGI has it."""
        call: HttpCall = scope[CALL]
        call.parameters = scope["path_params"]
        if (trace := current_trace.get()) is not None:
            trace.rename(f"{self.operation.method} {self.operation.path}")
            trace.set(http__route=self.operation.path)
        with contextlib.ExitStack() as held, self._counting(call):
            if not self.operation.lasting:
                call.limit_by_header()
            if self._drain.draining:
                raise Draining()  # before the body is read
            body = None
            if self.operation.is_change:
                check_origin(call.headers, is_local=self._is_local)
            if self.operation.request:
                await self._identify(call)
                check_headers(call.headers, binary=self.operation.binary)
                data = await read_body(receive, self._max_bytes, call.headers.get("content-length"))
                held.enter_context(self._inbox.hold(len(data)))
                body = self._parse(call, data, self.operation.request)
                del data
            held.enter_context(self._drain.call(lasting=self.operation.lasting))
            await self._reply(call, body, (scope, receive, send))

    async def _reply(self, call: HttpCall, body: Body | None, asgi: tuple[Any, Receive, Any]) -> None:
        """Answer until the deadline, until the caller leaves or the server stops. Streams then end with an error."""
        _, receive, send = asgi
        reply: Reply | None = None
        try:
            async with call.attended(receive):
                handler = self.operation.handler
                reply = await (handler(call) if body is None else handler(call, body))
                await reply(*asgi)
        except DeadlineExpired as error:
            if not isinstance(reply, EventStream):
                raise
            await reply.end(send, error)
        except asyncio.CancelledError:
            if not isinstance(reply, EventStream):
                raise
            await reply.end(send, Draining())

    async def _identify(self, call: HttpCall) -> None:
        """Refuse a caller who is not known, before the body is read. What a known one may do is checked later."""
        try:
            await self._access.authenticate(call.headers)
        except Unauthenticated as error:
            self._access.audit.refusal(
                caller="",
                tenant="",
                peer=call.peer(),
                verb="",
                method=f"{self.operation.method} {self.operation.path}",
                tasks=(),
                result=error.reason,
                request_id=call.request_id,
            )
            raise

    def _parse(self, call: HttpCall, data: bytes, model: type[Body]) -> Body:
        length = call.headers.get(HEADER_LENGTH) if self.operation.binary else None
        if length is None:
            return parse(data, model)
        if not length.isdecimal() or int(length[:20]) > len(data):
            fault = f"must be a number of the body's {len(data)} bytes, got {length[:80]!r}"
            raise InvalidInput("Inference-Header-Content-Length", fault)
        call.attachment = data[int(length) :]
        return parse(data[: int(length)], model)

    @contextlib.contextmanager
    def _counting(self, call: HttpCall) -> Iterator[None]:
        """Count a request that is refused before a servicer counts it."""
        try:
            yield
        except ServingError as error:
            if self.operation.counted and not call.admitted and not isinstance(error, Draining):
                self._inbox.count_refusal(error)
            raise


def _begin_trace(tracer: Tracer, method: str, call: HttpCall) -> RequestTrace | None:
    """Begin the span of a request; None for one that is not traced."""
    if call.path in UNTRACED:
        return None
    attributes = {
        "http.request.method": method,
        "url.path": call.path[:MAX_PATH],
        "sidecast.request_id": call.request_id,
    }
    return tracer.request(method, call.headers, attributes)


def _document(operations: Sequence[Operation]) -> Operation:
    """The operation that answers with the OpenAPI document of `operations`, and of itself."""
    documented: list[Operation] = []

    async def handler(call: HttpCall) -> Reply:
        return json_bytes(document())

    operation = Operation(
        name="openapi",
        method=HTTPMethod.GET,
        path="/openapi.json",
        summary="This document",
        handler=handler,
        responses={"application/json": dict[str, Any]},
        lasting=True,
        tag="operation",
    )
    documented += [*operations, operation]
    document = cache(partial(openapi, documented))
    return operation


def _route_error(error: Exception, scope: Any) -> Exception:
    """Starlette's errors as ours."""
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(scope["method"], ", ".join(sorted((error.headers or {}).get("Allow", "").split(", "))))
    return error


async def _no_route(scope: Any, receive: Receive, send: Any) -> None:
    raise NoRoute(scope["path"])
