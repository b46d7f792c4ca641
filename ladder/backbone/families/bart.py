"""BART, of which only the encoder is used: learned positions, norms after each part, biases, scaled attention.

arXiv:1910.13461. Its side networks are those of LST's table 2: no relative bias, no final norm.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ladder.backbone.families.family import Family
from ladder.backbone.layers import BlockShape, PostNormBlock
from ladder.config import BackboneConfig
from ladder.errors import BackboneError

OFFSET = 2
"""Unused rows at the start of the table of positions."""
EPSILON = 1e-5
"""Epsilon of the layer norms; config.json has no field for it."""
_LAYER = re.compile(r"(?:model\.)?encoder\.layers\.(?P<index>\d+)\.(?P<part>\w+(?:\.\w+_proj)?)\.(?P<what>weight|bias)")
_PARTS = {
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.out_proj": "attention.o",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "feed_forward.wi",
    "fc2": "feed_forward.wo",
    "final_layer_norm": "feed_norm",
}
_FIXED = {
    "shared.weight": "shared",
    "encoder.embed_positions.weight": "embedding.positions",
    "encoder.layernorm_embedding.weight": "embedding.norm.weight",
    "encoder.layernorm_embedding.bias": "embedding.norm.bias",
}


class Bart(Family):
    """model_type "bart"."""

    starts_prompts = True
    vocabularies = (("tokenizer.json",), ("vocab.json", "merges.txt"))

    def read_config(self, config: Mapping[str, Any]) -> BackboneConfig:
        """Read a Hugging Face config.json of a BART. `num_decoder_layers` is 0: only the encoder is used.

        Raises:
            BackboneError: a field is missing, or an unknown activation.
        """
        activation = config.get("activation_function", "gelu")
        if activation not in ("relu", "gelu"):
            raise BackboneError(f"activation_function must be relu or gelu, got {activation!r}")
        try:
            width, heads = config["d_model"], config["encoder_attention_heads"]
            return BackboneConfig(
                model_type="bart",
                d_model=width,
                d_kv=width // heads,
                d_ff=config["encoder_ffn_dim"],
                num_heads=heads,
                num_layers=config["encoder_layers"],
                num_decoder_layers=0,
                vocab_size=config["vocab_size"],
                feed_forward_proj=activation,
                layer_norm_epsilon=EPSILON,
                scale_output=False,
                pad_token_id=config.get("pad_token_id", 1),
                eos_token_id=config.get("eos_token_id", 2),
                decoder_start_token_id=config.get("decoder_start_token_id", 2),
                max_positions=config["max_position_embeddings"],
                embedding_scale=width**0.5 if config.get("scale_embedding") else 1.0,
            )
        except KeyError as error:
            raise BackboneError(f"config.json is incomplete: it lacks {error}") from None

    def weight_name(self, theirs: str) -> str | None:
        """Return our name for a Hugging Face parameter; None for one that is not used (the decoder's)."""
        if match := _LAYER.fullmatch(theirs):
            part = _PARTS.get(match["part"])
            return part and f"encoder.blocks.{match['index']}.{part}.{match['what']}"
        return _FIXED.get(theirs.removeprefix("model."))

    def shape(self, config: BackboneConfig, reduction: int = 1, dropout: float = 0.0) -> BlockShape:
        """Return a block's shape with biases and scaled attention."""
        plain = super().shape(config, reduction, dropout)
        return replace(plain, bias=True, scale=plain.head_width**-0.5, activation=config.feed_forward_proj)

    def block(self, shape: BlockShape, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return a post-norm block; `decoder` is ignored, since there is none."""
        return PostNormBlock(shape)

    def embedding(self, config: BackboneConfig) -> nn.Module:
        """Return the module that adds positions and norms."""
        return Embedding(config)

    def start_std(self, part: str | None, config: BackboneConfig) -> float:
        """Return 0.02 for every part."""
        return 0.02  # init_std in the config.json of every published BART


class Embedding(nn.Module):
    """Adds a learned vector for each position, and norms."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.max_positions is not None
        self.scale = config.embedding_scale
        self.positions = nn.Parameter(torch.zeros(config.max_positions + OFFSET, config.d_model))
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map looked-up embeddings (..., S, D) to the first block's input (..., S, D)."""
        return self.norm(tokens * self.scale + self.positions[OFFSET : OFFSET + tokens.shape[-2]])
