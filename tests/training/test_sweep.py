"""Many runs at once: each equals the same run alone, the backbone runs once, and a broken run breaks no other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from ladder import Backbone, load_backbone, load_tokenizer, run_backbone
from tests.training import toy
from training import Job, load_run, sweep_jobs, train, train_many
from training.distillation import load_teacher
from training.errors import RecipeError, RunError
from training.job import Silent


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path):
    return load_tokenizer(tiny_t5)


@pytest.fixture
def passes(monkeypatch):
    """Numbers of rows that the backbone's encoder read, one for each pass."""
    rows: list[int] = []
    encode = Backbone.encode

    def counted(self, ids, mask, depth=None):
        rows.append(len(ids))
        return encode(self, ids, mask, depth)

    monkeypatch.setattr(Backbone, "encode", counted)
    return rows


class PassesByEpoch(Silent):
    """How many passes the backbone had made after each epoch."""

    def __init__(self, passes: list[int]) -> None:
        self.passes = passes
        self.after: list[int] = []

    def validated(self, epoch, scores, best):
        self.after.append(len(self.passes))


class InterruptAfterEpochs(Silent):
    def __init__(self, count: int) -> None:
        self.left = count

    def validated(self, epoch, scores, best):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def distinct_inputs(job: Job) -> int:
    """Rows that the backbone reads in one validation, which is one batch here."""
    return len({example.fields["sentence"] for example in job.validation.examples})


def assert_same_weights(ours: Path, theirs: Path) -> None:
    alone = load_file(theirs / "side_network.safetensors")
    for name, tensor in load_file(ours / "side_network.safetensors").items():
        assert_close(tensor, alone[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("head", ["linear", "text"])
def test_after_the_first_epoch_the_backbone_has_nothing_more_to_read(tmp_path, backbone, tokenizer, passes, head):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=3, head=head)
    seen = PassesByEpoch(passes)
    train(job, tmp_path / "run", seen)
    assert sum(passes[: seen.after[0]]) == 24 + distinct_inputs(job)
    assert seen.after[0] == seen.after[1] == seen.after[2]


def test_validation_scores_are_the_same_whether_passes_are_kept_or_not(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=1)
    several = train_many(sweep_jobs(job, seed=(0, 1)), tmp_path / "kept")
    for run in several.runs:
        artifact = run.artifact
        loaded = load_run(artifact.folder, backbone, tokenizer)
        assert loaded.score(job.validation.examples)["accuracy"] == artifact.manifest.metrics["accuracy"]


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (toy.CLASSES, {"head": "linear"}),
        (toy.CLASSES, {"head": "mlp", "gate": "fixed"}),
        (toy.TWO_TEXTS, {"head": "attention"}),
        (toy.VALUES, {"weight_decay": 0.1, "tap_norm": "none"}),
        (toy.PAIRS, {}),
        (toy.CLASSES, {"head": "text"}),
        (toy.TWO_TEXTS, {}),
        (toy.NAMES, {}),
        (toy.MANY, {}),
        (toy.CLASSES, {"accumulate": 3}),
    ],
    ids=[
        "linear",
        "mlp",
        "attention",
        "regression",
        "embedding",
        "label words",
        "two texts apart",
        "words",
        "several labels",
        "parts of a step",
    ],
)
def test_each_run_equals_the_same_run_alone(tmp_path, backbone, tokenizer, spec, settings):
    job = toy.job(tmp_path, spec, backbone, tokenizer, count=24, dropout=0.1, **settings)
    jobs = sweep_jobs(job, learning_rate=(1e-3, 3e-3), seed=(0, 1))
    sweep = train_many(jobs, tmp_path / "sweep")
    assert [run.name for run in sweep.runs] == [
        "lr-1e-3-seed-0",
        "lr-1e-3-seed-1",
        "lr-3e-3-seed-0",
        "lr-3e-3-seed-1",
    ]
    for run in sweep.runs:
        alone = train(run.job, tmp_path / "alone" / run.name)
        assert_same_weights(tmp_path / "sweep" / run.name, alone.folder)
        assert run.artifact.manifest.metrics == pytest.approx(alone.manifest.metrics, abs=1e-3)
        assert run.artifact.manifest.provenance["recipe"] == alone.manifest.provenance["recipe"]


def test_nine_runs_read_the_rows_once(tmp_path, backbone, tokenizer, passes):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=1)
    jobs = sweep_jobs(job, learning_rate=(3e-4, 1e-3, 3e-3), seed=(0, 1, 2))
    seen = PassesByEpoch(passes)
    train_many(jobs, tmp_path / "sweep", seen)
    assert len(seen.after) == 9
    assert sum(passes[: seen.after[-1]]) == 24 + distinct_inputs(job)


def test_interrupted_and_run_again_ends_with_the_same_bytes(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=3)
    jobs = sweep_jobs(job, learning_rate=(1e-3, 3e-3), seed=(0, 1))
    whole = train_many(jobs, tmp_path / "whole")
    for epochs in (5, 3):  # within a group of two, and after one
        with pytest.raises(KeyboardInterrupt):
            train_many(jobs, tmp_path / "broken", InterruptAfterEpochs(epochs))
    broken = train_many(jobs, tmp_path / "broken")
    for run, again in zip(whole.runs, broken.runs, strict=True):
        assert_same_weights(again.artifact.folder, run.artifact.folder)


def test_a_run_that_diverges_fails_alone(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.VALUES, backbone, tokenizer, count=24, clip=1e9)
    jobs = sweep_jobs(job, learning_rate=(1e-3, 1e30, 3e-3))
    sweep = train_many(jobs, tmp_path / "sweep")
    assert [run.error is None for run in sweep.runs] == [True, False, True]
    assert "not finite" in str(sweep.runs[1].error)
    for number in (0, 2):
        alone = train(jobs[number], tmp_path / "alone" / str(number))
        assert_same_weights(sweep.runs[number].artifact.folder, alone.folder)
    with pytest.raises(RunError, match="not finite"):
        train_many(jobs[1:2], tmp_path / "all-fail")


def test_the_summary_has_mean_and_deviation_by_setting_and_names_the_best(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=1)
    sweep = train_many(sweep_jobs(job, learning_rate=(1e-3, 1e-2), seed=(0, 1)), tmp_path / "sweep")
    summary = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    scores = {run["run"]: run["score"] for run in summary["runs"]}
    assert [one["settings"] for one in summary["settings"]] == [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]
    for one, rate in zip(summary["settings"], ("1e-3", "0.01"), strict=True):
        both = torch.tensor([scores[f"lr-{rate}-seed-{seed}"] for seed in (0, 1)], dtype=torch.float64)
        assert one["mean"] == pytest.approx(both.mean().item())
        assert one["deviation"] == pytest.approx(both.std().item())
    assert scores[summary["best"]] == max(scores.values()) == sweep.best.score
    assert (tmp_path / "sweep" / "best").resolve() == tmp_path / "sweep" / summary["best"]


def test_a_finished_sweep_takes_more_seeds(tmp_path, backbone, tokenizer, passes):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=1)
    train_many(sweep_jobs(job, seed=(0, 1)), tmp_path / "sweep")
    before = (tmp_path / "sweep" / "lr-1e-3-seed-0" / "manifest.json").stat().st_mtime_ns
    again = train_many(sweep_jobs(job, seed=(0, 1, 2)), tmp_path / "sweep")
    assert (tmp_path / "sweep" / "lr-1e-3-seed-0" / "manifest.json").stat().st_mtime_ns == before
    assert [run.score is not None for run in again.runs] == [True, True, True]


def test_settings_that_make_no_sweep_are_one_clear_error(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=24, epochs=1)
    with pytest.raises(RecipeError, match="each once"):
        sweep_jobs(job, seed=(0, 0))
    with pytest.raises(RecipeError, match="setting of the recipe"):
        sweep_jobs(job, rate=(0.1,))
    with pytest.raises(RecipeError, match="different recipes"):
        train_many([job, job], tmp_path / "twice")
    other = replace(job, training=replace(job.training, sha256="0" * 64), recipe=replace(job.recipe, seed=1))
    with pytest.raises(RecipeError, match="same data"):
        train_many([job, other], tmp_path / "data")
    train(job, tmp_path / "single")
    with pytest.raises(RunError, match="single run"):
        train_many(sweep_jobs(job, seed=(0, 1)), tmp_path / "single")


@pytest.mark.parametrize("spec", [toy.CLASSES, toy.VALUES, toy.TEXTS], ids=lambda spec: spec.kind)
def test_the_runs_of_a_sweep_teach_as_one(tmp_path, backbone, tokenizer, spec):
    """The mean of their probabilities or values."""
    job = toy.job(tmp_path, spec, backbone, tokenizer, count=16, epochs=1)
    runs = train_many(sweep_jobs(job, learning_rate=(1e-3, 1e-2)), tmp_path / "sweep").runs
    inputs = [tuple(tokenizer.encode(text)) for text in ("ab", "aabba")]
    whole = run_backbone(backbone, inputs)
    one, other = (load_teacher(str(run.artifact.folder), spec, backbone, tokenizer) for run in runs)
    together = load_teacher(str(tmp_path / "sweep"), spec, backbone, tokenizer)
    if spec is toy.TEXTS:
        targets = torch.tensor([[5, 6, 1], [7, 1, -100]])
        answers = [teacher.token_logits(whole, targets).softmax(-1) for teacher in (one, other, together)]
    else:
        answers = [teacher.answers(whole) for teacher in (one, other, together)]
        answers = [answer if spec is toy.VALUES else answer.exp() for answer in answers]
    assert not torch.allclose(answers[0], answers[1])
    assert_close((answers[0] + answers[1]) / 2, answers[2])
    taught = replace(job, recipe=replace(job.recipe, distill=0.5, teacher=str(tmp_path / "sweep")))
    assert train(taught, tmp_path / "student").manifest.provenance["teacher"] == together.identity
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    with pytest.raises(RunError, match=r"its sweep\.json does not read"):
        load_teacher(str(tmp_path / "sweep"), spec, backbone, tokenizer)
