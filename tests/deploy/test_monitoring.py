"""Rules and dashboard ask for metrics that there are, by labels that they have."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics
from serving.ports import MetricsServer
from tests.deploy.kit import DEPLOY, ROOT, run

Families = list[Any]
RULES = DEPLOY / "prometheus/rules.yaml"

OF_THE_TARGET = frozenset({"namespace", "pod", "instance"})
"""Labels that Prometheus adds."""


@pytest.fixture(scope="module")
def scrape() -> Families:
    """The metrics of a server that has counted everything once, as Prometheus reads them from its port."""
    metrics = Metrics()
    count_everything(metrics)
    server = MetricsServer("127.0.0.1", 0, metrics.registry)
    try:
        text = requests.get(f"http://127.0.0.1:{server.port}/metrics", timeout=30).text
    finally:
        server.close()
    return list(text_string_to_metric_families(text))


def count_everything(metrics: Metrics) -> None:
    metrics.know(["sst2"])
    metrics.request("sst2", 1, "OK", 0.1, rows=2)
    metrics.truncated("sst2", 1)
    metrics.task_queue("sst2", 1)
    metrics.load_failure("sst2", "LOAD_FAILED")
    metrics.shadowed("sst2", 1, "agreed")
    metrics.drifted("sst2", 1, 0.1)
    metrics.shadow_took("sst2", 1, 0.1)
    metrics.route_rolled_back("sst2", "latency")
    metrics.image_faults.labels("damaged").inc()


@pytest.fixture(scope="module")
def labels(scrape: Families) -> Mapping[str, frozenset[str]]:
    """The labels of each series of the scrape."""
    samples = [sample for family in scrape for sample in family.samples]
    return {sample.name: frozenset(sample.labels) for sample in samples}


def rules(kind: str = "alert") -> list[dict[str, Any]]:
    """Alerts, or with "record" what is recorded. Their expressions name no recorded series, but what these are."""
    file = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())
    found = [rule for group in file["spec"]["groups"] for rule in group["rules"]]
    recorded: dict[str, str] = {}
    for rule in found:
        for name, expression in recorded.items():
            rule["expr"] = rule["expr"].replace(name, f"({expression})")
        if "record" in rule:
            recorded[rule["record"]] = rule["expr"]
    return [rule for rule in found if kind in rule]


def panels() -> list[dict[str, Any]]:
    return json.loads((DEPLOY / "grafana/sidecast.json").read_text())["panels"]


def expressions() -> Iterator[Any]:
    for kind in ("alert", "record"):
        yield from (pytest.param(rule["expr"], id=rule[kind]) for rule in rules(kind))
    for panel in panels():
        for target in panel.get("targets", ()):
            yield pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")


def nodes(expression: str) -> list[Any]:
    """All of an expression's tree. Raises ValueError: it is no PromQL."""
    import promql_parser

    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), found.append)
    return found


def named(found: list[Any], kind: str) -> list[Any]:
    return [each for each in found if type(each).__name__ == kind]


def mistakes(expression: str, labels: Mapping[str, frozenset[str]]) -> Iterator[str]:
    found = nodes(expression)
    selectors = named(found, "VectorSelector")
    yield from (f"no metric {each.name}" for each in selectors if each.name not in labels)
    for each in selectors:
        own = labels.get(each.name, frozenset()) | OF_THE_TARGET
        yield from (f"{each.name} has no {one.name}" for one in each.matchers.matchers if one.name not in own)
    for each in named(found, "AggregateExpr"):
        below = named(nodes(each.expr.prettify()), "VectorSelector")
        own = OF_THE_TARGET.union(*(labels.get(one.name, ()) for one in below))
        by = each.modifier.labels if each.modifier else ()
        yield from (f"nothing in {each.expr.prettify()} has {label}" for label in by if label not in own)


@pytest.mark.parametrize("expression", list(expressions()))
def test_metrics_and_labels_exist(expression: str, labels: Mapping[str, frozenset[str]]) -> None:
    assert not list(mistakes(expression, labels))


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("sidecast_request_total", "no metric sidecast_request_total"),
        ('sidecast_queue_rows{task="t"}', "sidecast_queue_rows has no task"),
        ("sum by (code) (sidecast_queue_rows)", "nothing in sidecast_queue_rows has code"),
    ],
)
def test_mistakes_are_found(expression: str, mistake: str, labels: Mapping[str, frozenset[str]]) -> None:
    assert list(mistakes(expression, labels)) == [mistake]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_say_what_they_know(rule: dict[str, Any]) -> None:
    """A label that an aggregation dropped would read as empty."""
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = [set(each.modifier.labels) for each in named(nodes(rule["expr"]), "AggregateExpr") if each.modifier]
    assert told <= (set().union(*kept) if kept else OF_THE_TARGET)
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["description"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_keep_the_namespace(rule: dict[str, Any]) -> None:
    """Teams that share a Prometheus are told of their own servers by it."""
    for each in named(nodes(rule["expr"]), "AggregateExpr"):
        assert "namespace" in each.modifier.labels


def test_a_recorded_series_is_named_by_its_labels_and_what_it_is() -> None:
    """As Prometheus has it: level:metric:operations."""
    for rule in rules("record"):
        level, metric, _ = rule["record"].split(":")
        assert "namespace" in level.split("_")
        selected = named(nodes(rule["expr"]), "MatrixSelector")
        assert selected
        assert metric.startswith("sidecast_request")
        outer = named(nodes(rule["expr"]), "AggregateExpr")
        assert all(set(level.split("_")) <= set(each.modifier.labels) for each in outer)


@pytest.mark.parametrize(
    ("alert", "metric"),
    [
        ("SidecastRegistryAway", "sidecast_registry_read_timestamp_seconds"),
        ("SidecastServersDisagree", "sidecast_generation_served"),
    ],
)
def test_servers_that_start_fire_nothing(alert: str, metric: str) -> None:
    """A gauge is 0 until it is set."""
    [expression] = [rule["expr"] for rule in rules() if rule["alert"] == alert]
    compared = [each.prettify() for each in named(nodes(expression), "BinaryExpr")]
    assert f"{metric} > 0" in {" ".join(each.split()) for each in compared}
    if alert == "SidecastServersDisagree":
        assert expression.count(metric) == expression.count(f"{metric} > 0")


UNITS = {"seconds", "bytes"}
"""Base units of Prometheus's conventions that the metrics have."""
OTHER_UNITS = {"ms", "milliseconds", "microseconds", "ns", "minutes", "kilobytes", "megabytes", "mb", "percent"}


def test_metrics_follow_the_conventions(scrape: Families) -> None:
    for family in scrape:
        words = family.name.split("_")
        assert words[0] in ("sidecast", "process"), family.name
        assert not OTHER_UNITS.intersection(words), f"{family.name}: use {UNITS}"
        assert ("total" in words) is False, "the format adds _total to counters, and nothing else has it"
        assert family.documentation.endswith((".", "is 1.")), family.name
        assert not [label for sample in family.samples for label in sample.labels if label in ("name", "type", "id")]


def test_metrics_read_the_same_as_openmetrics(scrape: Families) -> None:
    metrics = Metrics()
    count_everything(metrics)
    server = MetricsServer("127.0.0.1", 0, metrics.registry)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    try:
        text = requests.get(f"http://127.0.0.1:{server.port}/metrics", headers=accept, timeout=30).text
    finally:
        server.close()
    names = {sample.name for family in openmetrics_families(text) for sample in family.samples}
    assert names == {sample.name for family in scrape for sample in family.samples}


def test_promtool_finds_no_fault(tmp_path: Path) -> None:
    metrics = Metrics()
    count_everything(metrics)
    done = run("promtool", "check", "metrics", stdin=generate_latest(metrics.registry).decode())
    assert done.returncode == 0, done.stdout + done.stderr
    spec = yaml.safe_load(RULES.read_text())["spec"]
    for rule in (rule for group in spec["groups"] for rule in group["rules"]):
        rule.pop("annotations", None)  # the expected alerts are told by their labels
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "tests.yaml").write_text((DEPLOY / "prometheus/rules_test.yaml").read_text())
    done = run("promtool", "test", "rules", tmp_path / "tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_that_of_the_code() -> None:
    done = subprocess.run([sys.executable, DEPLOY / "grafana/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_panels_have_ids_and_places_of_their_own() -> None:
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels()]
    assert len(set(places)) == len({each["id"] for each in panels()}) == len(panels())


def test_the_dashboard_filters_by_variables_that_it_has() -> None:
    text = (DEPLOY / "grafana/sidecast.json").read_text()
    variables = {each["name"] for each in json.loads(text)["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)\}?", text)) == variables


def test_the_page_tells_every_alert() -> None:
    page = (ROOT / "docs/operation/deploying.md").read_text()
    assert set(re.findall(r"`(Sidecast[A-Z]\w+)`", page)) == {rule["alert"] for rule in rules()}
