"""The whole story with images on a tiny random backbone and encoder: real commands, a real server, a real swap."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from demo.vision.story import TEXT_TASK, Inputs, Sizes, tell
from tests.demo.test_story import InThisProcess, files_under
from tests.demo.vision.kit import made_data
from training.builtin_tasks import load_task
from vision.efficientnet import EfficientNetLite
from vision.loading import EFFICIENTNET_LITE

SIZES = Sizes(
    pictures={"train": 6, "validation": 4, "test": 4},
    quick_pictures=3,
    quick_epochs=1,
    epochs=1,
    timed_pictures=3,
    page_pictures=2,
    stay_s=0.2,
)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny EfficientNet-Lite whose folder names a layer of 9 x 9 tokens."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    torch.manual_seed(0)
    shape = {"width": 0.1, "depth": 0.4}
    weights = EfficientNetLite(**shape).state_dict()
    save_file(
        {name: value for name, value in weights.items() if "num_batches" not in name}, folder / "model.safetensors"
    )
    config = {**shape, "model_type": EFFICIENTNET_LITE, "image_size": 65, "layer": 3}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_whole_story_and_again_from_where_it_stopped(tmp_path, tiny_t5, encoder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    inputs = Inputs(backbone=tiny_t5, encoder=encoder, data=made_data(tmp_path, monkeypatch, train=6, test=8))
    tell(folder, inputs, SIZES, InThisProcess())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines.count(["failed", "requests", "0"]) == 2
    assert ["versions", "in", "the", "order", "seen", "1,", "2,", "1"] in lines
    assert ["pictures", "encoded", str(4 + 3)] in lines  # the test pictures, and those that are timed
    assert (folder / "answers.html").read_text(encoding="utf-8").count("<img ") >= SIZES.page_pictures
    trained = files_under(folder / "runs")
    assert len([path for path in trained if path.suffix == ".safetensors"]) >= 3
    tell(folder, inputs, SIZES, InThisProcess())
    assert files_under(folder / "runs") == trained  # nothing was trained again


def test_the_text_only_task_differs_by_the_picture_alone():
    with_pictures = load_task("easy-vqa").model_dump()
    without = load_task(str(TEXT_TASK)).model_dump()
    names = {*with_pictures, *without}  # a spec without images does not have the field
    differing = {name for name in names if without.get(name) != with_pictures.get(name)}
    assert differing == {"name", "description", "images"}
