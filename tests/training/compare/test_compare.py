"""Comparisons of methods on a tiny backbone: what is trained, what is counted, what is written, and how they go on."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder import load_backbone, load_tokenizer
from side_registry.manifest import read_artifact
from tests import families
from tests.training import toy
from training.compare import comparison
from training.compare.comparison import compare
from training.compare.fitting import loss_of, source_of
from training.compare.folder import ComparisonFolder
from training.compare.inputs import Inputs, Settings, check_task
from training.compare.pareto import front
from training.compare.step_log import StepLog
from training.compare.tables import Table
from training.data import read_labelled
from training.methods.errors import CompareError
from training.methods.method_names import FIGURES, METHOD_NAMES, VARIANT_NAMES
from training.methods.methods import METHODS
from training.plots import draw_figures

TRAINED = [name for name, method in METHODS.items() if method.make is not None]
FEW = ("majority", "linear-probe", "lst")


@pytest.fixture(scope="module")
def inputs(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("rows")
    parts = {
        name: read_labelled(toy.write(folder / f"{name}.jsonl", toy.rows(toy.TWO_TEXTS, 16, seed)), toy.TWO_TEXTS)
        for seed, name in enumerate(("train", "validation"))
    }
    return Inputs(
        spec=toy.TWO_TEXTS,
        backbone=load_backbone(str(tiny_t5), dtype="float32"),
        source=str(tiny_t5),
        tokenizer=load_tokenizer(str(tiny_t5)),
        training=parts["train"],
        validation=parts["validation"],
        test=None,
        settings=Settings(epochs=1, batch_rows=8),
    )


def run(inputs: Inputs, folder: Path, methods: tuple[str, ...] = FEW, seeds: tuple[int, ...] = (0,), **rates: float):
    notes: list[str] = []
    table = compare(inputs, methods, seeds, rates, ComparisonFolder(folder), "sidecast compare", notes.append)
    return table, notes


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore")
def test_a_method_changes_what_it_trains_and_nothing_else(inputs: Inputs, name: str) -> None:
    torch.manual_seed(0)
    make = METHODS[name].make
    assert make is not None
    scorer = make(source_of(inputs)).train()
    before = {key: tensor.detach().clone() for key, tensor in scorer.named_parameters()}
    optimizer = torch.optim.AdamW([tensor for tensor in scorer.parameters() if tensor.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(scorer, inputs.training_rows, list(range(16))).backward()
        optimizer.step()
    changed = {key for key, tensor in scorer.named_parameters() if not torch.equal(tensor, before[key])}
    trained = {key for key, tensor in scorer.named_parameters() if tensor.requires_grad}
    unread = {key for key in trained if key.endswith(("small.final_layer_norm.weight",))}
    assert trained - unread == changed - unread
    assert {"head.weight", "head.bias"} <= changed
    assert (name in ("full", "pruning")) == (len(trained) == len(before))


@pytest.mark.filterwarnings("ignore")
def test_methods_are_compared_on_the_encoder_of_a_bart(inputs: Inputs, tmp_path: Path) -> None:
    """Y-tuning's setting. The decoder is not loaded, so there is nothing to forget."""
    names = ("attention-probe", "lst", "side-tuning", "bitfit", "lora", "adapters", "full")
    source = str(families.make("bart", tmp_path / "bart"))
    backbone, tokenizer = load_backbone(source, dtype="float32"), load_tokenizer(source)
    bart = replace(inputs, backbone=backbone, source=source, tokenizer=tokenizer)
    table, _ = run(bart, tmp_path / "out", names)
    rows = {row["method"]: row for row in table.rows}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(names, "success")
    assert rows["full"]["trained_percent"] == 100
    assert all(0 < rows[name]["trained_percent"] < 100 for name in names[:-1])
    assert rows["lst"]["peak_mb"] < rows["full"]["peak_mb"]
    assert {row["forgetting"] for row in table.rows} == {None}
    trained = read_artifact(tmp_path / "out/runs/lst-seed-0").manifest
    assert (trained.backbone.fingerprint, trained.side["decoder_layers"]) == (backbone.fingerprint, [])


def test_names_are_those_of_the_methods() -> None:
    assert tuple(METHODS) == (*METHOD_NAMES, *VARIANT_NAMES)
    assert {name for names in FIGURES.values() for name in names} <= METHODS.keys()


def test_a_step_counts_parameters_gradients_state_and_what_autograd_saved() -> None:
    layer = torch.nn.Linear(4, 2, bias=False)
    frozen = torch.zeros(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    with StepLog([*layer.parameters(), frozen], optimizer) as steps:
        for rows in (5, 3):
            optimizer.zero_grad()
            layer(torch.ones(rows, 4)).sum().backward()
            optimizer.step()
    fixed = 4 * (8 + 3 + 8 + 8)  # weights and the frozen tensor, gradients, momentum
    assert steps.bytes == [fixed + 4 * 5 * 4, fixed + 4 * 3 * 4]
    assert (steps.peak, steps.mean) == (steps.bytes[0], sum(steps.bytes) // 2)
    assert steps.seconds
    with StepLog([*layer.parameters()], optimizer) as one:
        optimizer.step()
    assert one.seconds is None


def test_results_are_written_repeat_exactly_and_nothing_is_made_twice(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = run(inputs, tmp_path / "a", seeds=(0, 1))
    again, _ = run(inputs, tmp_path / "b", seeds=(0, 1))
    exact = (
        "score",
        "deviation",
        "trained_percent",
        "peak_mb",
        "p99_mb",
        "file_mb",
        "gflop_1",
        "gflop_16",
        "forgetting",
    )
    assert [{key: row[key] for key in exact} for row in table.rows] == [
        {key: row[key] for key in exact} for row in again.rows
    ]
    by_name = {row["method"]: row for row in table.rows}
    assert by_name["lst"]["forgetting"] == 0
    assert by_name["lst"]["runs"] == 2
    assert by_name["linear-probe"]["gflop_16"] < 16 * by_name["linear-probe"]["gflop_1"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "a/results.csv").read_text(encoding="utf-8"))))
    assert [line["method"] for line in lines] == list(FEW)
    assert float(lines[2]["score"]) == by_name["lst"]["score"]
    assert "| lst |" in (tmp_path / "a/results.md").read_text(encoding="utf-8")
    assert "<svg" in (tmp_path / "a/pareto.html").read_text(encoding="utf-8")
    document = json.loads((tmp_path / "a/runs/lst-seed-1.json").read_text(encoding="utf-8"))
    assert {"run_info", "train_info", "meta_info"} <= document.keys()
    assert {"test accuracy", "train loss", "train samples", "train total tokens"} <= document["train_info"]["metrics"][
        -1
    ].keys()

    (tmp_path / "a/runs/linear-probe-seed-1.json").unlink()  # as if it had been interrupted there
    made: list[str] = []
    fit = comparison.fit
    monkeypatch.setattr(comparison, "fit", lambda method, *rest: made.append(method.name) or fit(method, *rest))
    resumed, notes = run(inputs, tmp_path / "a", seeds=(0, 1))
    assert made == ["linear-probe"]
    assert sum(note.endswith("finished before") for note in notes) == 5
    assert [row["scores"] for row in resumed.rows] == [row["scores"] for row in table.rows]


def test_variants_of_a_side_network_differ_in_what_they_say_and_are_drawn(inputs: Inputs, tmp_path: Path) -> None:
    """A figure is drawn where it shows a variant; figure 1 shows methods alone."""
    names = ("lst", "lst-r4", "lst-r16", "lst-last", "lst-no-taps")
    table, _ = run(inputs, tmp_path / "out", names)
    failed = [row["method"] for row in table.rows if row["status"] != "success"]
    assert failed == ["lst-r16"]  # this backbone's heads are 8 wide
    sides = {
        name: read_artifact(tmp_path / f"out/runs/{name}-seed-0").manifest.side for name in names if name not in failed
    }
    assert {name: side["reduction"] for name, side in sides.items() if side["reduction"] != 8} == {"lst-r4": 4}
    assert sides["lst-last"]["encoder_layers"] == [inputs.backbone.config.num_layers - 1]
    assert {name for name, side in sides.items() if side["gate"] == "one"} == {"lst-no-taps"}
    drawn = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert drawn == ["figure-5.png", "figure-6.png", "figure-8.png"]


def test_figures_show_what_has_a_score() -> None:
    row = {"deviation": None, "peak_mb": 10.0, "score": 0.5}
    rows = [{**row, "method": name} for name in ("linear-probe", "lst", "full")]
    assert list(draw_figures(rows, "accuracy")) == ["figure-1"]
    rows += [{**row, "method": "lst-no-taps", "deviation": 0.1}, {**row, "method": "lst-fisher", "score": None}]
    assert list(draw_figures(rows, "accuracy")) == ["figure-1", "figure-8"]
    half = [{**row, "method": "full-half", "peak_mb": 8.0}]
    assert draw_figures([*rows, *half], "accuracy")["figure-6"].startswith(b"\x89PNG")


def test_memory_that_runs_out_is_a_result(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(comparison, "fit", fail)
    table, _ = run(inputs, tmp_path / "out", ("majority", "full"))
    assert [(row["method"], row["status"]) for row in table.rows] == [
        ("majority", "success"),
        ("full", "out of memory"),
    ]
    assert "| full | out of memory |" in table.markdown()


def test_another_comparison_another_rate_and_another_kind_of_task_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "out", ("linear-probe",))
    with pytest.raises(CompareError, match=r"learning rate 0\.003, not 0\.5"):
        run(inputs, tmp_path / "out", ("linear-probe",), **{"linear-probe": 0.5})
    other = replace(inputs, settings=Settings(epochs=2, batch_rows=8))
    with pytest.raises(CompareError, match="another epochs; choose another --output"):
        run(other, tmp_path / "out", ("majority",))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").touch()
    with pytest.raises(CompareError, match="holds file and no comparison"):
        run(inputs, tmp_path / "theirs", ("majority",))
    with pytest.raises(CompareError, match="classification and regression"):
        check_task(toy.TEXTS)


def test_the_front_has_no_point_that_another_one_beats() -> None:
    points = [
        {"peak_mb": memory, "score": score} for memory, score in ((1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9))
    ]
    assert [(row["peak_mb"], row["score"]) for row in front(points)] == [(1, 0.5), (2, 0.7), (4, 0.9)]
    assert Table([], toy.CLASSES, "").rows == []
