"""What it costs to answer one input for one task, and for many tasks.

A method that leaves the encoder's states as they are needs one pass for all tasks. The others need a pass for each
task, since each task has an encoder of its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

MANY = 16
"""Tasks that read one input."""
REPEATS = 5

Answer = Callable[[int], object]
"""Answers one input for so many tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCost:
    """Of one input."""

    flops_1: int
    """Arithmetic for one task, counted by torch: the same in every run."""
    flops_16: int
    seconds_1: float
    """The median of some repetitions."""
    seconds_16: float


def serving_cost(answer: Answer) -> ServingCost:
    """Measure what an answer costs."""
    with torch.no_grad():
        flops = [_flops(answer, tasks) for tasks in (1, MANY)]
        seconds = [_seconds(answer, tasks) for tasks in (1, MANY)]
    return ServingCost(flops_1=flops[0], flops_16=flops[1], seconds_1=seconds[0], seconds_16=seconds[1])


def _flops(answer: Answer, tasks: int) -> int:
    with FlopCounterMode(display=False) as counter:
        answer(tasks)
    return counter.get_total_flops()


def _seconds(answer: Answer, tasks: int) -> float:
    taken: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        answer(tasks)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
