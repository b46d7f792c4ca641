"""The application's arguments, and calls as Ray hands them on. No cluster."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from ray.serve._private.http_util import ASGIAppReplicaWrapper

from protos import sidecast_pb2 as pb
from serving.access import Access
from serving.api.drain import Drain
from serving.api.inbox import Inbox
from serving.api.interceptor import path_of
from serving.api.services import ADMIN, HEALTH, NATIVE
from serving.api.status import DETAILS_KEY
from serving.cluster.app import AppArgs, build
from serving.cluster.grpc_bridge import SERVICES, Arrived, CallContext, Calls
from serving.cluster.replica import Server
from serving.config import AccessConfig, ServeConfig
from serving.errors import Overloaded
from serving.metrics import Metrics
from serving.ports import StatusPages, allow_all
from serving.tracing import Tracer

SETTINGS = {"backbone": "b", "registry": "r"}

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"settings": {"backbone": "b"}}, "registry must be given"),
        ({"settings": SETTINGS | {"colour": 1}}, "unknown settings"),
        ({"settings": SETTINGS | {"max_batch_rows": "many"}}, "must be of type int"),
        ({"settings": SETTINGS | {"device": "cuda"}}, "give each replica a GPU"),
        ({"settings": SETTINGS | {"device": "cuda:1"}, "gpus": 1}, "say cuda, or auto"),
        ({"settings": SETTINGS | {"admin_port": 8003}}, "Ray gives all services one port"),
        ({"settings": SETTINGS, "replicas": 2, "autoscaling": {}}, "either replicas or autoscaling"),
        ({"settings": SETTINGS, "autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "min_replicas <="),
        ({"settings": SETTINGS, "cpu": 1}, "Extra inputs"),
    ],
)
def test_arguments_that_cannot_be_are_told(args: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        AppArgs.model_validate(args)


@pytest.mark.parametrize("more", [{}, {"replicas": 3}, {"autoscaling": {"min_replicas": 0, "max_replicas": 4}}])
def test_an_application_is_built(more: dict[str, Any]) -> None:
    assert build(AppArgs.model_validate({"settings": SETTINGS} | more))


@pytest.mark.parametrize(("more", "answers"), [({}, True), ({"http_port": 0}, False)])
def test_a_replica_answers_http_unless_it_is_switched_off(more: dict[str, Any], answers: bool) -> None:
    application = build(AppArgs.model_validate({"settings": SETTINGS | more}))
    replica = application._bound_deployment.func_or_class
    assert issubclass(replica, Server)
    assert issubclass(replica, ASGIAppReplicaWrapper) is answers


async def test_a_replica_has_the_http_api_of_a_single_process() -> None:
    replica = SimpleNamespace(
        _servicers={service: Servicer(service) for service in SERVICES},
        drain=Drain(),
        metrics=Metrics(),
        _inbox=Inbox(),
        _metrics_server=SimpleNamespace(pages=StatusPages(CollectorRegistry())),
        _config=ServeConfig.from_values(SETTINGS),
        _access=Access(AccessConfig()),
        _allow=allow_all,
    )
    app = Server.__serve_build_asgi_app__(replica)  # type: ignore[arg-type]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-request-id", b"job-7")]
    scope = {"type": "http", "method": "GET", "path": "/v1/nothing", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 404
    assert b'"request_id":"job-7"' in sent[1]["body"]
    assert b"x-request-id" not in dict(sent[0]["headers"])  # Ray adds it


class Context:
    """As Ray's."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details, self.trailing = "", []

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [("tenant", "a")]

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailing = trailing_metadata


class Servicer:
    """Every method of our services."""

    def __init__(self, service: Any) -> None:
        for method in service.methods:
            setattr(self, method.name, self.many if method.server_streaming else self.one)

    async def one(self, request: Any, context: CallContext) -> Any:
        assert context.time_remaining() is None
        if getattr(request, "task", "") == "full":
            raise Overloaded(7, 8, 0.5)
        assert ("tenant", "a") in context.invocation_metadata()
        return pb.PredictResponse(task="sst2")

    async def many(self, request: Any, context: CallContext) -> AsyncIterator[Any]:
        yield request


def calls(drain: Drain) -> Calls:
    return Calls({service: Servicer(service) for service in SERVICES}, drain, Inbox())


def arrived(service: Any, name: str, request: Any) -> Arrived:
    return Arrived(path_of(service.methods_by_name[name]), request.SerializeToString())


async def test_an_error_is_in_the_context_with_its_details_and_nothing_is_raised() -> None:
    context = Context()
    answer = await calls(Drain()).answer("Predict", arrived(NATIVE, "Predict", pb.PredictRequest(task="full")), context)
    assert not answer.ByteSize()
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert context.details
    assert [key for key, _ in context.trailing] == [DETAILS_KEY, "x-request-id"]


async def test_two_methods_of_one_name_are_told_apart_by_their_requests() -> None:
    for service, request in ((ADMIN, pb.WatchRequest()), (HEALTH, health_pb2.HealthCheckRequest(service="s"))):
        answers = calls(Drain()).stream("Watch", arrived(service, "Watch", request), Context())
        assert [each async for each in answers] == [request]


async def test_while_it_drains_health_alone_answers() -> None:
    drain, context = Drain(), Context()
    drain.begin()
    await calls(drain).answer("Predict", arrived(NATIVE, "Predict", pb.PredictRequest()), context)
    assert context.code is grpc.StatusCode.UNAVAILABLE
    healthy = Context()
    await calls(drain).answer("Check", arrived(HEALTH, "Check", health_pb2.HealthCheckRequest()), healthy)
    assert healthy.code is None


@pytest.mark.parametrize(("service", "name"), [(NATIVE, "Predict"), (HEALTH, "Check")])
async def test_bytes_that_are_no_message_are_a_mistake_of_the_callers(service: Any, name: str) -> None:
    context = Context()
    await calls(Drain()).answer(name, Arrived(path_of(service.methods_by_name[name]), b"\xff"), context)
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT


def test_every_method_has_the_path_that_grpc_calls_it_by() -> None:
    assert path_of(NATIVE.methods_by_name["Predict"]) == "/sidecast.v1.Sidecast/Predict"
    assert path_of(ADMIN.methods_by_name["Watch"]) != path_of(HEALTH.methods_by_name["Watch"])


def test_rays_own_processes_need_no_torch() -> None:
    code = "import sys, serving.cluster.app, serving.cluster.replica; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split()[-1] == "False"


async def test_a_call_that_came_through_ray_is_traced_like_any_other() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    servicers = {service: Servicer(service) for service in SERVICES}
    context = Context()
    context.invocation_metadata = lambda: [  # type: ignore[method-assign]
        ("tenant", "a"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-request-id", "job-7"),
    ]
    request = arrived(NATIVE, "Predict", pb.PredictRequest(task="sst2"))
    await Calls(servicers, Drain(), Inbox(), tracer=Tracer(provider)).answer("Predict", request, context)
    [span] = spans.get_finished_spans()
    assert span.name == "sidecast.v1.Sidecast/Predict"
    assert span.parent is not None
    assert span.parent.span_id == 0xB7AD6B7169203331
    assert span.attributes is not None
    assert span.attributes["sidecast.request_id"] == "job-7"
    assert context.trailing == [("x-request-id", "job-7")]
