"""Time and memory of a training step in the paper's settings: full fine-tuning, LoRA and LST, with random weights."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu.run import Run
from benchmarks.harness.cli import synchronize
from benchmarks.training.bench_training_memory import GIGABYTE, METHODS, TEXT, Setting
from ladder import Backbone
from training.memory import count_memory
from training.recipes.optimizers import make_optimizer, update

WAYS = ("LST", "LST, taps kept", "LoRA", "full", "LST, bfloat16")
"""Names in METHODS; all in float32, but for the frozen backbone of the last."""
STEPS = 5
"""Timed steps; their median counts."""


def measure(run: Run, device: str, quick: bool) -> None:
    """Measure every method in every setting, the smallest first. Out of memory is a result."""
    settings: Sequence[Setting] = [setting.shrunk() for setting in TEXT[:1]] if quick else TEXT
    for setting in settings:
        for way in WAYS:
            run.measure(f"{setting.name}, {way}", lambda s=setting, w=way: step_of(w, s, device, 1 if quick else STEPS))


def step_of(way: str, setting: Setting, device: str, steps: int = STEPS) -> Mapping[str, Any]:
    """Return a step's milliseconds and bytes. The first step, which is counted, is not timed."""
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the peers, about each other
        step = METHODS[way](setting)
        for module in step.modules:
            if isinstance(module, Backbone):
                fill(module)
        trained = [parameter for parameter in step.trained.parameters() if parameter.requires_grad]
        optimizer = make_optimizer("adamw", trained, 1e-3, 0.0)
        with count_memory(step.modules, optimizer) as report:
            update(step.trained, optimizer, step.loss(), 1e-3, 1.0)
        durations = []
        for _ in range(steps):
            synchronize(device)
            began = time.perf_counter()
            update(step.trained, optimizer, step.loss(), 1e-3, 1.0)
            synchronize(device)
            durations.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    return {
        "ms": 1e3 * sorted(durations)[len(durations) // 2],
        "counted_gb": report.total / GIGABYTE,
        "peak_gb": None if peak is None else peak / GIGABYTE,
        "trained": sum(parameter.numel() for parameter in trained),
        "rows": setting.rows,
        "tokens": setting.tokens,
    }


@torch.no_grad()
def fill(backbone: Backbone) -> None:
    """Give a backbone random weights: a GPU multiplies zeros faster."""
    for parameter in backbone.parameters():
        parameter.normal_(0, 0.02)
