"""`sidecast batch` as users run it: its mistakes in one line, and with Ray, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladder import load_backbone, load_tokenizer
from serving.offline import run as offline
from serving.offline.run import Summary
from serving.offline.table import Counts
from serving.offline.worker import Replica, as_row
from side_registry import Registry
from sidecast import Client
from sidecast.cli.serving import batch as command
from tests.serving.kit import make_run, make_spec
from tests.sidecast.cli_kit import ROOT, Serving, done, plain_environment, sidecast

ROWS = 120
TASKS = ("sst2", "stars", "title")
RAY_S = 120.0


@dataclass(frozen=True)
class Bench:
    """A backbone, a registry with three tasks, and rows, of which the fourth is bad."""

    backbone: Path
    registry: str
    rows: Path

    def words(self, output: Path, *more: object) -> list[str]:
        tasks = [word for task in TASKS for word in ("--task", task)]
        where = ("--registry", self.registry, "--backbone", self.backbone, "--device", "cpu", "--dtype", "float32")
        return [str(word) for word in ("batch", self.rows, output, *tasks, *where, *more)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Bench:
    folder = tmp_path_factory.mktemp("batch")
    backbone, tokenizer = load_backbone(tiny_t5, dtype="float32"), load_tokenizer(tiny_t5)
    registry = Registry.open(folder / "registry", create=True)
    for spec in (make_spec(), make_spec("stars", "regression"), make_spec("title", "text", max_new_tokens=4)):
        registry.publish(make_run(folder / spec.name, backbone, tokenizer, spec, seed=len(spec.name)))
    rows = [{"id": number, "sentence": f"{number} films" if number != 3 else " "} for number in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Bench(tiny_t5, registry.url, folder / "rows.jsonl")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica works in this process."""

    def reports(work: Any, shards: Any, placed: Any) -> Iterator[dict[str, Any]]:
        replica = Replica(work)
        for shard in shards:
            report = replica({name: [value] for name, value in as_row(shard).items()})  # type: ignore[dict-item]
            yield {name: value for name, [value] in report.items()}

    monkeypatch.setattr(offline, "_ray", lambda address: nullcontext([{"CPU": 1.0}]))
    monkeypatch.setattr(offline, "_reports", reports)


class TestCommand:
    def test_it_tells_what_was_done(self, no_ray: None, bench: Bench, tmp_path: Path):
        document = done(*bench.words(tmp_path / "out", "--json", "--shard-rows", 50)).document
        assert (document["rows"], document["parts"], document["answered"], document["done_before"]) == (
            ROWS,
            3,
            ROWS,
            0,
        )
        assert document["prompts"] == document["passes"] == ROWS - 1
        assert document["failures"] == dict.fromkeys(TASKS, 1)
        assert document["versions"] == dict.fromkeys(TASKS, 1)
        assert document["rows_per_s"] > 0
        again = done(*bench.words(tmp_path / "out", "--shard-rows", 50))
        assert "is complete: all 120 rows were answered before" in again.out
        assert "nothing to do" in again.out
        assert done(*bench.words(tmp_path / "out", "--shard-rows", 50, "--json")).document["answered"] == 0

    def test_the_summary_in_words(self):
        counts = Counts(rows=90, prompts=80, passes=80, failures={"a": 3, "b": 0})
        summary = Summary(rows=100, shards=4, done_before=10, versions={"a": 2, "b": 1}, counts=counts, seconds=30.0)
        assert command._text("out", summary).splitlines() == [
            "90 rows in 30.0 s, 3 rows/s (a version 2, b version 1)",
            "80 distinct prompts, 80 backbone passes, 3 failures; a: 3",
            "out: 100 rows in 4 parts, 10 of them from before",
        ]

    @pytest.mark.parametrize(
        ("words", "mistake"),
        [
            (("--task", "sst3"), "sst3"),
            (("--task", "sst2:9"), "9"),
            (("--rename", "sentence"), "give FIELD=COLUMN, got 'sentence'"),
            (("--rename", "sentence=review"), "needs a column 'review'; there are id, sentence"),
            (("--format", "xml"), "xml"),
            (("--batch-rows", "0"), "batch-rows"),
            (("--gpus", "1.5"), "give a part of one GPU, or whole ones, got 1.5"),
            (("--backbone", "nowhere/at-all-here"), "nowhere/at-all-here"),
        ],
    )
    def test_mistakes_are_one_line(
        self, no_ray: None, bench: Bench, tmp_path: Path, words: tuple[str, ...], mistake: str
    ):
        assert mistake in sidecast(*bench.words(tmp_path / "out", *words)).mistake
        assert not (tmp_path / "out").exists()

    def test_an_input_that_is_not_there(self, no_ray: None, bench: Bench, tmp_path: Path):
        words = bench.words(tmp_path / "out")
        words[1] = str(tmp_path / "nothing.csv")
        assert "nothing.csv: there is no such file or folder" in sidecast(*words).mistake

    def test_another_run_in_the_output(self, no_ray: None, bench: Bench, tmp_path: Path):
        done(*bench.words(tmp_path / "out"))
        assert "with another --format" in sidecast(*bench.words(tmp_path / "out", "--format", "jsonl")).mistake

    def test_it_starts_without_ray_and_torch(self):
        slow = "('ray', 'torch', 'serving')"
        lines = f"import sys, sidecast.cli.serving.batch; print([name for name in {slow} if name in sys.modules])"
        found = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.stdout == "[]\n"


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands with a Ray of their own; after them no process of it is left."""
    pytest.importorskip("ray.data")
    folder = tmp_path_factory.mktemp("r")  # short: sockets have names there
    yield plain_environment() | {"RAY_TMPDIR": str(folder), "RAY_raylet_start_wait_time_s": "50"}
    until(lambda: not rays(folder))


def rays(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words):
            found.append(process)
    return found


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    last = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < last, "it never came"
        time.sleep(0.1)


FATAL = """
import os, sys
from serving.offline import run as offline
from sidecast.cli.app import main

class Fatal(offline.Replica):
    def {method}(self, argument):
        {does}

offline.Replica = Fatal
main(sys.argv[1:])
"""


def start(words: list[str], environment: dict[str, str], lines: str = "") -> "subprocess.Popen[str]":
    """The command; or `lines` of Python that call it."""
    command = [sys.executable, *(("-c", lines) if lines else ("-m", "sidecast.cli")), *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    code, out, err = end(words, environment)
    assert (code, err) == (0, "")
    return json.loads(out)


def end(words: list[str], environment: dict[str, str], lines: str = "") -> tuple[int, str, str]:
    """The code, and what was told; one that does not end in time is killed, and its Ray with it."""
    process = start(words, environment, lines)
    try:
        out, err = process.communicate(timeout=RAY_S)
        return process.returncode, out, err
    finally:
        process.kill()
        process.communicate()


def go_on_after_a_kill(bench: Bench, output: Path, alone: dict[str, str]) -> None:
    """Kill a run after its first parts, and give the same command again: no part is made twice."""
    words = bench.words(output, "--json", "--shard-rows", 3, "--batch-rows", 1)
    process = start(words, alone)
    try:
        until(lambda: len(list(output.glob("part-*"))) > 1 or process.poll() is not None, RAY_S)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    until(lambda: not rays(Path(alone["RAY_TMPDIR"])))
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 1 < len(before) < ROWS // 3
    document = finish(words, alone)
    assert document["done_before"] >= 3 * len(before)  # a replica may finish its part while it dies
    assert document["answered"] == ROWS - document["done_before"]
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert pq.read_table(output)["id"].to_pylist() == list(range(ROWS))
    assert not (output / "_unfinished").exists()


@pytest.mark.cluster
@pytest.mark.timeout(300)
class TestRay:
    def test_killed_and_gone_on_with_it_has_a_servers_answers(
        self, bench: Bench, tmp_path: Path, alone: dict[str, str]
    ):
        output = tmp_path / "out"
        go_on_after_a_kill(bench, output, alone)
        rows = [row for row in pq.read_table(output).to_pylist() if row["id"] != 3]
        words = ("--backbone", bench.backbone, "--registry", bench.registry, "--dtype", "float32", "--device", "cpu")
        with Serving(tmp_path, *words) as serving, Client(serving.address) as client:
            texts = [row["sentence"] for row in rows]
            classes, values, titles = (client.predict(task, texts, version=1) for task in TASKS)
        assert [row["sst2.label"] for row in rows] == [each.label for each in classes]
        assert [row["sst2.score"] for row in rows] == pytest.approx([each.score for each in classes], abs=1e-4)
        assert [row["stars.value"] for row in rows] == pytest.approx([each.value for each in values], abs=1e-4)
        assert [row["title.text"] for row in rows] == [each.text for each in titles]

    def test_a_replica_that_gives_up_is_one_line(self, bench: Bench, tmp_path: Path, alone: dict[str, str]):
        registry = Path(bench.registry)
        copy = tmp_path / "registry"
        subprocess.run(["cp", "-r", registry, copy], check=True)
        [weights] = Registry.open(copy).manifest("stars", 1).files.values()
        (copy / "blobs/sha256" / weights.sha256).write_bytes(b"?")
        code, _, err = end(bench.words(tmp_path / "out", "--registry", str(copy)), alone)
        assert code == 2
        assert "Error: stars:1 cannot be used" in err.splitlines()[-1]
        assert "Traceback" not in err

    @pytest.mark.parametrize(
        ("method", "does", "why"),
        [("__call__", "os._exit(1)", "The actor"), ("__init__", "raise OSError('no such disk')", "no such disk")],
    )
    def test_replicas_that_die_are_not_tried_for_ever(
        self, bench: Bench, tmp_path: Path, alone: dict[str, str], method: str, does: str, why: str
    ):
        lines = FATAL.format(method=method, does=does)
        code, _, err = end(bench.words(tmp_path / "out"), alone, lines)
        assert code == 2, err
        assert "Error: replicas do not start or do not last" in err.splitlines()[-1]
        assert why in err.splitlines()[-1]
        assert "Traceback" not in err


def test_rows_are_as_pyarrow_reads_them(no_ray: None, bench: Bench, tmp_path: Path):
    done(*bench.words(tmp_path / "out", "--shard-rows", 50))
    schema = pq.read_schema(tmp_path / "out" / "part-00000000.parquet")
    assert schema.names[:3] == ["id", "sentence", "sst2.label"]
    assert schema.field("sst2.scores").type == pa.list_(pa.float32())
    assert schema.field("stars.value").type == pa.float32()
