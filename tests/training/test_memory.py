"""The counter of a training step's memory, against bytes that were counted by hand."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ladder import Backbone, BackbonePass, SideNetwork
from ladder.answering import Classify
from ladder.config import BackboneConfig, SideConfig
from training.memory import MemoryReport, count_memory
from training.recipes.optimizers import make_optimizer, update

FLOAT = 4
SHAPE = BackboneConfig(d_model=16, d_kv=4, d_ff=24, num_heads=2, num_layers=2, num_decoder_layers=0, vocab_size=32)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def counted(model: nn.Module, loss: Callable[[], Tensor], steps: int = 1) -> MemoryReport:
    optimizer = make_optimizer("adamw", model.parameters(), 1e-3, 0.0)
    with count_memory([model], optimizer) as report:
        for _ in range(steps):
            update(model, optimizer, loss(), 1e-3, 1.0)
    return report


@pytest.mark.parametrize("steps", [1, 3])
def test_a_small_network_by_hand(steps):
    model = mlp()
    batch = torch.ones(3, 4)
    report = counted(model, lambda: model(batch).square().sum(), steps)
    weights = FLOAT * (4 * 8 + 8 + 8 * 2 + 2)
    assert report.parameters == weights
    assert report.gradients == weights
    assert report.optimizer == 2 * weights + FLOAT * 4  # and the number of steps of each of four parameters
    assert report.saved == FLOAT * 3 * (4 + 8 + 2)  # the batch; ReLU's result, which the next layer reads; the outputs
    assert report.total == report.parameters + report.gradients + report.optimizer + report.saved
    assert report.cuda_peak is None


def test_frozen_parameters_and_buffers_count_and_have_no_gradients():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False).eval()
    head = nn.Linear(8, 2)
    with count_memory([model, head]) as report:
        head(model(torch.ones(3, 4))).sum().backward()
    assert report.parameters == FLOAT * (4 * 8 + 8 + 4 * 8 + 8 * 2 + 2) + 8  # batch norm counts batches in int64
    assert report.gradients == FLOAT * (8 * 2 + 2)
    assert report.saved == FLOAT * 3 * 8


def test_a_storage_counts_once_and_whole():
    whole = torch.ones(10, 4)
    weight = nn.Linear(4, 1, bias=False)
    tied = nn.ModuleList([weight, weight])
    with count_memory([tied]) as report:
        (weight(whole[:3]).sum() + weight(whole[5:]).sum() + (weight.weight.t() * whole[0, 0]).sum()).backward()
    assert report.parameters == FLOAT * 4
    assert report.saved == FLOAT * 10 * 4


def test_forward_passes_that_follow_their_backward_passes_do_not_add_up():
    model = mlp()
    batch = torch.ones(3, 4)
    once = counted(model, lambda: model(batch).square().sum())
    with count_memory([model]) as report:
        for _ in range(3):
            model(batch).square().sum().backward()
    assert report.saved == once.saved
    with count_memory([model]) as report:
        (model(batch).square().sum() + model(batch * 2).square().sum()).backward()
    assert report.saved == 2 * once.saved


def test_training_under_the_counter_is_the_same():
    results = []
    for context in (nullcontext, count_memory):
        torch.manual_seed(0)
        model = mlp()
        optimizer = make_optimizer("adamw", model.parameters(), 1e-3, 0.0)
        with context([model], optimizer) if context is count_memory else nullcontext():  # type: ignore[arg-type]
            for _ in range(3):
                update(model, optimizer, model(torch.ones(3, 4)).square().sum(), 1e-2, 1.0)
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("without_data", [FakeTensorMode, lambda: torch.device("meta")])
def test_tensors_without_data_count_as_real_ones(without_data):
    def side_network(context: AbstractContextManager[object]) -> MemoryReport:
        with context:
            backbone = Backbone(SHAPE)
            side = SideNetwork(SideConfig(reduction=2, head="linear", outputs=2), SHAPE).train()
            optimizer = torch.optim.AdamW(side.parameters())
            ids = torch.zeros(3, 6, dtype=torch.long)
            targets = torch.zeros(3, dtype=torch.long)
            with count_memory([backbone, side], optimizer) as report:
                taps = backbone.encode(ids, torch.ones(3, 6, dtype=torch.bool))
                loss = Classify(labels=("a", "b")).loss(BackbonePass(backbone, taps), side, targets)
                update(side, optimizer, loss, 1e-3, 1.0)
        return report

    real = side_network(nullcontext())
    assert real.saved > 0
    assert side_network(nullcontext()) == real  # the same in every run
    assert side_network(without_data()) == real
