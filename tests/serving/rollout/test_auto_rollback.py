"""When a version loses its share: by each bound, never too early, once, and only from the route that was judged."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from serving.metrics import Metrics
from serving.rollout.auto_rollback import AutoRollback, Fault, fault, judge
from serving.rollout.comparison import Comparison, Comparisons, Routed, Window
from side_registry import Registry
from side_registry.errors import StoreFailed
from side_registry.route import Bounds, Route
from tests.serving.api_kit import make_run
from tests.serving.rollout.test_comparison import SST2, classed

OWN = Comparison(version=6, rows=1000, failed=10, answered=1000, latency_seconds=0.020)


def canary(**changes: float) -> Comparison:
    values = {"rows": 240, "answered": 240, "compared": 240, "agreed": 240, "latency_seconds": 0.020, "failed": 0}
    return Comparison(version=7, **values | changes)  # type: ignore[arg-type]


ALL = Bounds(error_rate=0.05, latency=1.5, disagreement=0.1, min_rows=200)


@pytest.mark.parametrize(
    ("seen", "bound", "why"),
    [
        (canary(failed=24), "error_rate", "error rate 10% > 1% + 5% after 240 rows"),
        (canary(latency_seconds=0.04), "latency", "latency 40 ms > 1.5 x 20 ms after 240 rows"),
        (canary(agreed=165), "disagreement", "disagreement 31.25% > 10% after 240 rows"),
        (canary(failed=240, agreed=0, compared=0), "error_rate", "error rate 100% > 1% + 5% after 240 rows"),
    ],
)
def test_each_bound_is_told_with_its_figures(seen: Comparison, bound: str, why: str) -> None:
    assert fault(seen, OWN, ALL) == Fault(bound, 7, why)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "bounds"),
    [
        (canary(), ALL),
        (canary(failed=14), ALL),  # 0.058
        (canary(latency_seconds=0.030), ALL),
        (canary(agreed=216), ALL),  # 0.1 exactly
        (canary(rows=199, failed=199, answered=0), ALL),
        (canary(compared=199, agreed=0), ALL),
        (canary(answered=199, latency_seconds=9.0), ALL),
        (canary(failed=240, agreed=0, latency_seconds=9.0), Bounds(min_rows=1)),
        (canary(agreed=0, latency_seconds=9.0), Bounds(error_rate=0.0, min_rows=1)),
        (canary(compared=10, agreed=7), Bounds(disagreement=0.3, min_rows=1)),
    ],
)
def test_what_is_within_its_bounds_or_was_hardly_seen_keeps_its_share(seen: Comparison, bounds: Bounds) -> None:
    assert fault(seen, OWN, bounds) is None


def test_a_mean_of_few_requests_of_the_aliass_own_version_is_no_measure() -> None:
    few = Comparison(version=6, rows=500, answered=199, latency_seconds=0.001)
    assert fault(canary(), few, ALL) is None


def test_a_version_that_fails_as_often_as_the_aliass_own_keeps_its_share() -> None:
    failing = Comparison(version=6, rows=100, failed=100, answered=100)
    assert fault(canary(failed=240), failing, Bounds(error_rate=0.0, min_rows=1)) is None


ROUTE = Route(shares={7: 500, 9: 1000}, shadows=(8,), bounds=Bounds(disagreement=0.1, min_rows=10))


def compared(window: Window, version: int, rows: int, agreed: bool) -> None:
    found = classed(0.2, 0.8) if agreed else classed(0.8, 0.2)
    for _ in range(rows):
        window.compare(version, "p", (SST2, classed(0.2, 0.8)), (SST2, found))


def test_every_version_with_a_share_is_judged_and_no_shadow() -> None:
    window = Window(Routed(6, ROUTE))
    compared(window, 8, 100, agreed=False)
    compared(window, 7, 100, agreed=True)
    assert judge(window) is None
    compared(window, 9, 10, agreed=False)
    assert judge(window) == Fault("disagreement", 9, "disagreement 100% > 10% after 10 rows")


class House:
    """A registry with a canary, and servers that have seen it disagree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry.open(folder / "registry", create=True)
        for seed in (1, 2, 3):
            run = make_run(folder / f"run-{seed}", SST2, seed)
            self.registry.publish(run, alias="production" if seed == 1 else None)
        self.bounds = Bounds(disagreement=0.1, min_rows=10)
        self.registry.set_route("sst2", "production", Route(shares={2: 500}, bounds=self.bounds))
        self.seen = self.routed()
        self.now, self.woken, self.suspended_routes = 0.0, 0, set[tuple[str, str, int]]()

    def routed(self) -> Routed:
        task = self.registry.state().tasks["sst2"]
        return Routed(task.at("production"), task.route("production"), task.routed.get("production", 0))

    def server(self, registry: object = None, rows: int = 20) -> tuple[AutoRollback, Metrics]:
        """One that knows the route of the beginning, however it is by now."""
        comparisons, metrics, seen = Comparisons(lambda *_: self.seen), Metrics(), self.seen
        metrics.know(["sst2"])
        window = comparisons.window("sst2", "production")
        assert window is not None
        compared(window, 2, rows, agreed=False)

        def routes() -> Mapping[tuple[str, str], Route]:
            return {("sst2", "production"): seen.route, ("sst2", "other"): Route(shadows=(1,))}

        def wake() -> None:
            self.woken += 1

        registry = registry or Registry.open(self.folder / "registry")
        rollback = AutoRollback(
            registry,  # type: ignore[arg-type]
            comparisons,
            routes,
            "sidecast serve@here",
            wake,
            metrics,
            lambda: self.now,
            lambda *route: self.suspended_routes.add(route),
        )
        return rollback, metrics

    @property
    def rollbacks(self) -> list[str]:
        return [commit.message for commit in self.registry.history() if "automatic" in commit.message]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def rolled_back(metrics: Metrics, reason: str = "disagreement") -> float | None:
    labels = {"task": "sst2", "reason": reason}
    return metrics.registry.get_sample_value("sidecast_route_rollbacks_total", labels)


def test_two_servers_of_one_registry_roll_back_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    (first, counted), (second, uncounted) = house.server(), house.server()
    for _ in range(3):
        first.check()
        second.check()
    seen = "version 2: 0 rows, 0 failed, 0 of 20 agreed, drift 0.6; version 1: 0 rows, 0 failed"
    message = f"automatic rollback: version 2: disagreement 100% > 10% after 20 rows ({seen})"
    assert house.rollbacks == [message]
    newest = next(commit for commit in house.registry.history() if commit.message == message)
    assert newest.author == "sidecast serve@here"
    assert house.routed() == Routed(1, Route(), 0)
    assert (rolled_back(counted), rolled_back(uncounted)) == (1, None)
    assert house.woken == 2  # each looks at the registry again, once
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR] == [
        f"{message} of sst2@production, generation {newest.generation}"
    ]


def test_the_comparison_is_kept_on_each_server_that_found_the_fault(house: House) -> None:
    servers = [house.server()[0] for _ in range(2)]
    for rollback in servers:
        rollback.check()
    house.seen = None  # type: ignore[assignment] - the route is over
    for rollback, generation in zip(servers, (house.registry.state().generation, 0), strict=True):
        rollback.check()
        kept = rollback._comparisons.rolled_back("sst2", "production")
        assert kept is not None
        assert (kept.why, kept.generation) == ("version 2: disagreement 100% > 10% after 20 rows", generation)
        assert [each.version for each in kept.comparisons] == [1, 2]


def test_shadows_of_the_route_stay(house: House) -> None:
    house.registry.set_route("sst2", "production", Route(shares={2: 500}, shadows=(3,), bounds=house.bounds))
    house.seen = house.routed()
    house.server()[0].check()
    assert house.routed().route == Route(shadows=(3,))


def test_too_few_rows_are_no_ground(house: House) -> None:
    rollback, metrics = house.server(rows=9)
    rollback.check()
    assert not house.rollbacks
    assert rolled_back(metrics) is None


def test_a_route_that_was_changed_meanwhile_is_left_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    rollback, metrics = house.server()
    grown = Route(shares={2: 5000}, bounds=house.bounds)
    house.registry.set_route("sst2", "production", grown)
    generation = house.registry.state().generation
    rollback.check()
    rollback.check()
    assert house.routed().route == grown
    assert house.registry.state().generation == generation
    assert rolled_back(metrics) is None
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_a_route_that_was_set_anew_is_another_one_even_if_it_is_the_same(house: House) -> None:
    rollback, metrics = house.server()
    house.registry.set_route("sst2", "production", Route())
    house.registry.set_route("sst2", "production", house.seen.route)
    rollback.check()
    assert house.routed().route == house.seen.route
    assert rolled_back(metrics) is None


def test_all_shares_that_must_go_are_suspended_before_a_slow_registry_is_told_of_any() -> None:
    routed, suspended_routes, told = Routed(6, ROUTE, 41), [], []

    class Slow:
        def end_route(self, task: str, alias: str, seen: Route, *, since: int | None = None, **_: object) -> int:
            told.append((alias, since, list(suspended_routes)))
            return 42

    aliases = ("production", "canary")
    comparisons = Comparisons(lambda *_: routed)
    for alias in aliases:
        window = comparisons.window("sst2", alias)
        assert window is not None
        compared(window, 7, 10, agreed=False)
    routes = {("sst2", alias): ROUTE for alias in aliases}
    rollback = AutoRollback(
        Slow(), comparisons, lambda: routes, "me", suspend=lambda *route: suspended_routes.append(route)
    )  # type: ignore[arg-type]
    rollback.check()
    both = [("sst2", alias, 41) for alias in aliases]
    assert told == [(alias, 41, both) for alias in aliases]


def test_a_version_whose_callers_leave_before_its_answer_is_too_slow() -> None:
    window = Window(Routed(6, Route(shares={7: 500}, bounds=Bounds(error_rate=0.1, latency=2.0, min_rows=10))))
    for _ in range(10):
        window.answered(6, 1, 0, 0.1)
        window.abandoned(7, 1, 1.0)
    assert judge(window) == Fault("latency", 7, "latency 1000 ms > 2 x 100 ms after 10 rows")


def test_what_was_seen_under_a_route_that_is_over_is_forgotten(house: House) -> None:
    gone: set[str] = set()
    comparisons = Comparisons(lambda task, alias: None if alias in gone else Routed(6, ROUTE, 41))
    rollback = AutoRollback(house.registry, comparisons, dict, "me")
    kept, _ = comparisons.window("sst2", "production"), comparisons.window("sst2", "canary")
    gone.add("canary")
    rollback.check()
    assert comparisons._windows == {("sst2", "production"): kept}


class Away:
    """A registry that cannot be written for a while."""

    def __init__(self, registry: Registry, failures: int) -> None:
        self.registry, self.failures, self.calls = registry, failures, 0

    def end_route(self, *args: object, **how: object) -> int | None:
        self.calls += 1
        if self.calls <= self.failures:
            raise StoreFailed("memory://", "log/1", "it is away")
        return self.registry.end_route(*args, **how)  # type: ignore[arg-type]


def test_a_registry_that_cannot_be_written_is_tried_again_and_no_share_is_given_meanwhile(house: House) -> None:
    away = Away(house.registry, failures=3)
    rollback, metrics = house.server(away)
    calls = []
    for second in range(12):
        house.now = float(second)
        rollback.check()
        calls.append(away.calls)
    assert calls == [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]  # after 1, 2 and 4 s
    assert house.suspended_routes == {("sst2", "production", house.seen.since)}
    assert len(house.rollbacks) == 1
    assert rolled_back(metrics) == 1


def test_the_thread_judges_and_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.rollout.auto_rollback.CHECK_S", 0.001)
    rollback, _ = house.server()
    rollback.start()
    while not house.woken:
        pass
    rollback.stop()
    assert not rollback._thread.is_alive()
    assert len(house.rollbacks) == 1
