"""A run over a dataset without Ray: what is fixed at its start, what a resumed one does, what is refused."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladder import Backbone, Tokenizer, load_backbone
from serving.errors import IncompatibleSide, OutOfMemory
from serving.offline import plan as offline_plan
from serving.offline import run as offline
from serving.offline import table as offline_rows
from serving.offline import worker as offline_replica
from serving.offline.errors import (
    ClusterBusy,
    ClusterTooSmall,
    MissingColumn,
    OfflineError,
    OutOfRoom,
    OutputTaken,
    ReplicasLost,
    ShardFailed,
    UnreadableInput,
    WrongTask,
)
from serving.offline.inputs import Shard
from serving.offline.outputs import Output, json_lines
from serving.offline.plan import Wanted
from serving.offline.run import Placed, Replicas, Summary, place, run_batch
from serving.offline.worker import Replica, ReplicaConfig, as_row
from side_registry import Registry, UnknownAlias, UnknownTask, UnknownVersion
from tests.serving.kit import make_run, make_spec
from tests.tiny import make_t5

ROWS = 23


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, tokenizer: Tokenizer) -> str:
    """A registry with sst2:1, sst2:2 (production), stars:1, pair:1."""
    folder = tmp_path_factory.mktemp("published")
    registry = Registry.open(folder / "registry", create=True)
    pair = make_spec("pair", template="{first} {second}")
    for number, spec in enumerate([make_spec(), make_spec(), make_spec("stars", "regression")]):
        registry.publish(make_run(folder / f"run{number}", backbone, tokenizer, spec, seed=number))
    registry.set_alias("sst2", "production", 2)
    registry.publish(_without_examples(folder / "pair", backbone, tokenizer, pair))
    return registry.url


def _without_examples(folder: Path, backbone: Backbone, tokenizer: Tokenizer, spec: Any) -> Path:
    one = make_spec(spec.name)
    return make_run(
        folder, backbone, tokenizer, one, edit=lambda each: each.model_copy(update={"spec": spec, "examples": ()})
    )


class Ray:
    """Stands for Ray: the replica works here."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.dies_at: int | None = None

    def reports(self, config: ReplicaConfig, shards: Sequence[Shard], placed: Placed) -> Iterator[dict[str, Any]]:
        replica = Replica(config)
        for shard in shards:
            if shard.index == self.dies_at:
                raise KeyboardInterrupt
            report = replica({name: [value] for name, value in as_row(shard).items()})  # type: ignore[dict-item]
            self.ran.append(shard.index)
            yield {name: value for name, [value] in report.items()}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, backbone: Backbone, tokenizer: Tokenizer, tiny_t5: Path) -> Ray:
    """The backbone is there already, and Ray is not needed."""

    def load(source: str, **how: Any) -> Backbone:
        return backbone if source == str(tiny_t5) else load_backbone(source, **how)

    stand_in = Ray()
    for module in (offline_plan, offline_replica):
        monkeypatch.setattr(module, "load_backbone", load)
        monkeypatch.setattr(module, "load_tokenizer", lambda source: tokenizer)
    monkeypatch.setattr(offline, "_ray", lambda address: nullcontext([{"CPU": 1.0}]))
    monkeypatch.setattr(offline, "_reports", stand_in.reports)
    return stand_in


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"id": number, "sentence": f"film {number}" if number != 5 else ""} for number in range(ROWS)]
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def wanted(tmp_path: Path, published: str, tiny_t5: Path, rows: Path) -> Wanted:
    return Wanted(
        input=str(rows),
        output=str(tmp_path / "out"),
        tasks=("sst2", "stars"),
        registry=published,
        backbone=str(tiny_t5),
        dtype="float32",
        shard_rows=5,
    )


@pytest.fixture
def finished(ray: Ray, wanted: Wanted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its output: the run is done."""
    once = tmp_path_factory.getbasetemp() / "finished"
    if not once.exists():
        run(replace(wanted, output=str(once)))
        ray.ran = []
    return Path(shutil.copytree(once, wanted.output))


def run(wanted: Wanted, **how: Any) -> Summary:
    return run_batch(wanted, Replicas(), **how)


def parts(wanted: Wanted) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(wanted.output).glob("part-*")}


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def refused(wanted: Wanted, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        run(wanted)
    [line] = str(caught.value).splitlines()
    return line


class TestRun:
    def test_the_rows_come_back_with_every_task(self, ray: Ray, wanted: Wanted):
        told: list[tuple[int, int]] = []
        summary = run(wanted, progress=lambda done, total: told.append((done, total)))
        rows = pq.read_table(wanted.output).to_pylist()
        assert [row["id"] for row in rows] == list(range(ROWS))
        assert {row["sst2.version"] for row in rows} == {2}
        assert [row["id"] for row in rows if row["sst2.error"]] == [5]
        assert [row["id"] for row in rows if row["stars.value"] is None] == [5]
        assert (summary.rows, summary.shards, summary.done_before) == (ROWS, 5, 0)
        assert (summary.counts.prompts, summary.counts.passes) == (ROWS - 1, ROWS - 1)
        assert summary.counts.failures == {"sst2": 1, "stars": 1}
        assert told == [(0, ROWS), (5, ROWS), (10, ROWS), (15, ROWS), (20, ROWS), (ROWS, ROWS)]
        assert names(wanted.output) == ["_batch.json", *(f"part-{n:08}.parquet" for n in range(5))]

    def test_what_the_run_was_is_noted(self, ray: Ray, wanted: Wanted, finished: Path, backbone: Backbone):
        noted = json.loads(Path(wanted.output, "_batch.json").read_text())
        assert [(each["asked"], each["version"]) for each in noted["tasks"]] == [("sst2", 2), ("stars", 1)]
        assert noted["fingerprint"] == backbone.fingerprint
        there = Path(wanted.input).stat()
        [listed] = noted["inputs"]
        assert listed == {"path": wanted.input, "bytes": there.st_size, "modified_ns": there.st_mtime_ns}
        assert (noted["rows"], noted["shards"], noted["shard_rows"]) == (ROWS, 5, 5)

    def test_lines_of_json(self, ray: Ray, wanted: Wanted):
        run(replace(wanted, format="jsonl"))
        lines = b"".join(text for _, text in sorted(parts(wanted).items())).splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["id"] for row in rows] == list(range(ROWS))
        assert len(rows[0]["sst2.scores"]) == 2

    def test_json_has_no_word_for_some_values(self):
        rows = [{"a": float("nan"), "b": [float("inf"), 1.0], "c": b"x", "d": {"e": float("-inf")}}]
        assert json_lines(rows) == b'{"a": null, "b": [null, 1.0], "c": "b\'x\'", "d": {"e": null}}\n'

    def test_text_that_is_no_utf_8_is_its_rows_fault(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        spoilt = pa.array([b"a film", b"sch\xf6n"]).cast(pa.string(), safe=False)
        pq.write_table(pa.table({"sentence": spoilt}), tmp_path / "spoilt.parquet")
        summary = run(replace(wanted, input=str(tmp_path / "spoilt.parquet"), format="jsonl"))
        assert summary.counts.failures == {"sst2": 1, "stars": 1}
        [part] = parts(wanted).values()
        good, bad = map(json.loads, part.splitlines())
        assert (good["sst2.error"], bad["sentence"]) == (None, "sch\ufffdn")
        assert "is not UTF-8" in bad["sst2.error"]

    def test_lists_of_such_text_are_told_by_file_and_rows(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        spoilt = pa.ListArray.from_arrays([0, 1], pa.array([b"\xf6"]).cast(pa.string(), safe=False))
        pq.write_table(pa.table({"sentence": ["a"], "tags": spoilt}), tmp_path / "spoilt.parquet")
        wanted = replace(wanted, input=str(tmp_path / "spoilt.parquet"), format="jsonl")
        assert "spoilt.parquet: rows 0 to 0 hold text that is not UTF-8" in refused(wanted, ShardFailed)

    def test_two_versions_of_a_task(self, ray: Ray, wanted: Wanted):
        run(replace(wanted, tasks=("sst2:1", "sst2:2")))
        table = pq.read_table(wanted.output)
        assert set(table["sst2:1.version"].to_pylist()) == {1}
        assert table["sst2:1.scores"].to_pylist() != table["sst2:2.scores"].to_pylist()

    def test_fields_from_other_columns(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        (tmp_path / "pairs.csv").write_text("sentence,reply\nthis,that\n")
        wanted = replace(wanted, input=str(tmp_path / "pairs.csv"), tasks=("pair", "sst2"))
        run(replace(wanted, renames={"first": "sentence", "second": "reply"}))
        [row] = pq.read_table(wanted.output).to_pylist()
        assert row["pair.label"]
        assert row["pair.error"] is row["sst2.error"] is None

    def test_relative_paths(self, ray: Ray, wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        shutil.copy(wanted.input, tmp_path)
        wanted = replace(wanted, input=str(tmp_path / "rows.parquet"))
        monkeypatch.chdir(tmp_path)
        run(replace(wanted, input="rows.parquet", output="out"))
        assert json.loads(Path(wanted.output, "_batch.json").read_text())["inputs"][0]["path"] == wanted.input
        assert run(wanted).done_before == ROWS


class TestResume:
    @pytest.mark.parametrize("format", ["parquet", "jsonl"])
    def test_an_interrupted_run_ends_as_one_that_was_not(self, ray: Ray, wanted: Wanted, tmp_path: Path, format: Any):
        wanted = replace(wanted, format=format)
        run(replace(wanted, output=str(tmp_path / "whole")))
        ray.ran, ray.dies_at = [], 3
        with pytest.raises(KeyboardInterrupt):
            run(wanted)
        assert ray.ran == [0, 1, 2]
        ray.ran, ray.dies_at = [], None
        summary = run(wanted)
        assert ray.ran == [3, 4]
        assert (summary.done_before, summary.counts.rows) == (15, ROWS - 15)
        assert parts(wanted) == parts(replace(wanted, output=str(tmp_path / "whole")))

    def test_a_part_that_was_not_finished_is_no_part(self, ray: Ray, wanted: Wanted, finished: Path):
        whole = parts(wanted)
        unfinished = Path(wanted.output, "_unfinished")
        unfinished.mkdir()
        (unfinished / "abc-part-00000001.parquet").write_bytes(b"half")
        Path(wanted.output, "part-00000001.parquet").unlink()
        ray.ran = []
        run(wanted)
        assert (ray.ran, parts(wanted), unfinished.exists()) == ([1], whole, False)

    def test_done_twice_is_done_once(self, ray: Ray, wanted: Wanted, finished: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(offline, "_ray", None)
        summary = run(wanted)
        assert (summary.done_before, summary.counts.rows, summary.rows) == (ROWS, 0, ROWS)

    def test_versions_stay_those_of_the_start(
        self, ray: Ray, wanted: Wanted, backbone: Backbone, tokenizer: Tokenizer, tmp_path: Path
    ):
        registry = Registry.open(tmp_path / "own", create=True)
        registry.publish(make_run(tmp_path / "first", backbone, tokenizer, make_spec()))
        wanted = replace(wanted, registry=registry.url, tasks=("sst2",))
        ray.dies_at = 2
        with pytest.raises(KeyboardInterrupt):
            run(wanted)
        registry.publish(make_run(tmp_path / "second", backbone, tokenizer, make_spec(), seed=9))
        registry.set_alias("sst2", "production", 2)
        ray.dies_at = None
        assert run(wanted).versions == {"sst2": 1}
        assert set(pq.read_table(wanted.output)["sst2.version"].to_pylist()) == {1}
        assert run(replace(wanted, overwrite=True)).versions == {"sst2": 2}

    def test_overwrite_begins_anew_and_leaves_what_is_not_ours(self, ray: Ray, wanted: Wanted, finished: Path):
        noted = Path(wanted.output, "_batch.json")
        earlier = json.loads(noted.read_text())["run"]
        Path(wanted.output, "notes.txt").write_text("mine")
        other = replace(wanted, tasks=("stars",), shard_rows=100, overwrite=True)
        assert run(other).done_before == 0
        assert list(parts(wanted)) == ["part-00000000.parquet"]
        assert "sst2.label" not in pq.read_schema(Path(wanted.output, "part-00000000.parquet")).names
        assert Path(wanted.output, "notes.txt").exists()
        assert json.loads(noted.read_text())["run"] != earlier

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"tasks": ("sst2",)}, "with other tasks"),
            ({"tasks": ("stars", "sst2")}, "with other tasks"),
            ({"tasks": ("sst2:2", "stars")}, "with other tasks"),
            ({"renames": {"sentence": "id"}}, "with other tasks or columns"),
            ({"format": "jsonl"}, "with another --format"),
            ({"shard_rows": 6}, "with another --shard-rows"),
            ({"dtype": "bfloat16"}, "with another --dtype"),
        ],
    )
    def test_another_run_is_refused(self, ray: Ray, wanted: Wanted, finished: Path, change: dict[str, Any], what: str):
        before = parts(wanted)
        line = refused(replace(wanted, **change), OutputTaken)
        assert f"holds a run {what}; repeat its command, name a new folder, or --overwrite" in line
        assert parts(wanted) == before

    def test_other_inputs_are_refused(self, ray: Ray, wanted: Wanted, finished: Path, tmp_path: Path):
        other = shutil.copy(wanted.input, tmp_path / "other.parquet")
        assert "over other input files" in refused(replace(wanted, input=str(other)), OutputTaken)
        noted = json.loads((finished / "_batch.json").read_text())
        noted["inputs"][0]["bytes"] += 1  # the file had another size
        (finished / "_batch.json").write_text(json.dumps(noted))
        assert "over other input files" in refused(wanted, OutputTaken)

    def test_inputs_that_were_written_anew_are_refused(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        path = Path(shutil.copy(wanted.input, tmp_path / "rows.parquet"))
        wanted = replace(wanted, input=str(path))
        run(wanted)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert "over other input files" in refused(wanted, OutputTaken)

    def test_replicas_of_an_earlier_run_write_no_more_parts(self, tmp_path: Path):
        output = Output(str(tmp_path))
        output.begin(b'{"run": "earlier"}')
        output.write_part(0, pa.table({"id": [1]}), "parquet", "earlier")
        output.begin(b'{"run": "later"}')
        with pytest.raises(OutputTaken, match="belongs to a later run by now"):
            output.write_part(1, pa.table({"id": [2]}), "parquet", "earlier")
        assert output.parts() == set()

    def test_a_run_that_goes_on_keeps_its_id(self, ray: Ray, wanted: Wanted, finished: Path):
        noted = (finished / "_batch.json").read_bytes()
        (finished / "part-00000000.parquet").unlink()
        run(wanted)
        assert (finished / "_batch.json").read_bytes() == noted

    def test_another_registry_is_refused(
        self, ray: Ray, wanted: Wanted, finished: Path, tmp_path: Path, backbone: Backbone, tokenizer: Tokenizer
    ):
        other = Registry.open(tmp_path / "other", create=True)
        assert "from another registry" in refused(replace(wanted, registry=other.url), OutputTaken)


class TestMistakes:
    """Each is one line, before anything is written."""

    @pytest.mark.parametrize(
        ("change", "kind", "what"),
        [
            ({"tasks": ("sst3",)}, UnknownTask, "sst3"),
            ({"tasks": ("sst2:9",)}, UnknownVersion, "9"),
            ({"tasks": ("sst2@canary",)}, UnknownAlias, "canary"),
            ({"tasks": ()}, WrongTask, "name at least one task"),
            ({"tasks": ("sst2", "sst2:2")}, WrongTask, "sst2:2: is asked for twice"),
            (
                {"tasks": ("pair",)},
                MissingColumn,
                "task pair needs a column 'first'; there are id, sentence: name the right one with --rename first=COL",
            ),
            ({"renames": {"sentence": "text"}}, MissingColumn, "needs a column 'text'; there are id, sentence"),
            ({"renames": {"text": "sentence"}}, WrongTask, "no task has a field 'text'; there are sentence"),
            ({"input": "nowhere.csv"}, UnreadableInput, "nowhere.csv: there is no such file or folder"),
        ],
    )
    def test_is_one_line(self, ray: Ray, wanted: Wanted, change: dict[str, Any], kind: type[Exception], what: str):
        assert what in refused(replace(wanted, **change), kind)
        assert not Path(wanted.output).exists()

    def test_another_backbone(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        other = make_t5(tmp_path / "other-t5", seed=5)
        line = refused(replace(wanted, backbone=str(other)), IncompatibleSide)
        assert "name the backbone that it was trained on" in line
        assert not Path(wanted.output).exists()

    def test_a_column_that_an_answer_would_have(self, ray: Ray, wanted: Wanted, finished: Path, tmp_path: Path):
        again = replace(wanted, input=wanted.output, output=str(tmp_path / "again"), tasks=("stars",))
        assert "has a column 'stars.value' already" in refused(again, WrongTask)

    def test_the_output_of_one_run_is_another_ones_input(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        run(replace(wanted, tasks=("stars",)))
        run(replace(wanted, input=wanted.output, output=str(tmp_path / "again"), tasks=("sst2",)))
        rows = pq.read_table(tmp_path / "again").to_pylist()
        assert [row["id"] for row in rows] == list(range(ROWS))
        assert {"stars.value", "sst2.label"} <= set(rows[0])

    def test_an_output_within_the_input(self, ray: Ray, wanted: Wanted, finished: Path):
        assert "is where the input is" in refused(replace(wanted, input=wanted.output), OutputTaken)
        within = replace(wanted, input=str(Path(wanted.output, "*.parquet")), tasks=("pair",), overwrite=True)
        assert "is where the input is" in refused(within, OutputTaken)
        assert parts(wanted)

    @pytest.mark.parametrize("pattern", ["", "*/part-*"])
    def test_an_output_whose_parts_would_be_input(self, ray: Ray, wanted: Wanted, tmp_path: Path, pattern: str):
        (tmp_path / "more").mkdir()
        shutil.copy(wanted.input, tmp_path / "more" / "part-of-it.parquet")
        within = replace(wanted, input=str(tmp_path / pattern), output=str(tmp_path / "out"))
        assert "is within the input" in refused(within, OutputTaken)
        assert not (tmp_path / "out").exists()

    def test_columns_that_parquet_has_no_word_for(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        (tmp_path / "rows.jsonl").write_text('{"sentence": "a", "more": {}}\n' * 2)
        wanted = replace(wanted, input=str(tmp_path / "rows.jsonl"))
        assert "--format jsonl can" in refused(wanted, UnreadableInput)
        assert (ray.ran, Path(wanted.output).exists()) == ([], False)
        assert run(replace(wanted, format="jsonl")).counts.rows == 2

    def test_an_output_of_others(self, ray: Ray, wanted: Wanted, tmp_path: Path):
        output = Path(wanted.output)
        output.mkdir()
        (output / "thesis.doc").write_text("mine")
        assert "holds other files (thesis.doc)" in refused(wanted, OutputTaken)
        assert "is a file; name a folder" in refused(replace(wanted, output=str(output / "thesis.doc")), OutputTaken)
        assert names(output) == ["thesis.doc"]

    @pytest.mark.parametrize("noted", ["", '{"schema_version": 2}'])
    def test_a_note_that_cannot_be_read(self, ray: Ray, wanted: Wanted, finished: Path, noted: str):
        Path(wanted.output, "_batch.json").write_text(noted)
        assert "_batch.json that cannot be read" in refused(wanted, OutputTaken)
        assert run(replace(wanted, overwrite=True)).counts.rows == ROWS

    def test_parts_without_their_note(self, ray: Ray, wanted: Wanted, finished: Path):
        Path(wanted.output, "_batch.json").unlink()
        assert "--overwrite removes them" in refused(wanted, OutputTaken)

    def test_two_runs_at_a_time(self, ray: Ray, wanted: Wanted):
        with Output(wanted.output).held():
            assert "is being written by another run" in refused(wanted, OutputTaken)
        assert run(wanted).counts.rows == ROWS

    def test_a_device_without_room(self, ray: Ray, wanted: Wanted, monkeypatch: pytest.MonkeyPatch):
        def answer(engine: Any, inputs: Any, limits: Any) -> dict[Any, Any]:
            return {row: OutOfMemory(1) for rows in inputs for row in rows}

        monkeypatch.setattr(offline_rows, "answer_inputs", answer)
        line = refused(wanted, ShardFailed)
        assert "ran out of memory with passes of 32 prompts and 4096 tokens" in line
        assert "give smaller --batch-tokens or --batch-rows (part 0; the same command, without --overwrite," in line
        assert not parts(wanted)

    def test_a_replica_that_gives_up(self, ray: Ray, wanted: Wanted, tmp_path: Path, backbone: Any, tokenizer: Any):
        registry = Registry.open(tmp_path / "own", create=True)
        registry.publish(make_run(tmp_path / "run", backbone, tokenizer, make_spec(), change=_spoil))
        with pytest.raises(ShardFailed) as caught:
            run(replace(wanted, registry=registry.url, tasks=("sst2",)))
        assert caught.value.reason == "GOLDEN_MISMATCH"
        assert "sst2:1 does not reproduce its golden example" in str(caught.value)
        assert not parts(wanted)


def _spoil(side: Any) -> None:
    for parameter in side.parameters():
        parameter.add_(0.5)


class TestPlace:
    @pytest.mark.parametrize(
        ("asked", "nodes", "shards", "found"),
        [
            ({}, [(8, 0)], 9, (1, "cpu", 8, 0.0)),
            ({"count": 3}, [(8, 0)], 9, (3, "cpu", 2, 0.0)),
            ({"count": 3}, [(8, 0)], 2, (2, "cpu", 4, 0.0)),
            ({"count": 2, "cpus": 1}, [(8, 0)], 9, (2, "cpu", 1, 0.0)),
            ({}, [(8, 2)], 9, (2, "cuda", 1, 1.0)),
            ({"gpus": 0.5}, [(8, 2)], 9, (4, "cuda", 1, 0.5)),
            ({"gpus": 0.4}, [(8, 2)], 9, (4, "cuda", 1, 0.4)),
            ({"gpus": 2.0}, [(8, 4)], 9, (2, "cuda", 1, 2.0)),
            ({"gpus": 2.0}, [(8, 3), (8, 3)], 9, (2, "cuda", 1, 2.0)),
            ({"device": "cpu"}, [(8, 2)], 9, (1, "cpu", 8, 0.0)),
            ({}, [(8, 0), (8, 0)], 9, (2, "cpu", 8, 0.0)),
            ({}, [(0, 0), (8, 0)], 9, (1, "cpu", 8, 0.0)),
            ({"count": 1}, [(8, 0), (8, 0)], 9, (1, "cpu", 8, 0.0)),
            ({"count": 3}, [(8, 0), (8, 0)], 9, (3, "cpu", 4, 0.0)),
            ({"count": 3}, [(4, 0), (16, 0)], 9, (3, "cpu", 5, 0.0)),
        ],
    )
    def test_replicas_take_what_is_there(self, asked: dict[str, Any], nodes: Any, shards: int, found: Any):
        placed = place(Replicas(**asked), [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes], shards)
        assert (placed.count, placed.device, placed.cpus, placed.gpus) == found

    @pytest.mark.parametrize(
        ("asked", "line"),
        [
            ({"device": "cuda"}, "1 replicas of 1 CPUs and 1 GPUs are wanted, the cluster's nodes hold 0"),
            ({"count": 5}, "5 replicas of 1 CPUs are wanted, the cluster's nodes hold 4"),
            ({"count": 3, "cpus": 2}, "3 replicas of 2 CPUs are wanted, the cluster's nodes hold 2"),
            ({"cpus": 4}, "2 replicas of 4 CPUs are wanted, the cluster's nodes hold 0"),
        ],
    )
    def test_too_many(self, asked: dict[str, Any], line: str):
        with pytest.raises(ClusterTooSmall) as caught:
            place(Replicas(**asked), [{"CPU": 2.0}, {"CPU": 2.0}], 9)
        assert line in str(caught.value)


def test_every_error_pickles():
    import pickle

    for error in (
        UnreadableInput("a", "b"),
        MissingColumn("a", "b", "c", ("d",)),
        WrongTask("a", "b"),
        OutputTaken("a", "b"),
        ClusterTooSmall(2, 1, 0.5, 1),
        ClusterBusy(2, 1, 0, 3.0),
        ShardFailed("a", 1, "b"),
        ReplicasLost("a"),
        OutOfRoom(1, 2),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)
        assert isinstance(again, OfflineError)
