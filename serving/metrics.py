"""What the server counts: prometheus-client, base units, bounded labels.

`task` is only ever a task of the registry, `version` one of its numbers; anything a caller made up becomes "unknown".
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Stage = Literal["queue", "tokenize", "backbone", "side", "decode"]
STAGES: tuple[Stage, ...] = ("queue", "tokenize", "backbone", "side", "decode")
EVICTION_CAUSES = ("fresh", "kept", "replaced", "memory")
SHED_REASONS = ("queue", "deadline", "task")
UNKNOWN = "unknown"

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """One server's metrics, in one registry of prometheus-client."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._known: frozenset[str] = frozenset()
        self._forgotten: set[tuple[str, int]] = set()
        """Versions of known tasks: an answer of theirs that comes late must not bring their series back."""
        self.requests = Counter(
            "sidecast_requests", "Answered requests, per task of each.", ("task", "version", "code"), registry=registry
        )
        self.request_seconds = Histogram(
            "sidecast_request_seconds",
            "From admission to answer.",
            ("task",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.stage_seconds = Histogram(
            "sidecast_stage_seconds",
            "Time in one stage: queue and tokenize per request, backbone and side per batch, decode per token step.",
            ("stage",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.first_piece_seconds = Histogram(
            "sidecast_first_piece_seconds",
            "From admission to the first piece of a streamed text.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_rows = Histogram(
            "sidecast_batch_rows", "Inputs of a backbone pass.", registry=registry, buckets=_ROWS
        )
        self.batch_tokens = Histogram(
            "sidecast_batch_tokens", "Tokens of a backbone pass, with padding.", registry=registry, buckets=_TOKENS
        )
        self.padding_tokens = Counter(
            "sidecast_padding_tokens", "Tokens of backbone passes that were padding.", registry=registry
        )
        self.queue_rows = Gauge("sidecast_queue_rows", "Rows waiting for the device.", registry=registry)
        self.queue_tokens = Gauge("sidecast_queue_tokens", "Tokens waiting for the device.", registry=registry)
        self.task_queue_rows = Gauge(
            "sidecast_task_queue_rows", "Rows of one task waiting for the device.", ("task",), registry=registry
        )
        self.running_rows = Gauge("sidecast_running_rows", "Texts being made, each beam counted.", registry=registry)
        self.shed_requests = Counter(
            "sidecast_shed_requests",
            "Requests refused because the queue was full (queue) or too long for their deadline (deadline; on arrival, "
            "or when their turn came), or because a task was at a limit of its own (task).",
            ("reason",),
            registry=registry,
        )
        self.expired_rows = Counter(
            "sidecast_expired_rows",
            "Rows without an answer at their deadline.",
            registry=registry,
        )
        self.resident_side_networks = Gauge(
            "sidecast_resident_side_networks", "Side networks on the device.", registry=registry
        )
        self.resident_bytes = Gauge(
            "sidecast_resident_bytes", "Bytes of the resident side networks' weights.", registry=registry
        )
        self.generation_wanted = Gauge(
            "sidecast_generation_wanted", "The registry's newest known generation.", registry=registry
        )
        self.generation_served = Gauge(
            "sidecast_generation_served", "The generation that is fully applied here.", registry=registry
        )
        self.swap_seconds = Histogram(
            "sidecast_swap_seconds",
            "From seeing a new version in the registry to it being resident.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.load_failures = Counter(
            "sidecast_load_failures", "Versions that did not load.", ("task", "reason"), registry=registry
        )
        self.cache_hits = Counter(
            "sidecast_cache_hits", "Inputs whose activations were in the cache.", registry=registry
        )
        self.cache_misses = Counter(
            "sidecast_cache_misses", "Inputs that needed the backbone, once each in a batch.", registry=registry
        )
        self.cache_evictions = Counter(
            "sidecast_cache_evictions",
            "Inputs that left the activation cache: never asked again (fresh), asked again but not of late (kept), "
            "replaced by a deeper pass (replaced), to make room on the device (memory).",
            ("cause",),
            registry=registry,
        )
        self.cache_bytes = Gauge("sidecast_cache_bytes", "Bytes of cached activations.", registry=registry)
        self.cache_entries = Gauge("sidecast_cache_entries", "Inputs in the activation cache.", registry=registry)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for reason in SHED_REASONS:
            self.shed_requests.labels(reason)
        for cause in EVICTION_CAUSES:
            self.cache_evictions.labels(cause)

    def know(self, tasks: Iterable[str]) -> None:
        """Only these names become label values. Forgets the series of tasks that are gone."""
        known = frozenset(tasks)
        for task in self._known - known:
            for metric in (self.requests, self.request_seconds, self.load_failures, self.task_queue_rows):
                metric.remove_by_labels({"task": task})
        self._known = known
        self._forgotten = {each for each in self._forgotten if each[0] in known}

    def remember(self, task: str, version: int) -> None:
        """It is served, perhaps again."""
        self._forgotten.discard((task, version))

    def forget(self, task: str, version: int) -> None:
        """Drop the series of a version that is no longer served."""
        self.requests.remove_by_labels({"task": task, "version": str(version)})
        if task in self._known:
            self._forgotten.add((task, version))

    def shed(self, reason: str) -> None:
        """Count a refused request; `reason` is one of SHED_REASONS."""
        self.shed_requests.labels(reason).inc()

    def task_queue(self, task: str, rows: int) -> None:
        if task in self._known:
            self.task_queue_rows.labels(task).set(rows)

    def request(self, task: str | None, version: int | None, code: str, seconds: float | None = None) -> None:
        """Count one task's answer. `version` is the one that answered, None where none did; `code` as in OK."""
        name = task if task in self._known else UNKNOWN
        is_gone = version is None or name == UNKNOWN or (name, version) in self._forgotten
        number = UNKNOWN if is_gone else str(version)
        self.requests.labels(name, number, code).inc()
        if seconds is not None:
            self.request_seconds.labels(name).observe(seconds)

    def load_failure(self, task: str, reason: str) -> None:
        self.load_failures.labels(task if task in self._known else UNKNOWN, reason).inc()

    def stage(self, stage: Stage, seconds: float) -> None:
        self.stage_seconds.labels(stage).observe(seconds)

    def cache_looked_up(self, hits: int, misses: int) -> None:
        self.cache_hits.inc(hits)
        self.cache_misses.inc(misses)

    def cache_evicted(self, cause: str, inputs: int) -> None:
        """`cause` is one of EVICTION_CAUSES."""
        self.cache_evictions.labels(cause).inc(inputs)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Observe how long the block takes."""
        start = perf_counter()
        try:
            yield
        finally:
            self.stage(stage, perf_counter() - start)

    def batch(self, rows: int, tokens: int, padding: int) -> None:
        """Count one backbone pass over `rows` inputs that the cache did not know; `tokens` includes `padding`."""
        self.batch_rows.observe(rows)
        self.batch_tokens.observe(tokens)
        self.padding_tokens.inc(padding)
