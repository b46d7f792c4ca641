"""The soak benchmark: a server whose registry changes gives right answers and keeps nothing that left the registry.

The judge of the soak, which compares answers with the registry's history, is tested without a server.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner

from benchmarks.harness.models import Loaded, load
from benchmarks.harness.samples import BenchmarkError
from benchmarks.harness.served import Served
from benchmarks.soak import bench_soak
from benchmarks.soak.audit import Fault, audit
from benchmarks.soak.bench_soak import APART, verdict
from benchmarks.soak.churn import KEPT, Change, Churn
from benchmarks.soak.load import Record
from benchmarks.soak.oracle import Oracle, distance
from benchmarks.soak.run import Outcome, Plan, Round, Soak, Span
from benchmarks.soak.versions import VARIANTS, make_spec, make_version
from benchmarks.soak.vitals import Sighting, Vitals, Watch, watching
from ladder import Backbone, Tokenizer
from serving.config import LoadConfig
from serving.metrics import Metrics
from serving.versions.loader import Loader
from serving.versions.pool import SidePool
from serving.versions.reconciler import Reconciler
from side_registry import KINDS, Registry

# --- a real server


@pytest.mark.slow
def test_every_answer_is_right_and_nothing_is_left_behind(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setenv("TMPDIR", str(folders))  # for the server; this process has read its own already
    plan = Plan(rounds=2, changes=20, pause_s=0.05, texts=8, fewest=200)  # enough for each kind of request
    loaded = load(str(tiny_t5), device="cpu", dtype="float32")
    soak = Soak(loaded, tmp_path / "soak", plan, threads=1)
    outcome = soak.run()
    assert outcome.faults == []
    assert len(outcome.changes) == (KEPT + 1) * plan.tasks + 3 * plan.changes
    assert {"publish", "promote", "roll back", "retire", "share", "canary"} <= soak.churn.counts.keys()
    assert all(span.began < span.ended for one in outcome.rounds for span in one.swaps)
    answered = [record for record in outcome.records if record.answers]
    assert {(bool(record.pinned), record.alias, bool(record.key)) for record in answered} == {
        (False, "production", False),
        (True, "production", False),
        (False, "canary", False),
        (False, "production", True),
    }
    assert {type(record.answers[0]) for record in answered} == {list, str}
    assert len({(record.task, record.version) for record in answered}) > plan.tasks
    texts = {task for task in outcome.shares if KINDS[make_spec(int(task[-2:])).kind].makes_text}
    assert min(share for task, share in outcome.shares.items() if task not in texts) > APART
    # The tiny tokenizer's tokens are bytes. Most are not text by themselves, so different tokens can look the same.
    assert min(share for task, share in outcome.shares.items() if task in texts) > 0
    first, *_, last = outcome.watch.vitals
    assert (last.evictions, last.misses) == (first.evictions, first.misses)
    assert last.residents <= plan.tasks * (KEPT + 2)
    grown = bench_soak.grown(outcome)
    assert grown["changes"] == plan.rounds * plan.changes
    assert grown["threads"] <= 4
    assert grown["files"] <= 4
    assert list(folders.iterdir()) == []


@pytest.mark.slow
def test_killed_callers_and_renewals_cause_no_error(tiny_t5: Path, tmp_path: Path) -> None:
    plan = Plan(tasks=VARIANTS, rounds=1, changes=3, pause_s=0.3, texts=4, fewest=60, secured=True, trouble_s=0.3)
    loaded = load(str(tiny_t5), device="cpu", dtype="float32")
    outcome = Soak(loaded, tmp_path / "soak", plan, threads=1).run()
    assert (outcome.faults, outcome.refusals) == ([], 0)
    assert outcome.troubles.killed > 0
    assert outcome.troubles.renewed > 0
    assert {type(record.answers[0]) for record in outcome.records if record.answers} == {list, str}


# --- what the server keeps


@pytest.mark.slow
def test_what_left_the_registry_leaves_the_server(
    tmp_path: Path, backbone: Backbone, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(
        logging.CRITICAL
    )  # pytest keeps records, and their tracebacks keep side networks that failed to load
    loaded, made = Loaded(folder="", backbone=backbone, tokenizer=tokenizer), iter(range(1000))

    def make(number: int, broken: bool) -> Path:
        seed = next(made)
        return make_version(tmp_path / "runs" / str(seed), loaded, number, seed, broken=broken)

    registry = Registry.open(tmp_path / "registry", create=True)
    churn = Churn(registry, VARIANTS, make)
    churn.start()
    pool, metrics, config = SidePool(), Metrics(), LoadConfig(poll_s=1e-9)
    loader = Loader(registry, backbone, tokenizer, config)
    reconciler = Reconciler(registry, pool, loader.load, config, metrics)
    for _ in range(60):
        churn.prepare(1)
        change = churn.step()
        while pool.snapshot().generation < change.generation:
            reconciler.step()
        for task, version in pool.snapshot().residents:
            metrics.request(task, version, "OK")
    live = {(name, version) for name, task in registry.state().live.items() for version in task.live}
    state = pool.snapshot()
    assert churn.counts["retire"] > 5
    assert churn.counts["break"] > 0
    assert state.residents.keys() == live - churn.broken
    assert state.failed.keys() == live & churn.broken
    assert loader.bank.slots == len(state.residents)
    assert {(task, int(version)) for task, version in versions_of(metrics)} == state.residents.keys()
    assert metrics.registry.get_sample_value("sidecast_resident_bytes") == sum(
        resident.bytes for resident in state.residents.values()
    )


def versions_of(metrics: Metrics) -> set[tuple[str, str]]:
    """The tasks and versions that the labels of its series name."""
    labels = [sample.labels for family in metrics.registry.collect() for sample in family.samples]
    return {(one["task"], one["version"]) for one in labels if one.keys() >= {"task", "version"}}


# --- the script


COUNTED = [field.name for field in dataclasses.fields(Vitals) if field.name != "at"]


def outcome(**changes: Any) -> Outcome:
    return dataclasses.replace(Outcome([RIGHT], [], Watch(), [], Span(0, 0), shares={"task-00": 1.0}), **changes)


def test_changes_that_cost_nothing_have_the_tail_of_steady_requests_at_the_same_times() -> None:
    """Swaps meet all of the long requests and few of the short ones, so their tail is not that of all requests."""
    steady = Span(0, 100)
    still = [dataclasses.replace(RIGHT, started=at + 0.01, ended=at + 0.02) for at in range(1, 99)]
    still.append(dataclasses.replace(RIGHT, started=9.5, ended=11.5))
    changing = [dataclasses.replace(one, started=one.started + 200, ended=one.ended + 200) for one in still]
    swaps = [Span(210, 210.5), Span(220.015, 220.5), Span(230.015, 230.5)]
    vitals = [Vitals(at=100, **dict.fromkeys(COUNTED, 0))] * 2  # type: ignore[arg-type]
    found = outcome(
        records=still + changing,
        rounds=[Round(steady, steady.shifted(200), swaps, loads=swaps[1:])],
        watch=Watch(vitals=vitals),
        after=steady,
    )
    ratios = bench_soak.ratios(found)
    assert ratios["p99 in swaps / steady"].median == pytest.approx(1)
    assert ratios["p99 in swaps that load nothing / steady"].median == pytest.approx(1)
    assert bench_soak.samples(found).ratio("p99_ms", "swaps", "steady").median > 2


def test_a_refused_call_fails_the_script() -> None:
    assert "3 calls were refused" in verdict(outcome(refusals=3))


def test_a_fault_fails_the_script() -> None:
    assert verdict(outcome()) == ""
    assert verdict(outcome(faults=[Fault("key", RIGHT, "elsewhere")])) == "1 of 1 were told something wrong"


def test_versions_that_are_too_alike_fail_the_script() -> None:
    for apart in (0.98, 0.0):
        assert "nothing is proved" in verdict(outcome(shares={"task-00": apart, "task-01": 1.0}))
    assert "nothing is proved" in verdict(Outcome([RIGHT], [], Watch(), [], Span(0, 0)))  # no task had two versions


def test_the_script_exits_with_1_after_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []

    def ask(*how: Any) -> None:
        how[-1]("3 of 40 were told something wrong")

    def answer(measure: Callable[..., None], **how: Any) -> None:
        measure(None, None)
        reported.append("report")

    monkeypatch.setattr(bench_soak, "ask", ask)
    monkeypatch.setattr(bench_soak, "answer", answer)
    done = CliRunner().invoke(bench_soak.main, [])
    assert (done.exit_code, reported) == (1, ["report"])
    assert "3 of 40" in done.output
    monkeypatch.setattr(bench_soak, "ask", lambda *how: None)
    assert CliRunner().invoke(bench_soak.main, []).exit_code == 0


class SilentClient:
    """A client whose watch yields nothing until it is closed."""

    def __init__(self, *how: Any, **more: Any) -> None:
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def watch(self) -> Iterator[Any]:
        self._closed.wait(10)
        return iter(())


def test_a_server_whose_metrics_cannot_be_read_fails_the_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    def look(*_: object) -> None:
        tried.set()
        raise BenchmarkError("the server's metrics cannot be read")

    monkeypatch.setattr("benchmarks.soak.vitals.Client", SilentClient)
    monkeypatch.setattr("benchmarks.soak.vitals.look", look)
    served = Served(address="", metrics_url="", tasks=0, start_s=0.0, pid=0)
    with pytest.raises(BenchmarkError, match="cannot be read"), watching(served, lambda: 0, every_s=0.001):
        assert tried.wait(10)


# --- the judge

CHANGES = tuple(
    Change(
        verb=verb,
        task="a",
        generation=n,
        began=n - 0.1,
        ended=n,
        allowed={"production": frozenset(versions), "canary": frozenset({1})},
        live=frozenset(live),
    )
    for n, verb, versions, live in (
        (1, "promote", {1}, {1, 2}),
        (2, "promote", {2}, {1, 2}),
        (3, "share", {1, 3}, {1, 2, 3}),
        (4, "retire", {1, 3}, {1, 3}),
    )
)
SIGHTINGS = (Sighting(1.5, 1), Sighting(2.5, 2))
RIGHT = Record(task="a", inputs=[0], started=1.1, ended=1.2, version=1, generation=1, answers=[[0.5]])


def faults(*records: Record, far: float = 0.0) -> list[str]:
    return [fault.kind for fault in audit(records, CHANGES, SIGHTINGS, lambda record: far)]


def changed(**changes: Any) -> Record:
    return dataclasses.replace(RIGHT, **changes)


@pytest.mark.parametrize(
    "right",
    [
        RIGHT,
        changed(ended=1.95, version=2),  # committed while it was asked, and served before the commit's call returned
        changed(started=2.4, ended=2.45),  # the server has not followed yet
        changed(started=2.4, ended=2.9, generation=2, version=3),
        changed(started=3.5, ended=3.6, generation=2, version=1),  # with a share
        changed(started=2.6, ended=2.7, generation=2, alias="canary"),
        changed(pinned=1),
        changed(started=3.95, ended=3.96, generation=3, version=2, pinned=2),  # is being retired
        changed(started=3.85, ended=3.95, reason="UNKNOWN_VERSION", pinned=2),
        changed(started=4.5, ended=4.6, reason="UNKNOWN_VERSION", pinned=2),
    ],
)
def test_a_right_answer_is_right(right: Record) -> None:
    assert faults(right) == []


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (changed(reason="INTERNAL"), "error"),
        (changed(version=2), "version"),  # before its commit
        (changed(started=2.92, ended=2.95, version=2, generation=3), "version"),  # not of that generation, nor later
        (changed(started=2.4, ended=2.45, version=2, generation=3), "generation"),  # nobody had begun to commit it
        (changed(started=4.5, ended=4.6, generation=9), "generation"),  # nor has ever
        (changed(started=2.6, ended=2.7), "generation"),  # the server had reported that it serves 2
        (changed(started=2.6, ended=2.7, generation=2), "version"),
        (changed(started=2.6, ended=2.7, generation=2, version=2, alias="canary"), "version"),
        (changed(version=1, pinned=2), "version"),
        (changed(started=4.5, ended=4.6, generation=4, version=2, pinned=2), "version"),  # was retired before
        (changed(started=3.5, ended=3.6, reason="UNKNOWN_VERSION", pinned=2), "error"),  # was not yet
        (changed(started=4.5, ended=4.6, reason="UNKNOWN_VERSION", pinned=1), "error"),
        (changed(started=4.5, ended=4.6, reason="UNKNOWN_VERSION"), "error"),  # nobody asked for one
    ],
)
def test_a_wrong_answer_is_found(wrong: Record, kind: str) -> None:
    assert faults(wrong) == [kind]


@pytest.mark.parametrize("far", [1.01, float("inf"), float("nan")])
def test_an_answer_of_another_version_is_found(far: float) -> None:
    assert faults(RIGHT, far=far) == ["mismatch"]


def test_an_answer_before_the_first_change_is_a_fault() -> None:
    assert faults(changed(started=0.1, ended=0.2)) == ["generation"]


def test_an_answer_of_an_older_generation_than_one_before_is_a_fault() -> None:
    newer = changed(started=2.1, ended=2.2, version=2, generation=2)
    assert faults(newer, changed(started=2.15, ended=2.3)) == []
    assert faults(newer, changed(started=2.25, ended=2.3)) == ["generation"]


def test_a_route_key_that_changes_its_version_under_one_route_is_a_fault() -> None:
    first = changed(started=3.1, ended=3.2, generation=3, key="ann")
    later = dataclasses.replace(first, started=4.5, ended=4.6, generation=4, version=3)  # a retirement moves no alias
    other = dataclasses.replace(later, key="bob")
    moving = changed(started=2.85, ended=2.95, generation=2, version=2, key="ann")
    assert faults(moving, first, other) == []
    assert faults(first, later) == ["key"]


def test_the_oracle_tells_every_version_from_every_other(
    tmp_path: Path, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    loaded, texts = Loaded(folder="", backbone=backbone, tokenizer=tokenizer), ["dull", "a gripping film"]
    registry = Registry.open(tmp_path / "registry", create=True)
    for number in range(VARIANTS):
        for seed in range(3):
            folder = tmp_path / f"{number}-{seed}"
            registry.publish(make_version(folder, loaded, number, seed))
    oracle = Oracle(registry, loaded, texts)
    for task in registry.state().live:
        assert oracle.apart(task, [1, 2, 3]) == 1.0
        one, two, _ = (oracle.answers(task, version)[0] for version in (1, 2, 3))
        assert distance(one, one) == 0
        assert distance(one, two) > 2 * oracle.tolerance
        assert distance(one[:-1], one) == float("inf")


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_vector_with_nan_or_infinity_is_infinitely_far(odd: float) -> None:
    assert distance([0.5, odd], [0.5, 0.5]) == float("inf")
    assert distance([0.5, odd], [0.5, odd]) == float("inf")


def test_texts_are_equal_or_infinitely_far() -> None:
    assert distance("a b", "a b") == 0
    assert distance("a", "a b") == float("inf")
