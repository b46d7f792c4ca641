"""A side network: rungs that read a frozen backbone's taps and mix them into a narrow state.

LST, arXiv:2206.06522, as its authors' code does it: the gate weighs the side state, the tap is a block's output, and
each stack owns its relative bias. Knows tensors only: no tasks, versions or files.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.backbone.families import family_of
from ladder.backbone.images import Images
from ladder.backbone.kv_cache import CrossKV, DecoderCache
from ladder.backbone.layers import (
    BlockShape,
    RelativeBias,
    RMSNorm,
    causal_bias,
    cross_kv,
    inverse_rms,
    padding_bias,
    rms_normalized,
)
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.rows import take
from ladder.config import BackboneConfig, SideConfig
from ladder.errors import InputsError
from ladder.side.attention_head import AttentionHead, texts_of
from ladder.side.pairs import NO_PAIRS, PARTS, pair_features, pair_means, pairs_of
from ladder.side.visual import VisualEmbedding, images_of, memory_mask, start_linear


class Rung(nn.Module):
    """One ladder connection and its side block."""

    def __init__(self, config: SideConfig, backbone: BackboneConfig, shape: BlockShape, *, decoder: bool) -> None:
        super().__init__()
        self.kind = config.gate
        self.temperature = config.gate_temperature
        self.mix_after = config.mix_after
        self.damped = config.visual is None or config.visual.damped
        self.tap_norm = config.tap_norm
        self.epsilon = shape.epsilon
        self.downsample = nn.Linear(backbone.d_model, shape.width, bias=config.bias)
        self.block = family_of(backbone).block(shape, backbone, decoder=decoder)
        start = torch.full((shape.width if config.gate_form == "channel" else 1,), config.gate_start)
        if config.gate == "learnable":
            self.gate_logit = nn.Parameter(start)
        elif config.gate == "fixed":
            self.register_buffer("gate_logit", start)

    def mix(self, side: Tensor, down: Tensor) -> Tensor:
        """Mix a downsampled tap (B, S, d) into the side state, (B, S, d) or with visual tokens after those S."""
        visual = side.shape[1] - down.shape[1]
        if visual and not self.damped:
            text, images = side.split([down.shape[1], visual], 1)
            return torch.cat([self.mix(text, down), images], 1)
        if visual:
            down = F.pad(down, (0, 0, 0, visual))  # the backbone has read no image
        if self.kind == "none":
            return side + down
        if self.kind == "one":
            return side
        keep = torch.sigmoid(self.gate_logit / self.temperature)  # 1 ignores the tap
        return keep * side + (1 - keep) * down

    def forward(
        self,
        side: Tensor,
        tap: Tensor,
        bias: Tensor,
        *decoder_inputs: object,
        inputs: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the new state (B, S, d) from the state `side` (B, S, d) and its block's `tap` (B, S, D).

        Args:
            inputs: for each row, the row of `tap` that it reads; None: row i reads row i.
        """
        down = self._down(tap.to(side.dtype))
        if inputs is not None:
            down = take(down, inputs)
        if self.mix_after:
            return self.mix(self.block(side, bias, *decoder_inputs), down)
        return self.block(self.mix(side, down), bias, *decoder_inputs)

    def _down(self, tap: Tensor) -> Tensor:
        """Downsample (B, S, D) to (B, S, d)."""
        if self.tap_norm == "none":
            return self.downsample(tap)
        # scaled after the product: the backward pass then keeps the tap itself, not a scaled copy at its width
        down = F.linear(tap, self.downsample.weight) * inverse_rms(tap, self.epsilon)
        down = down.to(tap.dtype)
        return down if self.downsample.bias is None else down + self.downsample.bias


class SideStack(nn.Module):
    """The side encoder or decoder: first downsample, rungs on the kept layers, and the family's final norm."""

    def __init__(self, config: SideConfig, backbone: BackboneConfig, *, decoder: bool) -> None:
        super().__init__()
        layers = config.decoder_layers if decoder else config.encoder_layers
        assert isinstance(layers, tuple)
        family = family_of(backbone)
        shape = side_shape(config, backbone)
        self.layers = layers
        self.dropout = config.dropout
        self.tap_norm = config.tap_norm
        self.epsilon = shape.epsilon
        self.first_downsample = nn.Linear(backbone.d_model, shape.width, bias=config.bias)
        self.rungs = nn.ModuleList(Rung(config, backbone, shape, decoder=decoder) for _ in layers)
        if layers:
            self.relative_bias = family.relative_bias(backbone, decoder=decoder)
        self.final_norm = family.final_norm(shape)

    def encode(
        self, taps: Taps, mask: Tensor, visual: Tensor | None = None, inputs: Sequence[int] | None = None
    ) -> Tensor:
        """Return the side encoder's state after the final norm, (B, S, d), or with visual tokens (B, S + N, d).

        Args:
            mask: (B, S) or (B, S + N) bool, True at real tokens.
            visual: (B, N, D), embedded tokens of images, which follow the text. Relative bias is the text's alone.
            inputs: for each row, the row of `taps` that it reads; None: row i reads row i. A row of the taps that
                several rows read is downsampled once.
        """
        embeddings = self._embeddings(taps)
        if visual is None or inputs is not None:
            side = self._start(embeddings)
        else:
            side = self._start(torch.cat([embeddings.to(visual.dtype), visual], 1))
        if inputs is not None:
            side = take(side, inputs)
            side = side if visual is None else torch.cat([side, self._start(visual)], 1)
        if not self.layers:
            return self._finish(side)
        tokens = taps.mask.shape[1]
        bias = self.relative_bias(tokens, tokens)
        if visual is not None:
            bias = F.pad(bias, (0, visual.shape[1], 0, visual.shape[1]))
        bias = bias + padding_bias(mask, side.dtype)
        for layer, rung in zip(self.layers, self.rungs, strict=True):
            side = rung(side, taps.blocks[layer], bias, inputs=inputs)
        return self._finish(side)

    def decode(self, taps: Taps, memory: Tensor, memory_mask: Tensor, cache: DecoderCache | None) -> Tensor:
        """Return the side decoder's state (B, T, d) after the final norm. `memory` (B, S, d) is the side encoder's."""
        side = self._start(self._embeddings(taps))
        queries = taps.mask.shape[1]
        keys = (cache.length if cache else 0) + queries
        if self.layers:
            bias = self.relative_bias(queries, keys) + causal_bias(queries, keys, side.dtype, side.device)
            if cache and cache.valid is not None:
                bias = bias + padding_bias(cache.valid, side.dtype)
            memory_bias = padding_bias(memory_mask, side.dtype)
            for index, (layer, rung) in enumerate(zip(self.layers, self.rungs, strict=True)):
                self_cache, cross_cache = (cache.own[index], cache.cross[index]) if cache else (None, None)
                side = rung(side, taps.blocks[layer], bias, memory, memory_bias, self_cache, cross_cache)
        if cache:
            cache.length = keys
        return self._finish(side)

    def _embeddings(self, taps: Taps) -> Tensor:
        """The embeddings of text tokens (B, S, D), as the first downsample reads them.

        Those of image tokens are made of RMS norms' outputs, whatever `tap_norm` says.
        """
        embeddings = taps.embeddings.to(self.first_downsample.weight.dtype)
        return rms_normalized(embeddings, self.epsilon) if self.tap_norm == "rms" else embeddings

    def _start(self, embeddings: Tensor) -> Tensor:
        return self.first_downsample(F.dropout(embeddings, self.dropout, self.training))

    def _finish(self, side: Tensor) -> Tensor:
        if isinstance(self.final_norm, nn.Identity):
            return side  # the last block applied norm and dropout
        return F.dropout(self.final_norm(side), self.dropout, self.training)


class MlpHead(nn.Module):
    """BART's classification head: two layers with a tanh between them, at the backbone's width."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.dense = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, state: Tensor) -> Tensor:
        """(B, D) to (B, outputs)."""
        inner = torch.tanh(self.dense(F.dropout(state, self.dropout, self.training)))
        return self.out(F.dropout(inner, self.dropout, self.training))


class SideNetwork(nn.Module):
    """All rungs and a head: an upsample into the backbone's LM head, or a trained head on the side encoder."""

    def __init__(self, config: SideConfig, backbone: BackboneConfig) -> None:
        """Start with random weights; see `reset`.

        Raises:
            SideConfigError: the shape does not fit the backbone.
        """
        super().__init__()
        self.config = config.resolve(backbone)
        width = side_shape(self.config, backbone).width
        if self.config.visual is not None:
            self.visual = VisualEmbedding(self.config.visual, backbone)
        self.encoder = SideStack(self.config, backbone, decoder=False)
        if self.config.has_decoder:
            self.decoder = SideStack(self.config, backbone, decoder=True)
            if self.config.merge_last:
                self.merge_logit = nn.Parameter(torch.full((1,), self.config.merge_start))
        if self.config.head in ("text", "mlp"):
            self.upsample = nn.Linear(width, backbone.d_model, bias=self.config.bias)
        if self.config.head == "linear":
            self.head = nn.Linear(width * PARTS if self.config.pair else width, self.config.outputs)
            if self.config.words:
                self.words = nn.Linear(backbone.d_model, self.config.outputs, bias=False)
        elif self.config.head == "attention":
            self.head = AttentionHead(width, self.config.outputs, pair=self.config.pair)
        elif self.config.head == "mlp":
            self.head = MlpHead(backbone.d_model, self.config.outputs, self.config.dropout)
        if not self.encoder.first_downsample.weight.is_meta:
            self.reset(backbone)

    @property
    def encoder_depth(self) -> int | None:
        """Number of backbone encoder blocks that the network reads; None: all, and the decoder (text head)."""
        layers = self.encoder.layers
        return None if self.config.has_decoder else (layers[-1] + 1 if layers else 0)

    def encode(self, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None) -> Tensor:
        """Run the side encoder: (B, S, d), which the side decoder or the head reads; S with the tokens of images.

        Args:
            inputs: for each row, the row of `taps` that it reads; None: row i reads row i.
            images: of these rows; None: those of the rows of `taps` that they read.

        Raises:
            InputsError: images are missing, or are not what the network reads.
        """
        visual = None if self.config.visual is None else self.visual(images_of(taps, inputs, images))
        return self.encoder.encode(taps, self.memory_mask(taps, inputs, images), visual, inputs)

    def memory_mask(self, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None) -> Tensor:
        """Return which tokens of `encode`'s state are real, (B, S) bool. Arguments as `encode`'s."""
        return memory_mask(self.config.visual, taps, inputs, images)

    def decode(self, taps: Taps, memory: Tensor, memory_mask: Tensor, cache: DecoderCache | None = None) -> Tensor:
        """Run the side decoder and the upsample: (B, T, D), for `Backbone.logits`.

        Args:
            taps: the backbone decoder's, for the new tokens.
            memory: (B, S, d), from `encode`.
            memory_mask: (B, S) bool.
            cache: extended in place; from `decoder_cache`.
        """
        state = self.upsample(self.decoder.decode(taps, memory, memory_mask, cache))
        if not self.config.merge_last:
            return state
        assert taps.final is not None
        keep = torch.sigmoid(self.merge_logit / self.config.gate_temperature)
        return keep * state + (1 - keep) * taps.final

    def cross_kv(self, memory: Tensor) -> CrossKV:
        """Return the side decoder's cross-attention keys and values of `memory` (B, S, d), from `encode`."""
        return cross_kv((rung.block for rung in self.decoder.rungs if isinstance(rung, Rung)), memory)

    def read(self, memory: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
        """Apply a linear head to the mean of real tokens, an attention head to those that it attends to, or an mlp head
        to the last one: (B, outputs), float32.

        Args:
            pairs: (B, 2, 2), see `Taps.pairs`; for a head that reads the texts of a pair apart.

        Raises:
            InputsError: such a head, and no pairs.
        """
        if self.config.head == "attention":
            return self.head(memory, texts_of(self.config.pair, memory.shape[1], mask, pairs))
        if self.config.pair:
            if pairs is None:
                raise InputsError(NO_PAIRS)
            return self.head(pair_features(pair_means(memory, pairs)))
        if self.config.head == "mlp":
            return self.head(self.upsample(last_of_real(memory, mask)).float())
        return self.head(mean_of_real(memory, mask))

    def read_tokens(self, memory: Tensor) -> Tensor:
        """Apply a linear head to every token: (B, S, outputs), float32."""
        return self.head(memory.float())

    def read_all(
        self, memory: Tensor, taps: Taps, inputs: Sequence[int] | None = None, images: Images | None = None
    ) -> Tensor:
        """As `read` with the pairs of `taps`; `config.words` adds a linear layer on the mean of the token embeddings.

        `inputs` and `images` as `encode`'s.
        """
        mask = self.memory_mask(taps, inputs, images)
        outputs = self.read(memory, mask, pairs_of(self.config, taps, mask))
        return outputs + self.words(mean_of_words(taps, inputs)) if self.config.words else outputs

    def decoder_cache(self) -> DecoderCache:
        """Return an empty cache for `decode`."""
        return DecoderCache(len(self.decoder.layers))

    @torch.no_grad()
    def silence(self) -> None:
        """Zero the upsample, for a network with `merge_last`.

        The answer is then the backbone's (its logits times one minus the gate) until training changes the upsample.
        """
        for parameter in self.upsample.parameters():
            parameter.zero_()

    @torch.no_grad()
    def reset(self, backbone: BackboneConfig, generator: torch.Generator | None = None) -> None:
        """Draw random weights as the LST authors do: normal, with the family's deviations; norms 1, biases 0.

        With images, projections start as torch starts them, as in the authors' code for CLIP-T5.
        """
        family = family_of(backbone)
        for name, module in self.named_modules():
            if self.config.visual is not None and isinstance(module, nn.Linear) and ".block." not in name:
                start_linear(module, generator)
                continue
            if isinstance(module, nn.Linear | RelativeBias):
                part = name.rsplit(".", 1)[-1]
                std = family.start_std(part if ".block." in name or part == "relative_bias" else None, backbone)
                start = torch.empty(module.weight.shape).normal_(0, std, generator=generator)
                module.weight.copy_(start)
            elif isinstance(module, RMSNorm | nn.LayerNorm):
                module.weight.fill_(1)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                module.bias.zero_()
        if self.config.visual is not None:
            self.visual.reset(generator)


def mean_of_real(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of (B, S, D) where `mask` (B, S) is True: (B, D) in float32."""
    weights = mask[:, :, None].float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def mean_of_words(taps: Taps, inputs: Sequence[int] | None = None) -> Tensor:
    """Return the mean of the real tokens' embeddings (B, D) in float32.

    Args:
        inputs: for each row, the row of `taps` that it reads; None: row i reads row i.
    """
    means = mean_of_real(taps.embeddings, taps.mask)
    return means if inputs is None else take(means, inputs)


def last_of_real(states: Tensor, mask: Tensor) -> Tensor:
    """Return the last of (B, S, D) where `mask` (B, S) is True: (B, D). Padding may be on either side."""
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)
    return states[torch.arange(len(states), device=states.device), last]


def side_shape(config: SideConfig, backbone: BackboneConfig) -> BlockShape:
    """Return the backbone's block shape, its widths divided by r; the number of heads stays."""
    return family_of(backbone).shape(backbone, config.reduction, config.dropout)


def forward(
    backbone: Backbone,
    side: SideNetwork,
    ids: Tensor,
    mask: Tensor,
    decoder_ids: Tensor,
    images: Images | None = None,
) -> Tensor:
    """Teacher-forced logits (B, T, V) of one side network, computed as the LST authors do, without cache or batching.

    Args:
        ids: (B, S) token ids.
        mask: (B, S) bool, True at real tokens.
        decoder_ids: (B, T) token ids; the first is the start token.
        images: of a side network that reads images.
    """
    taps = replace(backbone.encode(ids, mask), images=images)
    assert taps.final is not None
    decoder_taps = backbone.decode(decoder_ids, taps.final, mask)
    return backbone.logits(side.decode(decoder_taps, side.encode(taps), side.memory_mask(taps)))
