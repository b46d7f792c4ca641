"""`sidecast.train`: rows from memory, a result that answers and publishes itself, and clear errors for other rows."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sidecast
from side_registry.manifest import read_artifact
from tests.training import toy
from training.errors import DataError, RecipeError

SETTINGS = {"epochs": 1, "batch_rows": 8, "reduction": 4}
ROWS = toy.rows(toy.CLASSES, 24)


def train(backbone: Path, output: Path, rows, validation=None, **more):
    return sidecast.train(toy.CLASSES, rows, validation, backbone=backbone, output=output, **{**SETTINGS, **more})


class Dataset(list):
    """As one of the library datasets, whose labels are numbers with names."""

    def __init__(self, rows: Iterable[dict[str, object]]) -> None:
        super().__init__(rows)
        self.features = {"sentence": object(), "label": SimpleNamespace(names=["aa", "bb"])}


def test_every_form_of_rows_trains_the_same_weights(tiny_t5: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    numbered = Dataset({**row, "label": ["aa", "bb"].index(str(row["label"]))} for row in ROWS)
    forms = {"list": ROWS, "frame": pandas.DataFrame(ROWS), "dataset": numbered}
    made = {name: train(tiny_t5, tmp_path / name, rows, ROWS) for name, rows in forms.items()}
    files = {(result.folder / "side_network.safetensors").read_bytes() for result in made.values()}
    assert len(files) == 1
    path = toy.write(tmp_path / "rows.jsonl", ROWS)
    of_file = train(tiny_t5, tmp_path / "file", path, path)
    assert of_file.metrics == made["list"].metrics


def test_the_result_answers_and_publishes_itself(tiny_t5: Path, tmp_path: Path) -> None:
    result = train(tiny_t5, tmp_path / "run", ROWS)
    assert isinstance(result.side, torch.nn.Module)
    assert result.predict(["aaaa"])[0].label in ("aa", "bb")
    assert result.score == read_artifact(tmp_path / "run").manifest.metrics["accuracy"]
    published = result.publish(tmp_path / "registry", alias="production", message="first")
    registry = sidecast.Registry.open(tmp_path / "registry")
    assert registry.state().resolve(sidecast.TaskRef("letters")) == published.version == 1
    assert train(tiny_t5, tmp_path / "run", ROWS).metrics == result.metrics  # a finished run is loaded


def test_lists_of_settings_train_a_run_each_and_the_best_is_the_result(tiny_t5: Path, tmp_path: Path) -> None:
    result = train(tiny_t5, tmp_path / "runs", ROWS, ROWS, learning_rate=[1e-3, 1e-2], seed=(0, 1))
    assert result.sweep is not None
    assert len(result.sweep.runs) == 4
    assert result.score == max(run.score or 0 for run in result.sweep.runs)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"sentence": "aa", "label": "aa"}, {"sentence": float("nan"), "label": "bb"}],
            "training rows, line 2: .*null",
        ),
        ([{"sentence": "aa", "label": "aa"}, "bb"], "training rows, line 2: is a str; give a dict"),
        ({"train": ROWS}, "are a dict; give a list of dicts, a DataFrame, one split of a dataset"),
        ([{"sentence": "aa"}], "training rows, line 1: .*label"),
        ([], "training rows: holds no examples"),
    ],
)
def test_rows_that_do_not_fit_are_one_clear_error(tiny_t5: Path, tmp_path: Path, rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(tiny_t5, tmp_path / "run", rows, ROWS)


def test_an_unknown_setting_names_those_that_there_are(tiny_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="lr must be one of the settings epochs, batch_rows, accumulate, learning_rate"
    ):
        train(tiny_t5, tmp_path / "run", ROWS, lr=1e-3)


def test_the_name_is_imported_when_it_is_used() -> None:
    program = "import sys, sidecast; assert 'train' in dir(sidecast); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
