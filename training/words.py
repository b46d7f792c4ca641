"""How an embedding's side network starts: as the whitened mean of its text's token embeddings, with nothing added yet.

Whitening weighs what few texts share over what all do. On real text the start alone finds more than the mean of the
frozen backbone's last states, with half their numbers; training has the side network add what words cannot tell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ladder import Backbone, SideNetwork


@torch.no_grad()
def start_at_words(side: SideNetwork, backbone: Backbone, inputs: Sequence[Sequence[int]]) -> None:
    """Set the head of a side network whose `config.words` is on. Training leaves the words' part as it is.

    Args:
        inputs: token ids of the training texts.
    """
    device = side.words.weight.device
    means = torch.stack([backbone.embed(torch.tensor(ids, device=device)).float().mean(0) for ids in inputs])
    center = means.mean(0)
    weights = whitening(means - center, len(side.words.weight))
    side.words.weight.copy_(weights)
    side.words.requires_grad_(False)  # D x E weights that a few thousand pairs would only fit by heart
    assert isinstance(side.head, nn.Linear)
    side.head.weight.zero_()
    side.head.bias.copy_(-weights @ center)


def whitening(centered: Tensor, outputs: int) -> Tensor:
    """(E, D) for rows (N, D) of mean 0: the directions in which they differ most, so scaled that they count alike.

    Deviations are shrunk towards their mean: of few rows, the small ones are chance. Directions past D are zero.
    """
    values, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    variances, directions = values.flip(0).clamp(min=0), vectors.T.flip(0)
    scaled = directions / (variances + variances.mean()).clamp(min=torch.finfo(values.dtype).tiny).sqrt()[:, None]
    weights = centered.new_zeros(outputs, centered.shape[1])
    kept = scaled[:outputs] / outputs**0.5
    weights[: len(kept)] = kept
    return weights
