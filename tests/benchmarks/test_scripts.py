"""Every script on a tiny backbone: that it runs, and the names of its figures. Never its speed.

In float32 and in bfloat16, the default on a GPU, which NumPy lacks. `bench_server` runs in float32 in `test_harness`.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import bench_all, random_backbone
from benchmarks.bench_all import SCRIPTS
from benchmarks.engine import bench_generation, bench_many, bench_peers, bench_tasks
from benchmarks.engine.bench_generation import ratios
from benchmarks.engine.bench_many import merge
from benchmarks.harness import peers
from benchmarks.harness.converted import Converted
from benchmarks.harness.goals import GOALS
from benchmarks.harness.inputs import END, FIRST, Inputs
from benchmarks.harness.models import Loaded, load, make_spec
from benchmarks.harness.samples import BenchmarkError, Samples
from benchmarks.server import (
    bench_doors,
    bench_guard,
    bench_http,
    bench_images,
    bench_pressure,
    bench_secured,
    bench_server,
    bench_startup,
    bench_vision_loaded,
)
from ladder import load_backbone
from ladder.side.known_backbones import NAMED
from tests.benchmarks.local import run
from tests.vision.folders import make_model, save

PEERS = all(importlib.util.find_spec(name) for name in ("peft", "ctranslate2"))
needs_peers = pytest.mark.skipif(not PEERS, reason="needs PEFT and CTranslate2: pip install 'sidecast[bench]'")


@pytest.fixture(scope="module")
def loaded(tiny_t5):
    return load(str(tiny_t5), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def convert(tmp_path_factory) -> Iterator[Callable[..., Converted]]:
    """As `Converted`, but one process for all scripts: it starts for seconds, and converts the same backbone."""
    made: dict[str, Converted] = {}

    def convert(loaded: Loaded, folder: Path, kind: str) -> Converted:
        if kind not in made:
            made[kind] = Converted(loaded, tmp_path_factory.mktemp("converted"), kind)
        return made[kind]

    yield convert
    for converted in made.values():
        converted.close()


def missing(script: str, document: dict[str, Any]) -> list[str]:
    """The ratios that the goals look for in this script's report and do not find."""
    wanted = [goal.ratio for goals in GOALS.values() for goal in goals if goal.report == script]
    assert wanted
    return [ratio for ratio in wanted if not any(fnmatchcase(name, ratio) for name in document["ratios"])]


def test_every_goal_is_of_a_script_that_bench_all_runs():
    assert {goal.report for goals in GOALS.values() for goal in goals} == set(SCRIPTS)


def test_a_goal_beside_ctranslate2_is_of_one_kind_of_head():
    ours = [f"engine {kind}{head}" for kind in ("float32", "w8a8") for head in (" linear head", "")]
    theirs = [f"CTranslate2 {kind}, {shape}" for kind in ("int8", "float32") for shape in ("8x32", "16x64")]
    names = [f"{our} / {their}" for our in ours for their in theirs]
    goals = [goal for goal in GOALS["Compared with peers"] if "int8" in goal.ratio]
    found = [[name for name in names if fnmatchcase(name, goal.ratio)] for goal in goals]
    assert all(len(each) == 1 for each in found)
    assert [goal.least is None for goal in goals] == ["linear head" in name for [name] in found]


def test_inputs_have_their_length_end_in_the_end_token_and_never_come_twice(loaded):
    inputs = Inputs(loaded, seed=1)
    rows = inputs.rows(200, 9)
    assert {len(row) for row in rows} == {9}
    assert {row[-1] for row in rows} == {END}
    assert all(FIRST <= token < loaded.backbone.config.vocab_size for row in rows for token in row[:-1])
    assert len(set(rows)) == 200


def test_one_input_for_many_tasks_is_the_same_row_for_each(loaded):
    rows = Inputs(loaded).ask_one(["a", "b"], 5)  # type: ignore[list-item]
    assert rows[0].ids == rows[1].ids
    assert [row.resident for row in rows] == ["a", "b"]


def test_tasks_are_named_by_number_and_some_make_texts():
    assert make_spec(7, "generate").kind == "text"
    assert make_spec(7, "text").name == "task-00007"
    assert make_spec(8, "linear").kind == "regression"


def test_a_peer_that_is_missing_says_how_to_install_it():
    with pytest.raises(BenchmarkError, match="make bench"):
        peers.peer("no_such_peer")


def test_rounds_that_were_measured_apart_are_put_together():
    parts = [Samples([{"a": {"x": 1.0}}, {"a": {"x": 2.0}}]), Samples([{"b": {"x": 3.0}}, {"b": {"x": 4.0}}])]
    assert merge(parts).ratio("x", "b", "a").values == (3.0, 2.0)


def test_the_peer_at_its_best_is_chosen_within_each_round():
    def rounds(ours: float, apart: float, one: float) -> dict[str, dict[str, float]]:
        speeds = {"engine, wave": ours, "CTranslate2 int8, apart": apart, "CTranslate2 int8, one": one}
        return {name: {"tokens_per_s": speed} for name, speed in speeds.items()}

    found = ratios(Samples([rounds(10.0, 5.0, 20.0), rounds(10.0, 40.0, 5.0)]))
    assert found["engine, wave / CTranslate2 at its best"].values == (0.5, 0.25)


def test_glues_texts_are_prompts_of_the_built_in_templates(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text('{"sentence": "a gripping film", "label": "positive"}\n')
    texts = bench_pressure.read_texts(tmp_path, 0)
    assert texts is not None
    assert len(texts) == 1
    assert "a gripping film" in texts[0]
    assert bench_pressure.read_texts(tmp_path / "none", 0) is None


@pytest.mark.slow
@needs_peers
def test_loras_answer_a_mixed_batch_as_each_alone(loaded):
    loras = peers.Loras(loaded, 3, [5, 9])
    rows = Inputs(loaded).rows(3, 7)
    mixed = loras.answer(rows, loras.names)
    alone = [loras.answer([row], [name])[0] for row, name in zip(rows, loras.names, strict=True)]
    for together_, apart in zip(mixed, alone, strict=True):
        assert together_ == pytest.approx(apart, abs=1e-5)
    assert loras.answer(rows)[0] == pytest.approx(mixed[0], abs=1e-5)


@pytest.mark.slow
@needs_peers
def test_the_converted_backbone_says_what_ours_says_and_its_process_ends_at_what_it_cannot_do(loaded, tmp_path):
    with closing(Converted(loaded, tmp_path, "float32")) as converted:
        assert bench_peers.agreement(loaded, converted) > 0.9
        words = converted.words(Inputs(loaded).rows(3, 7))
        before, limits = converted.clock(), [2, 5, 3]
        assert [len(text) for text in converted.texts(words, 5, limits)] == limits
        assert [len(text) for text in converted.texts(words, 5)] == [5, 5, 5]
        assert converted.clock() > before  # its own time, which no other call adds to
        assert converted.clock() == converted.clock()
        assert "ctranslate2" not in sys.modules
        with pytest.raises(BenchmarkError, match=r"CTranslate2 cannot do this: .+") as caught:
            converted.texts([["a"]], -1)
        assert "\n" not in str(caught.value)
        converted.process.join(10)
        with pytest.raises(BenchmarkError, match="process has ended, exit code 0"):
            converted.texts([["a"]], 1)
    assert converted.process.exitcode == 0


@pytest.mark.slow
@needs_peers
def test_a_precision_that_ctranslate2_lacks_is_one_line_here(loaded, tmp_path):
    with pytest.raises(BenchmarkError, match="no int7 here"):
        Converted(loaded, tmp_path, "int7")


@pytest.mark.slow
def test_bench_secured_runs_and_has_the_ratios_of_its_goals(tiny_t5, monkeypatch):
    document = run(bench_secured, tiny_t5, "float32", monkeypatch)
    assert missing("secured", document) == []
    assert document["settings"]["callers"] == {"1": 2, "8": 2, "64": 2}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "script", [bench_tasks, bench_guard, bench_many, bench_startup, bench_doors, bench_http, bench_pressure]
)
def test_a_script_runs_and_has_the_ratios_of_its_goals(script, dtype, tiny_t5, monkeypatch):
    document = run(script, tiny_t5, dtype, monkeypatch)
    name = document["name"]
    assert script.__name__ == f"benchmarks.{SCRIPTS[name]}.bench_{name}"
    quick = {"padding, 64 callers", "padding, 256 callers"}  # of fewer callers then
    assert set(missing(name, document)) <= quick


@pytest.mark.slow
def test_bench_guard_leaves_peft_out_where_it_is_missing(tiny_t5, monkeypatch):
    monkeypatch.setattr(bench_guard, "find_spec", lambda name: None)
    document = run(bench_guard, tiny_t5, "float32", monkeypatch)
    assert list(document["variants"]) == [bench_guard.SIDECAST, bench_guard.SEPARATE]
    assert document["ratios"].keys() == {
        "3 tasks, Sidecast / separate models in pipelines",
        "weights, Sidecast / separate models in pipelines",
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bench_images_computes_what_its_variants_are_named_after(dtype, tiny_t5, tmp_path, monkeypatch):
    folder = save(tmp_path / "dino", "dinov2", make_model("dinov2"))
    document = run(bench_images, tiny_t5, dtype, monkeypatch, "--vision", str(folder))
    assert missing("images", document) == []
    computed = {"new": (1, 1), "known image": (1, 0), "known question": (0, 1), "known": (0, 0)}
    computed |= {"new, 8 questions": (8, 1), "new, 3 tasks": (1, 1), "known, 3 tasks": (0, 0)}
    for head in ("text", "linear", "CLIP text", "CLIP linear"):
        for name, counts in computed.items():
            figures = document["variants"][f"{head} {name}"]
            assert (figures["backbone_inputs"]["median"], figures["images_encoded"]["median"]) == counts, name
    assert {name: document["settings"]["encoder"][name] for name in ("name", "weights")} == {
        "name": "dino",
        "weights": "given",
    }
    assert document["settings"]["clip"]["grid"] == [14, 14]


@pytest.mark.slow
def test_bench_vision_loaded_compares_three_servers(tiny_t5, tmp_path, monkeypatch):
    folder = save(tmp_path / "dino", "dinov2", make_model("dinov2"))
    document = run(bench_vision_loaded, tiny_t5, "float32", monkeypatch, "--vision", str(folder))
    assert missing("vision_loaded", document) == []
    assert all(figures.keys() == {"vision_ms", "text_ms", "twin_ms"} for figures in document["variants"].values())


@pytest.mark.slow
@needs_peers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("script", [bench_peers, bench_generation])
def test_a_script_beside_peers_runs_and_has_the_ratios_of_its_goals(script, dtype, tiny_t5, monkeypatch, convert):
    monkeypatch.setattr(script, "Converted", convert)
    document = run(script, tiny_t5, dtype, monkeypatch)
    assert missing(document["name"], document) == []


@pytest.mark.slow
def test_bench_server_runs_in_bfloat16(tiny_t5, monkeypatch):
    """And in float32 in `test_harness`, with its processes."""
    document = run(bench_server, tiny_t5, "bfloat16", monkeypatch)
    assert document["variants"]["server 4"]["errors"]["median"] == 0
    assert document["ratios"]["server / engine at saturation"]["median"] > 0


@pytest.mark.slow
def test_bench_all_gathers_reports_and_goes_on_where_one_fails(tiny_t5, monkeypatch):
    """Its scripts are processes of their own; one of them cannot start."""
    monkeypatch.setattr(bench_all, "SCRIPTS", {"no_such_script": "engine", "tasks": "engine"})
    words = ["--backbone", str(tiny_t5), "--threads", "1", "--device", "cpu", "--dtype", "bfloat16", "--quick"]
    done = CliRunner().invoke(bench_all.main, words)
    assert done.exit_code == 1, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert list(document["reports"]) == ["tasks"]
    assert document["machine"]["dtype"] == "bfloat16"
    assert document["floors"]["best_ratios"]["F2 text"] < 1
    assert "Many tasks in a batch: 32 rows of 16 tasks" in done.stdout
    assert "no_such_script failed" in done.stderr


def test_a_random_backbone_has_its_shape_and_another_ones_tokenizer(tmp_path, tiny_t5, monkeypatch):
    small = replace(NAMED["flan-t5-small"], config=load_backbone(str(tiny_t5)).config)
    monkeypatch.setattr(random_backbone, "NAMED", {"tiny": small})
    folder = random_backbone.make_random("tiny", tmp_path / "made", tiny_t5)
    made = load(str(folder), device="cpu", dtype="float32")
    assert made.backbone.config == small.config
    assert made.tokenizer.encode("a", 8) == load(str(tiny_t5), device="cpu").tokenizer.encode("a", 8)
    with pytest.raises(BenchmarkError, match="unknown shape"):
        random_backbone.make_random("huge", tmp_path, tiny_t5)
