"""`sidecast batch` as users run it: its summary and its mistakes. With Ray: tests/cluster/test_batch.py."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.offline import run as offline
from serving.offline.run import Summary
from serving.offline.table import Counts
from serving.offline.worker import Replica, as_row
from sidecast.cli.serving import batch as command
from tests.sidecast.batch_kit import ROWS, TASKS, Bench, make_bench
from tests.sidecast.cli_kit import ROOT, done, sidecast


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Bench:
    return make_bench(tmp_path_factory.mktemp("batch"), tiny_t5)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica works in this process."""

    def reports(work: Any, shards: Any, placed: Any) -> Iterator[dict[str, Any]]:
        replica = Replica(work)
        for shard in shards:
            report = replica({name: [value] for name, value in as_row(shard).items()})  # type: ignore[dict-item]
            yield {name: value for name, [value] in report.items()}

    monkeypatch.setattr(offline, "ray_session", lambda address: nullcontext([{"CPU": 1.0}]))
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
        counts = Counts(rows=90, prompts=80, passes=80, failures={"a": 3, "b": 0}, truncated={"a": 0, "b": 2})
        summary = Summary(rows=100, shards=4, done_before=10, versions={"a": 2, "b": 1}, counts=counts, seconds=30.0)
        assert command._text("out", summary).splitlines() == [
            "90 rows in 30.0 s, 3 rows/s (a version 2, b version 1)",
            "80 distinct prompts, 80 backbone passes, 3 failures; a: 3",
            "warning: b read only the beginning of 2 rows: they are longer than its max_source_tokens",
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


def test_rows_are_as_pyarrow_reads_them(no_ray: None, bench: Bench, tmp_path: Path):
    done(*bench.words(tmp_path / "out", "--shard-rows", 50))
    schema = pq.read_schema(tmp_path / "out" / "part-00000000.parquet")
    assert schema.names[:3] == ["id", "sentence", "sst2.label"]
    assert schema.field("sst2.scores").type == pa.list_(pa.float32())
    assert schema.field("stars.value").type == pa.float32()
