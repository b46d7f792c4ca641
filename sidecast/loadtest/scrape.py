"""What a server counted during a load: the difference between two readings of its Prometheus metrics."""

import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.client.credentials import Credentials

STAGES = ("queue", "tokenize", "backbone", "side", "decode")
DEVICE_STAGES = ("backbone", "side", "decode")
ASK_S = 10.0

Counts = Mapping[str, float]
"""A metric's value by its name and labels' values, as `sidecast_stage_seconds_sum backbone`."""

FAMILIES = (
    "sidecast_stage_seconds",
    "sidecast_batch_",
    "sidecast_padding_tokens",
    "sidecast_shed_requests",
    "sidecast_cache_",
)
"""Prefixes of the metrics that are read; the others are skipped, a server with ten thousand tasks has very many."""


class ScrapeError(Exception):
    """The metrics cannot be read."""


@dataclass(frozen=True, slots=True)
class Look:
    """The server's metrics at one time."""

    counts: Counts
    at: float
    """Seconds of the runner's clock."""


def read_metrics(url: str, credentials: Credentials | None = None) -> Counts:
    """Read every counter now. Blocks.

    Args:
        credentials: those of the client that makes the load.

    Raises:
        ScrapeError: nothing answers there, or not with the metrics of a Sidecast server.
    """
    credentials = credentials or Credentials()
    try:
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if credentials.uses_tls:
            handlers.append(urllib.request.HTTPSHandler(context=_context(credentials)))
        direct = urllib.request.build_opener(*handlers)
        request = urllib.request.Request(url, headers=dict(credentials.metadata()))
        with direct.open(request, timeout=ASK_S) as response:
            text = response.read().decode()
    except (OSError, ValueError) as error:
        raise ScrapeError(f"{url}: {getattr(error, 'reason', None) or error}") from None
    counts = parse_metrics(text)
    if not counts:
        raise ScrapeError(f"{url} has no metrics of a Sidecast server")
    return counts


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=credentials.tls_ca)
    if credentials.client_cert:
        context.load_cert_chain(credentials.client_cert, credentials.client_key)
    return context


def parse_metrics(text: str) -> Counts:
    """Parse Prometheus's text; only FAMILIES.

    Raises:
        ScrapeError: the text is not in Prometheus's format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    lines = "\n".join(line for line in text.splitlines() if line.startswith(FAMILIES))
    try:
        samples = [sample for family in text_string_to_metric_families(lines + "\n") for sample in family.samples]
    except (ValueError, KeyError) as error:
        raise ScrapeError(f"the metrics cannot be parsed: {error}") from None
    return {" ".join((sample.name, *sample.labels.values())): sample.value for sample in samples}


def compare(before: Look, after: Look) -> dict[str, Any] | None:
    """What grew between two looks: the document's `server` of a level. None if the server was restarted meanwhile."""
    grown = {name: value - before.counts.get(name, 0.0) for name, value in after.counts.items()}
    if any(value < 0 for name, value in grown.items() if name.endswith(("_total", "_count", "_sum"))):
        return None
    seconds = after.at - before.at
    # a batch counts where it ends: one that began before the window may bring more seconds than the window has
    stages = {stage: _stage(grown, stage) for stage in STAGES}
    return {
        "window_s": seconds,
        "stages": stages,
        "device_share": min(sum(_seconds(grown, stage) for stage in DEVICE_STAGES) / seconds, 1.0),
        "batches": grown.get("sidecast_batch_rows_count", 0.0),
        "batch_rows": _ratio(grown, "sidecast_batch_rows_sum", "sidecast_batch_rows_count"),
        "batch_tokens": _ratio(grown, "sidecast_batch_tokens_sum", "sidecast_batch_tokens_count"),
        "padding_share": _ratio(grown, "sidecast_padding_tokens_total", "sidecast_batch_tokens_sum"),
        "cache_hit_rate": _hit_rate(grown),
        "shed": sum(value for name, value in grown.items() if name.startswith("sidecast_shed_requests_total")),
    }


def _stage(grown: Counts, stage: str) -> dict[str, float | None]:
    count = grown.get(f"sidecast_stage_seconds_count {stage}", 0.0)
    total = _seconds(grown, stage)
    return {"count": count, "seconds": total, "mean_ms": 1e3 * total / count if count else None}


def _seconds(grown: Counts, stage: str) -> float:
    return grown.get(f"sidecast_stage_seconds_sum {stage}", 0.0)


def _ratio(grown: Counts, over: str, under: str) -> float | None:
    return grown.get(over, 0.0) / grown[under] if grown.get(under) else None


def _hit_rate(grown: Counts) -> float | None:
    """Hit rate of the activation cache; None without a cache or lookups."""
    hits, misses = (grown.get(f"sidecast_cache_{name}_total", 0.0) for name in ("hits", "misses"))
    return hits / (hits + misses) if hits + misses else None
