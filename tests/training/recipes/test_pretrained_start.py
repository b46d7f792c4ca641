"""A start that keeps the backbone's answers: before its first step it says what the backbone says, then it learns."""

import json

import pytest
import torch
from torch.testing import assert_close

from ladder import LabelTrie, SideNetwork, load_backbone, load_side, load_tokenizer, run_backbone, save_side
from tests.marks import slow
from tests.training import toy
from training.errors import RecipeError
from training.evaluation import load_model, make_answerer
from training.recipes.optimizers import make_optimizer, update
from training.recipes.recipe import Recipe
from training.trainer import train

SENTENCES = ["ab", "aabba", "bbbbbbb", "the quick fox"]
LABELS = toy.CLASSES.model_copy(update={"labels": ("aa", "ab", "b", "cde")})


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5):
    return load_tokenizer(tiny_t5)


@pytest.fixture(params=["fresh from its start", "stored and read again"])
def side(request, tmp_path, backbone) -> SideNetwork:
    config = Recipe(start="pretrained", head="text", reduction=4).side_config(toy.TEXTS)
    side = SideNetwork(config, backbone.config).eval()
    side.silence()
    if request.param == "fresh from its start":
        return side
    save_side(tmp_path / "side.safetensors", side)
    return load_side(tmp_path / "side.safetensors", backbone.config)


def alone(backbone, ids, decoder_ids):
    """(T, V) logits of the backbone itself, the plain way."""
    read = torch.tensor([ids])
    return backbone(read, torch.ones_like(read, dtype=torch.bool), torch.tensor([decoder_ids]))[0].detach()


def test_text_is_the_backbones_own(backbone, tokenizer, side):
    check_text(backbone, tokenizer, side)


def check_text(backbone, tokenizer, side):
    inputs = [tuple(tokenizer.encode(text)) for text in SENTENCES]
    answers = make_answerer(toy.TEXTS, side, tokenizer).answer(run_backbone(backbone, inputs), side)
    for ids, answer in zip(inputs, answers, strict=True):
        decoder_ids = [0]
        while len(decoder_ids) <= toy.TEXTS.max_new_tokens and (len(decoder_ids) == 1 or decoder_ids[-1] != 1):
            decoder_ids.append(int(alone(backbone, ids, decoder_ids)[-1].argmax()))
        assert list(answer.tokens) == [token for token in decoder_ids[1:] if token != 1]


def test_labels_rank_as_the_backbones_own_and_hardly_move(backbone, tokenizer, side):
    inputs = [tuple(tokenizer.encode(text)) for text in SENTENCES]
    words = LabelTrie(tuple(tuple(tokenizer.encode(label)) for label in LABELS.labels))
    answerer = make_answerer(LABELS, side, tokenizer)
    probabilities = answerer.log_probabilities(run_backbone(backbone, inputs), side).exp()
    for ids, ours in zip(inputs, probabilities, strict=True):
        expected = words.log_probabilities(
            lambda prefix, tokens, ids=ids: alone(backbone, ids, [0, *prefix])[-1:, list(tokens)]
        )[0].exp()
        assert ours.argsort().tolist() == expected.argsort().tolist()
        assert_close(ours, expected, atol=0.05, rtol=0)


def test_gradients_reach_the_whole_side_network(backbone, tokenizer):
    side = SideNetwork(Recipe(start="pretrained", reduction=4).side_config(toy.TEXTS), backbone.config)
    side.silence()
    before = {name: parameter.detach().clone() for name, parameter in side.named_parameters()}
    answerer, optimizer = make_answerer(toy.TEXTS, side, tokenizer), make_optimizer("adamw", side.parameters(), 1e-3, 0)
    backbone_pass = run_backbone(backbone, [tuple(tokenizer.encode(text)) for text in SENTENCES])
    for _ in range(2):  # the first step moves the upsample, and so lets the second one through
        loss = answerer.loss(backbone_pass, side, torch.tensor([[9, 8, 1]] * 4))
        update(side, optimizer, loss, 1e-3, 1.0)
    still = [name for name, parameter in side.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


def test_a_run_begins_there(tmp_path, backbone, tokenizer):
    """Steps too small to matter: the finished run still answers as the backbone does."""
    settings = {"start": "pretrained", "learning_rate": 1e-12, "epochs": 1, "init": "magnitude"}
    artifact = train(toy.job(tmp_path, toy.TEXTS, backbone, tokenizer, count=8, **settings), tmp_path / "run")
    assert artifact.manifest.side["merge_last"]
    check_text(backbone, tokenizer, load_model(artifact, backbone, tokenizer).side)


@pytest.mark.parametrize(("spec", "rate"), [(toy.CLASSES, 1e-2), slow(toy.TEXTS, 3e-2)], ids=["classification", "text"])
def test_it_unlearns_a_backbone_that_is_sure_and_wrong(tmp_path, backbone, tokenizer, spec, rate):
    settings = {"head": "text", "start": "pretrained", "epochs": 4, "dropout": 0.0, "learning_rate": rate}
    run = train(toy.job(tmp_path, spec, backbone, tokenizer, count=64, **settings), tmp_path / "run").folder
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[-1][spec.metric] > lines[0][spec.metric]


@pytest.mark.parametrize("spec", [toy.CLASSES, toy.VALUES], ids=lambda spec: spec.kind)
def test_a_head_of_its_own_has_no_such_start(spec):
    with pytest.raises(RecipeError, match="start must be fresh for a linear head"):
        Recipe(start="pretrained").side_config(spec)
