"""Metrics keep their labels bounded: nothing that a caller made up becomes one."""

import importlib.util
import platform
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from serving.metrics import Metrics, installed_version


def test_only_tasks_of_the_registry_become_labels() -> None:
    metrics = Metrics()
    metrics.know(["sst2"])
    metrics.request("sst2", 3, "OK", 0.1)
    metrics.request("'; drop table", 3, "NOT_FOUND", 0.1)
    metrics.request(None, None, "INVALID_ARGUMENT")
    metrics.load_failure("made-up", "CORRUPT_SIDE")
    text = generate_latest(metrics.registry).decode()
    assert 'sidecast_requests_total{code="OK",task="sst2",version="3"} 1.0' in text
    assert 'sidecast_requests_total{code="NOT_FOUND",task="unknown",version="unknown"} 1.0' in text
    assert 'sidecast_request_seconds_count{task="sst2",version="3"} 1.0' in text
    assert "drop table" not in text
    assert "made-up" not in text


def test_a_task_that_is_gone_takes_its_series_along() -> None:
    metrics = Metrics()
    metrics.know(["sst2", "cola"])
    for task in ("sst2", "cola"):
        metrics.request(task, 1, "OK", 0.1)
        metrics.load_failure(task, "CORRUPT_SIDE")
    metrics.know(["cola"])
    text = generate_latest(metrics.registry).decode()
    assert "sst2" not in text
    assert 'task="cola"' in text


def test_a_version_that_is_gone_takes_its_series_along() -> None:
    metrics = Metrics()
    metrics.know(["sst2"])
    for version in (1, 2):
        for code in ("OK", "SIDE_FAILED"):
            metrics.request("sst2", version, code, 0.1, rows=2)
    metrics.forget("sst2", 1)
    assert metrics.answered("sst2", 1).requests == 0
    assert metrics.answered("sst2", 2).requests == 1
    metrics.forget("sst2", 7)
    text = generate_latest(metrics.registry).decode()
    assert 'version="1"' not in text
    assert text.count('task="sst2",version="2"') == text.count('version="2"') > 0


def test_a_late_answer_of_a_version_that_is_gone_brings_no_series_back() -> None:
    metrics = Metrics()
    metrics.know(["sst2"])
    metrics.forget("sst2", 1)
    metrics.request("sst2", 1, "OK")
    value = metrics.registry.get_sample_value
    assert value("sidecast_requests_total", {"task": "sst2", "version": "unknown", "code": "OK"}) == 1
    assert value("sidecast_requests_total", {"task": "sst2", "version": "1", "code": "OK"}) is None
    metrics.remember("sst2", 1)
    metrics.request("sst2", 1, "OK")
    assert value("sidecast_requests_total", {"task": "sst2", "version": "1", "code": "OK"}) == 1
    metrics.forget("sst2", 1)
    metrics.know([])
    metrics.know(["sst2"])  # a new task of that name
    metrics.request("sst2", 1, "OK")
    assert value("sidecast_requests_total", {"task": "sst2", "version": "1", "code": "OK"}) == 1


def test_no_series_says_when_another_was_made() -> None:
    metrics = Metrics()
    metrics.know(["sst2"])
    metrics.request("sst2", 1, "OK", 0.1, rows=2)
    for text in (generate_latest(metrics.registry), openmetrics(metrics.registry)):
        assert b"_created" not in text


def test_the_build_and_the_process_are_told() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    labels = {
        "version": installed_version("sidecast"),
        "python": platform.python_version(),
        "torch": installed_version("torch"),
    }
    assert value("sidecast_build_info", labels) == 1
    assert (value("process_resident_memory_bytes") or 0) > 0


def test_calls_in_flight_are_asked_for_at_each_scrape() -> None:
    metrics, in_flight = Metrics(), [3]
    metrics.follow_calls(lambda: in_flight[-1])
    assert metrics.registry.get_sample_value("sidecast_in_flight_calls") == 3
    in_flight.append(0)
    assert metrics.registry.get_sample_value("sidecast_in_flight_calls") == 0


def test_the_table_in_the_documentation_is_fresh() -> None:
    script = Path(__file__).parents[2] / "docs" / "generate_metrics.py"
    specification = importlib.util.spec_from_file_location("generate_metrics", script)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.main(["--check"]) == 0, "run `python docs/generate_metrics.py`"
    rows = module.table().splitlines()
    assert len({row.split("`")[1] for row in rows[2:]}) == len(rows) - 2 > 30
    assert (
        "| `sidecast_requests_total` | counter | task, version, code | Answered requests, per task of each. |" in rows
    )


def test_every_stage_is_there_from_the_start() -> None:
    text = generate_latest(Metrics().registry).decode()
    for reason in ("queue", "deadline", "task"):
        assert f'sidecast_shed_requests_total{{reason="{reason}"}} 0.0' in text
    for stage in ("queue", "tokenize", "backbone", "side", "decode"):
        assert f'sidecast_stage_seconds_count{{stage="{stage}"}} 0.0' in text


def test_two_servers_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.shed("queue")
    assert second.registry.get_sample_value("sidecast_shed_requests_total", {"reason": "queue"}) == 0


def test_series_of_shadows_come_and_go_with_their_version_and_task() -> None:
    metrics = Metrics()
    metrics.know(["sst2"])
    for task, version in (("sst2", 7), ("sst2", 8), ("made-up", 7)):
        metrics.shadowed(task, version, "agreed", 3)
        metrics.drifted(task, version, 0.2)
        metrics.shadow_took(task, version, 0.5)
        metrics.route_rolled_back(task, "latency")
    metrics.forget("sst2", 7)
    metrics.shadowed("sst2", 7, "dropped")  # late
    value = metrics.registry.get_sample_value
    labels = {"task": "sst2", "version": "8"}
    assert value("sidecast_shadow_rows_total", labels | {"outcome": "agreed"}) == 3
    assert value("sidecast_shadow_drift_sum", labels) == 0.2
    assert value("sidecast_shadow_seconds_total", labels) == 0.5
    assert value("sidecast_route_rollbacks_total", {"task": "sst2", "reason": "latency"}) == 2
    text = generate_latest(metrics.registry).decode()
    assert 'version="7"' not in text
    assert "made-up" not in text
    metrics.know([])
    assert 'task="sst2"' not in generate_latest(metrics.registry).decode()
