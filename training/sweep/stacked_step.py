"""Steps of several side networks of one shape on the same batch, computed as one batch of networks.

The networks are runs of one seed, so that in each step they read the same rows and draw the same dropout, as each does
alone. Forward and backward passes are one computation (torch.func.vmap); each run's own optimizer then takes its step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ladder import BackbonePass, SideNetwork
from training.batches import TokenizedRow
from training.multitask.task_data import TaskData
from training.recipes.recipe import Recipe
from training.trainer import Trainer

OWN_SETTINGS = ("learning_rate", "weight_decay", "clip", "warmup")
"""Settings of the optimizer's step, in which runs that are computed together may differ."""


def stack_key(trainer: Trainer) -> tuple[object, ...] | None:
    """Equal for runs that can be computed together; None for one that is computed alone."""
    [task] = trainer.tasks
    if trainer.side.config.has_decoder or task.distillation is not None or task.inputs.features is not None:
        return None  # a decoder's loops, a teacher's answers and images are not batched over networks
    return tuple(getattr(trainer.recipe, name) for name in Recipe.names() if name not in OWN_SETTINGS)


class StackedSides:
    """Side networks whose weights lie in one tensor per parameter; each network's own parameters are views of it.

    Parameters that are not trained are equal in networks of one seed, so that those of the first stand for all.
    """

    def __init__(self, sides: Sequence[SideNetwork]) -> None:
        """From here on the networks' optimizers change the shared tensors."""
        self._sides = sides
        named = [dict(_trained(side)) for side in sides]
        self._stacked = {
            name: torch.stack([parameters[name].detach() for parameters in named]).requires_grad_() for name in named[0]
        }
        for index, parameters in enumerate(named):
            for name, parameter in parameters.items():
                parameter.data = self._stacked[name].data[index]

    def gradients(self, task: TaskData, rows: Sequence[TokenizedRow], indices: Sequence[int]) -> list[float]:
        """Compute each network's loss on the rows of a step, and leave its gradients in its parameters.

        Returns:
            The networks' losses.
        """
        computed = [self._part(task, rows, part, share) for part, share in task.parts(rows, indices)]
        losses, parts = zip(*computed, strict=True)
        dense = [None if grads[0] is None else torch.stack(grads).sum(0) for grads in zip(*parts, strict=True)]
        for index, side in enumerate(self._sides):
            for (_, parameter), gradient in zip(_trained(side), dense, strict=True):
                parameter.grad = None if gradient is None else gradient[index]
        return torch.stack(losses).sum(0).tolist()

    def _part(
        self, task: TaskData, rows: Sequence[TokenizedRow], indices: Sequence[int], share: float
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The networks' losses on these rows times `share`, and their gradients; None for a parameter that has none."""
        module = _Loss(self._sides[0], task, task.inputs.read(indices), task.targets(rows, indices))

        def loss_of(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(module, {f"side.{name}": value for name, value in parameters.items()}, ())

        losses: Tensor = vmap(loss_of, randomness="same")(self._stacked) * share
        gradients = torch.autograd.grad(losses.sum(), list(self._stacked.values()), allow_unused=True)
        # torch's fused optimizers read gradients as if their strides were the parameters'
        return losses.detach(), [None if gradient is None else gradient.contiguous() for gradient in gradients]


def _trained(side: SideNetwork) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in side.named_parameters() if parameter.requires_grad]


class _Loss(nn.Module):
    """The loss of one batch as a module's forward pass, whose parameters can be replaced."""

    def __init__(self, side: SideNetwork, task: TaskData, backbone_pass: BackbonePass, targets: Tensor) -> None:
        super().__init__()
        self.side = side
        self._read = (task, backbone_pass, targets)

    def forward(self) -> Tensor:
        task, backbone_pass, targets = self._read
        return task.answerer.loss(backbone_pass, self.side, targets)
