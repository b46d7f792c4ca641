"""A step that is computed in parts: it learns what the whole step learns, and reads fewer rows at once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from ladder import Backbone, load_backbone, load_tokenizer
from tests.training import toy
from training import train
from training.errors import NoMemoryError, RecipeError
from training.multitask.task_data import TaskData
from training.recipes.recipe import Recipe


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path):
    return load_tokenizer(tiny_t5)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (toy.CLASSES, {}),
        (toy.VALUES, {"distill": 0.5}),
        (toy.TEXTS, {}),
        (toy.MANY, {}),
        (toy.NAMES, {}),
        (toy.CLASSES, {"distill": 0.5, "optimizer": "reference"}),
    ],
    ids=["labels", "values and a teacher", "texts", "several labels", "words", "labels and a teacher"],
)
def test_parts_of_a_step_learn_what_the_whole_step_learns(tmp_path, backbone, tokenizer, spec, settings):
    """Four parts of unlike numbers of tokens and words; the last step of an epoch has one row, and so one part."""
    if spec is toy.VALUES:
        taught = toy.job(tmp_path, spec, backbone, tokenizer, count=17, epochs=1)
        settings = {**settings, "teacher": str(train(taught, tmp_path / "teacher").folder)}
    made = []
    for parts in (1, 4):
        job = toy.job(
            tmp_path, spec, backbone, tokenizer, count=17, dropout=0.0, cache_gb=0.0, accumulate=parts, **settings
        )
        made.append(train(job, tmp_path / f"{parts} parts"))
    whole, parted = made
    theirs = load_file(whole.side_network)
    for name, tensor in load_file(parted.side_network).items():
        assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    assert parted.manifest.metrics == pytest.approx(whole.manifest.metrics, abs=1e-3)


def test_the_backbone_reads_one_part_at_a_time(tmp_path, backbone, tokenizer, monkeypatch):
    read: list[int] = []
    encode = Backbone.encode

    def counted(self, ids, mask, depth=None):
        read.append(len(ids))
        return encode(self, ids, mask, depth)

    monkeypatch.setattr(Backbone, "encode", counted)
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, epochs=1, cache_gb=0.0, accumulate=3)
    train(job, tmp_path / "run")
    assert read[:6] == [3, 3, 2, 3, 3, 2]


def test_parts_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="accumulate must be within 1 and batch_rows, 8, got 9"):
        Recipe(batch_rows=8, accumulate=9)
    with pytest.raises(RecipeError, match="accumulate must be 1 for embedding, which compares all rows of a step"):
        Recipe(accumulate=2).side_config(toy.PAIRS)
    opened = toy.CLASSES.model_copy(update={"open_labels": True})
    with pytest.raises(RecipeError, match="accumulate must be 1 for letters, which has open labels and a teacher"):
        Recipe(accumulate=2, distill=0.5).side_config(opened)


def test_memory_that_runs_out_says_what_needs_less(tmp_path, backbone, tokenizer, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(TaskData, "add_gradients", fail)
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, accumulate=2, reduction=2)
    with pytest.raises(
        NoMemoryError, match=r"while 4 rows were computed; .* --accumulate 4, .* --reduction than 2, or"
    ):
        train(job, tmp_path / "run")
