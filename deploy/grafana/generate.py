"""Write the dashboard sidecast.json: `python deploy/grafana/generate.py`; `--check` only compares.

A panel is a line in PANELS. In a query `<all>` selects the servers of the chosen namespaces, `<task>` the chosen tasks
too (SELECTORS has the others), and `<rate>` is Grafana's range for rates.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "sidecast.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTORS = {
    "<task>": '{namespace=~"$namespace", task=~"$task"}',
    "<served>": '{namespace=~"$namespace", task=~"$task", version!="unknown"}',
    "<device>": '{namespace=~"$namespace", stage=~"backbone|side|decode"}',
    "<all>": '{namespace=~"$namespace"}',
    "<rate>": "[$__rate_interval]",
}
WIDTH = 8
HEIGHT = 8
COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One diagram over time.

    Args:
        unit: Grafana's name of it.
        queries: PromQL to the legend of its lines.
        stacked: the lines are parts of a whole.
    """

    title: str
    about: str
    unit: str
    queries: dict[str, str]
    stacked: bool = False


def quantiles(metric: str, *levels: float) -> dict[str, str]:
    """Queries of quantiles of a histogram; `metric` with its selector."""
    name, selector = metric.split("<")
    rate = f"rate({name}_bucket<{selector}<rate>)"
    return {f"histogram_quantile({level}, sum by (le) ({rate}))": f"p{100 * level:.0f}" for level in levels}


def hits(cache: str) -> str:
    """Query of the share of look-ups that a cache answered; `cache` is the beginning of its metrics' names."""
    found, missed = (f"sum(rate({cache}_{what}_total<all><rate>))" for what in ("hits", "misses"))
    return f"{found} / ({found} + {missed})"


def mean(metric: str, labels: str = "") -> str:
    """Query of the mean of a histogram, by `labels`; `metric` with its selector."""
    name, selector = metric.split("<")
    by = f" by ({labels}) " if labels else ""
    return " / ".join(f"sum{by}(rate({name}_{part}<{selector}<rate>))" for part in ("sum", "count"))


PANELS: dict[str, list[Panel]] = {
    "Callers": [
        Panel(
            "Requests by code",
            "Answered requests, one per task of each.",
            "reqps",
            {"sum by (code) (rate(sidecast_requests_total<task><rate>))": "{{code}}"},
            stacked=True,
        ),
        Panel("Latency", "From admission to answer.", "s", quantiles("sidecast_request_seconds<task>", 0.5, 0.9, 0.99)),
        Panel(
            "Slowest tasks, p99",
            "The ten slowest.",
            "s",
            {
                "topk(10, histogram_quantile(0.99, "
                "sum by (task, le) (rate(sidecast_request_seconds_bucket<task><rate>))))": "{{task}}"
            },
        ),
        Panel(
            "Busiest tasks",
            "The ten with the most requests.",
            "reqps",
            {"topk(10, sum by (task) (rate(sidecast_requests_total<task><rate>)))": "{{task}}"},
            stacked=True,
        ),
        Panel(
            "Versions that answer",
            "By task and version.",
            "reqps",
            {"sum by (task, version) (rate(sidecast_requests_total<served><rate>))": "{{task}}:{{version}}"},
            stacked=True,
        ),
        Panel(
            "Failures and refusals",
            "Refused by reason, and rows that expired.",
            "reqps",
            {
                "sum by (reason) (rate(sidecast_shed_requests_total<all><rate>))": "refused: {{reason}}",
                "sum(rate(sidecast_expired_rows_total<all><rate>))": "expired rows",
            },
        ),
    ],
    "Device": [
        Panel(
            "Busy",
            "Share of the time that a server's device computes.",
            "percentunit",
            {"sum by (instance) (rate(sidecast_stage_seconds_sum<device><rate>))": "{{instance}}"},
        ),
        Panel(
            "Where time goes",
            "Seconds a second, over all servers.",
            "percentunit",
            {"sum by (stage) (rate(sidecast_stage_seconds_sum<all><rate>))": "{{stage}}"},
            stacked=True,
        ),
        Panel(
            "Waiting rows",
            "For the device; and texts being made.",
            "short",
            {
                "sum by (instance) (sidecast_queue_rows<all>)": "{{instance}}",
                "sum(sidecast_running_rows<all>)": "texts being made",
            },
        ),
        Panel(
            "Waiting tokens",
            "For the device.",
            "short",
            {"sum by (instance) (sidecast_queue_tokens<all>)": "{{instance}}"},
        ),
        Panel(
            "Waiting rows by task",
            "The ten with the most.",
            "short",
            {"topk(10, sum by (task) (sidecast_task_queue_rows<task>))": "{{task}}"},
        ),
        Panel(
            "Batches",
            "Inputs of a backbone pass, the mean.",
            "short",
            {mean("sidecast_batch_rows<all>"): "rows"},
        ),
        Panel(
            "Padding",
            "Share of the tokens of backbone passes.",
            "percentunit",
            {
                "sum(rate(sidecast_padding_tokens_total<all><rate>)) "
                "/ sum(rate(sidecast_batch_tokens_sum<all><rate>))": "padding"
            },
        ),
        Panel(
            "First piece of a streamed text",
            "From admission.",
            "s",
            quantiles("sidecast_first_piece_seconds<all>", 0.5, 0.99),
        ),
        Panel(
            "Activation cache: hits",
            "Share of the inputs.",
            "percentunit",
            {hits("sidecast_cache"): "hits"},
        ),
        Panel(
            "Activation cache: size",
            "On the devices.",
            "bytes",
            {"sum by (instance) (sidecast_cache_bytes<all>)": "{{instance}}"},
        ),
        Panel(
            "Activation cache: evictions",
            "By cause.",
            "ops",
            {"sum by (cause) (rate(sidecast_cache_evictions_total<all><rate>))": "{{cause}}"},
            stacked=True,
        ),
    ],
    "Images": [
        Panel(
            "Images encoded",
            "By the vision encoder.",
            "ops",
            {"sum by (instance) (rate(sidecast_images_encoded_total<all><rate>))": "{{instance}}"},
        ),
        Panel(
            "Feature cache: hits",
            "Share of the images.",
            "percentunit",
            {hits("sidecast_image_cache"): "hits"},
        ),
        Panel(
            "Images that wait, and faults",
            "Images of requests that wait for their features; images without features, by fault.",
            "short",
            {
                "sum by (instance) (sidecast_queued_images<all>)": "{{instance}}",
                "sum by (fault) (increase(sidecast_image_faults_total<all><rate>))": "{{fault}}",
            },
        ),
    ],
    "Versions": [
        Panel(
            "Generation served",
            "Servers that differ for long do not follow the registry.",
            "none",
            {"sidecast_generation_served<all>": "{{instance}}", "max(sidecast_generation_wanted<all>)": "wanted"},
        ),
        Panel(
            "Time to swap",
            "From seeing a version in the registry to it being resident.",
            "s",
            quantiles("sidecast_swap_seconds<all>", 0.5, 0.99),
        ),
        Panel(
            "Versions that did not load",
            "Since each server's start.",
            "short",
            {"sum by (task, reason) (sidecast_load_failures_total<task>)": "{{task}}: {{reason}}"},
        ),
        Panel(
            "Resident side networks",
            "On each device.",
            "short",
            {"sidecast_resident_side_networks<all>": "{{instance}}"},
        ),
        Panel(
            "Resident side networks: size", "On each device.", "bytes", {"sidecast_resident_bytes<all>": "{{instance}}"}
        ),
        Panel(
            "Routes ended by a bound",
            "Since each server's start.",
            "short",
            {"sum by (task, reason) (sidecast_route_rollbacks_total<task>)": "{{task}}: {{reason}}"},
        ),
        Panel(
            "Shadows",
            "Rows that shadow versions answered; callers do not see these answers.",
            "ops",
            {
                "sum by (task, version, outcome) (rate(sidecast_shadow_rows_total<task><rate>))": (
                    "{{task}}:{{version}} {{outcome}}"
                )
            },
            stacked=True,
        ),
        Panel(
            "Shadows: drift",
            "Distance from the alias's main version; the mean.",
            "short",
            {mean("sidecast_shadow_drift<task>", "task, version"): "{{task}}:{{version}}"},
        ),
        Panel(
            "Shadows: cost",
            "Seconds a second on the devices.",
            "percentunit",
            {"sum by (task, version) (rate(sidecast_shadow_seconds_total<task><rate>))": "{{task}}:{{version}}"},
            stacked=True,
        ),
    ],
}
"""By row."""


VARIABLES: list[dict[str, Any]] = [
    {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
    {
        "name": "namespace",
        "label": "Namespace",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": "label_values(sidecast_generation_served, namespace)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    },
    {
        "name": "task",
        "label": "Task",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": 'label_values(sidecast_requests_total{namespace=~"$namespace"}, task)',
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    },
]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in PANELS.items():
        panels.append(_row(row, len(panels) + 1, y))
        y += 1
        for index, panel in enumerate(members):
            x = index % COLUMNS * WIDTH
            panels.append(_panel(panel, len(panels) + 1, x, y + index // COLUMNS * HEIGHT))
        y += -(-len(members) // COLUMNS) * HEIGHT
    return {
        "title": "Sidecast",
        "uid": "sidecast",
        "tags": ["sidecast"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": VARIABLES},
        "panels": panels,
    }


def _row(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": 24, "x": 0, "y": y}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    custom = {
        "fillOpacity": 20 if panel.stacked else 5,
        "stacking": {"mode": "normal" if panel.stacked else "none"},
    }
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "expr": _selected(query), "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries.items())
        ],
    }


def _selected(query: str) -> str:
    for name, selector in SELECTORS.items():
        query = query.replace(name, selector)
    return query


def main(arguments: list[str]) -> int:
    """Write the file, or with --check compare it; return the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python deploy/grafana/generate.py [--check]", file=sys.stderr)
        return 2
    text = json.dumps(dashboard(), indent=1) + "\n"
    if not arguments:
        FILE.write_text(text, encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != text:
        print("deploy/grafana/sidecast.json is not fresh; run `python deploy/grafana/generate.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
