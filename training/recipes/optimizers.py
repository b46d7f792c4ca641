"""One step of training: rate, gradient, clipping, update. torch's AdamW, or the LST authors' to the last digit.

The authors train with transformers 4.6's AdamW, which adds epsilon before the bias correction and decays weights after
the step. Losses hardly differ; weights whose gradients are tiny do, by up to 5.7e-3 after the six steps they are tested
on.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from training.recipes.recipe import OptimizerName, Schedule


class ReferenceAdamW(torch.optim.Optimizer):
    """AdamW as in transformers 4.6: p -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps); p -= lr * wd * p."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient; the closure's loss, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _step(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.tensor(0.0)  # a tensor, as torch's own optimizers keep it: a run folder stores it
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    step = float(state["step"])
    beta1, beta2 = group["betas"]
    mean = state["exp_avg"]
    square = state["exp_avg_sq"]
    mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    size = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-size)
    if group["weight_decay"]:
        parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def schedule(step: int, steps: int, warmup: float, shape: Schedule = "linear") -> float:
    """Share of the peak learning rate: a linear rise, then what `shape` says; a fall ends after the last step."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    left = (steps - step) / max(steps - rise, 1)
    if shape == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return left if shape == "linear" else 1.0


def reference_schedule(step: int, steps: int, warmup: float, _: Schedule = "linear") -> float:
    """As `schedule`'s linear one, but the rise starts at 0: the authors' first step changes nothing."""
    rise = round(warmup * steps)
    return step / rise if step < rise else (steps - step) / max(steps - rise, 1)


SCHEDULES: dict[str, Callable[[int, int, float, Schedule], float]] = {
    "adamw": schedule,
    "reference": reference_schedule,
}
"""By the optimizer's name."""


def make_optimizer(
    name: OptimizerName, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of a recipe over a side network's parameters."""
    if name == "reference":
        return ReferenceAdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


def update(side: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float) -> None:
    """Move the side network's weights one step down the gradient of `loss`, of length `clip` at most."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    apply_gradients(side, optimizer, rate, clip)


def apply_gradients(side: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> None:
    """Move the side network's weights one step down the gradients that they hold, of length `clip` at most."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(side.parameters(), clip)
    optimizer.step()
