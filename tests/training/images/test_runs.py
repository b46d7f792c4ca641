"""Runs on rows with images: they learn, go on after an interruption, and answer the same when loaded again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from ladder import SideNetwork, load_backbone, load_side, load_tokenizer
from ladder.errors import InputsError
from ladder.side import initialize
from side_registry.errors import InvalidRow
from side_registry.manifest import read_artifact
from tests.training import pictures
from tests.training.test_trainer import InterruptAfter, Interrupted
from training import artifact as artifact_module
from training.baseline import baseline_of
from training.errors import DataError, RecipeError, RunError
from training.evaluation import load_model, predict, score_answers
from training.fisher import fisher
from training.images import ImageFeatures, ImageInputs, encode_bytes
from training.job import Silent
from training.loaded_run import load_run
from training.metrics import rows_to_answer
from training.recipes.initialization import draw_samples
from training.recipes.recipe import Recipe
from training.run_folder import RunFolder
from training.trainer import train
from vision import FeatureFile, load_encoder


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path):
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder, backbone, tokenizer):
    """A job that was run, its artifact, and how many images its encoder saw in each pass."""
    folder = tmp_path_factory.mktemp("finished")
    job = pictures.job(folder, encoder, backbone, tokenizer, count=160, epochs=8, dropout=0.0, learning_rate=3e-3)
    return job, train(job, folder / "run")


def test_learns_what_only_the_images_say(finished):
    job, artifact = finished
    answers = {example.target for example in job.validation.examples}
    assert answers == {"red", "blue", "yes", "no"}
    baseline = baseline_of(job.spec, job.validation.examples)
    assert baseline.score < 0.5
    assert artifact.manifest.metrics["accuracy"] >= 0.75


def test_the_loaded_run_scores_as_training_did(finished, tmp_path, backbone, tokenizer):
    job, artifact = finished
    model = load_model(read_artifact(artifact.folder), backbone, tokenizer)
    features = ImageFeatures(replace(job.images, cache_dir=tmp_path), model.side.config.visual.tokens, 10**6)
    features.prepare(job.image_ids(job.validation), lambda done, total: None)
    examples = job.validation.examples
    rows = rows_to_answer(job.spec, examples)
    answers = predict(model, backbone, tokenizer, rows, read_images=features.read)
    metric = job.spec.metric
    assert score_answers(job.spec, answers, examples)[metric] == artifact.manifest.metrics[metric]


def test_golden_examples_are_answers_to_the_bytes_in_the_artifact(finished, backbone, tokenizer, encoder):
    _, artifact = finished
    examples = artifact.manifest.examples
    assert len(examples) == 4
    run = load_run(artifact.folder, backbone, tokenizer, load_encoder(encoder))
    for example in examples:
        assert set(example.fields) == {"question"}
        data = (artifact.folder / example.images["image"]).read_bytes()
        assert example.images["image"] in artifact.manifest.files
        assert data.startswith(b"\x89PNG")
        [answer] = run.predict([{**example.fields, "image": data}])
        assert answer.scores == pytest.approx(example.expected["scores"], abs=1e-5)


def test_a_loaded_run_scores_examples_with_a_source_of_images(finished, backbone, tokenizer, encoder):
    job, artifact = finished
    run = load_run(artifact.folder, backbone, tokenizer, load_encoder(encoder))
    scores = run.score(job.validation.examples, job.images.source)
    assert scores["accuracy"] == pytest.approx(artifact.manifest.metrics["accuracy"], abs=0.05)


def test_what_a_loaded_run_refuses(finished, tmp_path, backbone, tokenizer, encoder):
    _, artifact = finished
    with pytest.raises(RunError, match=r"trained with the vision encoder .* --vision"):
        load_run(artifact.folder, backbone, tokenizer, load_encoder(encoder, layer=1))
    run = load_run(artifact.folder, backbone, tokenizer)
    with pytest.raises(InputsError, match="give an encoder"):
        run.predict([{"question": "what", "image": pictures.png("red", 1)}])
    with pytest.raises(InvalidRow, match="a path or URL is never opened"):
        run.predict([{"question": "what", "image": "p/1"}])
    with pytest.raises(InvalidRow, match="is missing"):
        run.predict(["what"])


def test_the_run_folder_says_where_its_encoder_is(finished, encoder):
    job, artifact = finished
    manifest = artifact.manifest
    assert manifest.vision.fingerprint == job.images.encoder.fingerprint
    assert manifest.side["visual"] == {
        "features": 16,
        "images": 1,
        "tokens": 4,
        "positions": 100,
        "vocabulary": 0,
        "damped": False,
    }
    source = RunFolder(artifact.folder).vision_source()
    assert source == {"folder": str(encoder.resolve()), "layer": None, "size": None}


@pytest.mark.slow
@pytest.mark.parametrize("spec", [pictures.TASK, pictures.PAIR, pictures.SAYS], ids=lambda spec: spec.name)
def test_interrupted_and_run_again_ends_with_the_same_bytes(tmp_path, backbone, tokenizer, encoder, spec):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, spec, count=48)
    whole = train(job, tmp_path / "whole")
    for number, (epoch, step) in enumerate(((0, 3), (1, 0))):
        folder = tmp_path / f"broken {number}"
        again = pictures.job(tmp_path, encoder, backbone, tokenizer, spec, count=48)
        again = replace(again, images=replace(again.images, cache_dir=tmp_path / f"cache {number}"))
        with pytest.raises(Interrupted):
            train(again, folder, InterruptAfter(epoch, step))
        assert train(replace(again), folder).side_network.read_bytes() == whole.side_network.read_bytes()


@pytest.mark.parametrize("head", ["linear", "text"])
def test_weights_are_the_same_with_and_without_caches(tmp_path, backbone, tokenizer, encoder, head):
    """In memory, on disk alone, and encoded again for each batch."""
    made = []
    for number, (memory, disk) in enumerate(((10**6, True), (0, True), (0, False))):
        job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=24, epochs=1, head=head)
        job = replace(job, images=replace(job.images, cache_dir=tmp_path / "cache" if disk else None))
        job.__dict__["features"] = ImageFeatures(job.images, 4, memory)
        made.append(train(job, tmp_path / f"run {number}").side_network.read_bytes())
    assert made[0] == made[1] == made[2]


def test_another_encoder_or_other_images_are_another_run(tmp_path, backbone, tokenizer, encoder):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1)
    train(job, tmp_path / "run")
    other = load_encoder(encoder, layer=1)
    with pytest.raises(RunError, match="another vision"):
        train(replace(job, images=replace(job.images, encoder=other)), tmp_path / "run")
    used = job.training.examples[0].fields["image"]
    (tmp_path / "images" / f"{used}.png").write_bytes(pictures.png("red", 99))
    again = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1)
    with pytest.raises(RunError, match="another images"):
        train(again, tmp_path / "run")


def test_more_epochs_keep_the_encoder(tmp_path, backbone, tokenizer, encoder):
    train(pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1), tmp_path / "run")
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=2)
    assert train(job, tmp_path / "run").manifest.provenance["extended"] == [{"epochs": 1, "done": 1}]
    assert RunFolder(tmp_path / "run").vision_source()["folder"] == str(encoder.resolve())


def test_trains_on_a_file_of_features(tmp_path, backbone, tokenizer, encoder):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1)
    ids = job.image_ids(job.training, job.validation)
    data = dict(job.images.source.read_all(ids))
    grids = {image_id: encode_bytes(job.images.encoder, [data[image_id]])[0] for image_id in ids}
    save_file(grids, tmp_path / "features.safetensors")
    inputs = ImageInputs(source=FeatureFile(tmp_path / "features.safetensors"))
    from_file = train(replace(job, images=inputs), tmp_path / "from file")
    assert from_file.manifest.vision is None
    assert from_file.manifest.examples == ()
    assert RunFolder(tmp_path / "from file").vision_source() is None
    named = replace(job, images=replace(inputs, encoder=job.images.encoder))
    assert train(named, tmp_path / "named").manifest.vision.fingerprint == job.images.encoder.fingerprint
    from_images = train(job, tmp_path / "from images")
    assert from_file.manifest.metrics == pytest.approx(from_images.manifest.metrics, abs=0.05)


def test_a_bad_image_is_named_before_training(tmp_path, backbone, tokenizer, encoder):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=32, epochs=1)
    (tmp_path / "images" / "p" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    steps: list[int] = []

    class Watched(Silent):
        def step(self, epoch: int, step: int, loss: float) -> None:
            steps.append(step)

    with pytest.raises(DataError, match=r"images: image 'p/3': .*; "):
        train(job, tmp_path / "run", Watched())
    assert steps == []


def test_large_images_are_no_golden_examples(tmp_path, backbone, tokenizer, encoder, monkeypatch):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1)
    monkeypatch.setattr(artifact_module, "GOLDEN_IMAGE_BYTES", 10)
    assert train(job, tmp_path / "run").manifest.examples == ()


def test_golden_images_are_bounded_together(tmp_path, backbone, tokenizer, encoder, monkeypatch):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1)
    [(_, data)] = job.images.source.read_all(["p/16"])
    monkeypatch.setattr(artifact_module, "GOLDEN_BYTES", 2 * len(data) + 100)
    artifact = train(job, tmp_path / "run")
    files = [name for name in artifact.manifest.files if name.startswith("golden")]
    assert 1 <= len(files) <= 2
    assert {name for example in artifact.manifest.examples for name in example.images.values()} == set(files)


def test_each_image_is_encoded_once_and_then_found_on_disk(tmp_path, backbone, tokenizer, encoder, monkeypatch):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=40, epochs=2)
    passes = []
    forward = type(job.images.encoder).forward
    monkeypatch.setattr(
        type(job.images.encoder), "forward", lambda self, pixels: passes.append(len(pixels)) or forward(self, pixels)
    )
    train(job, tmp_path / "run")
    images = len(job.image_ids(job.training, job.validation))
    assert len(passes) == -(-images // 16) + 1  # the last for the golden examples
    again = pictures.job(tmp_path, encoder, backbone, tokenizer, count=40, epochs=2, learning_rate=1e-4)
    train(again, tmp_path / "again")
    assert len(passes) == -(-images // 16) + 2


def test_the_backbone_reads_each_question_once(tmp_path, backbone, tokenizer, encoder, monkeypatch):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=64, epochs=2)
    read: list[int] = []
    encode = type(backbone).encode
    monkeypatch.setattr(
        type(backbone),
        "encode",
        lambda self, ids, mask, depth=None: read.append(len(ids)) or encode(self, ids, mask, depth),
    )
    train(job, tmp_path / "run")
    questions = len({example.fields["question"] for example in job.training.examples})
    assert questions == 3
    assert sum(read) <= questions * (1 + 3)  # for training, in each of two validations, and for golden examples


def test_a_run_teaches_another(finished, tmp_path, backbone, tokenizer, encoder):
    _, teacher = finished
    settings = {"distill": 0.5, "teacher": str(teacher.folder), "epochs": 1}
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=32, **settings)
    assert train(job, tmp_path / "run").manifest.provenance["teacher"].startswith("sha256:")
    other = pictures.job(tmp_path, encoder, backbone, tokenizer, count=32, image_tokens=9, **settings)
    with pytest.raises(RunError, match="--image-tokens 4"):
        train(other, tmp_path / "other")


def test_starts_as_a_pruned_backbone(tmp_path, backbone, tokenizer, encoder):
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, count=16, epochs=1, init="magnitude", head="text")
    assert train(job, tmp_path / "run").manifest.side["visual"] is not None


@pytest.mark.parametrize("spec", [pictures.TASK, pictures.PAIR], ids=lambda spec: spec.name)
def test_fisher_reads_the_images_of_the_drawn_rows(tmp_path, backbone, tokenizer, encoder, spec):
    settings = {"init": "fisher", "init_samples": 6, "learning_rate": 1e-30, "epochs": 1}
    job = pictures.job(tmp_path, encoder, backbone, tokenizer, spec, count=16, **settings)
    train(job, tmp_path / "run")
    trained = load_side(tmp_path / "run" / "side_network.safetensors", backbone.config)
    torch.manual_seed(job.recipe.seed)
    expected = SideNetwork(job.side_config(), backbone.config)
    drawn = draw_samples(spec, tokenizer, job.training.examples, 6, job.recipe.seed, (), {spec.name: job.features})
    assert {sample.images.shape for sample in drawn} == {(len(spec.images), 4, 16)}
    importance = fisher(backbone, drawn, visual=expected.visual, encoder_only=True)
    initialize(expected, backbone, importance, order="consistent")
    for name, tensor in trained.state_dict().items():
        assert_close(tensor, expected.state_dict()[name], rtol=0, atol=1e-20, msg=name)
    blind = fisher(backbone, [replace(sample, images=None) for sample in drawn], encoder_only=True)
    assert not torch.equal(importance["shared"], blind["shared"])


def test_settings_that_images_cannot_have():
    with pytest.raises(RecipeError, match="vision encoder"):
        Recipe().side_config(pictures.TASK)
    for tokens in (0, 5, -4):
        with pytest.raises(RecipeError, match="square"):
            Recipe(image_tokens=tokens)
    with pytest.raises(RecipeError, match="damped or free"):
        Recipe(image_gate="open")  # type: ignore[arg-type]
    assert not Recipe(image_gate="free").side_config(pictures.TASK, 16).visual.damped
    assert Recipe(image_tokens=144).side_config(pictures.TASK, 16).visual.positions == 144
