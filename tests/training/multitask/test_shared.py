"""One side network for several tasks: it learns all of them, and each task has a run folder of its own."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ladder import SideNetwork, load_backbone, load_tokenizer
from side_registry.manifest import read_artifact
from tests.training import pictures, toy
from tests.training.test_trainer import InterruptAfter, Interrupted, lines_of
from training.batches import count_batches
from training.errors import RecipeError, RunError
from training.evaluation import load_model, predict, score_answers
from training.job import Silent
from training.loaded_run import load_run
from training.metrics import rows_to_answer
from training.multitask.shared import shared_jobs, shared_side_config
from training.multitask.task_data import TaskData
from training.recipes.initialization import draw_samples
from training.run_folder import RunFolder
from training.trainer import Trainer, train_shared


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path):
    return load_tokenizer(tiny_t5)


def jobs_of(folder, backbone, tokenizer, count=48, **recipe):
    """A classification and a text task."""
    made = []
    for spec, rows in ((toy.CLASSES, count), (toy.TEXTS, count // 2)):
        (folder / spec.name).mkdir(exist_ok=True)
        made.append(toy.job(folder / spec.name, spec, backbone, tokenizer, count=rows, **recipe))
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory, backbone, tokenizer):
    folder = tmp_path_factory.mktemp("finished")
    jobs = jobs_of(folder, backbone, tokenizer, count=160, epochs=3, dropout=0.0, learning_rate=3e-3)
    return jobs, train_shared(jobs, folder / "run")


def test_learns_all_tasks_and_scores_the_same_from_their_run_folders(finished, backbone, tokenizer):
    jobs, artifacts = finished
    assert [artifact.folder.name for artifact in artifacts] == ["letters", "echo"]
    assert len({artifact.side_network.read_bytes() for artifact in artifacts}) == 1
    for job, artifact, least in zip(jobs, artifacts, (0.7, 0.6), strict=True):
        spec, manifest = job.spec, artifact.manifest
        assert manifest.task == spec.name
        assert manifest.spec == spec
        assert manifest.side["head"] == "text"
        assert manifest.metrics[spec.metric] >= least
        assert manifest.provenance["shared_with"] == ["letters", "echo"]
        assert manifest.provenance["data_sha256"] == [job.training.sha256, job.validation.sha256]
        assert len(manifest.examples) == 4
        model = load_model(read_artifact(artifact.folder), backbone, tokenizer)
        examples = job.validation.examples
        answers = predict(model, backbone, tokenizer, rows_to_answer(spec, examples))
        assert score_answers(spec, answers, examples)[spec.metric] == pytest.approx(manifest.metrics[spec.metric])
    assert len({artifact.manifest.run_id for artifact in artifacts}) == 2


def test_the_best_epoch_is_that_of_the_mean_of_the_metrics(finished):
    jobs, artifacts = finished
    lines = lines_of(artifacts[0].folder.parent)
    means = [line["mean"] for line in lines]
    best = lines[means.index(max(means))]
    for job, artifact in zip(jobs, artifacts, strict=True):
        name, metric = job.spec.name, job.spec.metric
        theirs = lines_of(artifact.folder)
        assert artifact.manifest.provenance["epoch"] == best["epoch"]
        assert artifact.manifest.metrics[metric] == best["tasks"][name][metric]
        assert artifact.manifest.metrics["loss"] == best["tasks"][name]["loss"]
        assert "mean" not in artifact.manifest.metrics
        assert [line[metric] for line in theirs] == [line["tasks"][name][metric] for line in lines]
        assert {"epoch", "loss", "baseline", "mean", "peak_rss_bytes", "seconds"} <= set(theirs[0])
    assert means[0] == pytest.approx(sum(lines[0]["tasks"][job.spec.name][job.spec.metric] for job in jobs) / len(jobs))


def test_an_epoch_has_every_batch_of_every_task_in_mixed_order(tmp_path, backbone, tokenizer):
    jobs = shared_jobs(jobs_of(tmp_path, backbone, tokenizer, count=160))
    side = SideNetwork(shared_side_config(jobs), backbone.config)
    trainer = Trainer([TaskData(job, side, None) for job in jobs], RunFolder(tmp_path / "run"), side, Silent())
    orders = []
    for epoch in range(2):
        seen = Counter()
        steps = list(trainer.batches(epoch))
        for number, _, indices in steps:
            seen.update((number, index) for index in indices)
        orders.append([number for number, _, _ in steps])
        assert set(seen.values()) == {1}
        assert len(seen) == 160 + 80
    sizes = [count_batches(rows, jobs[0].recipe.batch_rows) for rows in (160, 80)]
    assert [orders[0].count(number) for number in (0, 1)] == sizes
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]


def test_interrupted_and_run_again_ends_with_the_same_bytes(tmp_path, backbone, tokenizer):
    jobs = jobs_of(tmp_path, backbone, tokenizer, count=32, epochs=2)
    whole = train_shared(jobs, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_shared(jobs, tmp_path / "broken", InterruptAfter(1, 1))
    assert not (tmp_path / "broken" / "letters").exists()
    again = train_shared(jobs, tmp_path / "broken")
    for one, other in zip(whole, again, strict=True):
        assert one.side_network.read_bytes() == other.side_network.read_bytes()
        assert one.manifest.examples == other.manifest.examples
        assert one.manifest.run_id == other.manifest.run_id


def test_a_finished_run_is_returned_and_a_lost_part_is_made_again(finished):
    jobs, artifacts = finished
    folder = artifacts[0].folder.parent
    again = train_shared(jobs, folder, InterruptAfter(0, 0))
    assert [one.manifest_bytes for one in again] == [one.manifest_bytes for one in artifacts]
    shutil.rmtree(artifacts[1].folder)
    again = train_shared(jobs, folder, InterruptAfter(0, 0))
    assert again[1].side_network.read_bytes() == artifacts[0].side_network.read_bytes()
    assert again[1].manifest.examples == artifacts[1].manifest.examples


def test_other_tasks_or_another_order_are_another_run(finished):
    jobs, artifacts = finished
    with pytest.raises(RunError, match="another tasks"):
        train_shared(jobs[::-1], artifacts[0].folder.parent)


def test_goes_on_with_more_epochs(tmp_path, backbone, tokenizer):
    jobs = jobs_of(tmp_path, backbone, tokenizer, count=16, epochs=1)
    train_shared(jobs, tmp_path / "run")
    more = train_shared([replace(job, recipe=replace(job.recipe, epochs=2)) for job in jobs], tmp_path / "run")
    for artifact in more:
        assert artifact.manifest.provenance["extended"] == [{"epochs": 1, "done": 1}]
        assert artifact.manifest.provenance["recipe"]["epochs"] == 2
        assert len(lines_of(artifact.folder)) == 2


def test_tasks_that_cannot_share(tmp_path, backbone, tokenizer):
    first, second = jobs_of(tmp_path, backbone, tokenizer, count=16)
    values = replace(first, spec=toy.VALUES)
    seeing = replace(second, spec=pictures.SAYS)
    for jobs, message in (
        ([first, values], "task share must be of kind classification or text, which the LM head answers"),
        ([first, seeing], "all with images, as says, or all without"),
        ([first, first], "different tasks"),
        ([first, replace(second, recipe=replace(second.recipe, seed=9))], "one backbone and one recipe"),
        ([replace(job, recipe=replace(job.recipe, head="linear")) for job in (first, second)], "head must be text"),
    ):
        with pytest.raises(RecipeError, match=message):
            train_shared(jobs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fisher_draws_from_the_rows_of_all_tasks(tmp_path, backbone, tokenizer):
    first, second = jobs_of(tmp_path, backbone, tokenizer, count=16)
    parts = [(job.spec, job.training.examples) for job in (first, second)]
    alone = [draw_samples(spec, tokenizer, examples, 100, 3) for spec, examples in parts]
    drawn = draw_samples(first.spec, tokenizer, first.training.examples, 100, 3, parts[1:])
    assert Counter((one.source, one.target) for one in drawn) == Counter(
        (one.source, one.target) for part in alone for one in part
    )


@pytest.mark.slow
def test_tasks_with_one_and_two_images_share_one_that_reads_two(tmp_path, backbone, tokenizer):
    encoder = pictures.encoder_folder(tmp_path / "encoder")
    jobs = []
    for spec in (pictures.TASK, pictures.PAIR, pictures.SAYS):
        (tmp_path / spec.name).mkdir()
        jobs.append(pictures.job(tmp_path / spec.name, encoder, backbone, tokenizer, spec, count=24, epochs=1))
    images = jobs[0].images
    jobs = [replace(job, images=replace(job.images, encoder=images.encoder)) for job in jobs]
    artifacts = train_shared(jobs, tmp_path / "run")
    assert {artifact.manifest.side["visual"]["images"] for artifact in artifacts} == {2}
    for job, artifact in zip(jobs, artifacts, strict=True):
        assert artifact.manifest.vision.fingerprint == images.encoder.fingerprint
        run = load_run(artifact.folder, backbone, tokenizer, images.encoder)
        scores = run.score(job.validation.examples, job.images.source)
        metric = job.spec.metric
        assert scores[metric] == pytest.approx(artifact.manifest.metrics[metric], abs=0.05)
    assert json.loads((artifacts[0].folder / "run.json").read_text())["vision_source"]["folder"]
