import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from side_registry import MANIFEST, SIDE_NETWORK, ArtifactError, Manifest, read_artifact, write_manifest
from tests.side_registry.runs import make_manifest, make_run, weights


def edit(folder: Path, **change: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_what_is_written_is_read(tmp_path: Path):
    written = make_run(tmp_path / "run")
    artifact = read_artifact(written)
    assert artifact.manifest.task == artifact.manifest.spec.name == "sst2"
    assert artifact.manifest.run_id == "run-1"
    assert artifact.manifest.files[SIDE_NETWORK].size == len(weights(b"weights 1"))
    assert artifact.manifest_bytes == (written / MANIFEST).read_bytes()
    assert artifact.side_network.read_bytes() == weights(b"weights 1")


def test_nothing_but_the_manifest_is_left_behind(tmp_path: Path):
    assert {path.name for path in make_run(tmp_path / "run").iterdir()} == {MANIFEST, SIDE_NETWORK}


def test_unknown_fields_survive(tmp_path: Path):
    edit(make_run(tmp_path / "run"), signature="ed25519:...")
    manifest = read_artifact(tmp_path / "run").manifest
    assert json.loads(manifest.to_json())["signature"] == "ed25519:..."


def test_a_number_that_is_none_survives():
    manifest = make_manifest().model_copy(update={"metrics": {"pearson": float("nan")}})
    assert str(Manifest.model_validate_json(manifest.to_json()).metrics["pearson"]) == "nan"


def test_a_missing_folder_or_file_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no such folder"):
        read_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match=rf"{SIDE_NETWORK} is missing"):
        write_manifest(tmp_path, make_manifest())
    (make_run(tmp_path / "run") / SIDE_NETWORK).unlink()
    with pytest.raises(ArtifactError, match=rf"{SIDE_NETWORK} is missing"):
        read_artifact(tmp_path / "run")


def test_a_changed_file_is_named(tmp_path: Path):
    file = make_run(tmp_path / "run") / SIDE_NETWORK
    file.write_bytes(weights(b"weights 2"))
    with pytest.raises(ArtifactError, match="sha256 differs"):
        read_artifact(tmp_path / "run")
    file.write_bytes(b"weig")
    with pytest.raises(ArtifactError, match="has 4 bytes"):
        read_artifact(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema_version": 2}, "upgrade"),
        ({"task": "other"}, "must be the same"),
        ({"spec": {}}, r"spec\.name"),
        ({"backbone": {"name": "t5"}}, r"backbone\.fingerprint"),
        ({"files": {}}, "does not name"),
        ({"files": {"../up": {"sha256": "0" * 64, "size": 1}}}, "plain file name"),
        ({"files": {"manifest.json": {"sha256": "0" * 64, "size": 1}}}, "plain file name"),
        ({"files": {SIDE_NETWORK: {"sha256": "zz", "size": 1}}}, "sha256"),
        ({"files": {SIDE_NETWORK: {"sha256": "0" * 64, "size": -1}}}, "size"),
        ({"files": {SIDE_NETWORK: {"sha256": "0" * 64, "size": 10**18}}}, "has 83 bytes"),
        ({"metrics": "good"}, "metrics"),
        ({"examples": [{}]}, r"examples\.0"),
    ],
)
def test_a_bad_manifest_says_which_field(tmp_path: Path, change: dict, why: str):
    edit(make_run(tmp_path / "run"), **change)
    with pytest.raises(ArtifactError, match=why):
        read_artifact(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_json_object(tmp_path: Path, content: bytes):
    (make_run(tmp_path / "run") / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_artifact(tmp_path / "run")


def test_an_enormous_manifest_is_not_parsed(tmp_path: Path):
    with (make_run(tmp_path / "run") / MANIFEST).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ArtifactError, match="larger than"):
        read_artifact(tmp_path / "run")


def image_manifest(images: dict[str, str], files: dict[str, Any]) -> dict[str, Any]:
    manifest = make_manifest()
    spec = manifest.spec.model_copy(update={"images": ("image",)})
    example = {"fields": {"sentence": "a"}, "images": images, "expected": {"label": spec.labels[0], "score": 0.5}}
    values = manifest.model_dump(mode="json") | {"spec": spec.model_dump(mode="json"), "examples": [example]}
    blob = {"sha256": "0" * 64, "size": 1}
    return values | {"files": dict.fromkeys(files, blob), "vision": {"name": "lite2", "fingerprint": "sha256:1"}}


def test_a_golden_examples_images_are_files_of_the_artifact():
    manifest = Manifest.model_validate(image_manifest({"image": "golden-0.png"}, {"golden-0.png": 1}))
    assert manifest.examples[0].images == {"image": "golden-0.png"}
    assert manifest.vision is not None
    assert Manifest.model_validate_json(manifest.to_json()) == manifest
    assert b"images" not in make_manifest().to_json()
    assert b"vision" not in make_manifest().to_json()


@pytest.mark.parametrize(
    ("images", "why"),
    [
        ({}, "task 'sst2' has the images image"),
        ({"picture": "golden-0.png"}, "task 'sst2' has the images image"),
        ({"image": "golden-1.png"}, "'golden-1.png' is none of the artifact's files"),
    ],
)
def test_a_golden_example_with_other_images(images: dict[str, str], why: str):
    with pytest.raises(ValidationError, match=why):
        Manifest.model_validate(image_manifest(images, {"golden-0.png": 1}))


MANY = {"name": "sst2", "kind": "multilabel", "template": "{sentence}", "labels": ["rude", "threat"]}


@pytest.mark.parametrize(
    ("thresholds", "why"),
    [
        ({"rude": 1.1}, r"thresholds: 'rude' must be within 0\.\.1, got 1\.1"),
        ({"threat": -0.1}, r"thresholds: 'threat' must be within 0\.\.1, got -0\.1"),
        ({"rude": float("nan")}, "must be within"),
        ({"kind": 0.5}, "'kind' is none of the spec's labels"),
    ],
)
def test_thresholds_are_within_0_and_1_and_of_the_specs_labels(tmp_path: Path, thresholds: dict, why: str):
    edit(make_run(tmp_path / "run"), spec=MANY, examples=[], thresholds=thresholds)
    with pytest.raises(ArtifactError, match=why):
        read_artifact(tmp_path / "run")


def test_a_label_without_a_threshold_has_one_half_and_other_kinds_have_none(tmp_path: Path):
    run = make_run(tmp_path / "run")
    assert read_artifact(run).manifest.label_thresholds == ()
    assert "thresholds" not in (run / MANIFEST).read_text()
    edit(run, spec=MANY, examples=[], thresholds={"threat": 0.25})
    assert read_artifact(run).manifest.label_thresholds == (0.5, 0.25)
    edit(run, spec=MANY | {"kind": "classification"})
    with pytest.raises(ArtifactError, match="thresholds: are for multilabel, task 'sst2' is classification"):
        read_artifact(run)
