"""What a user may do wrong: one line each, before anything is written. And what a replica gives up with."""

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving.errors import IncompatibleSide, OutOfMemory
from serving.offline import table as offline_table
from serving.offline.errors import (
    ClusterBusy,
    ClusterTooSmall,
    MissingColumn,
    NoRay,
    OfflineError,
    OutOfRoom,
    OutputTaken,
    ReplicasLost,
    ShardFailed,
    UnreadableInput,
    WrongTask,
)
from serving.offline.outputs import Output
from serving.offline.placing import Replicas
from serving.offline.plan import Wanted
from serving.offline.run import run_batch
from side_registry import Registry, UnknownAlias, UnknownTask, UnknownVersion
from tests.serving.kit import make_run, make_spec
from tests.serving.offline.kit import ROWS, Ray, names, parts, refused, run
from tests.tiny import make_t5


def test_without_ray_it_is_told_before_any_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = Wanted(
        input=str(tmp_path / "none"), output=str(tmp_path / "out"), tasks=("sst2",), registry="none", backbone="none"
    )
    with pytest.raises(NoRay, match=r"ray is not installed.*pip install 'sidecast\[cluster\]'"):
        run_batch(wanted, Replicas())
    assert not (tmp_path / "out").exists()


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

        monkeypatch.setattr(offline_table, "answer_inputs", answer)
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


def test_every_error_pickles():
    for error in (
        UnreadableInput("a", "b"),
        MissingColumn("a", "b", "c", ("d",)),
        WrongTask("a", "b"),
        OutputTaken("a", "b"),
        ClusterTooSmall(2, 1, 0.5, 1),
        ClusterBusy(2, 1, 0, 3.0),
        ShardFailed(reason="A", shard=1, why="b"),
        ReplicasLost("a"),
        OutOfRoom(1, 2),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)
        assert isinstance(again, OfflineError)
