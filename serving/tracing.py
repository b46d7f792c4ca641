"""OpenTelemetry traces of requests and of swaps, sent by OTLP over gRPC.

A request has one span, and below it one for each stage. Where no traces are wanted there is no `Tracer`, and nothing of
OpenTelemetry is imported. Spans have names of tasks, versions and counts, never texts or images of callers.
"""

import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from serving.errors import TracingNotInstalled

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SAMPLER = "OTEL_TRACES_SAMPLER"
CLOSING_S = 3.0
"""Longest time for the last spans at the end of the process, in seconds."""
GRPC_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that are the server's fault; OpenTelemetry's conventions for gRPC mark the spans of these alone as errors."""
MAX_NAME = 200
"""Characters of a task's name."""

Result = TypeVar("Result")
Attributes = Mapping[str, str | int | float | bool]

current_trace: ContextVar["RequestTrace | None"] = ContextVar("current_trace", default=None)
"""The trace of the request that is being answered; None where it is not traced."""


def open_tracer(endpoint: str, ratio: float) -> "Tracer | None":
    """The tracer that the settings and OpenTelemetry's own variables ask for; None: no traces.

    Args:
        endpoint: URL of a collector; empty: that of the variables.
        ratio: share of the requests that are traced, where neither the caller nor OTEL_TRACES_SAMPLER decides.

    Raises:
        TracingNotInstalled: `endpoint` is given, and the packages of the extra `otel` are missing.
    """
    is_off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if is_off or not (endpoint or any(os.environ.get(name) for name in ENDPOINTS)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ModuleNotFoundError:
        if endpoint:
            raise TracingNotInstalled(endpoint) from None
        log.warning("%s is set, but there are no traces: the extra 'otel' is not installed", ENDPOINTS[-1])
        return None
    sampler = None if os.environ.get(SAMPLER) else ParentBasedTraceIdRatio(ratio)  # None: the SDK reads the variable
    name = os.environ.get("OTEL_SERVICE_NAME") or "sidecast"
    resource = Resource.create({"service.name": name, "service.version": _version()})
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint or None)))
    return Tracer(provider)


class Tracer:
    """Makes the spans of one server.

    Args:
        provider: OpenTelemetry's TracerProvider.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._otel = provider.get_tracer("sidecast", _version())
        self._thread = threading.local()

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> "RequestTrace | None":
        """Begin the span of a request; None where it is not sampled.

        Args:
            headers: the caller's, names in lower case: `traceparent` makes the span a part of the caller's trace.
        """
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        offset_ns = time.time_ns() - time.monotonic_ns()
        span = self._otel.start_span(
            name,
            context=propagate.extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=time.monotonic_ns() + offset_ns,
        )
        return RequestTrace(self._otel, span, offset_ns) if span.is_recording() else None

    def step(self, new: Sequence["RowsTrace"], texts: Sequence["RowsTrace"], rows: int) -> "StepTrace | None":
        """What follows one step on the device; None where no traced request has a row in it.

        Args:
            new: of requests with rows that begin in the step.
            texts: of requests with texts that it takes a token on.
            rows: that begin in the step.
        """
        return StepTrace(self._thread, new, texts, rows) if new or texts else None

    def note(self, stage: str, began: float, ended: float) -> None:
        """A stage ended on this thread. Times are of time.monotonic(), or time.perf_counter(): on Linux they agree."""
        stages = getattr(self._thread, "stages", None)
        if stages is not None:
            stages.append((stage, began, ended))

    def swap(self, task: str, version: int, wanted_at: float, began: float, fault: str = "") -> None:
        """A version has been loaded, or failed to: the span `swap`, and `load` below it.

        Args:
            wanted_at: when the server learned of the version, in time.monotonic() seconds; began: its load.
            fault: the reason of a load that failed.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()
        attributes = {"sidecast.task": task, "sidecast.version": version}
        span = self._otel.start_span("swap", attributes=attributes, start_time=int(wanted_at * 1e9) + offset_ns)
        trace = RequestTrace(self._otel, span, offset_ns)
        trace.stage("load", began, time.monotonic(), **attributes)
        trace.end(fault=fault)

    def close(self) -> None:
        """Send what is left, and end. Blocks for `CLOSING_S` at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracer", daemon=True)
        closing.start()
        closing.join(CLOSING_S)


class RequestTrace:
    """The span of one request, to which stages are added, also after its end.

    Args:
        offset_ns: from time.monotonic_ns() to the wall clock's time. One for all spans, so that they fit each other.
    """

    def __init__(self, otel: Any, span: Any, offset_ns: int) -> None:
        from opentelemetry.trace import set_span_in_context

        self._otel = otel
        self._span = span
        self._below = set_span_in_context(span)
        self._offset_ns = offset_ns

    def stage(self, name: str, began: float, ended: float, **attributes: str | int | float | bool) -> None:
        """Add the span of a stage; times in time.monotonic() seconds."""
        span = self._otel.start_span(name, context=self._below, attributes=attributes, start_time=self._ns(began))
        span.end(self._ns(ended))

    def set(self, **attributes: str | int | float | bool) -> None:
        """Set attributes; `http__route` stands for `http.route`."""
        self._span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})

    def rename(self, name: str) -> None:
        """Give the span the name of its route."""
        self._span.update_name(name)

    def answered(self, task: str, version: int | None, code: str, rows: int) -> None:
        """Add an event for one task's answer."""
        attributes: dict[str, str | int] = {"sidecast.task": task[:MAX_NAME], "sidecast.code": code}
        if version is not None:
            attributes |= {"sidecast.version": version, "sidecast.rows": rows}
        self._span.add_event("answer", attributes)
        self._span.set_attributes(attributes)

    def request(self, name: str, request_id: str) -> "RequestTrace":
        """Begin the span of one of a stream's requests."""
        start = time.monotonic_ns() + self._offset_ns
        attributes = {"sidecast.request_id": request_id[:MAX_NAME]}
        span = self._otel.start_span(name, context=self._below, attributes=attributes, start_time=start)
        return RequestTrace(self._otel, span, self._offset_ns)

    def end_call(self, code: str) -> None:
        """End the span of a gRPC call, or of one of a stream's requests, with the name of its status."""
        self.set(rpc__response__status_code=code)
        self.end(fault=code if code in GRPC_FAULTS else "")

    def end(self, *, fault: str = "") -> None:
        """End the span. `fault`: why it is an error; empty: it is none."""
        from opentelemetry.trace import Status, StatusCode

        if fault:
            self._span.set_status(Status(StatusCode.ERROR, fault))
            self._span.set_attribute("error.type", fault)
        self._span.end(time.monotonic_ns() + self._offset_ns)

    def _ns(self, moment: float) -> int:
        return int(moment * 1e9) + self._offset_ns


class RowsTrace:
    """The trace of rows that were submitted together. One span stands for all steps that decode their texts."""

    def __init__(self, request: RequestTrace) -> None:
        self.request = request
        self.in_step = False
        """A step on the device has some of the rows."""
        self._has_left = False
        self._decode: tuple[float, float, int] | None = None
        """When the first decoding step began, when the last one ended, and how many there were."""

    def decode_step(self, began: float, ended: float) -> None:
        """Count a step that took texts of the rows one token on."""
        first, _, steps = self._decode or (began, ended, 0)
        self._decode = first, ended, steps + 1

    def end_step(self) -> None:
        """The step has ended."""
        self.in_step = False
        if self._has_left:
            self._end_decode()

    def leave(self) -> None:
        """The rows have their outcomes, or nobody waits for them. A step that still has them is counted at its end."""
        self._has_left = True
        if not self.in_step:
            self._end_decode()

    def _end_decode(self) -> None:
        if self._decode is not None:
            began, ended, steps = self._decode
            self._decode = None
            self.request.stage("decode", began, ended, **{"sidecast.decode.steps": steps})


def rows_trace() -> RowsTrace | None:
    """The trace for rows that are submitted now; None where the request is not traced."""
    trace = current_trace.get()
    return None if trace is None else RowsTrace(trace)


class StepTrace:
    """The stages of one step on the device. Every traced request in it gets them as spans of its own trace."""

    def __init__(
        self,
        thread: threading.local,
        new: Sequence[RowsTrace],
        texts: Sequence[RowsTrace],
        rows: int,
    ) -> None:
        self._thread = thread
        self._new = new
        self._texts = texts
        self._rows = rows
        self._stages: list[tuple[str, float, float]] = []
        for trace in (*new, *texts):
            trace.in_step = True

    def run(self, step: Callable[..., Result], *arguments: Any) -> Result:
        """Run the step on the device thread, and keep its stages."""
        self._thread.stages = self._stages
        try:
            return step(*arguments)
        finally:
            self._thread.stages = None

    def end(self) -> None:
        """Add the stages to the traces, on the event loop."""
        for stage, began, ended in self._stages:
            if stage == "decode":
                for trace in self._texts:
                    trace.decode_step(began, ended)
                continue
            for trace in self._new:
                trace.request.stage(stage, began, ended, **{"sidecast.batch.rows": self._rows})
        for trace in (*self._new, *self._texts):
            trace.end_step()


def _version() -> str:
    try:
        return importlib.metadata.version("sidecast")
    except importlib.metadata.PackageNotFoundError:
        return "0"
