"""The scaling policy: enough replicas for the load, no more than needed, no flapping, and Ray can use it."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.pool import Context, Sample
from serving.cluster.autoscaling import MIN_GROWTH, FleetLoad, LoadPolicy

NOW = 1000.0
loads = st.floats(0, 500, allow_nan=False)


def policy(**given: Any) -> LoadPolicy:
    return LoadPolicy(**{"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, **given})


def seen(**given: Any) -> FleetLoad:
    return FleetLoad(**{"now": NOW, "target": 4, "running": 4, "least": 0, "most": 100, **given})


def context(figures: dict[str, list[float]], *, at: float = NOW, running: int | None = None, **given: Any) -> Context:
    """Of replicas 0, 1, 2 ..., each with one sample of each figure."""
    raw = {name: {each: [Sample(at, value)] for each, value in enumerate(v)} for name, v in figures.items()}
    count = running if running is not None else max(map(len, figures.values()))
    return Context(
        current_time=NOW,
        target_num_replicas=given.pop("target", count),
        running_replicas=range(count),
        raw_metrics=raw,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=100,
        **given,
    )


def follow(scaling: LoadPolicy, loads: list[tuple[float, float]], **given: Any) -> list[int]:
    """Decisions a second apart; every replica that is asked for runs at once. loads: (requests, work)."""
    state: dict[str, Any] = {}
    target, found = given.pop("target", 1), []
    for second, (requests, work) in enumerate(loads):
        each = seen(now=float(second), target=target, running=target, requests=requests, work=work, **given)
        target, state = scaling.decide(each, state)
        found.append(target)
    return found


# --- how many


@pytest.mark.parametrize(
    ("requests", "work", "replicas"),
    [(640, 0, 10), (641, 0, 11), (0, 4.0, 5), (0, 4.1, 6), (640, 4.0, 10), (64, 4.0, 5)],
)
def test_the_larger_of_requests_and_busy_devices_decides(requests, work, replicas):
    assert policy().decide(seen(requests=requests, work=work, running=8), {})[0] == replicas


def test_what_waits_beyond_a_batch_counts_as_devices_where_all_are_saturated():
    figures = {"busy": [1.0, 1.0], "queued_tokens": [100.0, 3 * 8192.0]}
    assert policy().read(context(figures)).work == pytest.approx(1 + 1 + 2)


def test_an_idle_fleet_goes_to_zero_through_one_and_probes_keep_none():
    idle = context({"busy": [0.005] * 3, "running_requests": [0.0] * 3})
    decided, state = policy().decide(policy().read(idle), {})
    assert decided == 1
    last = context({"busy": [0.005], "running_requests": [0.0]}, policy_state=state)
    assert policy()(last)[0] == 0


def test_one_request_keeps_one_replica():
    assert policy()(context({"busy": [0.0, 0.0], "running_requests": [1.0, 0.0]}))[0] == 1


def test_requests_that_are_held_where_no_replica_runs_count():
    assert policy()(context({"busy": [], "running_requests": []}, running=0, total_queued_requests=70))[0] == 2


def test_requests_are_rays_own_count_where_replicas_do_not_report_them():
    assert policy()(context({"busy": [0.0] * 4}, total_num_requests=640))[0] == 8  # 10, but at most twice the running


def test_streams_that_last_are_no_requests_where_replicas_tell_them_apart():
    watched = {"busy": [0.0, 0.0], "running_requests": [900.0, 3.0], "in_flight": [2.0]}
    assert policy().read(context(watched)).requests == 2 + 3
    assert policy().read(context({"busy": [0.0], "in_flight": [7.0]}, total_num_requests=900)).requests == 7


@pytest.mark.parametrize("start_s", [5, 60])
def test_a_start_that_outlasts_the_delay_is_not_ended_and_then_has_a_whole_delay(start_s):
    """The caller that it is for gave up at once."""
    scaling, state, found = policy(downscale_delay_s=10), {}, []
    for second in range(start_s + 20):
        running = int(second >= start_s)
        target, state = scaling.decide(seen(now=float(second), target=1, running=running), state)
        found.append(target)
        if not target:
            break
    assert len(found) - 1 == start_s + 9


def test_growth_is_bounded_by_what_runs_and_never_takes_what_was_asked_for():
    assert policy().decide(seen(running=10, target=10, requests=1e6), {})[0] == 20
    assert policy().decide(seen(running=1, target=1, requests=1e6), {})[0] == MIN_GROWTH
    assert policy().decide(seen(running=10, target=50, requests=1e6), {})[0] == 50


# --- silence


def test_a_replica_without_a_fresh_report_is_idle_for_more_and_occupied_for_fewer():
    figures = {"busy": [0.8, 0.8], "running_requests": [1.0, 1.0]}
    assert policy()(context(figures, running=10))[0] == 10  # eight of them just started
    assert policy()(context(figures, running=1, target=1))[0] == 1
    assert policy().read(context(figures, running=10)).silent == 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_report(value):
    read = policy().read(context({"busy": [0.5, value], "running_requests": [1.0, value]}))
    assert (read.silent, read.work, read.requests) == (1, 0.5, 1.0)


def test_a_stale_report_says_nothing_however_loud():
    figures = {"busy": [1.0] * 4, "queued_tokens": [1e9] * 4, "running_requests": [1e9] * 4}
    read = policy().read(context(figures, at=NOW - 46))
    assert (read.silent, read.work, read.requests) == (4, 0, 0)
    assert policy()(context(figures, at=NOW - 46))[0] == 4
    assert policy()(context(figures, at=NOW - 44))[0] == 8


def test_reports_of_replicas_that_do_not_run_are_left_out():
    assert policy().read(context({"busy": [0.5] * 9}, running=2)).work == 1.0


def test_a_fleet_that_reports_nothing_at_all_stays():
    assert policy()(context({}, running=7))[0] == 7


def test_another_figure_can_stand_for_busy():
    figures = {"busy": [1.0] * 4, "load": [0.2] * 4, "running_requests": [1.0] * 4}
    assert policy()(context(figures))[0] == 5
    assert policy(signal="load")(context(figures))[0] == 2  # 1 would be busier than the target less its margin


# --- time


def test_more_is_asked_for_after_the_delay_and_as_much_as_all_of_it_called_for():
    loads = [(64.0, 0.0)] * 3 + [(256.0, 0.0), (192.0, 0.0)] + [(256.0, 0.0)] * 7
    assert follow(LoadPolicy(upscale_delay_s=5), loads) == [1] * 7 + [3, 3, 4, 4, 4]


def test_fewer_are_asked_for_after_the_delay_and_as_many_as_any_of_it_called_for():
    loads = [(640.0, 0.0)] + [(64.0, 0.0)] * 5 + [(256.0, 0.0)] + [(64.0, 0.0)] * 14
    assert follow(policy(downscale_delay_s=10), loads, target=10) == [10] * 10 + [5] * 6 + [2] * 5


def test_a_target_that_another_hand_set_is_held_for_a_whole_delay():
    scaling = LoadPolicy(downscale_delay_s=10)
    _, state = scaling.decide(seen(now=0.0, target=2), {})
    decided = []
    for second in range(20, 32):
        target, state = scaling.decide(seen(now=float(second), target=6, running=6), state)
        decided.append(target)
    assert decided == [6] * 10 + [1, 6]  # the last: `seen` says 6 again, another hand again


@given(st.lists(st.tuples(loads, loads), min_size=1, max_size=40), st.integers(0, 3), st.integers(3, 30))
@settings(max_examples=25, deadline=None)
def test_never_outside_of_what_is_allowed(course, least, most):
    found = follow(LoadPolicy(upscale_delay_s=2, downscale_delay_s=5), course, least=least, most=most, target=least)
    assert all(least <= each <= most for each in found)


@given(st.lists(st.tuples(loads, loads, loads, loads), min_size=1, max_size=30), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_more_load_never_asks_for_fewer(course, target):
    def ask(loads: list[tuple[float, float]]) -> list[int]:
        scaling, state, found = LoadPolicy(upscale_delay_s=2, downscale_delay_s=4), {}, []
        for second, (requests, work) in enumerate(loads):
            decided, state = scaling.decide(
                seen(now=float(second), target=target, running=target, requests=requests, work=work), state
            )
            state["decided"] = target  # it is not followed: both courses see the same fleet
            found.append(decided)
        return found

    less = ask([(requests, work) for requests, work, _, _ in course])
    more = ask([(requests + extra, work + busier) for requests, work, extra, busier in course])
    assert all(a <= b for a, b in zip(less, more, strict=True))


@given(st.floats(0, 5000), st.floats(0, 70), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_a_constant_load_is_moved_to_once_and_fits(requests, work, start):
    found = follow(LoadPolicy(upscale_delay_s=1, downscale_delay_s=3), [(requests, work)] * 30, target=start, most=1000)
    moves = [b - a for a, b in zip([start, *found], found, strict=False) if a != b]
    assert all(move > 0 for move in moves) or all(move < 0 for move in moves)
    assert found[-1] == found[-2]
    needed = max(requests / 64, work / 0.8)
    assert needed - 1e-6 <= found[-1] <= max(start if start < needed / 0.9 + 1 else 0, math.ceil(needed / 0.9 + 1e-6))


@pytest.mark.parametrize("rate", [1.0, 8.0, 33.0, 95.0])
def test_the_right_number_for_a_known_service_rate_from_one_saturated_replica(rate):
    """Replicas of 10 rows a second and an open queue: the last number keeps devices at most as busy as the target."""
    scaling, state, target, queue = LoadPolicy(upscale_delay_s=5, downscale_delay_s=60), {}, 1, 0.0
    for now in range(0, 600, 5):
        offered = queue + 5 * rate
        done = min(offered, 50.0 * target)
        queue = offered - done
        figures = {"busy": done / 50 / target, "queued_tokens": 32 * queue / target, "running_requests": queue / target}
        told = context({name: [value] * target for name, value in figures.items()}, at=now, policy_state=state)
        told.current_time = now
        target, state = scaling(told)
    assert math.ceil(rate / 8) <= target <= math.ceil(rate / 8 / 0.9)
    assert queue == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"target_requests": 0}, "target_requests must be > 0, got 0"),
        ({"target_busy": 1.5}, "target_busy must be > 0 and <= 1, got 1.5"),
        ({"upscale_delay_s": -1}, "upscale_delay_s"),
        ({"downscale_delay_s": math.inf}, "downscale_delay_s"),
        ({"queue_tokens": 0}, "queue_tokens"),
        ({"margin": 1}, "margin"),
        ({"growth": 1}, "growth"),
        ({"stale_s": 0}, "stale_s"),
        ({"target_busy": math.nan}, "target_busy"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(given, says):
    with pytest.raises(ValueError, match=says):
        LoadPolicy(**given)


@pytest.mark.slow
def test_ray_takes_the_policy_by_name_and_needs_nothing_of_ours_where_it_runs():
    config = pytest.importorskip("ray.serve.config")
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.autoscaling_policy import _apply_autoscaling_config

    given = config.AutoscalingPolicy(
        policy_function="serving.cluster.autoscaling:LoadPolicy", policy_kwargs={"target_busy": 0.5}
    )
    pickled = given.get_serialized_policy_def()
    told = {"policy_function": given.policy_function, "policy_kwargs": given.policy_kwargs}
    policy = _resolve_policy_callable(config.AutoscalingPolicy.from_serialized_policy_def(told, pickled))
    scaling = config.AutoscalingConfig(max_replicas=100, upscale_delay_s=0, downscale_delay_s=0, policy=given)
    ctx = config.AutoscalingContext(
        deployment_id=None,
        deployment_name="Server",
        app_name="sidecast",
        current_num_replicas=4,
        target_num_replicas=4,
        running_replicas=list(range(4)),
        total_num_requests=lambda: 0.0,
        total_queued_requests=lambda: 0.0,
        aggregated_metrics=dict,
        raw_metrics=lambda: {"busy": {each: [Sample(NOW, 0.9)] for each in range(4)}},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=100,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=NOW,
        config=scaling,
    )
    wrapped = _apply_autoscaling_config(policy)
    decided, ctx.policy_state = wrapped(ctx)
    ctx.current_time = NOW + 5  # our delay is over, and Ray adds none
    ctx._raw_metrics_value = {"busy": {each: [Sample(NOW + 5, 0.9)] for each in range(4)}}
    del ctx.raw_metrics
    assert (decided, wrapped(ctx)[0]) == (4, 8)
