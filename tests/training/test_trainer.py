"""The trainer: it learns, keeps the best, resumes to the same weights, and never touches the backbone."""

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ladder import ChooseLabels, SideConfigError, SideNetwork, load_backbone, load_tokenizer
from ladder.backbone.loading import fingerprint
from side_registry.golden import GoldenExample, replay_tokens
from side_registry.manifest import read_artifact
from side_registry.specs.task import TaskSpec
from tests import tiny
from tests.marks import slow
from tests.training import toy
from training.data import read_labelled
from training.errors import RecipeError, RunError
from training.evaluation import load_model, predict, score_answers
from training.job import Silent
from training.metrics import rows_to_answer
from training.recipes.recipe import LATER, Recipe
from training.taps_cache import TapsCache
from training.trainer import train


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path):
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbone, tokenizer):
    """A small job, its artifact, and the backbone's fingerprint before it was run."""
    folder = tmp_path_factory.mktemp("finished")
    job = toy.job(folder, toy.CLASSES, backbone, tokenizer, count=16, epochs=1)
    before = fingerprint(backbone.config, dict(backbone.state_dict()))
    return job, train(job, folder / "run"), before


class Interrupted(Exception):
    pass


class InterruptAfter(Silent):
    """Stops a run in the middle of an epoch, as Ctrl-C would."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def step(self, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == self.at:
            raise Interrupted


@pytest.mark.parametrize(
    ("spec", "head", "least"),
    [
        (toy.CLASSES, "linear", 0.8),
        (toy.CLASSES, "text", 0.7),
        (toy.VALUES, "auto", 0.7),
        (toy.MANY, "auto", 0.8),
        (toy.BEGINNINGS, "auto", 0.8),
        slow(toy.TEXTS, "auto", 0.6),
    ],
    ids=["linear", "label words", "regression", "multilabel", "ranking", "text"],
)
def test_learns_and_scores_the_same_from_the_run_folder(tmp_path, backbone, tokenizer, spec, head, least):
    job = toy.job(tmp_path, spec, backbone, tokenizer, epochs=3, head=head, count=160, dropout=0.0)
    artifact = train(job, tmp_path / "run")
    assert artifact.manifest.metrics[spec.metric] >= least
    model = load_model(read_artifact(tmp_path / "run"), backbone, tokenizer)
    examples = job.validation.examples
    answers = predict(model, backbone, tokenizer, rows_to_answer(spec, examples))
    assert score_answers(spec, answers, examples)[spec.metric] == pytest.approx(artifact.manifest.metrics[spec.metric])


@pytest.mark.slow
@pytest.mark.parametrize("spec", [toy.CLASSES, toy.VALUES, toy.TEXTS, toy.PAIRS, toy.MANY], ids=lambda spec: spec.kind)
def test_interrupted_and_run_again_ends_with_the_same_bytes(tmp_path, backbone, tokenizer, spec):
    """In the first epoch, at the begin of the second, and at its end."""
    job = toy.job(tmp_path, spec, backbone, tokenizer, count=48)
    whole = train(job, tmp_path / "whole")
    for epoch, step in ((0, 3), (1, 0), (1, 5)):
        folder = tmp_path / f"broken {epoch} {step}"
        with pytest.raises(Interrupted):
            train(job, folder, InterruptAfter(epoch, step))
        again = train(job, folder)
        assert again.side_network.read_bytes() == whole.side_network.read_bytes()
        assert again.manifest.examples == whole.manifest.examples


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "text"])
def test_a_target_that_is_no_label_teaches_nothing_and_counts_as_wrong(tmp_path, backbone, tokenizer, head):
    """The last step's rows have no label at all."""
    spec = toy.CLASSES.model_copy(update={"open_labels": True})
    records = toy.rows(spec, 16)
    others = [{"sentence": "abab" * 8, "label": "cc"} for _ in range(8)]  # long: in a batch of their own
    job = toy.job(tmp_path, spec, backbone, tokenizer, epochs=1, head=head, cache_gb=0.0, learning_rate=1e-9)
    open_data = read_labelled(toy.write(tmp_path / "open.jsonl", records + others), spec)
    trained = train(replace(job, training=open_data, validation=open_data), tmp_path / "open")
    known = read_labelled(toy.write(tmp_path / "known.jsonl", records), spec)
    closed = train(replace(job, training=known, validation=known), tmp_path / "known")
    assert trained.manifest.metrics["accuracy"] == pytest.approx(closed.manifest.metrics["accuracy"] * 16 / 24)


@pytest.mark.slow
def test_a_row_with_several_references_learns_from_all_of_them(tmp_path, backbone, tokenizer):
    """Two references that are the same are as one; another one changes what is learned."""
    weights = []
    for name, target in (("one", "x"), ("same", ["x", "x"]), ("two", ["x", "y"])):
        records = [row | {"target": target} for row in toy.rows(toy.TEXTS, 24)]
        (tmp_path / name).mkdir()
        data = read_labelled(toy.write(tmp_path / name / "rows.jsonl", records), toy.TEXTS)
        job = toy.job(tmp_path / name, toy.TEXTS, backbone, tokenizer, epochs=1)
        trained = train(replace(job, training=data, validation=data), tmp_path / name / "run")
        assert trained.manifest.metrics["exact_match"] >= 0
        weights.append(trained.side_network.read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_reference_optimizer_goes_on_with_its_moments(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=48, optimizer="reference", weight_decay=0.01)
    whole = train(job, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(job, tmp_path / "broken", InterruptAfter(1, 2))
    assert train(job, tmp_path / "broken").side_network.read_bytes() == whole.side_network.read_bytes()


@pytest.mark.parametrize(("spec", "head"), [(toy.CLASSES, "linear"), (toy.CLASSES, "text"), (toy.TEXTS, "text")])
def test_kept_activations_are_the_backbones_own(backbone, tokenizer, spec, head):
    side = SideNetwork(Recipe(head=head, reduction=4, encoder_layers=(0, 2)).side_config(spec), backbone.config)
    inputs = [tuple(tokenizer.encode(text)) for text in ("a", "abcd", "abcdefgh")]
    cache = TapsCache(backbone, [side], inputs)
    fresh = cache.run([2, 0])
    cache.fill(10**9, 2, lambda done, total: None)
    kept = cache.run([2, 0])
    real = fresh.taps.mask[:, :, None]
    for layer in side.encoder.layers:
        assert_close(kept.taps.blocks[layer] * real, fresh.taps.blocks[layer] * real, rtol=1e-2, atol=1e-2)
    assert torch.equal(kept.taps.mask, fresh.taps.mask)
    if side.config.has_decoder:
        for ours, theirs in zip(kept.decoder_taps().blocks, fresh.decoder_taps().blocks, strict=True):
            assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_cache_bound_is_kept_and_every_row_still_trains(tmp_path, backbone, tokenizer):
    none, some, all_rows = [
        train(toy.job(tmp_path, toy.VALUES, backbone, tokenizer, count=48, cache_gb=size), tmp_path / f"run{size}")
        for size in (0.0, 0.00005, 1.0)
    ]
    for other in (some, all_rows):
        assert other.manifest.metrics["loss"] == pytest.approx(none.manifest.metrics["loss"], rel=0.05)


def test_training_leaves_the_backbone_unchanged(finished, backbone):
    _, _, before = finished
    assert fingerprint(backbone.config, dict(backbone.state_dict())) == before
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_best_epoch_is_kept_not_the_last(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, epochs=4)
    artifact = train(job, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert artifact.manifest.metrics["accuracy"] == max(line["accuracy"] for line in lines)
    assert artifact.manifest.provenance["epoch"] == max(lines, key=lambda line: line["accuracy"])["epoch"]


def test_patience_ends_a_run_whose_score_gets_no_better(tmp_path, backbone, tokenizer):
    """A learning rate that changes nothing: the first epoch is the best, and two more are waited for."""
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, epochs=9, learning_rate=1e-30, patience=2)
    artifact = train(job, tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert artifact.manifest.provenance["epoch"] == 1


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path, backbone, tokenizer):
    made = [
        train(toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=1, seed=seed), tmp_path / name)
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    ]
    first, same, other = (artifact.side_network.read_bytes() for artifact in made)
    assert first == same != other


def test_finished_run_is_returned_as_it_is(finished):
    job, first, _ = finished
    assert train(job, first.folder, InterruptAfter(0, 0)).manifest_bytes == first.manifest_bytes


def test_folder_of_another_run_is_refused(finished):
    job, first, _ = finished
    with pytest.raises(RunError, match="another recipe"):
        train(replace(job, recipe=replace(job.recipe, seed=2)), first.folder)


def test_fewer_epochs_or_more_of_another_recipe_are_another_run(tmp_path, finished, backbone, tokenizer):
    job, first, _ = finished
    folder = shutil.copytree(first.folder, tmp_path / "run")
    more = train(replace(job, recipe=replace(job.recipe, epochs=2)), folder)
    assert more.manifest.provenance["recipe"]["epochs"] == 2
    for recipe in (job.recipe, replace(job.recipe, epochs=3, seed=2)):
        with pytest.raises(RunError, match="another recipe"):
            train(replace(job, recipe=recipe), folder)
    assert read_artifact(folder).manifest == more.manifest


def test_a_finished_run_goes_on_with_more_epochs(tmp_path, backbone, tokenizer):
    """The first epochs stay; the rest is what the longer schedule says, interrupted or not."""
    short = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=32, epochs=1)
    long = replace(short, recipe=replace(short.recipe, epochs=3))
    before = train(short, tmp_path / "run")
    first_line = lines_of(tmp_path / "run")[0]
    shutil.copytree(tmp_path / "run", tmp_path / "broken")
    whole = train(long, tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert lines[0] == first_line
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert whole.manifest.provenance["extended"] == [{"epochs": 1, "done": 1}]
    at_once = train(long, tmp_path / "at once")
    assert len({run.manifest.run_id for run in (before, whole, at_once)}) == 3
    with pytest.raises(Interrupted):
        train(long, tmp_path / "broken", InterruptAfter(2, 1))
    assert not (tmp_path / "broken" / "manifest.json").exists()
    again = train(long, tmp_path / "broken")
    assert again.side_network.read_bytes() == whole.side_network.read_bytes()
    assert again.manifest.run_id == whole.manifest.run_id


def test_a_run_from_before_taps_were_normalized_goes_on_without(tmp_path, backbone, tokenizer):
    short = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, epochs=1, tap_norm="none", pair="together")
    before = train(short, tmp_path / "run")
    settings = tmp_path / "run" / "run.json"
    document = json.loads(settings.read_text())
    for name in LATER:
        del document["settings"]["recipe"][name]
    settings.write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"another recipe \(tap_norm none, not rms\)"):
        train(replace(short, recipe=replace(short.recipe, tap_norm="rms")), tmp_path / "run")
    assert train(short, tmp_path / "run").manifest_bytes == before.manifest_bytes
    more = train(replace(short, recipe=replace(short.recipe, epochs=2)), tmp_path / "run")
    assert "tap_norm" not in more.manifest.side


def test_a_finished_run_without_its_last_state_takes_no_more_epochs(tmp_path, finished):
    job, first, _ = finished
    folder = shutil.copytree(first.folder, tmp_path / "run")
    (folder / "last.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no last\.safetensors, which more epochs go on from"):
        train(replace(job, recipe=replace(job.recipe, epochs=2)), folder)
    assert read_artifact(folder).manifest == first.manifest


@contextlib.contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("size", "file"), [(100, "run.json"), (4000, "side_network.safetensors")])
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(
    tmp_path, finished, tokenizer, size, file
):
    job, first, _ = finished
    with full_after(size), pytest.raises(RunError, match=f"{file} cannot be written .*free some space"):
        train(job, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.part"))
    assert train(job, tmp_path / "run").side_network.read_bytes() == first.side_network.read_bytes()


@pytest.mark.parametrize(
    ("scores", "tensors", "why"),
    [
        ('[{"epoch": 1, "accuracy": 0.5}]', {"side.other": torch.zeros(2)}, "of another version of the program"),
        ('[{"epoch": 1}]', None, "does not tell accuracy of every epoch"),
        ("{", None, "does not read"),
    ],
    ids=["other tensors", "other scores", "no JSON"],
)
def test_a_run_folder_of_another_version_is_one_clear_error(tmp_path, finished, scores, tensors, why):
    job, first, _ = finished
    run = Path(shutil.copytree(first.folder, tmp_path / "run"))
    (run / "manifest.json").unlink()
    kept = load_file(run / "last.safetensors") if tensors is None else tensors
    save_file(kept, run / "last.safetensors", {"scores": scores})
    with pytest.raises(RunError, match=why):
        train(job, run)


@pytest.mark.parametrize("settings", ["[]", '{"recipe": 7}', '"text"'])
def test_settings_that_are_none_are_one_clear_error(tmp_path, finished, settings):
    job, first, _ = finished
    run = Path(shutil.copytree(first.folder, tmp_path / "run"))
    (run / "run.json").write_text(f'{{"settings": {settings}}}')
    with pytest.raises(RunError, match="was not written by this program"):
        train(job, run)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_epochs_line_has_loss_score_baseline_and_memory(finished):
    _, first, _ = finished
    [line] = lines_of(first.folder)
    fitted = line.pop("calibration", None)
    assert list(line) == ["epoch", "loss", "accuracy", "baseline", "peak_rss_bytes", "seconds"]
    stored = first.manifest.calibration
    assert fitted == (None if stored is None else stored.model_dump())
    assert line["peak_rss_bytes"] > 1 << 26
    assert set(first.manifest.metrics) == {"loss", "accuracy"}


def test_folder_with_other_files_is_refused(tmp_path, backbone, tokenizer):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(RunError, match="no run"):
        train(toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16), tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


def test_killed_while_it_wrote_its_first_file_it_starts_again(tmp_path, backbone, tokenizer):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.part").write_text('{"settings": {"ta')
    artifact = train(toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, epochs=1), tmp_path / "run")
    assert artifact.manifest.task == "letters"


def test_another_precision_is_another_run(tmp_path, tiny_t5, backbone, tokenizer):
    coarse = load_backbone(tiny_t5, dtype="bfloat16")
    with pytest.raises(Interrupted):
        train(toy.job(tmp_path, toy.CLASSES, coarse, tokenizer, count=16), tmp_path / "run", InterruptAfter(1, 0))
    with pytest.raises(RunError, match="another dtype"):
        train(toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16), tmp_path / "run")


@pytest.mark.parametrize(
    "spec", [toy.CLASSES, slow(toy.VALUES), slow(toy.TEXTS), toy.PAIRS], ids=lambda spec: spec.kind
)
def test_bfloat16_scores_are_those_of_what_is_served(tmp_path, tiny_t5, tokenizer, spec):
    coarse = load_backbone(tiny_t5, dtype="bfloat16")
    artifact = train(toy.job(tmp_path, spec, coarse, tokenizer, count=32, epochs=1), tmp_path / "run")
    model = load_model(artifact, coarse, tokenizer)
    examples = toy.job(tmp_path, spec, coarse, tokenizer).validation.examples
    answers = predict(model, coarse, tokenizer, rows_to_answer(spec, examples))
    assert score_answers(spec, answers, examples)[spec.metric] == artifact.manifest.metrics[spec.metric]


def test_damaged_state_is_one_clear_error(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16)
    with pytest.raises(Interrupted):
        train(job, tmp_path / "run", InterruptAfter(1, 0))
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(RunError, match="delete the folder"):
        train(job, tmp_path / "run")


def test_divergence_is_one_clear_error(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.VALUES, backbone, tokenizer, learning_rate=1e30, clip=1e30, count=32)
    with pytest.raises(RunError, match="smaller --lr"):
        train(job, tmp_path / "run")


def test_another_backbone_is_refused(tmp_path, finished, tokenizer):
    _, artifact, _ = finished
    other = load_backbone(tiny.make_t5(tmp_path / "other", seed=5))
    with pytest.raises(RunError, match="another backbone"):
        load_model(artifact, other, tokenizer)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": 0},
        {"warmup": 2},
        {"seed": -1},
        {"head": "big"},
        {"cache_gb": -1},
        {"cache_gb": float("inf")},
    ],
    ids=str,
)
def test_settings_out_of_range_say_the_rule(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_rungs_stand_on_every_second_block_unless_told_otherwise(backbone):
    blocks = backbone.config.num_layers
    assert Recipe().side_config(toy.CLASSES).resolve(backbone.config).encoder_layers == tuple(range(blocks))[::-2][::-1]
    for recipe, spec in ((Recipe(encoder_layers="all"), toy.CLASSES), (Recipe(head="text"), toy.CLASSES)):
        assert recipe.side_config(spec).resolve(backbone.config).encoder_layers == tuple(range(blocks))
    with pytest.raises(RecipeError, match="block numbers, auto or all"):
        Recipe(encoder_layers="most")  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["linear", "attention", "mlp", "text"])
def test_new_side_networks_read_normalized_taps_unless_told_otherwise(head):
    assert Recipe(head=head).side_config(toy.CLASSES).tap_norm == "rms"
    assert Recipe(head=head, tap_norm="none").side_config(toy.CLASSES).tap_norm == "none"
    with pytest.raises(RecipeError, match="tap_norm must be none or rms"):
        Recipe(tap_norm="layer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "spec", "outputs"),
    [
        ("mlp", toy.CLASSES, 2),
        ("mlp", toy.VALUES, 1),
        ("mlp", toy.PAIRS, 8),
        ("attention", toy.CLASSES, 2),
        ("attention", toy.VALUES, 1),
        ("attention", toy.MANY, 3),
    ],
)
def test_other_heads_answer_what_a_linear_one_can(tmp_path, backbone, tokenizer, head, spec, outputs):
    config = Recipe(head=head).side_config(spec)
    assert (config.head, config.outputs, config.has_decoder) == (head, outputs, False)
    assert Recipe().side_config(spec).head == "linear"
    artifact = train(toy.job(tmp_path, spec, backbone, tokenizer, count=16, epochs=1, head=head), tmp_path / "run")
    assert load_model(artifact, backbone, tokenizer).side.config.head == head


@pytest.mark.parametrize("head", ["mlp", "linear", "attention"])
def test_text_is_for_the_text_head(head):
    with pytest.raises(RecipeError, match="head must be text for text"):
        Recipe(head=head).side_config(toy.TEXTS)


def test_an_embedding_learns_what_words_do_not_tell(tmp_path, backbone, tokenizer):
    """Capitals share no token with what they stand for: untrained, the right one of 40 comes first by chance."""
    job = toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, epochs=3, count=160, dropout=0.0, learning_rate=1e-2)
    artifact = train(job, tmp_path / "run")
    assert artifact.manifest.metrics["recall_at_1"] >= 0.4
    model, examples = load_model(read_artifact(tmp_path / "run"), backbone, tokenizer), job.validation.examples
    answers = predict(model, backbone, tokenizer, rows_to_answer(toy.PAIRS, examples))
    assert score_answers(toy.PAIRS, answers, examples) == pytest.approx(
        {name: artifact.manifest.metrics[name] for name in ("recall_at_1", "mrr")}
    )


def test_an_embedding_needs_pairs_to_compare(tmp_path, backbone, tokenizer):
    with pytest.raises(RecipeError, match="batch_rows must be >= 2 for embedding, got 1"):
        toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, batch_rows=1).recipe.side_config(toy.PAIRS)
    with pytest.raises(RunError, match="2 training rows or more"):
        train(toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, count=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    artifact = train(
        toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, count=3, batch_rows=2, epochs=1), tmp_path / "run"
    )
    assert artifact.manifest.metrics["loss"] > 0


def test_a_multilabel_run_keeps_the_thresholds_that_its_scores_are_made_with(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.MANY, backbone, tokenizer, count=16, epochs=1)
    manifest = train(job, tmp_path / "run").manifest
    assert list(manifest.thresholds) == list(toy.MANY.labels)
    model = load_model(read_artifact(tmp_path / "run"), backbone, tokenizer)
    assert isinstance(model.answerer, ChooseLabels)
    assert model.answerer.thresholds == manifest.label_thresholds
    for example in manifest.examples:
        scores = example.expected["scores"]
        reached = {
            label for label, score in zip(toy.MANY.labels, scores, strict=True) if score >= manifest.thresholds[label]
        }
        assert set(example.expected["labels"]) == reached


def test_golden_examples_of_an_embedding_are_its_vectors(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, count=16, epochs=1)
    examples = train(job, tmp_path / "run").manifest.examples
    assert [example.fields for example in examples] == [row.fields for row in job.validation.examples[:4]]
    assert all(list(example.expected) == ["embedding"] for example in examples)
    assert [len(example.expected["embedding"]) for example in examples] == [8] * 4


def test_golden_examples_stay_within_what_is_replayed(tmp_path, backbone, tokenizer, monkeypatch):
    job = toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, count=16, epochs=1)
    rows = [GoldenExample(fields=row.fields, expected={}) for row in job.validation.examples[:3]]
    monkeypatch.setattr("training.artifact.MAX_REPLAY_TOKENS", replay_tokens(job.spec, rows) - 1)
    examples = train(job, tmp_path / "run").manifest.examples
    assert [example.fields for example in examples] == [row.fields for row in job.validation.examples[:2]]


def test_head_that_cannot_answer_the_kind():
    with pytest.raises(RecipeError, match="linear, attention or mlp for regression"):
        Recipe(head="text").side_config(toy.VALUES)


@pytest.mark.parametrize(
    "shape",
    [
        slow({"gate": "none", "bias": False}),
        {"gate": "one", "merge_last": True},
        slow({"gate": "fixed", "gate_start": 1.5, "mix_after": True}),
        {"gate_form": "channel", "gate_temperature": 0.5, "tap_norm": "rms"},
    ],
    ids=str,
)
def test_every_shape_trains_and_is_served(tmp_path, backbone, tokenizer, shape):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, epochs=1, head="text", **shape)
    artifact = train(job, tmp_path / "run")
    assert artifact.manifest.side.items() >= shape.items()
    side = load_model(artifact, backbone, tokenizer).side
    gates = [buffer for name, buffer in side.state_dict().items() if name.endswith("gate_logit")]
    if shape.get("gate") == "fixed":
        assert {gate.item() for gate in gates} == {1.5}
    elif shape.get("gate_form") == "channel":
        assert {tuple(gate.shape) for gate in gates} == {(8,)}
    else:
        assert gates == []
    assert ("upsample.bias" in side.state_dict()) == shape.get("bias", True)


@pytest.mark.parametrize("head", ["auto", "mlp"])
def test_decoder_layers_need_the_text_head(head):
    with pytest.raises(RecipeError, match=r"decoder_layers must be left out for a .* head"):
        Recipe(head=head, decoder_layers=(1,)).side_config(toy.CLASSES)
    assert Recipe(head="text", decoder_layers=(1,)).side_config(toy.CLASSES).decoder_layers == (1,)
    assert Recipe(head=head, decoder_layers=()).side_config(toy.CLASSES).decoder_layers == ()


def test_merging_needs_the_text_head():
    with pytest.raises(SideConfigError, match="merge_last needs the text head"):
        Recipe(merge_last=True).side_config(toy.CLASSES)


def test_run_folder_can_move(tmp_path, finished, backbone, tokenizer):
    _, artifact, _ = finished
    shutil.copytree(artifact.folder, tmp_path / "elsewhere")
    moved = read_artifact(tmp_path / "elsewhere")
    assert moved.manifest == artifact.manifest
    load_model(moved, backbone, tokenizer)


def test_gradients_are_on_again_after_a_run(finished):
    assert torch.is_grad_enabled()


PAIR = TaskSpec(name="pair", kind="classification", template="{sentence} {other}", labels=("aa", "bb"))


def test_two_texts_are_read_apart_by_default(tmp_path, backbone, tokenizer):
    parts = []
    for name, count in (("train", 48), ("validation", 16)):
        records = [record | {"other": str(record["sentence"])[::-1]} for record in toy.rows(toy.CLASSES, count)]
        parts.append(read_labelled(toy.write(tmp_path / f"pairs-{name}.jsonl", records), PAIR))
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, epochs=1)
    run = train(replace(job, spec=PAIR, training=parts[0], validation=parts[1]), tmp_path / "run")
    assert run.manifest.side["pair"] is True
    model = load_model(run, backbone, tokenizer)
    answers = predict(model, backbone, tokenizer, [example.fields for example in parts[1].examples])
    assert score_answers(PAIR, answers, parts[1].examples)["accuracy"] == run.manifest.metrics["accuracy"]


@pytest.mark.parametrize(
    ("spec", "recipe", "pair"),
    [
        (PAIR, Recipe(), True),
        (PAIR, Recipe(pair="together"), False),
        (PAIR, Recipe(head="text"), False),
        (PAIR, Recipe(head="mlp"), False),
        (PAIR, Recipe(head="attention"), True),
        (toy.CLASSES, Recipe(), False),
        (toy.PAIRS, Recipe(), False),
    ],
)
def test_which_heads_read_texts_apart(spec, recipe, pair):
    assert recipe.side_config(spec).pair is pair


@pytest.mark.parametrize(("spec", "head"), [(toy.CLASSES, "auto"), (PAIR, "text"), (PAIR, "mlp")])
def test_texts_that_cannot_be_read_apart_are_an_error(spec, head):
    with pytest.raises(RecipeError, match="apart needs a linear or an attention head, and two texts or images"):
        Recipe(head=head, pair="apart").side_config(spec)
