"""T5 (1.0, 1.1, flan, ByT5), mT5 and umT5: relative position biases, RMS norms before each part, no other bias."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from ladder.backbone.families.family import Family
from ladder.backbone.kv_cache import KeyValues
from ladder.backbone.layers import Block, BlockShape, NoBias, RelativeBias, RMSNorm
from ladder.backbone.packing import Spans
from ladder.config import BackboneConfig
from ladder.errors import BackboneError

_OWN_BIAS = re.compile(
    r"(?P<stack>encoder|decoder)\.block\.(?P<index>\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight"
)


class T5(Family):
    """model_type "t5". ByT5 is one too: bytes for tokens, and a shallow decoder."""

    vocabularies = (("tokenizer.json",), ("spiece.model",), ("sentencepiece.bpe.model",))
    feed_forward = "relu"
    """The feed-forward when config.json does not name one."""

    def read_config(self, config: Mapping[str, Any]) -> BackboneConfig:
        """Read a Hugging Face config.json of this family.

        Raises:
            BackboneError: a field is missing, or an unknown feed-forward.
        """
        known = {field.name for field in fields(BackboneConfig)}
        values = {name: config[name] for name in known if config.get(name) is not None}
        values.setdefault("num_decoder_layers", config.get("num_layers"))
        values.setdefault("feed_forward_proj", self.feed_forward)
        if values["feed_forward_proj"] not in ("relu", "gated-gelu"):
            raise BackboneError(f"feed_forward_proj must be relu or gated-gelu, got {values['feed_forward_proj']!r}")
        values["scale_output"] = self.scales_output(config)
        try:
            return BackboneConfig(**values)
        except TypeError as error:
            raise BackboneError(f"config.json is incomplete: {error}") from None

    def scales_output(self, config: Mapping[str, Any]) -> bool:
        """Return whether the decoder's output is scaled by d_model ** -0.5 before the head."""
        # Transformers 5 writes scale_decoder_outputs; before, a tied head meant a scaled output.
        return bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)))

    def weight_name(self, theirs: str) -> str | None:
        """Return our name for a Hugging Face parameter; None for one that is not used."""
        return backbone_name(theirs)

    def block(self, shape: BlockShape, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return a pre-norm block, with cross-attention in a decoder."""
        return Block(shape, decoder=decoder)

    def relative_bias(self, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return the relative bias that all blocks of a stack share."""
        return _bias(config, decoder=decoder)

    def final_norm(self, shape: BlockShape) -> nn.Module:
        """Return the RMS norm after the last block."""
        return RMSNorm(shape.width, shape.epsilon)

    def start_std(self, part: str | None, config: BackboneConfig) -> float:
        """T5's rule, with the *backbone's* widths; 0.01 for projections and heads."""
        if part is None:
            return 0.01
        inner = config.num_heads * config.d_kv
        stds = {"q": (config.d_model * config.d_kv) ** -0.5, "o": inner**-0.5, "wo": config.d_ff**-0.5}
        return stds.get(part, config.d_model**-0.5)


class MT5(T5):
    """model_type "mt5": T5 1.1 with more words. Its output is never scaled, whatever config.json says of ties."""

    feed_forward = "gated-gelu"

    def scales_output(self, config: Mapping[str, Any]) -> bool:
        """Return False: the output is never scaled."""
        return False


class UMT5(T5):
    """model_type "umt5": mT5 with a relative bias in every block, of a side network too, instead of one for a stack."""

    feed_forward = "gated-gelu"

    def weight_name(self, theirs: str) -> str | None:
        """Return our name for a Hugging Face parameter; every block has its relative bias."""
        if match := _OWN_BIAS.fullmatch(theirs):
            return f"{match['stack']}.blocks.{match['index']}.relative_bias.weight"
        return backbone_name(theirs)

    def block(self, shape: BlockShape, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return a block that holds its own relative bias."""
        return BiasedBlock(shape, _bias(config, decoder=decoder), decoder=decoder)

    def relative_bias(self, config: BackboneConfig, *, decoder: bool) -> nn.Module:
        """Return no shared bias: each block has its own."""
        return NoBias()


class BiasedBlock(Block):
    """T5's block with its own relative bias."""

    def __init__(self, shape: BlockShape, relative_bias: RelativeBias, *, decoder: bool) -> None:
        super().__init__(shape, decoder=decoder)
        self.relative_bias = relative_bias

    def forward(
        self,
        hidden: Tensor,
        bias: Tensor | Spans,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
        self_cache: KeyValues | None = None,
        cross_cache: KeyValues | None = None,
    ) -> Tensor:
        """As `Block`; `bias`, the mask's, is (..., all tokens): its last size is the number of keys."""
        if isinstance(bias, Spans):
            bias = bias.plus(self.relative_bias)
        else:
            bias = self.relative_bias(hidden.shape[1], bias.shape[-1]) + bias
        return super().forward(hidden, bias, memory, memory_bias, self_cache, cross_cache)


def _bias(config: BackboneConfig, *, decoder: bool) -> RelativeBias:
    return RelativeBias(
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
        config.num_heads,
        bidirectional=not decoder,
    )


_PARTS = {
    "SelfAttention": "attention",
    "EncDecAttention": "cross_attention",
    "DenseReluDense": "feed_forward",
}
_RELATIVE_BIAS = "SelfAttention.relative_attention_bias.weight"
_BLOCK = re.compile(
    r"(?P<stack>encoder|decoder)\.(?P<side>side_)?block\.(?P<index>\d+)\.layer\.(?P<part>\d)\.(?P<rest>.+)"
)


def backbone_name(theirs: str) -> str | None:
    """Return our name for a Hugging Face T5 parameter; None for a copy of another one (a stack's embed_tokens)."""
    if match := _BLOCK.fullmatch(theirs):
        return f"{match['stack']}.{_block_part(match, 'blocks.' + match['index'])}"
    if theirs.endswith("embed_tokens.weight"):
        return None
    fixed = {
        "shared.weight": "shared",
        "lm_head.weight": "head",
        "encoder.final_layer_norm.weight": "encoder.final_norm.weight",
        "decoder.final_layer_norm.weight": "decoder.final_norm.weight",
    }
    return fixed.get(theirs)


def _block_part(match: re.Match[str], block: str) -> str:
    rest = match["rest"]
    if rest == _RELATIVE_BIAS:
        return "relative_bias.weight"
    last = "2" if match["stack"] == "decoder" else "1"
    if rest == "layer_norm.weight":
        norm = {"0": "attention_norm", last: "feed_norm"}.get(match["part"], "cross_norm")
        return f"{block}.{norm}.weight"
    part, tail = rest.split(".", 1)
    return f"{block}.{_PARTS.get(part, part)}.{tail}"
