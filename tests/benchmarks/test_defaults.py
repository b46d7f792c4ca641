"""The comparison of settings: rows that never overlap, differences on the same task and seed, a whole run."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.training import bench_defaults
from benchmarks.training.bench_defaults import BASE, Plan, split, summary


def plan(rows: int, scored: int, selecting: int = 0) -> Plan:
    settings = {BASE: {}}
    return Plan(tasks=("sst2",), settings=settings, seeds=(0,), rows=rows, selecting=selecting, scored=scored, base={})


def write_rows(folder: Path, count: int) -> Path:
    words = {"negative": "bad dull sad", "positive": "good fine glad"}
    lines = [
        json.dumps({"sentence": f"{text} {number}", "label": label})
        for number in range(count // 2)
        for label, text in words.items()
    ]
    path = folder / "sst2" / "train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def parts_of(source: Path, folder: Path, plan: Plan) -> list[list[str]]:
    split(source.parent, folder, plan)
    return [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "selecting", "scored")]


def test_rows_that_are_scored_neither_train_nor_select(tmp_path):
    source = write_rows(tmp_path, 40)
    parts = parts_of(source, tmp_path, plan(25, 10, selecting=5))
    assert parts == parts_of(source, tmp_path, plan(25, 10, selecting=5))
    assert [len(part) for part in parts] == [25, 5, 10]
    assert sorted(line for part in parts for line in part) == sorted(source.read_text().splitlines())


def test_a_validation_file_is_scored_whole_and_all_other_rows_train(tmp_path):
    source = write_rows(tmp_path, 40)
    (source.parent / "validation.jsonl").write_text("one\ntwo\n")
    trained, selecting, scored = parts_of(source, tmp_path, plan(1000, 0, selecting=5))
    assert (len(trained), len(selecting), scored) == (35, 5, ["one", "two"])


def test_differences_are_taken_on_the_same_task_and_seed():
    scores = {("a", 0): (50, 53), ("a", 1): (60, 61), ("b", 0): (10, 12), ("b", 1): (20, 22)}
    lines = [
        {"task": task, "seed": seed, "setting": name, "score": score}
        for (task, seed), pair in scores.items()
        for name, score in zip((BASE, "other"), pair, strict=True)
    ]
    base, other = summary(lines, [BASE, "other"], ["a", "b"])
    assert (base["mean"], base["difference"], base["standard_error"]) == (35, 0, 0)
    assert other["tasks"] == {"a": 57, "b": 17}
    assert (other["mean"], other["difference"], other["standard_error"]) == (37, 2, 0.41)


@pytest.mark.slow
def test_it_runs_and_ends_in_its_json_line(tmp_path, tiny_t5):
    write_rows(tmp_path, 60)
    words = ["--backbone", str(tiny_t5), "--data", str(tmp_path), "--tasks", "sst2", "--seeds", "0", "--threads", "1"]
    sizes = ["--rows", "30", "--selecting", "10", "--scored", "20", "--set", "epochs=1", "--set", "reduction=4"]
    ran = CliRunner().invoke(bench_defaults.main, [*words, *sizes, "--question", "gate", "--question", "template"])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.splitlines()[-1])
    assert [row["setting"] for row in document["settings"]][:2] == [BASE, "a gate a channel"]
    assert all(0 <= row["tasks"]["sst2"] <= 100 for row in document["settings"])
    assert document["base"] == {"epochs": 1, "reduction": 4}
