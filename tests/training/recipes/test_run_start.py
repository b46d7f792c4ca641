"""A start from a finished run: what is copied, what the run is known by, and which runs cannot be a start."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from ladder import load_backbone, load_tokenizer
from tests import tiny
from tests.training import toy
from training import train
from training.errors import RecipeError, RunError
from training.recipes.recipe import Recipe
from training.recipes.run_start import load_run_start

NO_STEP = {"learning_rate": 1e-30, "epochs": 1}
"""The weights stay as they start."""


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path):
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def source(tmp_path_factory, backbone, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return Path(train(toy.job(folder, toy.CLASSES, backbone, tokenizer, count=24, epochs=1), folder / "run").folder)


def started(folder: Path, spec, source: Path, backbone, tokenizer, **settings):
    """A run that started there and took no step that moves a weight."""
    folder.mkdir(exist_ok=True)
    job = toy.job(folder, spec, backbone, tokenizer, count=16, **{**NO_STEP, "start": str(source), **settings})
    return train(job, folder / "run")


def test_the_same_task_starts_with_all_weights(tmp_path, source, backbone, tokenizer):
    artifact = started(tmp_path, toy.CLASSES, source, backbone, tokenizer)
    theirs = load_file(source / "side_network.safetensors")
    for name, tensor in load_file(artifact.side_network).items():
        assert_close(tensor, theirs[name], msg=name)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [(toy.CLASSES.model_copy(update={"labels": ("bb", "aa")}), {}), (toy.VALUES, {}), (toy.TWO_TEXTS, {})],
    ids=["other labels", "another kind", "a head that reads two texts"],
)
def test_another_task_starts_with_all_weights_but_those_of_the_head(
    tmp_path, source, backbone, tokenizer, spec, settings
):
    artifact = started(tmp_path, spec, source, backbone, tokenizer, seed=5, **settings)
    theirs = load_file(source / "side_network.safetensors")
    for name, tensor in load_file(artifact.side_network).items():
        same = tensor.shape == theirs[name].shape and bool((tensor == theirs[name]).all())
        assert same == (not name.startswith("head.")), name


def test_a_run_is_known_by_the_weights_it_started_from(tmp_path, source, backbone, tokenizer):
    first = started(tmp_path, toy.CLASSES, source, backbone, tokenizer)
    assert first.manifest.provenance["recipe"]["start"].startswith("sha256:")
    assert str(source) not in json.dumps(first.manifest.provenance)
    shutil.copytree(source, tmp_path / "moved")
    assert started(tmp_path, toy.CLASSES, tmp_path / "moved", backbone, tokenizer).manifest == first.manifest
    other = started(tmp_path / "other", toy.CLASSES, source, backbone, tokenizer, learning_rate=1e-3)
    with pytest.raises(RunError, match=r"holds a run with another recipe \(start sha256:"):
        started(tmp_path, toy.CLASSES, other.folder, backbone, tokenizer)


def test_starts_that_cannot_be_are_refused(tmp_path, source, backbone, tokenizer):
    with pytest.raises(RecipeError, match="start must be fresh, pretrained or the folder of a finished run, got 'prt'"):
        load_run_start("prt", backbone)
    with pytest.raises(RunError, match="cannot start this run: its side network has reduction 4, not 2"):
        started(tmp_path / "r", toy.CLASSES, source, backbone, tokenizer, reduction=2)
    assert not (tmp_path / "r" / "run").exists()
    with pytest.raises(RunError, match=r"its side network has .*head linear, not text"):
        started(tmp_path / "h", toy.CLASSES, source, backbone, tokenizer, head="text")
    with pytest.raises(RunError, match="another backbone"):
        load_run_start(str(source), load_backbone(tiny.make_t5(tmp_path / "other", seed=9)))
    with pytest.raises(RecipeError, match="init must be random where training starts from"):
        Recipe(start=str(source), init="magnitude")
