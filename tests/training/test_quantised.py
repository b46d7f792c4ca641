"""A side network trained on a quantised backbone belongs to it, and learns, goes on and starts like any other."""

from pathlib import Path

import pytest
import torch

from ladder import SideNetwork, load_backbone, load_tokenizer
from ladder.backbone.quantize import full_precision
from side_registry.manifest import Manifest, read_artifact
from tests import tiny
from tests.marks import slow
from tests.training import toy
from training.errors import RunError
from training.evaluation import load_model, predict
from training.recipes.initialization import start_side
from training.trainer import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_t5(tmp_path_factory.mktemp("wide") / "t5", seed=2, d_model=64, d_kv=16, d_ff=128)


@pytest.fixture(scope="module", params=["int8", "int4", "w8a8"])
def backbone(request, folder):
    return load_backbone(folder, quantize=request.param)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, backbone, tokenizer):
    """Of a short run on each quantised backbone."""
    folder = tmp_path_factory.mktemp("run")
    return train(toy.job(folder, toy.CLASSES, backbone, tokenizer, count=16, epochs=1), folder / "run")


@pytest.mark.parametrize("head", ["linear", slow("text")])
def test_it_learns_and_leaves_the_backbone_as_it_was(backbone, tokenizer, tmp_path, head):
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    artifact = train(toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, epochs=3, head=head), tmp_path / "run")
    assert artifact.manifest.metrics["accuracy"] > 0.7
    assert artifact.manifest.backbone.quantization == backbone.quantization
    assert artifact.manifest.backbone.fingerprint == backbone.fingerprint
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_run_answers_on_its_own_backbone_and_is_refused_on_another(folder, backbone, tokenizer, artifact):
    model = load_model(artifact, backbone, tokenizer)
    rows = [example.fields for example in artifact.manifest.examples]
    answers = predict(model, backbone, tokenizer, rows)
    assert [answer.label for answer in answers] == [example.expected["label"] for example in artifact.manifest.examples]
    with pytest.raises(RunError, match=f"load it with --quantize {backbone.quantization}"):
        load_model(artifact, load_backbone(folder), tokenizer)


def test_a_run_goes_on_with_the_same_bits_only(folder, tokenizer, artifact, tmp_path):
    whole = toy.job(tmp_path, toy.CLASSES, load_backbone(folder), tokenizer, count=16, epochs=1)
    with pytest.raises(RunError, match="another backbone, quantize"):
        train(whole, artifact.folder)


@pytest.mark.parametrize("init", ["magnitude", "fisher"])
def test_structural_starts_read_the_matrices_as_they_are_multiplied(backbone, tokenizer, tmp_path, init):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=8)
    plain, started = full_precision(backbone), []
    for source in (backbone, plain):
        side = SideNetwork(job.recipe.side_config(job.spec).resolve(source.config), source.config)
        examples = job.training.examples
        start_side(side, source, init=init, spec=job.spec, tokenizer=tokenizer, examples=examples)
        started.append(side.encoder.rungs[0].block.attention.q.weight)
    assert torch.equal(started[0], started[1])
    first = plain.encoder.blocks[0].attention.q.weight
    assert torch.isin(started[0], first).all()


def test_a_manifest_from_before_quantisation_reads_as_of_a_whole_backbone(folder, tokenizer, tmp_path):
    artifact = train(
        toy.job(tmp_path, toy.CLASSES, load_backbone(folder), tokenizer, count=8, epochs=1), tmp_path / "run"
    )
    document = read_artifact(artifact.folder).manifest.model_dump(mode="json")
    assert document["backbone"].pop("quantization") == "none"
    assert Manifest.model_validate(document).backbone == artifact.manifest.backbone
