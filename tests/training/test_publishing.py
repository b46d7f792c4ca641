"""Publishing behind a gate from Python: measured again, recorded, or refused with nothing changed."""

from pathlib import Path

import pytest

import training
from ladder import load_backbone, load_tokenizer
from side_registry import Registry, UnknownAlias
from side_registry.manifest import read_artifact
from tests.training import toy
from training.errors import GateRefused, RequirementError


@pytest.fixture(scope="module")
def model(tiny_t5: Path):
    return load_backbone(tiny_t5), load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for seed in (1, 2):
        job = toy.job(folder, toy.CLASSES, *model, count=8, epochs=1, seed=seed)
        training.train(job, folder / f"run-{seed}")
    return folder


def test_a_run_that_passes_is_published_with_its_figures(runs: Path, tmp_path: Path, model) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    score = read_artifact(runs / "run-1").manifest.metrics["accuracy"]
    data = runs / "validation.jsonl"
    before = (runs / "run-1" / "manifest.json").read_bytes()
    published = training.publish(
        runs / "run-1", registry, *model, data=data, require=["accuracy>=0"], better_than="production", message="first"
    )
    assert (published.version, published.already) == (1, False)
    record = registry.manifest("letters", 1).provenance["publish_gate"]
    assert record["measured"] == {"accuracy": score}
    assert record["better_than"] == {"alias": "production", "rival": None}
    assert registry.state().task("letters").entry(1).message.startswith("first; gate: accuracy ")
    assert (runs / "run-1" / "manifest.json").read_bytes() == before
    again = training.publish(runs / "run-1", registry, *model, data=data, require=["accuracy>=0"])
    assert again.version == 2  # another gate is another record
    assert training.publish(runs / "run-1", registry, *model, data=data, require=["accuracy>=0"]).already


def test_a_run_that_is_not_better_is_refused_and_nothing_changes(runs: Path, tmp_path: Path, model) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    registry.publish(runs / "run-1")
    generation = registry.state().generation
    data = runs / "validation.jsonl"
    with pytest.raises(GateRefused, match=r"not better than production's \(version 1\)"):
        training.publish(runs / "run-1", registry, *model, data=data, better_than="production")
    with pytest.raises(UnknownAlias, match="its aliases: production"):
        training.publish(runs / "run-2", registry, *model, data=data, better_than="prodction")
    with pytest.raises(RequirementError, match="nothing is required"):
        training.publish(runs / "run-2", registry, *model, data=data)
    assert registry.state().generation == generation
