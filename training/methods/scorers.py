"""Models that are compared with a side network: an encoder of Hugging Face's and a head on its last state.

A head reads what a side network's linear head reads: the mean of the tokens, or of two texts both means, their absolute
difference and their product. Each token's state is divided by its root mean square before.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from ladder.side.network import mean_of_real
from ladder.side.pairs import PARTS, pair_features, pair_means
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.methods.rows import Batch


def by_rms(state: Tensor) -> Tensor:
    """Each token's vector by its root mean square; the shape of `state`."""
    return nn.functional.rms_norm(state, state.shape[-1:], eps=1e-6)


class Scorer(nn.Module):
    """An encoder and what makes a task's outputs of its states."""

    frozen = False
    """Whether the encoder computes what it computed before training: many tasks then share its pass."""

    def __init__(self, encoder: nn.Module, width: int, spec: TaskSpec, mean: float = 0.0, unit: float = 1.0) -> None:
        """Nothing is frozen here.

        Args:
            encoder: of Hugging Face's, or PEFT's around it.
            width: of its states.
            mean: of a regression's training targets; answers start there.
            unit: their standard deviation.
        """
        super().__init__()
        self.encoder: Any = encoder
        self.spec = spec
        self.pair = spec.has_pair
        self.mean = mean
        self.unit = unit
        self.is_number = KINDS[spec.kind].has_range
        self.head = nn.Linear(width * PARTS if self.pair else width, spec.outputs)

    def train(self, mode: bool = True) -> Self:
        """Training mode; a frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's last state (B, P + S, D) and its mask; P are tokens that the method puts before the text."""
        state = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        added = state.shape[1] - ids.shape[1]
        return state, torch.cat([mask.new_ones(len(mask), added), mask], 1) if added else mask

    def read(self, batch: Batch) -> tuple[Tensor, ...]:
        """States of the encoder (B, S, D) that `outputs` needs, without tokens that the method added."""
        state, _ = self.encode(batch.ids, batch.mask)
        return (state[:, -batch.ids.shape[1] :],)

    def outputs(self, states: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """Logits (B, K) of the labels, or the value (B, 1)."""
        return self._scaled(self.head(self._pooled(by_rms(states[-1]), batch)))

    def forward(self, batch: Batch) -> Tensor:
        """As `outputs`, of a batch."""
        if not self.frozen:
            return self.outputs(self.read(batch), batch)
        with torch.no_grad():
            states = self.read(batch)
        return self.outputs(states, batch)

    def _pooled(self, state: Tensor, batch: Batch) -> Tensor:
        if self.pair:
            assert batch.pairs is not None
            return pair_features(pair_means(state, batch.pairs))
        return mean_of_real(state, batch.mask)

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs * self.unit + self.mean if self.is_number else outputs


class LinearProbe(Scorer):
    """A linear layer on the frozen encoder's last state."""

    frozen = True


class AttentionProbe(Scorer):
    """A linear layer on what one learned query finds among the tokens of all layers of the frozen encoder.

    A token's weight is the softmax, over tokens and layers, of its product with the query and of a bias of its layer.
    Of two texts each is read apart, as by a linear head.
    """

    frozen = True

    def __init__(
        self, encoder: nn.Module, width: int, spec: TaskSpec, mean: float = 0.0, unit: float = 1.0, *, layers: int
    ) -> None:
        """`layers`: states that the encoder returns: the embeddings and one of each block."""
        super().__init__(encoder, width, spec, mean, unit)
        self.query = nn.Parameter(torch.zeros(width))
        self.layer = nn.Parameter(torch.zeros(layers))

    def read(self, batch: Batch) -> tuple[Tensor, ...]:
        """All layers' states (B, S, D)."""
        given = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "output_hidden_states": True}
        return tuple(self.encoder(**given).hidden_states)

    def outputs(self, states: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """As of `Scorer`."""
        stacked = by_rms(torch.stack(states, 1))  # (B, L, S, D)
        scores = stacked @ self.query * self.query.numel() ** -0.5 + self.layer[:, None]
        if not self.pair:
            return self._scaled(self.head(_attended(stacked, scores, batch.mask)))
        assert batch.pairs is not None
        tokens = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        inside = (tokens >= batch.pairs[..., :1]) & (tokens < batch.pairs[..., 1:])  # (B, 2, S)
        means = torch.stack([_attended(stacked, scores, inside[:, text]) for text in (0, 1)], 1)
        return self._scaled(self.head(pair_features(means)))


def _attended(stacked: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """(B, D): the mean of `stacked` (B, L, S, D), weighed by the softmax of `scores` (B, L, S) where `mask` (B, S)."""
    masked = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    weights = torch.softmax(masked.flatten(1), -1)
    return (weights[:, None] @ stacked.flatten(1, 2)).squeeze(1)


class SideTuning(Scorer):
    """Side-Tuning (arXiv:1912.13503): a small encoder next to the frozen one; their last states are mixed by a gate.

    The small encoder reads the frozen one's token embeddings and nothing of its blocks.
    """

    frozen = True

    def __init__(
        self, encoder: nn.Module, width: int, spec: TaskSpec, mean: float = 0.0, unit: float = 1.0, *, small: nn.Module
    ) -> None:
        """`small`: an encoder of Hugging Face's that takes `inputs_embeds` of its own width."""
        super().__init__(encoder, width, spec, mean, unit)
        self.small: Any = small
        narrow = self.small.config.hidden_size
        self.down = nn.Linear(width, narrow)
        self.up = nn.Linear(narrow, width)
        self.gate = nn.Parameter(torch.zeros(()))

    def read(self, batch: Batch) -> tuple[Tensor, ...]:
        """The token embeddings and the last state, (B, S, D)."""
        return self.encoder.get_input_embeddings()(batch.ids), *super().read(batch)

    def outputs(self, states: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """As of `Scorer`."""
        embeddings, last = states
        side = self.small(inputs_embeds=self.down(by_rms(embeddings)), attention_mask=batch.mask.long())
        keep = torch.sigmoid(self.gate)
        mixed = keep * by_rms(last) + (1 - keep) * self.up(side.last_hidden_state)
        return self._scaled(self.head(self._pooled(mixed, batch)))


class Bottleneck(nn.Module):
    """A linear layer with an adapter after it (Houlsby et al., arXiv:1902.00751): y + up(gelu(down(y))).

    It starts as the layer alone: `up` is 0.
    """

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.out_features, width)
        self.up = nn.Linear(width, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def weight(self) -> Tensor:
        """The layer's own: T5 looks at its dtype."""
        return self.base.weight

    def forward(self, state: Tensor) -> Tensor:
        """(..., out_features)."""
        out = self.base(state)
        return out + self.up(nn.functional.gelu(self.down(out)))
