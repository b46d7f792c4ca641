"""The fleet on paper: known formulas, nothing lost, equal seeds alike, and the policy as Ray would call it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.samples import BenchmarkError
from benchmarks.simulation import routing, traces
from benchmarks.simulation.fleet import Fleet, FleetConfig, Steady
from benchmarks.simulation.pool import PoolConfig, simulate
from benchmarks.simulation.registry import StoreConfig, follow
from benchmarks.simulation.replica import ServerConfig
from benchmarks.simulation.service import Line, Service, fit, newest, read_lines
from benchmarks.simulation.simulate import compare, main
from serving.cluster.autoscaling import LoadPolicy

ONE_BY_ONE = ServerConfig(max_rows=1, wait_s=0.0)
BATCHES = Service(((1.0, 0.05), (64.0, 0.68)))
"""50 ms, and 10 ms for each further row."""


def steady(rate: float, seconds: float, seed: int = 0, inputs: int = 1000) -> traces.Arrivals:
    rng = np.random.default_rng(seed)
    return traces.arrivals(np.full(round(seconds), rate), rng, inputs=inputs)


# --- the pool


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_single_rows_of_one_length_wait_as_in_an_m_d_1_queue(share):
    seconds = 0.1
    out = simulate(PoolConfig(service=Service(((1.0, seconds),)), server=ONE_BY_ONE), steady(share / seconds, 1500))
    expected = seconds + share * seconds / 2 / (1 - share)
    assert np.mean(out.waits) == pytest.approx(expected, rel=0.05)


def test_routed_at_random_every_replica_is_such_a_queue():
    config = PoolConfig(service=Service(((1.0, 0.1),)), server=ONE_BY_ONE, replicas=8, routing="random")
    assert np.mean(simulate(config, steady(40.0, 500)).waits) == pytest.approx(0.1 + 0.5 * 0.1 / 2 / 0.5, rel=0.05)


def test_fewest_connections_wait_less_than_chance_and_no_less_than_the_service():
    config = PoolConfig(service=Service(((1.0, 0.1),)), server=ONE_BY_ONE, replicas=8)
    out = simulate(config, steady(40.0, 300))
    assert 0.1 <= np.mean(out.waits) < 0.12
    assert min(out.waits) >= 0.1 - 1e-9


def test_a_saturated_replica_takes_full_batches_and_does_what_it_can():
    out = simulate(PoolConfig(service=BATCHES), callers=256, seconds=60)
    assert out.rows / out.batches > 60
    assert out.arrived / out.ended == pytest.approx(BATCHES.capacity(64), rel=0.05)


@given(
    st.sampled_from(routing.ROUTERS),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 40),
    st.floats(0, 20),
    st.integers(0, 5),
)
@settings(max_examples=8, deadline=None)
def test_every_request_ends_once_whatever_the_replicas_do(name, proxies, least, callers, cold_start_s, seed):
    config = PoolConfig(
        service=replace(BATCHES, overhead_s=0.01),
        server=ServerConfig(kept_inputs=50),
        replicas=least,
        least=least,
        most=6,
        cold_start_s=cold_start_s,
        routing=name,
        proxies=proxies,
    )
    policy = LoadPolicy(upscale_delay_s=1, downscale_delay_s=5)
    come = traces.arrivals(np.repeat([0.0, 60.0, 0.0, 20.0], 8), np.random.default_rng(seed))
    out = simulate(config, come, callers=callers, seconds=12.0, policy=policy, seed=seed)
    assert out.arrived >= len(come.times)
    assert len(out.waits) == len(out.times) == out.rows == out.arrived
    assert min(out.waits) >= 0
    assert out.replicas <= 6


def test_equal_seeds_give_equal_results_and_others_do_not():
    def run(seed: int) -> list[float]:
        config = PoolConfig(service=BATCHES, replicas=3, routing="random", most=5)
        return simulate(config, steady(100.0, 20, seed), policy=LoadPolicy(), seed=seed).waits

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_policy_brings_a_pool_from_none_to_what_its_load_needs_and_back_to_none():
    capacity = BATCHES.capacity(64)
    rate = np.concatenate([np.full(80, 3 * capacity), np.full(80, 0.0)])
    config = PoolConfig(service=BATCHES, replicas=0, least=0, most=20, cold_start_s=5)
    policy = LoadPolicy(upscale_delay_s=2, downscale_delay_s=30, signal="load")
    out = simulate(config, traces.arrivals(rate, np.random.default_rng(0)), seconds=160, policy=policy)
    before = [count for time, count in out.counts if time < 80]
    assert before[0] == 1
    assert before[-1] >= 4
    assert 0 in [count for time, count in out.counts if time > 110]
    assert out.replica_s < 20 * 160


# --- routing


@given(st.lists(st.tuples(st.sampled_from("prad"), st.integers(0, 9)), max_size=80))
@settings(max_examples=50, deadline=None)
def test_fewest_connections_are_the_fewest_by_counting(steps):
    router, loads, number = routing.LeastConnections(), dict[int, int](), 0
    for step, which in steps:
        some = sorted(loads)[which % len(loads)] if loads else None
        if step == "a":
            number += 1
            router.add(number)
            loads[number] = 0
        elif step == "p" and loads:
            picked = router.pick(which)
            assert loads[picked] == min(loads.values())
            loads[picked] += 1
        elif step == "d" and some is not None and loads[some]:
            router.done(some)
            loads[some] -= 1
        elif step == "r" and some is not None:
            router.remove(some)
            del loads[some]
            router.done(some)  # what it still had ends later


def test_a_bounded_hash_keeps_inputs_together_up_to_its_bound():
    router = routing.BoundedHash(bound=1.25)
    for number in range(8):
        router.add(number)
    for key in range(20):
        first, second = router.pick(key), None
        router.done(first)
        second = router.pick(key)
        router.done(second)
        assert first == second
    crowd = [router.pick(7) for _ in range(80)]
    assert max(crowd.count(number) for number in range(8)) <= 1.25 * 80 / 8 + 1


def test_equal_inputs_on_one_replica_are_kept_more_often():
    def kept(name: str) -> float:
        config = PoolConfig(service=BATCHES, server=ServerConfig(kept_inputs=50), replicas=8, routing=name)
        out = simulate(config, steady(200.0, 20))
        return out.hits / out.rows

    assert kept("bounded-hash") > kept("leastconn") + 0.1


# --- the day, the traces, the store


def test_a_day_keeps_the_queue_away_and_costs_less_than_a_fixed_fleet():
    config = FleetConfig(service=BATCHES, most=50, step_s=60.0)
    rate = traces.rates("diurnal", 86_400, 30 * BATCHES.capacity(64), np.random.default_rng(0), config.step_s)

    def run(policy: LoadPolicy | None):
        return Fleet(config, policy, np.random.default_rng(0), "load").run(rate)

    scaled, fixed = run(LoadPolicy()), run(None)
    assert scaled.answered.sum() == pytest.approx(scaled.rows.sum(), rel=1e-3)
    assert scaled.replica_hours < 0.7 * fixed.replica_hours == 0.7 * 50 * 24
    assert scaled.changes <= 2
    assert 30 < scaled.running.max() < 50


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_fluid_and_the_events_agree_on_a_steady_replica(share):
    fluid = Steady.of(BATCHES, ServerConfig())
    rate = share * fluid.capacity
    batch, turn_s, busy = fluid.at(rate)
    out = simulate(PoolConfig(service=BATCHES), steady(rate, 150))
    assert out.rows / out.batches == pytest.approx(batch, rel=0.25)
    assert np.mean(out.waits) == pytest.approx(turn_s * (1 + busy / 2), rel=0.25)


def test_traces_have_their_peak_and_zipf_its_shares():
    rng = np.random.default_rng(0)
    for kind in traces.KINDS:
        rate = traces.rates(kind, 86_400, 100.0, rng, 10.0)
        assert len(rate) == 8640
        assert rate.max() == pytest.approx(100.0, rel=1e-3)
    assert traces.rates("diurnal", 86_400, 100.0, rng).min() == pytest.approx(100 * traces.NIGHT)
    drawn = np.bincount(traces.zipf(100, 1.0, 100_000, rng), minlength=100)
    assert drawn[0] / drawn[9] == pytest.approx(10, rel=0.1)
    with pytest.raises(BenchmarkError, match="unknown trace 'tides'"):
        traces.rates("tides", 10, 1, rng)


def test_a_publish_reaches_all_after_a_poll_and_the_loads_and_never_where_polls_are_too_many():
    rng = np.random.default_rng(0)
    config = StoreConfig()
    few, many = follow(10, config, rng), follow(1000, config, rng)
    assert many.requests_per_s == pytest.approx(100 * few.requests_per_s)
    assert config.load_s < few.first_s <= few.median_s <= few.all_s
    assert few.all_s < config.poll_s + config.load_s + 3 * config.request_s + 0.05
    assert many.all_s > few.all_s
    assert follow(2000, config, rng).all_s == float("inf")


# --- measurements


def line(replicas: int, callers: int, rows: float, rows_per_s: float) -> Line:
    return Line(replicas, callers, rows, rows_per_s, 60.0, 90.0, 1.0)


def test_service_times_are_measured_points_and_straight_lines_between_and_beyond():
    service = fit([line(1, 64, 32, 64.0), line(1, 1, 1, 20.0), line(2, 64, 16, 999.0)])
    assert service.points == ((1.0, 0.05), (32.0, 0.5))
    assert service.seconds(0.1) == 0.05
    assert service.seconds(16.5) == pytest.approx(0.275)
    assert service.seconds(63) == pytest.approx(0.95)
    assert service.overhead_s == pytest.approx(0.01)
    assert service.faster(10).seconds(32) == pytest.approx(0.05)


def test_noise_that_makes_more_rows_faster_is_levelled():
    assert fit([line(1, 4, 2, 10.0), line(1, 16, 8, 80.0)]).points == ((2, 0.2), (8, 0.2))


def test_the_newest_measurements_are_read_and_predicted_from_their_own_batches():
    lines = read_lines(newest())
    rows = compare(lines, fit(lines), seed=0, seconds=20.0)
    assert [row["callers"] for row in rows] == [each.callers for each in lines]
    assert {"rows_per_s", "rows_per_s_measured", "p99_ms_measured"} <= set(rows[0])


def test_two_replicas_are_predicted_from_one(tmp_path):
    def figures(rows_per_s: float, rows: float) -> dict[str, dict[str, float]]:
        names = {"rows_per_s": rows_per_s, "batch_rows": rows, "p50_ms": 50.0, "p99_ms": 50.0, "device_busy": 1.0}
        return {name: {"median": value} for name, value in names.items()}

    variants = {"1 replica, 1 callers": figures(20.0, 1), "2 replicas, 2 callers": figures(40.0, 1)}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"variants": variants}))
    lines = read_lines(path)
    found = compare(lines, fit(lines), seed=0)
    assert [row["rows_per_s"] for row in found] == pytest.approx([20, 40], rel=0.05)


@pytest.mark.parametrize("text", ["", "{}", '{"variants": {"other": {}}}', '{"variants": {"server 4": {}}}', "[1]"])
def test_a_file_without_measurements_is_one_line_and_exit_code_2(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    done = CliRunner().invoke(main, ["--check", str(path)])
    assert done.exit_code == 2
    assert "wrong.json" in done.output
    assert "Traceback" not in done.output


def test_the_script_ends_in_one_json_line_and_equal_seeds_agree():
    words = ["--fleet", "2", "--fleet", "4", "--hours", "0.2", "--events", "100", "--trace", "bursts"]
    words += ["--signal", "load"]
    first, second = (CliRunner().invoke(main, words) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.output == second.output
    document = json.loads(first.output.splitlines()[-1])
    assert [len(document[name]) for name in ("days", "stretches", "publishes")] == [4, 6, 2]
    assert document["settings"]["service_is"] == "measured"
    told = CliRunner().invoke(main, [*words, "--speed", "20", "--json"])
    assert json.loads(told.output)["settings"]["service_is"] == "assumed"
    assert CliRunner().invoke(main, [*words, "--signal", "mood"]).exit_code == 2
