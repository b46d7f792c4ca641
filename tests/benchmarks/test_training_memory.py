"""bench_training_memory: its names, and that two ways to measure a step agree."""

import gc
from fnmatch import fnmatchcase

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from benchmarks.harness.goals import GOALS
from benchmarks.harness.gpu_kernels import gpu_kernels
from benchmarks.harness.live_memory import LiveMemory
from benchmarks.training import bench_training_memory
from benchmarks.training.bench_training_memory import TEXT, VL, bitfit, full, lst
from tests.benchmarks.local import run
from training.memory import count_memory
from training.recipes.optimizers import make_optimizer, update


def test_live_memory_follows_storages_until_they_are_freed():
    before = torch.ones(8)
    with LiveMemory([before]) as live:
        one = torch.ones(100)
        view = one[:10]
        assert live.now == 4 * 108
        del one
        assert live.now == 4 * 108
        del view
        assert live.now == 4 * 8
    assert live.peak == 4 * 108


@pytest.mark.parametrize("method", [full, lst, bitfit])
@pytest.mark.parametrize("setting", [TEXT[0], VL[2]], ids=lambda setting: setting.name)
def test_the_count_is_what_exists_after_a_forward_pass(method, setting):
    """All but the batch, the loss and, of LST, taps that no rung reads."""
    with FakeTensorMode(), LiveMemory() as live:
        step = method(setting.shrunk())
        optimizer = make_optimizer("adamw", [p for p in step.trained.parameters() if p.requires_grad], 1e-3, 0.0)
        with count_memory(step.modules, optimizer) as report:
            update(step.trained, optimizer, step.loss(), 1e-3, 1.0)
            loss = step.loss()
            gc.collect()
            exists = live.now
            update(step.trained, optimizer, loss, 1e-3, 1.0)
    assert exists == pytest.approx(report.total, rel=0.01)
    assert live.peak >= report.total


def test_gpu_kernels_save_a_bool_for_dropout_and_no_scores_for_attention():
    with FakeTensorMode():
        batch = torch.ones(10, 10, requires_grad=True)
        with count_memory([]) as report, gpu_kernels():
            F.dropout(batch, 0.1).sum().backward()
        assert report.saved == 100
        query = torch.ones(2, 3, 64, 8, requires_grad=True)
        bias = torch.ones(1, 1, 1, 64)
        with count_memory([]) as report, gpu_kernels():
            F.scaled_dot_product_attention(
                query, query, query, attn_mask=bias, dropout_p=0.1, scale=1.0
            ).sum().backward()
        assert report.saved < 4 * query.nbytes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, of transformers
def test_the_script_measures_what_the_goals_want(tiny_t5, monkeypatch):
    document = run(bench_training_memory, tiny_t5, "float32", monkeypatch)
    left_out = document["settings"].get("left_out", {})  # methods of packages that are not installed here
    wanted = [goal.ratio for goals in GOALS.values() for goal in goals if goal.report == document["name"]]
    wanted = [ratio for ratio in wanted if not any(f" {method} /" in ratio for method in left_out)]
    assert wanted
    assert not [ratio for ratio in wanted if not any(fnmatchcase(name, ratio) for name in document["ratios"])]
    for figures in document["variants"].values():
        assert 0 < figures["total_gb"]["median"] <= figures["live_gb"]["median"]
