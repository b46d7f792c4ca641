"""Results of a load: one document for machines, tables and notes for people."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sidecast.loadtest.inputs import Inputs, Target
from sidecast.loadtest.measure import group_failures, summarise, summarise_stream
from sidecast.loadtest.plan import Closed, Level, NothingAnswered, Plan
from sidecast.loadtest.runner import Ran, client_figures
from sidecast.loadtest.scrape import DEVICE_STAGES, STAGES, compare

BUSY = 0.9
"""Fraction of a core: beyond it this process may limit the figures."""
LATE_MS = 20.0
"""Beyond it a note says that an open loop's requests were sent late."""
FEW = 3
"""Fewer requests per caller in a window get a note: their figures mean little."""

Document = dict[str, Any]
Table = tuple[str, Sequence[str], list[list[str]]]
"""Title, headings, rows."""


def make_document(plan: Plan, targets: Sequence[Target], inputs: Inputs, levels: Sequence[Ran]) -> Document:
    """All figures; docs/operation/load-testing.md describes each field."""
    return {
        "plan": _plan(plan),
        "tasks": [{"task": target.ref, "kind": target.kind, "version": target.version} for target in targets],
        "levels": [_level(plan, ran) for ran in levels],
        "interrupted": any(ran.interrupted for ran in levels),
        "notes": list(_notes(plan, inputs, levels)),
    }


def check_answered(levels: Sequence[Ran]) -> None:
    """Check that some request was answered.

    Raises:
        NothingAnswered: no request of any level was.
    """
    calls = [call for ran in levels for call in ran.calls]
    if any(call.failure is None for call in calls):
        return
    kinds = group_failures(calls)
    if not kinds:
        raise NothingAnswered("no request was answered in time; try a longer --duration or --timeout")
    counts = ", ".join(f"{kind['count']} {kind['reason']}" for kind in kinds)
    raise NothingAnswered(f"no request was answered: {counts} ({kinds[0]['message']})")


def _plan(plan: Plan) -> Document:
    return asdict(plan) | {"levels": [_level_name(level) for level in plan.levels]}


def _level_name(level: Level) -> Document:
    if isinstance(level, Closed):
        return {"name": str(level), "mode": "closed", "concurrency": level.callers, "rate": None, "arrivals": None}
    return {"name": str(level), "mode": "open", "concurrency": None, "rate": level.rate, "arrivals": level.arrivals}


def _level(plan: Plan, ran: Ran) -> Document:
    server = compare(ran.before, ran.after) if ran.before and ran.after else None
    return {
        **_level_name(ran.level),
        "window_s": ran.window.seconds,
        **summarise(ran.calls, ran.window, plan.timeout_s),
        "stream": summarise_stream(ran.calls, ran.window) if plan.stream else None,
        "server": server,
        "client": client_figures(ran),
        "interrupted": ran.interrupted,
    }


def _notes(plan: Plan, inputs: Inputs, levels: Sequence[Ran]) -> Iterator[str]:
    """What a reader of the figures should know."""
    for ran in levels:
        yield from (f"{ran.level}: {note}" for note in _level_notes(plan, ran))
    if any(ran.lost for ran in levels):
        yield "the server has gone; what comes after was left out"
    elif len(levels) < len(plan.levels):
        yield f"{len(plan.levels) - len(levels)} of {len(plan.levels)} levels were left out"
    if faults := [ran.fault for ran in levels if ran.fault]:
        yield f"without the server's metrics, so without stages: {faults[0]} (--metrics-url says where they are)"
    for size in inputs.came_round:
        yield f"the file's {size} rows were sent more than once: later ones may have been answered from a cache"


def _level_notes(plan: Plan, ran: Ran) -> Iterator[str]:
    figures = client_figures(ran)
    if figures["cpu_share"] > BUSY:
        share = f"{figures['cpu_share']:.0%}"
        yield f"this client used {share} of a core, and may be the slower part; run several beside each other"
    if figures["most_in_flight"] >= plan.max_in_flight and not isinstance(ran.level, Closed):
        yield f"all {plan.max_in_flight} requests of --max-in-flight were under way; those due meanwhile waited here"
    elif figures["late_ms"] > LATE_MS:
        yield f"one request in a hundred was sent {figures['late_ms']:.0f} ms late or more; that is in its latency"
    counted = sum(call.due in ran.window for call in ran.calls)
    callers = ran.level.callers if isinstance(ran.level, Closed) else 1
    if counted < FEW * callers:
        yield f"only {counted} requests in its window; give it a longer --duration"
    if ran.interrupted:
        yield f"interrupted after {ran.window.seconds:.1f} s of its window"
    if ran.before and ran.after and compare(ran.before, ran.after) is None:
        yield "the server began anew meanwhile, so its metrics say nothing"


def tables(document: Document) -> Iterator[Table]:
    """What people read: all levels' results; streams; the server's stages; errors."""
    levels = document["levels"]
    headings = ("load", "due/s", "req/s", "rows/s", "p50 ms", "p90", "p95", "p99", "max", "goodput/s", "errors", "shed")
    rows = [_result_row(level) for level in levels]
    if not is_open(document):  # callers send when they can: nothing is ever due
        headings, rows = headings[:1] + headings[2:], [row[:1] + row[2:] for row in rows]
    yield "What callers saw", headings, rows
    if any(level["stream"] for level in levels):
        headings = ("load", "first token p50 ms", "p99", "between tokens p50 ms", "p99", "tokens/s", "tokens/text")
        yield "Streams", headings, [_stream_row(level) for level in levels]
    if staged := [level for level in levels if level["server"] and level["server"]["batches"]]:
        headings = ("load", *(f"{stage} ms" for stage in STAGES), "device", "rows/batch", "padding", "cache hits")
        yield "The server's stages, means", headings, [_stage_row(level) for level in staged]
    if any(level["errors"] for level in levels):
        rows = [
            [level["name"], error["reason"], error["code"], str(error["count"]), error["message"]]
            for level in levels
            for error in level["errors"]
        ]
        yield "Errors", ("load", "reason", "code", "count", "one of them"), rows


def _result_row(level: Document) -> list[str]:
    latency = level["latency_ms"] or {}
    figures = [_number(latency.get(name)) for name in ("p50", "p90", "p95", "p99", "max")]
    rates = [_number(level[name]) for name in ("due_per_s", "requests_per_s", "rows_per_s")]
    failed = sum(error["count"] for error in level["errors"])
    return [level["name"], *rates, *figures, _number(level["goodput_per_s"]), str(failed), str(level["shed"])]


def _stream_row(level: Document) -> list[str]:
    stream = level["stream"]
    first, between = (stream[name] or {} for name in ("first_ms", "between_ms"))
    times = [_number(figures.get(name)) for figures in (first, between) for name in ("p50", "p99")]
    return [level["name"], *times, _number(stream["tokens_per_s"]), _number(stream["tokens_per_text"])]


def _stage_row(level: Document) -> list[str]:
    server = level["server"]
    means = [_number(server["stages"][stage]["mean_ms"]) for stage in STAGES]
    shares = [_percent(server[name]) for name in ("padding_share", "cache_hit_rate")]
    return [level["name"], *means, _percent(server["device_share"]), _number(server["batch_rows"]), *shares]


def _number(value: float | None) -> str:
    """Three digits that matter; a dash where there is nothing."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def is_open(document: Document) -> bool:
    """Whether requests came by their own times."""
    return any(level["mode"] == "open" for level in document["levels"])


def explain(document: Document) -> Mapping[str, str]:
    """Words of the tables that do not explain themselves."""
    timeout = document["plan"]["timeout_s"]
    words = {"goodput": f"answers within {timeout:g} s of when they were due"}
    if is_open(document):
        words["latency"] = "from when a request was due, not from when it was sent"
    if any(level["server"] for level in document["levels"]):
        words["stages"] = "queue and tokenize of a request, the others of a batch"
        words["device"] = f"share of the time that {', '.join(DEVICE_STAGES)} took"
    return words
