"""`sidecast train` and `evaluate` of a task with images, from the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.sidecast.cli_kit import Serving, done, sidecast, wait_until
from tests.training import pictures, toy
from training.images import EncoderSource, encode_bytes

SPEC = """
name = "colours"
kind = "classification"
template = "{question}"
images = ["image"]
labels = ["red", "blue", "yes", "no"]
"""


class Files:
    """All that the commands read, in one folder."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        images = pictures.pictures(24)
        ids = list(images)
        self.folder = folder
        self.backbone = backbone
        self.spec = folder / "colours.toml"
        self.spec.write_text(SPEC)
        self.images = pictures.parquet_of(folder / "images.parquet", images)
        self.encoder = pictures.encoder_folder(folder / "encoder")
        self.train = toy.write(folder / "train.jsonl", pictures.rows(pictures.TASK, ids[:16], 24))
        self.validation = toy.write(folder / "validation.jsonl", pictures.rows(pictures.TASK, ids[16:], 16, seed=1))
        encoder = EncoderSource.of(self.encoder).load()
        grids = {image_id: encode_bytes(encoder, [data])[0] for image_id, data in images.items()}
        self.features = folder / "features.safetensors"
        save_file(grids, self.features)

    def train_words(self, output: Path, **changes: Any) -> list[object]:
        given: dict[str, Any] = {
            "backbone": self.backbone,
            "train": self.train,
            "validation": self.validation,
            "images": self.images,
            "vision": self.encoder,
            "cache_dir": self.folder / "cache",
            "output": output,
            "epochs": 1,
            "reduction": 4,
            "image_tokens": 4,
        } | changes
        words: list[object] = ["train", self.spec]
        for name, value in given.items():
            words += [] if value is None else ["--" + name.replace("_", "-"), value]
        return words


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Files:
    return Files(tmp_path_factory.mktemp("files"), tiny_t5)


@pytest.fixture(scope="module")
def run(files: Files) -> Path:
    done(*files.train_words(files.folder / "run"))
    return files.folder / "run"


def evaluate(files: Files, run: Path, *words: object) -> tuple[object, ...]:
    return ("evaluate", files.spec, "--data", files.validation, "--run", run, *words)


def test_evaluate_needs_no_encoder_and_gives_the_score_of_training(files, run):
    ran = done(*evaluate(files, run, "--images", files.images, "--cache-dir", files.folder / "cache", "--json"))
    trained = json.loads((run / "manifest.json").read_text())["metrics"]["accuracy"]
    assert ran.document["score"] == trained
    assert ran.document["rows"] == 16


def test_evaluate_writes_predictions_with_ids(files, run, tmp_path):
    out = tmp_path / "predictions.jsonl"
    done(*evaluate(files, run, "--images", files.images, "--cache-dir", "none", "--predictions", out))
    first = json.loads(out.read_text().splitlines()[0])
    assert first["inputs"]["image"].startswith("p/")
    assert first["label"] in pictures.TASK.labels


def test_evaluate_on_features(files, run):
    ran = done(*evaluate(files, run, "--features", files.features, "--json"))
    trained = json.loads((run / "manifest.json").read_text())["metrics"]["accuracy"]
    assert ran.document["score"] == pytest.approx(trained, abs=0.1)


def test_evaluate_where_the_encoder_is_gone(files, run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    document = json.loads((moved / "run.json").read_text())
    document["vision_source"]["folder"] = "/nowhere/encoder"
    (moved / "run.json").write_text(json.dumps(document))
    words = evaluate(files, moved, "--images", files.images, "--cache-dir", "none")
    assert "its vision encoder was in /nowhere/encoder" in sidecast(*words).mistake
    assert done(*words, "--vision", files.encoder)
    wrong = sidecast(*words, "--vision", files.encoder, "--vision-layer", 1).mistake
    assert "trained with the vision encoder" in wrong


def test_evaluate_a_published_version(files, run, tmp_path):
    done("publish", run, "--registry", tmp_path / "registry")
    words = ("evaluate", "colours:1", "--data", files.validation, "--registry", tmp_path / "registry")
    more = ("--backbone", files.backbone, "--images", files.images, "--cache-dir", "none")
    assert "give --vision V" in sidecast(*words, *more).mistake
    assert done(*words, *more, "--vision", files.encoder, "--json").document["version"] == 1


@pytest.mark.slow
def test_a_server_serves_the_tasks_of_a_shared_side_network(files, tmp_path):
    """One task reads one image, the other two."""
    equal = tmp_path / "equal.toml"
    lines = ['name = "equal"', 'kind = "classification"', 'template = "equal?"', 'images = ["left", "right"]']
    equal.write_text("\n".join([*lines, 'labels = ["yes", "no"]']))
    ids = list(pictures.pictures(24))
    pairs = toy.write(tmp_path / "pairs.jsonl", pictures.rows(pictures.PAIR, ids, 24))
    words = files.train_words(
        tmp_path / "run", train=f"colours={files.train}", validation=f"colours={files.validation}"
    )
    more = ("--train", f"equal={pairs}", "--validation", f"equal={pairs}", "--shared", "--json")
    runs = done(*words, equal, *more).document["runs"]
    registry = tmp_path / "registry"
    for run in runs:
        done("publish", run["run"], "--registry", registry, "--promote")
    serve = ("--backbone", files.backbone, "--registry", registry, "--vision", files.encoder)
    with Serving(tmp_path, *serve) as server:
        for run, spec, data in zip(runs, (files.spec, equal), (files.validation, pairs), strict=True):
            data_words = ("evaluate", spec, "--data", data, "--images", files.images, "--json")
            at_server = (*data_words, "--server", server.address)
            wait_until(lambda words=at_server: sidecast(*words).code == 0)
            assert done(*at_server).document["score"] == pytest.approx(run["score"], abs=0.07)


@pytest.mark.slow
def test_a_server_replays_the_golden_examples_and_evaluate_sends_it_the_images(files, run, tmp_path):
    registry = tmp_path / "registry"
    done("publish", run, "--registry", registry, "--promote")
    words = ("--backbone", files.backbone, "--registry", registry, "--vision", files.encoder)
    data = ("evaluate", files.spec, "--data", files.validation)
    with Serving(tmp_path, *words) as server:
        wait_until(lambda: sidecast(*data, "--server", server.address, "--images", files.images).code == 0)
        ran = done(*data, "--server", server.address, "--images", files.images, "--json")
        refused = sidecast(*data, "--server", server.address, "--features", files.features).mistake
    assert "a server takes images, not features" in refused
    here = done(*evaluate(files, run, "--images", files.images, "--cache-dir", "none", "--json"))
    assert ran.document["score"] == pytest.approx(here.document["score"], abs=0.07)  # 16 rows


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"images": None}, "give either --images, a folder or .parquet file, or --features FILE"),
        ({"vision": None}, "give --vision V"),
        ({"vision": None, "vision_layer": 1}, "need --vision V"),
        ({"images": "/nowhere"}, "there is no such folder or file of images"),
        ({"vision": "/nowhere"}, "/nowhere"),
        ({"image_tokens": 25}, "has 4 x 4"),
        ({"image_tokens": 5}, "a square number"),
        ({"vision_layer": 99}, "99"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_in_train(files, tmp_path, changes, why):
    assert why in sidecast(*files.train_words(tmp_path / "run", **changes)).mistake
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_missing_image_is_reported_before_the_models_load(files, tmp_path):
    rows = [{"image_id": "p/1", "question": "what", "label": "blue"}] * 2
    train = toy.write(tmp_path / "train.jsonl", [*rows, {**rows[0], "image_id": "p/99"}])
    words = files.train_words(tmp_path / "run", train=train, backbone="/nowhere")
    assert "train.jsonl, line 3: image 'p/99' is not in" in sidecast(*words).mistake


def test_images_for_a_task_of_text(files, tmp_path):
    rows = toy.write(tmp_path / "rows.jsonl", toy.rows(toy.CLASSES, 4))
    words = ("train", "sst2", "--backbone", files.backbone, "--train", rows, "--validation", rows, "--output", tmp_path)
    assert "is for tasks with images, and sst2 has none" in sidecast(*words, "--images", files.images).mistake


def test_features_and_a_share_that_validates(files, tmp_path):
    changes = {
        "images": None,
        "vision": None,
        "features": files.features,
        "validation": None,
        "validation_share": "25%",
    }
    ran = done(*files.train_words(tmp_path / "run", **changes), "--json")
    assert ran.document["task"] == "colours"
    assert "vision" not in json.loads((tmp_path / "run" / "manifest.json").read_text())


def test_a_cache_that_cannot_be_written_is_a_warning(files, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    ran = done(*files.train_words(tmp_path / "run", cache_dir=tmp_path / "file" / "cache"), "--json")
    assert any("not kept for the next run" in warning for warning in ran.document["warnings"])
