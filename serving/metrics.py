"""Metrics of a server: prometheus-client, base units, bounded labels.

The labels `task` and `version` are tasks and versions of the registry; other values become "unknown". After a change of
a metric run `python docs/generate_metrics.py`, which writes the table of docs/serving/metrics.md.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from serving.tracing import Tracer

Stage = Literal["queue", "tokenize", "decode_image", "vision", "backbone", "side", "decode"]
STAGES: tuple[Stage, ...] = ("queue", "tokenize", "decode_image", "vision", "backbone", "side", "decode")
EVICTION_CAUSES = ("fresh", "kept", "replaced", "memory")
SHED_REASONS = ("queue", "deadline", "task", "bytes", "images")
ShadowOutcome = Literal["agreed", "disagreed", "failed", "dropped"]
UNKNOWN = "unknown"

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_DRIFT = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(slots=True)
class Answered:
    """What one version has answered on this server since its start."""

    requests: int = 0
    """That were answered with OK."""
    rows: int = 0
    seconds: float = 0.0
    """From admission to answer, of these requests together."""
    at: float = 0.0
    """When the last of them was answered, in seconds since 1970."""


class Metrics:
    """One server's metrics, in one registry of prometheus-client."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # of the whole process: a second series for each counter and histogram
        self.registry = registry = registry or CollectorRegistry()
        self.tracer: Tracer | None = None
        """Makes spans of the same stages that are measured here; None: there are no traces."""
        self._answered: dict[tuple[str, int], Answered] = {}
        self._known: frozenset[str] = frozenset()
        self._forgotten: set[tuple[str, int]] = set()
        """Versions of known tasks that are no longer served. A late answer of one must not create its series again."""
        make = _Maker(registry)
        self._add_requests(make)
        self._add_batches(make)
        self._add_queue(make)
        self._add_versions(make)
        self._add_cache(make)
        self._add_images(make)
        self._add_shadows(make)
        self._add_process(make)

    def _add_requests(self, make: "_Maker") -> None:
        self.requests = make.counter(
            "sidecast_requests", "Answered requests, per task of each.", ("task", "version", "code")
        )
        self.request_seconds = make.seconds(
            "sidecast_request_seconds", "From admission to answer.", ("task", "version")
        )
        self.rows = make.counter("sidecast_rows", "Rows of requests that were answered with OK.", ("task", "version"))
        self.in_flight_calls = make.gauge(
            "sidecast_in_flight_calls",
            "gRPC calls and HTTP requests that are being answered, without the streams that may last for ever "
            "(ModelStreamInfer, Watch).",
        )
        self.stage_seconds = make.seconds(
            "sidecast_stage_seconds",
            "Time in one stage: queue and tokenize per request, decode_image per image, vision, backbone and side per "
            "batch, decode per token step.",
            ("stage",),
        )
        self.truncated_rows = make.counter(
            "sidecast_truncated_rows",
            "Rows whose text was longer than their task's max_source_tokens: their end was not read.",
            ("task",),
        )
        self.first_piece_seconds = make.seconds(
            "sidecast_first_piece_seconds", "From admission to the first piece of a streamed text."
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)

    def _add_batches(self, make: "_Maker") -> None:
        self.batch_rows = make.histogram("sidecast_batch_rows", "Inputs of a backbone pass.", _ROWS)
        self.batch_tokens = make.histogram("sidecast_batch_tokens", "Tokens of a backbone pass, with padding.", _TOKENS)
        self.padding_tokens = make.counter("sidecast_padding_tokens", "Tokens of backbone passes that were padding.")

    def _add_queue(self, make: "_Maker") -> None:
        self.queue_rows = make.gauge("sidecast_queue_rows", "Rows waiting for the device.")
        self.queue_tokens = make.gauge("sidecast_queue_tokens", "Tokens waiting for the device.")
        self.task_queue_rows = make.gauge(
            "sidecast_task_queue_rows", "Rows of one task waiting for the device.", ("task",)
        )
        self.running_rows = make.gauge("sidecast_running_rows", "Texts being made, each beam counted.")
        self.shed_requests = make.counter(
            "sidecast_shed_requests",
            "Requests refused because the queue was full (queue) or too long for their deadline (deadline; on arrival, "
            "or when their turn came), because a task was at a limit of its own (task), because the requests in flight "
            "had too many bytes (bytes), or because too many images waited (images).",
            ("reason",),
        )
        self.in_flight_bytes = make.gauge("sidecast_in_flight_bytes", "Bytes of requests in flight, decompressed.")
        self.expired_rows = make.counter("sidecast_expired_rows", "Rows without an answer at their deadline.")
        for reason in SHED_REASONS:
            self.shed_requests.labels(reason)

    def _add_versions(self, make: "_Maker") -> None:
        self.resident_side_networks = make.gauge("sidecast_resident_side_networks", "Side networks on the device.")
        self.resident_bytes = make.gauge("sidecast_resident_bytes", "Bytes of the resident side networks' weights.")
        self.generation_wanted = make.gauge("sidecast_generation_wanted", "The registry's newest known generation.")
        self.generation_served = make.gauge("sidecast_generation_served", "The generation that is fully applied here.")
        self.registry_read = make.gauge(
            "sidecast_registry_read_timestamp_seconds", "When the registry was last read, in seconds since 1970."
        )
        self.swap_seconds = make.seconds(
            "sidecast_swap_seconds", "From seeing a new version in the registry to it being resident."
        )
        self.load_failures = make.counter("sidecast_load_failures", "Versions that did not load.", ("task", "reason"))

    def _add_cache(self, make: "_Maker") -> None:
        self.cache_hits = make.counter("sidecast_cache_hits", "Inputs whose activations were in the cache.")
        self.cache_misses = make.counter(
            "sidecast_cache_misses", "Inputs that needed the backbone, once each in a batch."
        )
        self.cache_evictions = make.counter(
            "sidecast_cache_evictions",
            "Inputs that left the activation cache: never used again (fresh), used again but long ago (kept), "
            "replaced by a deeper pass (replaced), to make room on the device (memory).",
            ("cause",),
        )
        self.cache_bytes = make.gauge("sidecast_cache_bytes", "Bytes of cached activations.")
        self.cache_entries = make.gauge("sidecast_cache_entries", "Inputs in the activation cache.")
        for cause in EVICTION_CAUSES:
            self.cache_evictions.labels(cause)
        self.cached_rows = make.counter(
            "sidecast_cached_rows",
            "Rows whose input's activations were in the cache, shadows' included.",
            ("task", "version"),
        )

    def _add_images(self, make: "_Maker") -> None:
        self.image_cache_hits = make.counter(
            "sidecast_image_cache_hits", "Images whose features were in the cache, once each in a request."
        )
        self.image_cache_misses = make.counter(
            "sidecast_image_cache_misses",
            "Images that had to be decoded and encoded, or that another request was having encoded.",
        )
        self.image_cache_evictions = make.counter(
            "sidecast_image_cache_evictions", "Images that left the feature cache to make room."
        )
        self.image_cache_bytes = make.gauge("sidecast_image_cache_bytes", "Bytes of cached image features.")
        self.image_cache_entries = make.gauge("sidecast_image_cache_entries", "Images in the feature cache.")
        self.images_encoded = make.counter("sidecast_images_encoded", "Images that the vision encoder has encoded.")
        self.queued_images = make.gauge(
            "sidecast_queued_images", "Images of requests that wait for their features, those in work included."
        )
        self.image_faults = make.counter(
            "sidecast_image_faults",
            "Images without features, by fault: damaged, animated, too_many_pixels and so on, memory for no room, "
            "encoder for a failure of the vision encoder.",
            ("fault",),
        )

    def _add_shadows(self, make: "_Maker") -> None:
        self.shadow_rows = make.counter(
            "sidecast_shadow_rows",
            "Rows of shadow versions: both it and the alias's main version answered, and they agreed or disagreed, it "
            "failed, or the row was dropped for lack of time.",
            ("task", "version", "outcome"),
        )
        self.shadow_drift = make.histogram(
            "sidecast_shadow_drift",
            "How far a shadow version's answer is from that of the alias's main version: 0 the same, 1 nothing in "
            "common.",
            _DRIFT,
            ("task", "version"),
        )
        self.shadow_seconds = make.counter(
            "sidecast_shadow_seconds", "Device time of a shadow version's rows.", ("task", "version")
        )
        self.route_rollbacks = make.counter(
            "sidecast_route_rollbacks",
            "Routes that this server has ended because a version with a share broke a bound.",
            ("task", "reason"),
        )

    def _add_process(self, make: "_Maker") -> None:
        self.build = make.info("sidecast_build", "Versions of what runs, as labels; the value is 1.")
        self.build.info(
            {
                "version": installed_version("sidecast"),
                "python": platform.python_version(),
                "torch": installed_version("torch"),
            }
        )
        ProcessCollector(registry=self.registry)

    def know(self, tasks: Iterable[str]) -> None:
        """Set the tasks that may be label values. Drops the series of other tasks."""
        known = frozenset(tasks)
        for task in self._known - known:
            for metric in (
                self.requests,
                self.request_seconds,
                self.rows,
                self.cached_rows,
                self.truncated_rows,
                self.load_failures,
                self.task_queue_rows,
            ):
                metric.remove_by_labels({"task": task})
            for metric in (self.shadow_rows, self.shadow_drift, self.shadow_seconds, self.route_rollbacks):
                metric.remove_by_labels({"task": task})
        self._known = known
        self._forgotten = {(task, version) for task, version in self._forgotten if task in known}
        self._answered = {(task, version): kept for (task, version), kept in self._answered.items() if task in known}

    def remember(self, task: str, version: int) -> None:
        """Count a version that is served, perhaps again after `forget`."""
        self._forgotten.discard((task, version))

    def forget(self, task: str, version: int) -> None:
        """Drop the series of a version that is no longer served."""
        for metric in (
            self.requests,
            self.request_seconds,
            self.rows,
            self.cached_rows,
            self.shadow_rows,
            self.shadow_drift,
            self.shadow_seconds,
        ):
            metric.remove_by_labels({"task": task, "version": str(version)})
        self._answered.pop((task, version), None)
        if task in self._known:
            self._forgotten.add((task, version))

    def shed(self, reason: str) -> None:
        """Count a refused request; `reason` is one of SHED_REASONS."""
        self.shed_requests.labels(reason).inc()

    def task_queue(self, task: str, rows: int) -> None:
        """Set how many rows of a task wait for the device."""
        if task in self._known:
            self.task_queue_rows.labels(task).set(rows)

    def follow_calls(self, in_flight: Callable[[], int]) -> None:
        """Let `sidecast_in_flight_calls` show what `in_flight` returns."""
        self.in_flight_calls.set_function(in_flight)

    def answered(self, task: str, version: int) -> Answered:
        """What a version has answered so far."""
        return self._answered.get((task, version)) or Answered()

    def request(
        self, task: str | None, version: int | None, code: str, seconds: float | None = None, rows: int = 0
    ) -> None:
        """Count one task's answer.

        Args:
            version: the version that answered; None: none did.
            code: gRPC's code, such as OK.
            seconds: from admission to answer; None: not measured.
            rows: how many the request has, if they were answered.
        """
        name = task if task in self._known else UNKNOWN
        number = str(version) if version is not None and self._is_served(name, version) else UNKNOWN
        self.requests.labels(name, number, code).inc()
        if seconds is not None:
            self.request_seconds.labels(name, number).observe(seconds)
        if rows:
            self.rows.labels(name, number).inc(rows)
        if version is not None and number != UNKNOWN and code == "OK":
            answered = self._answered.setdefault((name, version), Answered())
            answered.requests += 1
            answered.rows += rows
            answered.seconds += seconds or 0.0
            answered.at = time.time()

    def truncated(self, task: str, rows: int) -> None:
        """Count rows whose text was cut."""
        if rows and task in self._known:
            self.truncated_rows.labels(task).inc(rows)

    def shadowed(self, task: str, version: int, outcome: ShadowOutcome, rows: int = 1) -> None:
        """Count shadow rows by their outcome."""
        if self._is_served(task, version):
            self.shadow_rows.labels(task, version, outcome).inc(rows)

    def drifted(self, task: str, version: int, drift: float) -> None:
        """Observe the drift of one compared row."""
        if self._is_served(task, version):
            self.shadow_drift.labels(task, version).observe(drift)

    def shadow_took(self, task: str, version: int, seconds: float) -> None:
        """Count device time of a version's shadow rows."""
        if self._is_served(task, version):
            self.shadow_seconds.labels(task, version).inc(seconds)

    def route_rolled_back(self, task: str, reason: str) -> None:
        """Count a route that this server ended. `reason` is the broken bound."""
        if task in self._known:
            self.route_rollbacks.labels(task, reason).inc()

    def load_failure(self, task: str, reason: str) -> None:
        """Count a version that did not load. `reason` is its error's."""
        self.load_failures.labels(task if task in self._known else UNKNOWN, reason).inc()

    def stage(self, stage: Stage, seconds: float) -> None:
        """Observe the time of one stage."""
        self.stage_seconds.labels(stage).observe(seconds)

    @property
    def computed_s(self) -> float:
        """Seconds that the device computed since the start."""
        return sum(self.stage_seconds.labels(stage)._sum.get() for stage in ("backbone", "side", "decode"))

    def cache_looked_up(self, hits: int, misses: int) -> None:
        """Count look-ups in the activation cache, in inputs."""
        self.cache_hits.inc(hits)
        self.cache_misses.inc(misses)

    def cached(self, task: str, version: int, rows: int) -> None:
        """Count a version's rows whose input's activations were in the cache."""
        if self._is_served(task, version):
            self.cached_rows.labels(task, version).inc(rows)

    def cache_evicted(self, cause: str, inputs: int) -> None:
        """Count inputs that left the activation cache. `cause` is one of EVICTION_CAUSES."""
        self.cache_evictions.labels(cause).inc(inputs)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Observe how long the block takes."""
        start = perf_counter()
        try:
            yield
        finally:
            end = perf_counter()
            self.stage(stage, end - start)
            if self.tracer is not None:
                self.tracer.note(stage, start, end)

    def batch(self, rows: int, tokens: int, padding: int) -> None:
        """Count one backbone pass over `rows` inputs that were not in the cache; `tokens` includes `padding`."""
        self.batch_rows.observe(rows)
        self.batch_tokens.observe(tokens)
        self.padding_tokens.inc(padding)

    def _is_served(self, task: str, version: int) -> bool:
        return task in self._known and (task, version) not in self._forgotten


def installed_version(package: str) -> str:
    """The version of an installed package; "0" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0"


class _Maker:
    """Makes metrics in one registry of prometheus-client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=buckets)

    def info(self, name: str, text: str) -> Info:
        return Info(name, text, registry=self._registry)

    def seconds(self, name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
        return self.histogram(name, text, _SECONDS, labels)
