"""Metrics keep their labels bounded: nothing that a caller made up becomes one."""

from prometheus_client import generate_latest

from serving.metrics import Metrics


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
    assert 'sidecast_request_seconds_count{task="sst2"} 1.0' in text
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
            metrics.request("sst2", version, code)
    metrics.forget("sst2", 1)
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
