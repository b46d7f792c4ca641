"""The start of an embedding: whitened means of words, and nothing from the rest of the side network yet."""

import pytest
import torch
from torch.testing import assert_close

from ladder import Embed, SideNetwork, load_backbone, load_tokenizer, run_backbone
from tests.training import toy
from training.recipe import Recipe
from training.words import start_at_words, whitening


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


def test_whitened_rows_differ_alike_in_all_directions_where_rows_are_many():
    torch.manual_seed(0)
    rows = torch.randn(4000, 6) @ torch.diag(torch.tensor([9.0, 8.0, 8.0, 7.0, 0.01, 0.01])) @ torch.randn(6, 6)
    rows = rows - rows.mean(0)
    white = rows @ whitening(rows, 3).T
    assert_close(
        white.T @ white / len(rows) * 3, torch.diag(torch.diag(white.T @ white / len(rows) * 3)), atol=1e-2, rtol=0
    )
    deviations = white.std(0)
    assert deviations.max() / deviations.min() < 2
    assert rows.std(0).max() > 5


def test_directions_that_are_not_there_are_zero():
    rows = torch.randn(5, 4)
    weights = whitening(rows - rows.mean(0), 7)
    assert weights.shape == (7, 4)
    assert torch.equal(weights[4:], torch.zeros(3, 4))
    assert torch.isfinite(whitening(torch.zeros(3, 4), 2)).all()


def test_starts_as_the_whitened_mean_of_the_words_alone(backbone, tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    side = SideNetwork(Recipe(reduction=4).side_config(toy.PAIRS), backbone.config).eval()
    inputs = [tuple(tokenizer.encode(str(row["sentence"]))) for row in toy.rows(toy.PAIRS, 20)]
    start_at_words(side, backbone, inputs)
    means = torch.stack([backbone.embed(torch.tensor(ids)).mean(0) for ids in inputs])
    center = means.mean(0)
    expected = torch.nn.functional.normalize((means - center) @ whitening(means - center, 8).T, dim=-1)
    found = Embed().vectors(run_backbone(backbone, inputs, side.encoder_depth), side)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_only_an_embeddings_linear_head_reads_words():
    assert Recipe().side_config(toy.PAIRS).words
    assert not Recipe(head="mlp").side_config(toy.PAIRS).words
    assert not Recipe().side_config(toy.CLASSES).words
