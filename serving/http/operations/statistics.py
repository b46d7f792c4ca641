"""`/v1/server`, `/v1/servers` and `/v1/statistics`: what runs, who follows the registry, and counts."""

import asyncio
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from http import HTTPMethod
from typing import Any, NotRequired

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase
from typing_extensions import TypedDict

from serving.access import Access
from serving.config import ServeConfig
from serving.http.body import JSON
from serving.http.call import HttpCall
from serving.http.documents import describe
from serving.http.operation import Operation, Reply
from serving.http.replies import json_reply
from serving.http.services import Services
from serving.metrics import STAGES, UNKNOWN, Metrics, installed_version

FIGURES = (
    "queue_rows", "running_rows", "in_flight_calls", "in_flight_bytes", "resident_side_networks", "resident_bytes",
    "generation_wanted", "generation_served", "cache_bytes", "cache_entries", "cache_hits", "cache_misses",
    "image_cache_bytes", "image_cache_entries", "image_cache_hits", "image_cache_misses",
)  # fmt: skip
"""Gauges and counters without labels, by their attributes in `Metrics`."""
PROCESS = {
    "process_resident_memory_bytes": "process_bytes",
    "process_start_time_seconds": "started_at",
    "process_cpu_seconds_total": "cpu_seconds",
}
"""prometheus-client's own of the process, by their names here. Only Linux has them."""


class CallerDocument(TypedDict):
    """Who asks."""

    name: str
    tenant: str
    scopes: dict[str, list[str]]
    """By verb: patterns of the tasks for which the caller may do it."""


class ServerDocument(TypedDict):
    """This server."""

    name: str
    version: str
    python: str
    torch: str
    backbone: str
    device: str
    """As the settings have it: auto, cpu, cuda ..."""
    dtype: str
    quantize: str
    vision: str
    """The vision encoder; empty: none."""
    cache_limit_bytes: int
    image_cache_limit_bytes: int
    grpc_port: int | None
    """None: it is that of Ray's proxy."""
    keeps_inputs: bool
    """Comparisons keep inputs on which versions differ."""
    asks_tokens: bool
    takes_changes: bool
    """This port takes changes of the registry; otherwise a port of their own does."""
    caller: CallerDocument


class FollowerDocument(TypedDict):
    """A server that follows the registry."""

    id: str
    address: str
    generation: int
    seen: NotRequired[str]
    """When it announced itself last; this server does not say."""


class ServersDocument(TypedDict):
    """The servers that follow the registry; this one first."""

    generation: int
    """The registry's newest."""
    served: bool
    """All of them serve it."""
    servers: list[FollowerDocument]


class VersionCounts(TypedDict):
    """One version's counts since the server's start."""

    task: str
    version: int | None
    """None: no version answered, as with an error before one was found."""
    requests: dict[str, int]
    """By gRPC's code, such as OK."""
    rows: int
    cached_rows: int
    """Rows whose input's activations were in the cache; those of shadows count here alone."""
    seconds: float
    """Of all requests together."""
    buckets: list[int]
    """Requests by time: up to the first bound, above it and up to the second, and so on; last, above all bounds."""


class StageCounts(TypedDict):
    """One stage since the server's start."""

    count: int
    seconds: float


class Statistics(TypedDict):
    """Counts since the server's start. The difference of two answers is what happened between them."""

    at: float
    """Seconds since 1970."""
    bounds: list[float]
    """Of `buckets`, in seconds."""
    versions: list[VersionCounts]
    server: dict[str, float] | None
    """Of the whole process; null for a caller who may not read every task."""
    stages: dict[str, StageCounts] | None


class ServerState:
    """The operations that say what this server is and does."""

    def __init__(self, services: Services, metrics: Metrics, config: ServeConfig, access: Access) -> None:
        self._services = services
        self._metrics = metrics
        self._config = config
        self._access = access

    def operations(self) -> Iterator[Operation]:
        """The three of them."""
        for name, path, summary, handler, response in (
            ("getServer", "/v1/server", "Describe this server, and who asks", self.server, ServerDocument),
            ("listServers", "/v1/servers", "List the servers that follow the registry", self.servers, ServersDocument),
            ("statistics", "/v1/statistics", "Count requests, times and cache hits of each version", self.statistics,
             Statistics),
        ):  # fmt: skip
            yield Operation(
                name=name,
                method=HTTPMethod.GET,
                path=path,
                summary=summary,
                handler=handler,
                responses={JSON: response},
                tag="server",
            )

    async def server(self, call: HttpCall) -> Reply:
        """Describe this server, and who asks."""
        caller = await self._services.caller(call)
        config = self._config
        document = ServerDocument(
            name="sidecast",
            version=installed_version("sidecast"),
            python=platform.python_version(),
            torch=installed_version("torch"),
            backbone=config.backbone,
            device=config.device,
            dtype=config.dtype,
            quantize=config.quantize,
            vision=config.images.vision,
            cache_limit_bytes=config.engine.cache_bytes,
            image_cache_limit_bytes=config.images.image_cache_bytes if config.images.vision else 0,
            grpc_port=config.port or None,
            keeps_inputs=config.shadow.keep_inputs,
            asks_tokens=self._access.asks,
            takes_changes=config.access.admin_port is None,
            caller=CallerDocument(
                name=caller.name,
                tenant=caller.tenant,
                scopes={verb: list(patterns) for verb, patterns in caller.scopes.patterns.items()},
            ),
        )
        return json_reply(document)

    async def servers(self, call: HttpCall) -> Reply:
        """List the servers that follow the registry."""
        return json_reply(describe(await self._services.servers(call)))

    async def statistics(self, call: HttpCall) -> Reply:
        """Count what happened since the start, of the tasks that the caller may read."""
        counts = await asyncio.to_thread(version_counts, self._metrics)
        readable, reads_all = await self._services.readable(call, {entry["task"] for entry in counts} - {UNKNOWN})
        document = Statistics(
            at=time.time(),
            bounds=_bounds(self._metrics.request_seconds),
            versions=[entry for entry in counts if entry["task"] in readable],
            server=_figures(self._metrics) if reads_all else None,
            stages=_stages(self._metrics) if reads_all else None,
        )
        return json_reply(document)


def version_counts(metrics: Metrics) -> list[VersionCounts]:
    """The counts of each task's versions, in order."""
    counts: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"requests": {}, "rows": 0, "cached_rows": 0, "seconds": 0.0, "buckets": []}
    )
    for labels, _, value in _samples(metrics.requests, "_total"):
        counts[labels["task"], labels["version"]]["requests"][labels["code"]] = int(value)
    for collector, member in ((metrics.rows, "rows"), (metrics.cached_rows, "cached_rows")):
        for labels, _, value in _samples(collector, "_total"):
            counts[labels["task"], labels["version"]][member] = int(value)
    for labels, suffix, value in _samples(metrics.request_seconds, "_bucket", "_sum"):
        entry = counts[labels["task"], labels["version"]]
        if suffix == "_sum":
            entry["seconds"] = value
        else:
            entry["buckets"].append(int(value) - sum(entry["buckets"]))  # they come cumulated, by their bounds
    return [
        VersionCounts(task=task, version=int(version) if version != UNKNOWN else None, **entry)  # type: ignore[typeddict-item]
        for (task, version), entry in sorted(counts.items())
    ]


def _samples(collector: MetricWrapperBase, *suffixes: str) -> Iterator[tuple[dict[str, str], str, float]]:
    """Labels, suffix of the name and value of a collector's samples."""
    for family in collector.collect():
        for sample in family.samples:
            suffix = sample.name.removeprefix(family.name)
            if suffix in suffixes:
                yield sample.labels, suffix, sample.value


def _bounds(histogram: Histogram) -> list[float]:
    return [bound for bound in histogram._upper_bounds if bound != float("inf")]


def _figures(metrics: Metrics) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in FIGURES:
        for _, _, value in _samples(getattr(metrics, name), "", "_total"):
            figures[name] = value
    for name, member in PROCESS.items():
        value = metrics.registry.get_sample_value(name)
        if value is not None:
            figures[member] = value
    return figures


def _stages(metrics: Metrics) -> dict[str, StageCounts]:
    stages = {stage: StageCounts(count=0, seconds=0.0) for stage in STAGES}
    for labels, suffix, value in _samples(metrics.stage_seconds, "_count", "_sum"):
        stage = stages[labels["stage"]]  # type: ignore[index]
        if suffix == "_sum":
            stage["seconds"] = value
        else:
            stage["count"] = int(value)
    return stages  # type: ignore[return-value]
