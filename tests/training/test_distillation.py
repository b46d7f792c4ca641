"""Distillation: the loss by hand, students that follow their teachers, resuming, and what is refused."""

import json
import math
import shutil
from copy import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ladder import LabelTrie, SideConfig, SideNetwork, load_backbone, load_tokenizer, run_backbone
from ladder.answering.answerers import IGNORED
from ladder.backbone.loading import fingerprint
from ladder.config import Head
from side_registry.manifest import read_artifact
from side_registry.specs.task import TaskSpec
from tests import tiny
from tests.marks import slow
from tests.training import toy
from tests.training.test_trainer import InterruptAfter, Interrupted
from training.data import read_labelled
from training.distillation import Distillation, Teacher, divergence, load_teacher
from training.errors import RecipeError, RunError
from training.evaluation import Model, load_model, make_answerer, predict
from training.recipes.recipe import Recipe
from training.trainer import train

PAIRS = TaskSpec(name="pairs", kind="embedding", template="{sentence}", dimensions=8, target="other")
SENTENCES = ["ab", "aabba", "bbbbbbb"]


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5):
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory, backbone, tokenizer):
    """A finished run that knows the letters."""
    folder = tmp_path_factory.mktemp("teacher")
    train(toy.job(folder, toy.CLASSES, backbone, tokenizer, epochs=3, count=160, dropout=0.0), folder / "run")
    return folder / "run"


def soften(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def test_divergence_by_hand():
    student, teacher = [[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]], [[1.0, 0.0, -1.0], [3.0, 0.5, 0.0]]
    slow = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = soften(theirs, 2.5), soften(ours, 2.5)
        slow += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * 2.5**2 / 2
    assert divergence(torch.tensor(student), torch.tensor(teacher), 2.5).item() == pytest.approx(slow, rel=1e-5)
    assert divergence(torch.tensor(teacher) + 7, torch.tensor(teacher), 0.1).item() == pytest.approx(0, abs=1e-6)


def make_side(backbone, head: Head, outputs: int = 0) -> SideNetwork:
    side = SideNetwork(SideConfig(head=head, outputs=outputs, reduction=4, dropout=0.0), backbone.config).eval()
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return side


@pytest.mark.parametrize(("head", "outputs"), [("text", 0), ("linear", 2)])
def test_class_loss_is_the_mix_of_both(backbone, tokenizer, head, outputs):
    torch.manual_seed(0)
    side = make_side(backbone, head, outputs)
    answerer = make_answerer(toy.CLASSES, side, tokenizer)
    teacher = load_teacher("backbone", toy.CLASSES, backbone, tokenizer)
    inputs = [tuple(tokenizer.encode(text)) for text in SENTENCES]
    distillation = Distillation(teacher, inputs, weight=0.3, temperature=2.0)
    seen = []
    distillation.prepare(lambda rows, total: seen.append((rows, total)))
    assert seen[-1] == (3, 3)
    indices, targets = [2, 0], torch.tensor([1, 0])
    backbone_pass = run_backbone(backbone, [inputs[index] for index in indices])
    ours = answerer.log_probabilities(backbone_pass, side)
    theirs = own_log_probabilities(backbone, tokenizer, [inputs[2], inputs[0]])
    expected = 0.7 * -(ours[0, 1] + ours[1, 0]) / 2 + 0.3 * divergence(ours, theirs, 2.0)
    assert_close(distillation.loss(answerer, backbone_pass, side, targets, indices), expected, atol=1e-5, rtol=1e-5)


def own_log_probabilities(model, tokenizer, inputs):
    """What an LM head says of the letters, the plain way: no cache, no batch, no padding."""
    words = LabelTrie(tuple(tuple(tokenizer.encode(label)) for label in toy.CLASSES.labels))

    def alone(ids):
        return words.log_probabilities(
            lambda prefix, tokens: own_token_logits(model, ids, [0, *prefix])[-1:, list(tokens)]
        )

    return torch.cat([alone(ids) for ids in inputs])


def own_token_logits(model, ids, decoder_ids):
    """(T, V) logits after each of the decoder's tokens."""
    read = torch.tensor([ids])
    return model(read, torch.ones_like(read, dtype=torch.bool), torch.tensor([decoder_ids]))[0].detach()


def test_value_loss_is_the_mix_of_both(backbone, tokenizer):
    torch.manual_seed(0)
    side, master = make_side(backbone, "linear", 1), make_side(backbone, "mlp", 1)
    answerer = make_answerer(toy.VALUES, side, tokenizer, unit=0.5)
    model = Model(spec=toy.VALUES, side=master, answerer=make_answerer(toy.VALUES, master, tokenizer))
    inputs = [tuple(tokenizer.encode(text)) for text in SENTENCES]
    teacher = Teacher(identity="x", backbone=backbone, models=(model,))
    distillation = Distillation(teacher, inputs, weight=0.25, temperature=9.0)
    distillation.prepare(lambda rows, total: None)
    backbone_pass = run_backbone(backbone, [inputs[1], inputs[2]])
    ours, theirs = answerer.values(backbone_pass, side), model.answerer.values(backbone_pass, master)
    targets = torch.tensor([0.25, 1.0])
    expected = sum(
        0.75 * (o - t) ** 2 / 0.25 + 0.25 * (o - m) ** 2 / 0.25 for o, t, m in zip(ours, targets, theirs, strict=True)
    )
    assert_close(distillation.loss(answerer, backbone_pass, side, targets, [1, 2]), expected / 2, atol=1e-5, rtol=1e-5)


def test_token_loss_leaves_padding_out(backbone, tokenizer):
    torch.manual_seed(0)
    side = make_side(backbone, "text")
    answerer = make_answerer(toy.TEXTS, side, tokenizer)
    teacher = load_teacher("backbone", toy.TEXTS, backbone, tokenizer)
    inputs = [tuple(tokenizer.encode(text)) for text in SENTENCES]
    distillation = Distillation(teacher, inputs, weight=0.4, temperature=3.0)
    targets = torch.tensor([[10, 11, 1], [12, 1, IGNORED]])
    backbone_pass = run_backbone(backbone, [inputs[0], inputs[2]])
    loss = distillation.loss(answerer, backbone_pass, side, targets, [0, 2])
    ours, theirs = [], []
    for row, (text, decoder_ids) in enumerate(((0, [0, 10, 11]), (2, [0, 12]))):
        ids = torch.tensor([inputs[text]])
        taps = backbone.encode(ids, torch.ones_like(ids, dtype=torch.bool))
        decoder = backbone.decode(torch.tensor([decoder_ids]), taps.final, taps.mask)
        ours.append(backbone.logits(side.decode(decoder, side.encode(taps), taps.mask))[0])
        theirs.append(own_token_logits(backbone, inputs[text], decoder_ids))
        assert len(decoder_ids) == (targets[row] != IGNORED).sum()
    student = torch.cat(ours)
    cross = torch.nn.functional.cross_entropy(student, torch.tensor([10, 11, 1, 12, 1]))
    expected = 0.6 * cross + 0.4 * divergence(student, torch.cat(theirs), 3.0)
    assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_without_weight_it_is_the_tasks_own_loss(backbone, tokenizer):
    side = make_side(backbone, "text")
    answerer, inputs = make_answerer(toy.TEXTS, side, tokenizer), [tuple(tokenizer.encode(text)) for text in SENTENCES]
    teacher = load_teacher("backbone", toy.TEXTS, backbone, tokenizer)
    backbone_pass, targets = run_backbone(backbone, inputs), torch.tensor([[10, 1], [11, 1], [12, IGNORED]])
    ours = Distillation(teacher, inputs, weight=0.0, temperature=1.0).loss(
        answerer, backbone_pass, side, targets, [0, 1, 2]
    )
    assert_close(ours, answerer.loss(backbone_pass, side, targets), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["linear", slow("text")])
def test_at_full_weight_a_student_follows_its_teacher_against_the_labels(
    tmp_path, backbone, tokenizer, teacher_run, head
):
    job = toy.job(
        tmp_path,
        toy.CLASSES,
        backbone,
        tokenizer,
        count=160,
        epochs=3,
        dropout=0.0,
        head=head,
        distill=1.0,
        teacher=str(teacher_run),
    )
    records = toy.rows(toy.CLASSES, 160)
    wrong = [record | {"label": {"aa": "bb", "bb": "aa"}[str(record["label"])]} for record in records]
    job = replace(job, training=read_labelled(toy.write(tmp_path / "wrong.jsonl", wrong), toy.CLASSES))
    artifact = train(job, tmp_path / "run")
    fields = [example.fields for example in job.validation.examples]
    student, teacher = (
        predict(load_model(run, backbone, tokenizer), backbone, tokenizer, fields)
        for run in (artifact, read_artifact(teacher_run))
    )
    assert sum(a.label == b.label for a, b in zip(student, teacher, strict=True)) >= 0.8 * len(fields)
    assert artifact.manifest.provenance["teacher"].startswith("sha256:")
    assert "teacher" not in artifact.manifest.provenance["recipe"]


def test_another_t5_teaches_labels_and_tokens(tmp_path, backbone, tokenizer):
    other = tiny.make_t5(tmp_path / "other", seed=4, num_layers=2, vocab_size=310)
    inputs = [tuple(tokenizer.encode(text)) for text in SENTENCES]
    for spec in (toy.CLASSES, toy.TEXTS):
        teacher = load_teacher(str(other), spec, backbone, tokenizer)
        assert teacher.identity == load_backbone(other).fingerprint
        side = make_side(backbone, "text")
        distillation = Distillation(teacher, inputs, weight=1.0, temperature=1.0)
        backbone_pass = run_backbone(backbone, inputs)
        targets = torch.tensor([0, 1, 1]) if spec is toy.CLASSES else torch.tensor([[5, 1], [6, 1], [7, 1]])
        if spec is toy.CLASSES:
            distillation.prepare(lambda rows, total: None)
        loss = distillation.loss(make_answerer(spec, side, tokenizer), backbone_pass, side, targets, [0, 1, 2])
        if spec is toy.CLASSES:
            theirs = own_log_probabilities(teacher.backbone, tokenizer, inputs)
            ours = make_answerer(spec, side, tokenizer).log_probabilities(backbone_pass, side)
        else:
            decoder_ids = [[0, *target[:-1]] for target in targets.tolist()]
            theirs = torch.cat(
                [own_token_logits(teacher.backbone, *row) for row in zip(inputs, decoder_ids, strict=True)]
            )
            taps = backbone.decode(torch.tensor(decoder_ids), backbone_pass.taps.final, backbone_pass.taps.mask)
            ours = backbone.logits(side.decode(taps, side.encode(backbone_pass.taps), backbone_pass.taps.mask)).flatten(
                0, 1
            )
        assert_close(loss, divergence(ours, theirs[:, : ours.shape[1]], 1.0), atol=1e-4, rtol=1e-4)


def test_teacher_reads_layers_that_its_student_does_not(tmp_path, backbone, tokenizer):
    """The kept activations must hold the teacher's too: with and without them, the same run."""
    train(toy.job(tmp_path, toy.TEXTS, backbone, tokenizer, count=16, epochs=1), tmp_path / "teacher")
    losses = []
    for cache in (0.0, 0.1):
        settings = {"encoder_layers": (1,), "cache_gb": cache, "distill": 1.0, "teacher": str(tmp_path / "teacher")}
        job = toy.job(tmp_path, toy.TEXTS, backbone, tokenizer, count=16, dropout=0.0, **settings)
        losses.append(train(job, tmp_path / f"run{cache}").manifest.metrics["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("spec", [toy.CLASSES, slow(toy.TEXTS)], ids=lambda spec: spec.kind)
def test_goes_on_with_the_same_teacher_alone_and_leaves_the_backbone(tmp_path, backbone, tokenizer, spec):
    before = fingerprint(backbone.config, dict(backbone.state_dict()))
    for seed in (0, 1):
        job = toy.job(tmp_path, spec, backbone, tokenizer, count=8, epochs=1, seed=seed)
        train(job, tmp_path / f"teacher{seed}")
    shutil.copytree(tmp_path / "teacher0", tmp_path / "moved")

    def job(teacher: str):
        path = str(tmp_path / teacher)
        return toy.job(tmp_path, spec, backbone, tokenizer, count=16, distill=0.5, teacher=path)

    whole = train(job("teacher0"), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(job("teacher0"), tmp_path / "broken", InterruptAfter(1, 1))
    with pytest.raises(RunError, match="another teacher"):
        train(job("teacher1"), tmp_path / "broken")
    with pytest.raises(RunError, match="another teacher"):
        train(toy.job(tmp_path, spec, backbone, tokenizer, count=16, distill=0.5), tmp_path / "broken")
    again = train(job("moved"), tmp_path / "broken")
    assert again.side_network.read_bytes() == whole.side_network.read_bytes()
    assert str(tmp_path) not in json.dumps(again.manifest.provenance)
    assert fingerprint(backbone.config, dict(backbone.state_dict())) == before


def test_a_folder_called_backbone_is_not_the_backbone(tmp_path, backbone, tokenizer, monkeypatch):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert load_teacher("backbone", toy.CLASSES, backbone, tokenizer).backbone is backbone


def test_teachers_that_cannot(tmp_path, backbone, tokenizer, teacher_run):
    other_labels = toy.CLASSES.model_copy(update={"labels": ("aa", "cc")})
    with pytest.raises(RunError, match="another labels"):
        load_teacher(str(teacher_run), other_labels, backbone, tokenizer)
    with pytest.raises(RunError, match="another kind"):
        load_teacher(str(teacher_run), toy.VALUES, backbone, tokenizer)
    with pytest.raises(RecipeError, match="finished run's folder for regression"):
        load_teacher(str(tiny.make_t5(tmp_path / "other")), toy.VALUES, backbone, tokenizer)
    shutil.copytree(teacher_run, tmp_path / "begun")
    (tmp_path / "begun" / "manifest.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        load_teacher(str(tmp_path / "begun"), toy.CLASSES, backbone, tokenizer)
    stranger = tiny.make_t5(tmp_path / "stranger")
    (stranger / "tokenizer.json").write_text((stranger / "tokenizer.json").read_text() + " ")
    with pytest.raises(RecipeError, match="tokenizer"):
        load_teacher(str(stranger), toy.CLASSES, backbone, tokenizer)
    mute = copy(backbone)
    mute.config = replace(backbone.config, num_decoder_layers=0)
    with pytest.raises(RecipeError, match="says nothing"):
        load_teacher("backbone", toy.CLASSES, mute, tokenizer)
    with pytest.raises(RunError, match="another backbone"):
        load_teacher(str(teacher_run), toy.CLASSES, load_backbone(tiny.make_t5(tmp_path / "b", seed=9)), tokenizer)


@pytest.mark.parametrize(
    ("spec", "settings", "rule"),
    [
        (toy.VALUES, {"distill": 0.5}, "finished run's folder for regression"),
        (PAIRS, {"distill": 0.5}, "0 for embedding"),
        (toy.CLASSES, {"distill": 1.5}, "within 0 and 1"),
        (toy.CLASSES, {"teacher": "somewhere"}, "above 0 where there is a teacher"),
        (toy.CLASSES, {"distill_temperature": 4.0}, "distill must be above 0 where there is a distill_temperature"),
        (toy.CLASSES, {"distill": 0.5, "distill_temperature": 0.0}, "distill_temperature must be > 0"),
    ],
)
def test_settings_that_teach_nothing_say_the_rule(spec, settings, rule):
    with pytest.raises(RecipeError, match=rule):
        Recipe(**settings).side_config(spec)
