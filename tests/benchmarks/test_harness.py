"""The harness: turns, medians, ratios, files, the last line; and the server's benchmark once, on a tiny backbone."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from benchmarks.harness import load, machine
from benchmarks.harness.machine import ROOT, Machine, look, slug
from benchmarks.harness.samples import (
    BenchmarkError,
    Column,
    Report,
    Samples,
    Spread,
    Variant,
    pace,
    plain_errors,
    quantile,
    speed,
    take_turns,
    time_calls,
)
from benchmarks.server import bench_server
from benchmarks.server.bench_server import by_length, server_figures
from sidecast.loadtest.measure import Call, Failure, Window
from sidecast.loadtest.plan import Closed
from sidecast.loadtest.runner import Ran
from sidecast.loadtest.scrape import Look

SOME_MACHINE = Machine(
    cpu="Some Chip 9",
    cores=2,
    instruction_sets=["avx2", "avx512_vnni"],
    torch_cpu="AVX2",
    gpu=None,
    device="cpu",
    dtype="float32",
    torch="2.0",
    threads=1,
    python="3.11",
    system="Linux",
    commit="0" * 40,
    modified=False,
    load=0.0,
)
SAMPLES = Samples([{"fast": {"rows_per_s": 30.0}, "[slow]": {"rows_per_s": rows}} for rows in (10.0, 5.0, 20.0)])


def make_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "name": "toy",
        "title": "How fast is [slow]?",
        "machine": SOME_MACHINE,
        "settings": {"seconds": 1.0},
        "samples": SAMPLES,
        "ratios": {"[slow] / fast": SAMPLES.ratio("rows_per_s", "[slow]", "fast")},
        "date": "2026-01-02",
    }
    return Report(**values | changes)


class FakeClock:
    """Time that passes only when work says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_every_round_measures_every_variant_once_after_all_warm_ups():
    done: list[str] = []
    variants = [Variant(name=name, measure=lambda name=name: (done.append(name), {"x": 1.0})[1]) for name in "abcde"]
    samples = take_turns(variants, rounds=20, seed=1)
    turns = [tuple(done[at : at + 5]) for at in range(0, len(done), 5)]
    assert turns[0] == tuple("abcde")  # the warm-up
    assert len(turns) == 21
    assert all(sorted(turn) == list("abcde") for turn in turns)
    assert len(set(turns[1:])) > 10
    assert all(list(each) == list("abcde") for each in samples.rounds)


def test_the_same_seed_gives_the_same_order():
    def order(seed: int) -> list[str]:
        told: list[str] = []
        variants = [Variant(name=name, measure=lambda: {"x": 1.0}) for name in "abcde"]
        take_turns(variants, 3, seed, told.append)
        return told

    assert order(1) == order(1) != order(2)


def test_a_variants_own_warm_up_replaces_the_measurement_that_is_thrown_away():
    done: list[str] = []
    variant = Variant(
        name="a", measure=lambda: (done.append("measure"), {"x": 1.0})[1], warm_up=lambda: done.append("warm up")
    )
    take_turns([variant], rounds=2)
    assert done == ["warm up", "measure", "measure"]


@pytest.mark.parametrize(("names", "rounds"), [("aa", 1), ("ab", 0)])
def test_no_rounds_and_equal_names_are_refused(names, rounds):
    with pytest.raises(BenchmarkError, match="at least one round and different names"):
        take_turns([Variant(name=name, measure=dict) for name in names], rounds)


def test_calls_are_timed_without_their_preparation_and_with_the_wait_for_the_device():
    clock, prepared = FakeClock(), iter([1.0, 2.0, 4.0, 8.0])

    def prepare() -> float:
        clock.work(100.0)
        return next(prepared)

    durations = time_calls(clock.work, seconds=8, prepare=prepare, finish=lambda: clock.work(0.5), clock=clock)
    assert durations == [1.5, 2.5, 4.5]
    assert speed(durations, rows_per_call=17)["rows_per_s"] == pytest.approx(6.0)
    assert speed(durations, rows_per_call=17)["p50_ms"] == pytest.approx(2500.0)


def test_the_lead_is_not_counted():
    clock, work = FakeClock(), iter([5.0, 1.0, 1.0])
    assert time_calls(lambda _: clock.work(next(work)), seconds=2, lead_s=1, clock=clock) == [1.0, 1.0]


def test_the_pace_is_that_of_the_median_call():
    assert pace([0.1, 0.2, 9.0], 4) == {"rows_per_s": 20.0, "ms": 200.0}
    assert pace([0.5], 4, "tokens") == {"tokens_per_s": 8.0, "ms": 500.0}


def test_even_no_time_at_all_is_one_call():
    assert time_calls(lambda _: None, seconds=0, clock=FakeClock()) == [0.0]


def test_medians_and_quartiles_are_over_the_rounds():
    spread = SAMPLES.spread("[slow]", "rows_per_s")
    assert (spread.median, spread.quartiles) == (10.0, (7.5, 15.0))
    assert Spread((3.0,)).quartiles == (3.0, 3.0)
    assert [quantile([4, 1, 3, 2], share) for share in (0, 0.5, 0.99, 1)] == pytest.approx([1, 2.5, 3.97, 4])


def test_a_ratio_is_taken_within_each_round():
    pairs = ((10.0, 5.0), (20.0, 40.0), (30.0, 20.0))
    rounds = [{"ours": {"x": ours}, "theirs": {"x": theirs}} for ours, theirs in pairs]
    ratio = Samples(rounds).ratio("x", "ours", "theirs")
    assert ratio.values == (2.0, 0.5, 1.5)
    assert ratio.median == 1.5  # that of the medians would be 1


@pytest.mark.parametrize("as_json", [True, False])
def test_the_last_line_is_one_json_object(capsys, as_json):
    columns = (Column(figure="rows_per_s", heading="rows/s"), Column(figure="p50_ms", heading="p50 ms"))
    make_report().show(columns, as_json)
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert document["variants"]["[slow]"]["rows_per_s"]["median"] == 10.0
    assert document["ratios"]["[slow] / fast"]["rounds"] == [0.333333, 0.166667, 0.666667]
    assert document["machine"]["cpu"] == "Some Chip 9"
    assert (len(lines) == 1) == as_json
    assert as_json or any("[slow]" in line and "10.0 (7.5-15.0)" in line for line in lines)


def test_the_result_file_is_named_by_date_machine_and_benchmark(tmp_path):
    path = make_report().save(tmp_path / "results")
    assert path.name == "2026-01-02-some-chip-9-avx512-vnni-toy.json"
    assert json.loads(path.read_text()) == make_report().document()
    on_gpu = replace(SOME_MACHINE, gpu="NVIDIA H100 80GB HBM3", device="cuda:0")
    assert make_report(machine=on_gpu).file_name == "2026-01-02-nvidia-h100-80gb-hbm3-toy.json"


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(BenchmarkError, match="cannot write"):
        make_report().save(tmp_path / "results")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", "intel-xeon-gold-6338"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763"),
        ("Apple M2", "apple-m2"),
        ("", "unknown"),
    ],
)
def test_a_slug_is_plain_words(name, expected):
    assert slug(name) == expected


def test_the_machines_facts_are_json_and_name_no_host_and_no_path(monkeypatch):
    facts = look("cpu", "float32").to_dict()
    text = json.dumps(facts)
    assert facts["cores"] >= 1
    assert facts["torch"]
    assert str(Path.home()) not in text
    assert str(ROOT) not in text
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert look().commit == "unknown"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model name\t: Chip\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_tile\n",
            ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx"],
        ),
        ("flags : fpu sse2\n", []),
        ("Features\t: fp asimd bf16 i8mm\n", ["asimd", "bf16", "i8mm"]),
        ("nothing of the kind\n", None),
        (None, None),
    ],
)
def test_instruction_sets_are_read_where_the_system_tells_them(tmp_path, monkeypatch, text, expected):
    facts = tmp_path / "cpuinfo"
    if text is not None:
        facts.write_text(text)
    monkeypatch.setattr(machine, "CPU_FACTS", facts)
    assert machine.instruction_sets() == expected
    assert look().to_dict()["instruction_sets"] == expected


def test_an_error_with_a_reason_becomes_one_line_and_exit_2():
    with pytest.raises(click.ClickException, match="no luck") as caught, plain_errors():
        raise BenchmarkError("no luck")
    assert caught.value.exit_code == 2
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError


def test_requests_mix_all_tasks_and_never_repeat_a_text():
    asked = list(islice(load.requests(["a", "b", "c"], seed=1), 3000))
    assert len({text for _, text in asked}) == 3000
    assert all(900 < count < 1100 for count in Counter(task for task, _ in asked).values())
    assert asked == list(islice(load.requests(["a", "b", "c"], seed=1), 3000))
    assert not {text for _, text in asked} & {text for _, text in islice(load.requests(["a"], seed=2), 3000)}


def test_offered_load_is_counted_by_what_was_due_in_its_window():
    calls = [made(due, due + 0.5, OVERLOADED if due == 11.0 else None) for due in (9.9, 10.0, 11.0, 11.9, 12.0)]
    seen = load.seen_by_arrivals(ran(calls, Window(10.0, 12.0)))
    assert (seen.latencies_us, seen.errors) == ([500_000, 500_000], {"OVERLOADED": 1})
    assert (seen.offered_per_s, seen.good_per_s) == (1.5, 1.0)
    assert seen.grown == {"batches": 3.0}


def test_a_request_of_several_rows_counts_as_several():
    seen = load.Load(callers=2, cycles_s=4.0, latencies_us=[1, 1], errors={}, window_s=2.0, grown={}, rows=8)
    assert seen.rows_per_s == 8.0


OVERLOADED = Failure("RESOURCE_EXHAUSTED", "OVERLOADED", "full")


def made(due: float, ended: float, failure: Failure | None = None) -> Call:
    return Call(task="a", rows=1, due=due, sent=due, ended=ended, failure=failure)


def ran(calls: list[Call], window: Window) -> Ran:
    before, after = Look({"batches": 2.0}, window.begins), Look({"batches": 5.0}, window.ends)
    return Ran(level=Closed(2), window=window, calls=calls, before=before, after=after)


def test_callers_are_counted_by_what_ended_in_their_window():
    calls = [made(9.0, 10.5), made(10.0, 11.0, OVERLOADED), made(10.5, 11.5), made(11.9, 12.1), made(9.0, 9.5)]
    seen = load.seen_by_callers(ran(calls, Window(10.0, 12.0)), callers=2, rows=4)
    assert (seen.latencies_us, seen.errors) == ([1_500_000, 1_000_000], {"OVERLOADED": 1})
    assert seen.cycles_s == pytest.approx(1.5 + 1.0 + 1.0 + load.PAUSE_S)  # a caller pauses after a failure
    assert seen.rows_per_s == pytest.approx(4 * 2 * 2 / seen.cycles_s)
    assert (seen.window_s, seen.grown) == (2.0, {"batches": 3.0})


def test_arrivals_fill_the_queue_for_their_deadline_before_they_count():
    job = load.Job(address="", metrics_url="", tasks=["a"], rate=5.0, seconds=0.5, deadline_s=2.0)
    assert (job.plan.warmup_s, job.plan.timeout_s) == (2.0, 2.0)
    assert replace(job, deadline_s=None).plan.warmup_s == load.LEAD_S
    assert replace(job, callers=3, rate=None, deadline_s=None).plan.warmup_s == 0.5


def test_the_engines_batches_are_of_like_lengths_and_full():
    rows: Any = iter([SimpleNamespace(ids=(0,) * length) for length in (5, 1, 4, 2, 3, 9, 8, 7, 6, 10)])
    batches = [[len(row.ids) for row in batch] for batch in islice(by_length(rows, 5, 2), 4)]
    assert batches == [[1, 2], [3, 4], [6, 7], [8, 9]]


def test_the_servers_figures_come_from_callers_and_its_own_counts():
    grown = {
        "sidecast_batch_rows_sum": 90.0,
        "sidecast_batch_rows_count": 3.0,
        "sidecast_stage_seconds_sum backbone": 1.0,
        "sidecast_stage_seconds_sum side": 0.5,
        "sidecast_stage_seconds_sum queue": 9.0,
    }
    seen = load.Load(
        callers=2,
        cycles_s=4.0,
        latencies_us=[1000, 3000, 2000, 4000],
        errors={"OVERLOADED": 2},
        window_s=2.0,
        grown=grown,
    )
    figures = server_figures(seen)
    assert figures["rows_per_s"] == 2.0  # two callers, a second a cycle
    assert figures["p50_ms"] == 2.5
    assert (figures["batch_rows"], figures["device_busy"], figures["errors"]) == (30.0, 0.75, 2.0)


@pytest.mark.slow
def test_bench_server_runs_in_processes_of_its_own_and_ends_in_its_json_line(tiny_t5):
    words = ["--quick", "--backbone", str(tiny_t5), "--threads", "1", "--dtype", "float32"]
    command = [sys.executable, "-m", "benchmarks.server.bench_server", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document["variants"]) == {
        f"{name} {level}" for name in ("server", "engine") for level in ("1", "4", "2x8")
    }
    assert document["variants"]["server 4"]["errors"]["median"] == 0
    assert document["ratios"]["server / engine at saturation"]["median"] > 0
    assert str(tiny_t5.parent) not in done.stdout


def test_bench_server_says_what_is_wrong_in_one_line(tmp_path):
    done = CliRunner().invoke(bench_server.main, ["--quick", "--backbone", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.output
