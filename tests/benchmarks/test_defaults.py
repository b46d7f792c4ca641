"""The comparison of settings: rows that never overlap, differences on the same task and seed, a whole run."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import bench_defaults
from benchmarks.bench_defaults import BASE, Plan, split, summary


def plan(rows: int, scored: int) -> Plan:
    return Plan(tasks=("sst2",), settings={BASE: {}}, seeds=(0,), rows=rows, scored=scored, base={})


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


def test_rows_that_are_scored_were_never_trained_on(tmp_path):
    source = write_rows(tmp_path, 40)
    parts = []
    for _ in range(2):
        split(source, tmp_path, plan(30, 10))
        parts.append([(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "scored")])
    assert parts[0] == parts[1]
    trained, scored = parts[0]
    assert (len(trained), len(scored)) == (30, 10)
    assert sorted(trained + scored) == sorted(source.read_text().splitlines())


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
    sizes = ["--rows", "40", "--scored", "20", "--set", "epochs=1", "--set", "reduction=4"]
    ran = CliRunner().invoke(bench_defaults.main, [*words, *sizes, "--question", "gate", "--question", "template"])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.splitlines()[-1])
    assert [row["setting"] for row in document["settings"]][:2] == [BASE, "a gate a channel"]
    assert all(0 <= row["tasks"]["sst2"] <= 100 for row in document["settings"])
    assert document["base"] == {"epochs": 1, "reduction": 4}
