"""A collector of OpenTelemetry traces: a real OTLP receiver over gRPC that keeps what it is sent."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(TraceServiceServicer):
    """Keeps the spans, and the attributes of the resources that sent them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self.endpoint = ""
        self._lock = threading.Lock()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self._lock:
            for part in request.resource_spans:
                self.resource |= attributes(part.resource)
                self.spans += [span for scope in part.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()

    def named(self, name: str, trace_id: bytes | None = None) -> list[Span]:
        """Spans of a name; of one trace, where it is given."""
        return [span for span in self.spans if span.name == name and trace_id in (None, span.trace_id)]

    def one(self, name: str, trace_id: bytes | None = None) -> Span:
        """The only span of a name."""
        [span] = self.named(name, trace_id)
        return span


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port, until the block ends."""
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(servicer, server)
    servicer.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(0).wait()


def attributes(thing: Any) -> dict[str, Any]:
    """The attributes of a span, an event or a resource."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in thing.attributes}
