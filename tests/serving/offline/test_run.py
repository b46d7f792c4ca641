"""A run over a dataset without Ray: what is fixed at its start, and what a resumed one does."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladder import Backbone, Tokenizer
from serving.offline import run as offline
from serving.offline.errors import OutputTaken, ShardFailed
from serving.offline.outputs import Output, json_lines
from serving.offline.plan import Wanted
from side_registry import Registry
from tests.serving.kit import make_run, make_spec
from tests.serving.offline.kit import ROWS, Ray, names, parts, refused, run


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
        monkeypatch.setattr(offline, "ray_session", None)
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
