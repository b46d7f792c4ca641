"""A load's arithmetic: schedules, percentiles, windows, goodput, differences of metrics."""

import math
import pickle
import random
import statistics

import pytest
from prometheus_client import generate_latest

from serving.metrics import Metrics
from sidecast.loadtest.measure import (
    Call,
    Failure,
    Window,
    histogram,
    percentile,
    spread_ms,
    summarise,
    summarise_stream,
)
from sidecast.loadtest.plan import Closed, LoadError, Open, Plan
from sidecast.loadtest.scrape import Look, ScrapeError, compare, parse_metrics

SHED = Failure("RESOURCE_EXHAUSTED", "OVERLOADED", "the queue is full")
LATE = Failure("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED", "too late")


def made(due: float, ended: float, failure: Failure | None = None, *, task: str = "sst2", rows: int = 1) -> Call:
    return Call(task=task, rows=rows, due=due, sent=due, ended=ended, failure=failure)


# --- plans


def test_constant_arrivals_are_evenly_spread() -> None:
    times = list(Open(8, "constant").times(2.0, seed=3))
    assert times == [number / 8 for number in range(16)]


def test_poisson_arrivals_have_the_rate_and_its_spread() -> None:
    times = list(Open(100).times(200.0, seed=3))
    gaps = [later - sooner for sooner, later in zip([0.0, *times], times, strict=False)]
    assert len(times) / 200 == pytest.approx(100, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05)  # as long as the mean: exponential
    assert max(times) < 200
    assert times == list(Open(100).times(200.0, seed=3))
    assert times != list(Open(100).times(200.0, seed=4))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: Closed(0), "--concurrency must be 1 or more, got 0"),
        (lambda: Open(0), "--rate must be above 0, got 0"),
        (lambda: Open(math.nan), "--rate must be above 0"),
        (lambda: Plan(levels=()), "at least one --concurrency or --rate"),
        (lambda: Plan(levels=(Closed(1),), duration_s=0), "--duration must be 0.001 or more, got 0"),
        (lambda: Plan(levels=(Closed(1),), rows=0), "--rows must be 1 or more, got 0"),
        (lambda: Plan(levels=(Closed(1),), repeat_share=2), "--repeat-share must lie between 0 and 1, got 2"),
        (lambda: Plan(levels=(Closed(1),), stream=True, rows=2), "--stream sends one row of one task"),
    ],
)
def test_plans_that_cannot_be(bad, says: str) -> None:
    with pytest.raises(LoadError, match=says) as caught:
        bad()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), "LOAD")


# --- figures


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 101])
@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_a_percentile_is_the_least_value_that_enough_are_not_above(count: int, percent: int) -> None:
    values = sorted(random.Random(count).choices(range(50), k=count))
    found = percentile(values, percent)
    assert found == min(v for v in values if sum(other <= v for other in values) * 100 >= percent * count)


def test_spread_in_milliseconds() -> None:
    assert spread_ms([]) is None
    figures = spread_ms(value / 1000 for value in (3, 1, 2, 4))
    assert figures == pytest.approx({"p50": 2, "p90": 4, "p95": 4, "p99": 4, "max": 4, "mean": 2.5})


def test_every_latency_is_in_its_bin_of_the_histogram() -> None:
    seconds = [random.Random(1).uniform(0.0001, 3.0) for _ in range(5)] + [0.0, 0.01, 0.01]
    found = histogram(seconds)
    assert found is not None
    edges, counts = found["edges_ms"], found["counts"]
    assert (len(edges), sum(counts)) == (len(counts) + 1, len(seconds))
    assert edges == sorted(edges)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert sum(low <= max(1e3 * value, 1e-3) < high for value in seconds) == count
    assert histogram([]) is None


def test_latency_counts_what_was_due_in_the_window_and_throughput_what_ended_in_it() -> None:
    calls = [
        made(9.5, 10.5, rows=4),  # due in the warm-up, ended in the window
        made(10.0, 10.2),
        made(11.0, 13.5),  # waited for, after the window
        made(11.9, 12.5),
        made(12.1, 12.2),  # due after it
    ]
    found = summarise(calls, Window(10.0, 12.0), timeout_s=60)
    assert (found["requests"], found["answered"]) == (3, 3)
    assert found["requests_per_s"] == pytest.approx(1.0)
    assert found["rows_per_s"] == pytest.approx(2.5)
    assert found["latency_ms"]["max"] == pytest.approx(2500)
    assert found["latency_ms"]["p50"] == pytest.approx(600)


def test_goodput_is_what_came_in_time() -> None:
    calls = [made(0.0, 0.1), made(0.1, 0.7), made(0.2, 0.9), made(0.3, 0.4, SHED)]
    found = summarise(calls, Window(0.0, 1.0), timeout_s=0.65)
    assert (found["requests_per_s"], found["goodput_per_s"]) == (3, 2)


def test_failures_are_counted_by_reason_and_keep_out_of_latencies() -> None:
    calls = [made(0, 5, LATE), made(0, 0.1, SHED), made(0, 0.1, SHED), made(0, 0.2, task="rte"), made(-1, 0, LATE)]
    found = summarise(calls, Window(0.0, 1.0), timeout_s=60)
    assert [(kind["reason"], kind["code"], kind["count"]) for kind in found["errors"]] == [
        ("OVERLOADED", "RESOURCE_EXHAUSTED", 2),
        ("DEADLINE_EXPIRED", "DEADLINE_EXCEEDED", 1),
    ]
    assert (found["shed"], found["answered"], found["latency_ms"]["max"]) == (2, 1, 200)
    assert list(found["by_task"]) == ["rte"]


def test_nothing_at_all() -> None:
    found = summarise([], Window(0.0, 1.0), timeout_s=60)
    assert (found["requests"], found["requests_per_s"], found["latency_ms"], found["histogram"]) == (0, 0, None, None)
    assert summarise_stream([], Window(0.0, 1.0))["first_ms"] is None


def test_a_stream_has_a_first_token_and_pauses() -> None:
    call = made(10.0, 11.0)
    call.pieces = [(10.3, 1), (10.4, 2), (10.9, 1)]
    early = made(9.0, 10.2)  # before the window, but two of its tokens came in it
    early.pieces = [(9.9, 5), (10.1, 2)]
    found = summarise_stream([call, early], Window(10.0, 12.0))
    assert found["first_ms"]["p50"] == pytest.approx(300)
    assert (found["between_ms"]["p50"], found["between_ms"]["max"]) == pytest.approx((100, 500))
    assert (found["tokens_per_s"], found["tokens_per_text"]) == (3, 4)


# --- the server's metrics


def look(metrics: Metrics, at: float) -> Look:
    return Look(parse_metrics(generate_latest(metrics.registry).decode()), at)


def test_what_the_server_counted_between_two_looks() -> None:
    metrics = Metrics()
    metrics.stage("backbone", 7.0)
    metrics.batch(rows=32, tokens=1000, padding=900)
    before = look(metrics, 5.0)
    for seconds in (0.1, 0.3):
        metrics.stage("backbone", seconds)
        metrics.stage("side", seconds / 2)
    metrics.stage("queue", 0.05)
    metrics.batch(rows=4, tokens=100, padding=10)
    metrics.batch(rows=8, tokens=300, padding=10)
    metrics.shed("queue")
    metrics.shed("task")
    found = compare(before, look(metrics, 7.0))
    assert found is not None
    assert found["stages"]["backbone"] == pytest.approx({"count": 2, "seconds": 0.4, "mean_ms": 200})
    assert found["stages"]["decode"] == {"count": 0, "seconds": 0, "mean_ms": None}
    assert found["device_share"] == pytest.approx(0.3)  # 0.4 s and 0.2 s of two
    assert (found["batches"], found["batch_rows"], found["batch_tokens"]) == (2, 6, 200)
    assert (found["padding_share"], found["shed"], found["cache_hit_rate"]) == (0.05, 2, None)


def test_the_cache_of_a_server_that_has_one() -> None:
    text = "# TYPE sidecast_cache_{0} counter\nsidecast_cache_{0}_total {1}\n"
    before = Look(parse_metrics(text.format("hits", 5) + text.format("misses", 5)), 0.0)
    after = Look(parse_metrics(text.format("hits", 8) + text.format("misses", 6)), 1.0)
    assert (compare(before, after) or {})["cache_hit_rate"] == 0.75


def test_a_server_that_began_anew_says_nothing() -> None:
    old, new = Metrics(), Metrics()
    old.batch(rows=4, tokens=100, padding=10)
    assert compare(look(old, 0.0), look(new, 1.0)) is None


def test_tasks_make_the_metrics_no_longer_to_read() -> None:
    metrics = Metrics()
    metrics.know(["sst2"])
    metrics.request("sst2", 1, "OK", 0.1)
    assert not [name for name in look(metrics, 0.0).counts if "sst2" in name]


def test_what_are_no_metrics() -> None:
    with pytest.raises(ScrapeError, match="cannot be parsed"):
        parse_metrics('sidecast_batch_rows{le="1 2\n')
