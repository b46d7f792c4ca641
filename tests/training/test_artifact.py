"""Run folders that nobody trained: whole, the same again, and never in the place of something else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ladder import SideConfig, SideNetwork, VisualConfig, load_backbone, load_tokenizer
from side_registry.manifest import MANIFEST, NO_TOKENIZER, SIDE_NETWORK, read_artifact
from tests.training import toy
from training.artifact import write_run
from training.errors import RecipeError, RunError
from training.evaluation import load_model, load_side_of
from training.run_folder import SETTINGS, RunFolder


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


def write(folder: Path, backbone, *, spec=toy.TEXTS, seed: int = 0, made: str = "here", **shape: object):
    torch.manual_seed(seed)
    side = SideNetwork(SideConfig(reduction=4, **shape), backbone.config)  # type: ignore[arg-type]
    artifact = write_run(
        folder,
        side,
        spec=spec,
        backbone=backbone,
        backbone_source="somewhere",
        tokenizer_fingerprint=NO_TOKENIZER,
        provenance={"made_by": made},
        untrained=False,
    )
    return side, artifact


def test_the_folder_is_a_finished_runs(backbone, tmp_path: Path) -> None:
    side, artifact = write(tmp_path / "run", backbone)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([MANIFEST, SETTINGS, SIDE_NETWORK])
    assert RunFolder(tmp_path / "run").complete
    assert RunFolder(tmp_path / "run").backbone_source() == "somewhere"
    manifest = read_artifact(tmp_path / "run").manifest
    assert (manifest.task, manifest.tokenizer_fingerprint, manifest.examples) == ("echo", "none", ())
    assert manifest.provenance["made_by"] == "here"
    assert len(manifest.run_id) == 16
    stored = load_side_of(artifact, backbone)
    assert stored.config == side.config
    assert all(torch.equal(stored.state_dict()[name], tensor) for name, tensor in side.state_dict().items())


def test_a_run_that_reads_images_keeps_their_positions_and_is_not_asked_with_texts(backbone, tiny_t5: Path, tmp_path):
    side, artifact = write(tmp_path / "run", backbone, visual=VisualConfig(features=6))
    stored = load_side_of(artifact, backbone)
    assert stored.config == side.config
    assert torch.equal(stored.visual.positions, side.visual.positions)
    with pytest.raises(RunError, match="its task has no images in its rows; only `trace` takes it"):
        load_model(artifact, backbone, load_tokenizer(tiny_t5))


def test_the_same_again_changes_nothing(backbone, tmp_path: Path) -> None:
    write(tmp_path / "run", backbone)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    write(tmp_path / "run", backbone)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_killed_before_its_manifest_it_is_finished_by_the_same_again(backbone, tmp_path: Path) -> None:
    write(tmp_path / "run", backbone)
    (tmp_path / "run" / MANIFEST).unlink()
    (tmp_path / "run" / SIDE_NETWORK).write_bytes(b"half")
    write(tmp_path / "run", backbone)
    assert read_artifact(tmp_path / "run").manifest.task == "echo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "holds a run with another weights; choose another --output or delete it"),
        ({"made": "there"}, "holds a run with another made"),
        ({"encoder_layers": (1,)}, "holds a run with another side, weights"),
        ({"spec": toy.TEXTS.model_copy(update={"max_new_tokens": 3})}, "holds a run with another task"),
    ],
)
def test_something_else_is_refused(backbone, tmp_path: Path, change: dict, message: str) -> None:
    write(tmp_path / "run", backbone)
    with pytest.raises(RunError, match=message):
        write(tmp_path / "run", backbone, **change)


def test_another_folder_is_left_alone(backbone, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=r"holds no run.json, so it is no run folder"):
        write(tmp_path, backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_head_that_cannot_answer_the_task_is_refused_before_anything_is_written(backbone, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the head has 3 outputs, and task letters .* needs 2; give another task"):
        write(tmp_path / "run", backbone, spec=toy.CLASSES, head="linear", outputs=3)
    with pytest.raises(RecipeError, match="head must be linear, attention or mlp for regression, got 'text'"):
        write(tmp_path / "run", backbone, spec=toy.VALUES)
    assert not (tmp_path / "run").exists()


def test_another_backbone_is_told(backbone, tmp_path: Path) -> None:
    _, artifact = write(tmp_path / "run", backbone)
    document = json.loads((tmp_path / "run" / MANIFEST).read_text(encoding="utf-8"))
    document["backbone"]["fingerprint"] = "sha256:other"
    manifest = artifact.manifest.model_validate(document)
    with pytest.raises(RunError, match="another backbone than"):
        load_side_of(replace(artifact, manifest=manifest), backbone)
