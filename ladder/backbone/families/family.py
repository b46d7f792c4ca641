"""The interface of an architecture: how to read its config, its weights' names, and the parts that are stacked.

`Backbone` stacks the parts into the frozen network with taps; `SideNetwork` stacks the same parts, narrower. Neither
knows a family by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from ladder.backbone.layers import BlockShape, NoBias
from ladder.config import BackboneConfig


class Family(ABC):
    """One architecture, in one or more Hugging Face `model_type`s. Holds no state: one object serves all backbones."""

    starts_prompts = False
    """Prompts begin with the tokenizer's start token, as well as end in its end token."""
    vocabularies: tuple[tuple[str, ...], ...] = (("tokenizer.json",),)
    """The files that may hold its vocabulary, first choice first. See `ladder.backbone.tokenizer`."""

    @abstractmethod
    def read_config(self, config: Mapping[str, Any]) -> BackboneConfig:
        """Read a Hugging Face config.json. `num_decoder_layers` 0: no decoder, and no text head.

        Raises:
            BackboneError: a field is missing or of an unknown kind.
        """

    @abstractmethod
    def weight_name(self, theirs: str) -> str | None:
        """Return our name for a Hugging Face parameter; None for one that is not used.

        Ours are `shared` (V, D), `embedding.*`, `encoder.blocks.I.*`, `encoder.relative_bias.weight` and
        `encoder.final_norm.*` where there are such, the same for `decoder`, and `head` (V, D; `shared` where absent).
        """

    @abstractmethod
    def block(self, shape: BlockShape, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return one block with the call signature of `ladder.backbone.layers.Block`: the backbone's or a rung's."""

    def shape(self, config: BackboneConfig, reduction: int = 1, dropout: float = 0.0) -> BlockShape:
        """Return the backbone's block shape, its widths divided by `reduction`; the number of heads stays."""
        return BlockShape(
            width=config.d_model // reduction,
            heads=config.num_heads,
            head_width=config.d_kv // reduction,
            hidden=config.d_ff // reduction,
            gated=config.feed_forward_proj == "gated-gelu",
            epsilon=config.layer_norm_epsilon,
            dropout=dropout,
        )

    def embedding(self, config: BackboneConfig) -> nn.Module:
        """Return the module from looked-up token embeddings (..., S, D) to the first block's input; by default
        identity."""
        return nn.Identity()

    def relative_bias(self, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return the attention bias that all blocks of a stack, or of a side stack, share. None by default."""
        return NoBias()

    def final_norm(self, shape: BlockShape) -> nn.Module:
        """Return the norm after the last block of a stack or a side stack. None (`nn.Identity`) by default."""
        return nn.Identity()

    @abstractmethod
    def start_std(self, part: str | None, config: BackboneConfig) -> float:
        """Return the standard deviation of a side network's random weights, as the LST authors start them.

        Args:
            part: a module's name within its block (q, k, v, o, wi, wo, ..., relative_bias); None: a down- or upsample
                projection or a head.
        """
