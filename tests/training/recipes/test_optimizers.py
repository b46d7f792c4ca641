"""A training step: six of them equal the authors' stored ones, an interruption changes nothing, the rate's course."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ladder import BackbonePass, Generate
from tests.exact import float64
from tests.ladder import golden
from training.errors import RecipeError
from training.recipes.optimizers import SCHEDULES, ReferenceAdamW, make_optimizer, reference_schedule, schedule, update
from training.recipes.recipe import Recipe

RECIPE = Recipe(optimizer="reference", learning_rate=3e-3, warmup=0.2, clip=1.0, weight_decay=0.0)
STEPS = 10
"""What the stored steps are the first six of."""


def stored_steps(variant: str, recipe: Recipe):
    """Train a stored side network as the trainer does, in float64; its losses and what it was to become."""
    backbone, stored, inputs = copy.deepcopy(golden.load_backbone()).double(), golden.load(variant), golden.inputs()
    stored.side.double()
    optimizer = make_optimizer(recipe.optimizer, stored.side.parameters(), recipe.learning_rate, recipe.weight_decay)
    losses = []
    for step, (ids, labels) in enumerate(zip(inputs["train_input_ids"], inputs["train_labels"], strict=True)):
        backbone_pass = BackbonePass(backbone, backbone.encode(ids, torch.ones_like(ids, dtype=torch.bool)))
        loss = Generate(max_new_tokens=1, decode=str).loss(backbone_pass, stored.side, labels)
        rate = recipe.learning_rate * SCHEDULES[recipe.optimizer](step, STEPS, recipe.warmup)
        update(stored.side, optimizer, loss, rate, recipe.clip)
        losses.append(loss.item())
    return stored, losses


@pytest.mark.parametrize("variant", ["a", "b", "d"])
def test_six_steps_equal_the_authors(variant):
    with float64():
        stored, losses = stored_steps(variant, RECIPE)
    assert_close(torch.tensor(losses), stored.tensors["train.losses"], atol=2e-6, rtol=0)
    expected = stored.weights("train.after.")
    for name, parameter in stored.side.named_parameters():
        assert_close(
            parameter.detach().float(), expected[name], atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_weight_decay_comes_after_the_step_and_epsilon_before_the_correction():
    weight, gradients = nn.Parameter(torch.tensor([0.5, -2.0])), torch.tensor([[1e-8, 0.3], [-2e-8, 0.1], [4e-8, 0.0]])
    optimizer = ReferenceAdamW([weight], lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)
    slow, means, squares = [0.5, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        for i, g in enumerate(gradient.tolist()):
            means[i] = 0.8 * means[i] + 0.2 * g
            squares[i] = 0.9 * squares[i] + 0.1 * g * g
            size = 0.1 * math.sqrt(1 - 0.9**step) / (1 - 0.8**step)
            slow[i] -= size * means[i] / (math.sqrt(squares[i]) + 1e-6)
            slow[i] -= 0.1 * 0.2 * slow[i]
    assert_close(weight.detach(), torch.tensor(slow))


def test_weight_without_a_gradient_stays():
    moved, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ReferenceAdamW([moved, unused], lr=0.1, weight_decay=0.5)
    loss = optimizer.step(lambda: moved.sum().backward() or 3.0)
    assert loss == 3.0
    assert unused.tolist() == [1, 1] != moved.tolist()


def test_update_clips_the_gradient_and_forgets_the_last_one():
    side = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(side.parameters(), lr=1.0)
    for _ in range(2):
        before = side.weight.detach().clone()
        update(side, optimizer, side(torch.tensor([30.0, 0.0, 40.0])).sum(), rate=0.5, clip=1.0)
        assert_close(before - side.weight.detach(), torch.tensor([[0.3, 0.0, 0.4]]))


def test_rate_rises_then_falls():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares.index(max(shares)) in (9, 10)
    assert max(shares) <= 1
    assert 0 < shares[-1] < 0.02
    assert 0 < shares[0] < 0.2


def test_reference_rate_starts_at_nothing():
    assert [reference_schedule(step, 10, 0.2) for step in range(10)] == [
        pytest.approx(share) for share in (0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)
    ]
    assert reference_schedule(0, 10, 0.0) == 1


def test_unknown_optimizer():
    with pytest.raises(RecipeError, match="adamw or reference"):
        Recipe(optimizer="sgd")  # type: ignore[arg-type]


def test_the_other_schedules_rise_alike_and_fall_along_a_cosine_or_stay():
    for shape in ("cosine", "constant"):
        assert [schedule(step, 100, 0.1, shape) for step in range(10)] == [
            schedule(step, 100, 0.1) for step in range(10)
        ]
    assert {schedule(step, 100, 0.1, "constant") for step in range(10, 100)} == {1.0}
    for step in range(10, 100):
        expected = (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert schedule(step, 100, 0.1, "cosine") == pytest.approx(expected)
    with pytest.raises(RecipeError, match="schedule must be linear where the optimizer is reference"):
        Recipe(optimizer="reference", schedule="cosine")
