"""The frozen backbone that returns its activations. It never learns, has no dropout, and knows no task.

Its parts come from its family; see `ladder.backbone.families`.

Taps are raw block outputs, before any final norm: Hugging Face's `hidden_states` put the normed state last instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.backbone.families import family_of
from ladder.backbone.images import Images
from ladder.backbone.kv_cache import CrossKV, DecoderCache
from ladder.backbone.layers import as_read, causal_bias, cross_kv, padding_bias
from ladder.backbone.packing import Division, Spans, cut, pack, token_indices
from ladder.config import BackboneConfig
from ladder.errors import BackboneError


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """All activations of one stack in one pass."""

    embeddings: Tensor
    """(B, S, D), before the first block."""
    blocks: tuple[Tensor, ...]
    """Each block's raw output, (B, S, D); fewer than the stack's blocks if the pass stopped early."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    final: Tensor | None = None
    """(B, S, D), the last block's output after the final norm; None if the pass stopped early."""
    images: Images | None = None
    """What side networks read besides an encoder's activations; the backbone does not read it."""
    pairs: Tensor | None = None
    """(B, 2, 2), where the two texts of a pair lie among the tokens of an input: the first of each and the one after
    its last. Read by side networks with `SideConfig.pair`."""

    def select(self, rows: Tensor) -> "Taps":
        """The taps of `rows` (B',), in that order."""
        return Taps(
            embeddings=self.embeddings[rows],
            blocks=tuple(block[rows] for block in self.blocks),
            mask=self.mask[rows],
            final=None if self.final is None else self.final[rows],
            images=None if self.images is None else self.images.select(rows),
            pairs=None if self.pairs is None else self.pairs[rows],
        )


class Stack(nn.Module):
    """An encoder's or a decoder's blocks, with relative bias and final norm if the family has them."""

    def __init__(self, config: BackboneConfig, *, decoder: bool) -> None:
        super().__init__()
        family = family_of(config)
        shape = family.shape(config)
        count = config.num_decoder_layers if decoder else config.num_layers
        self.blocks = nn.ModuleList(family.block(shape, config, decoder=decoder) for _ in range(count))
        self.relative_bias = family.relative_bias(config, decoder=decoder)
        self.final_norm = family.final_norm(shape)


class Backbone(nn.Module):
    """A frozen backbone with taps. `load_backbone` makes one.

    Without a decoder (`config.num_decoder_layers` 0) it has neither `decoder` nor `head`.
    """

    def __init__(self, config: BackboneConfig, *, name: str = "backbone", fingerprint: str = "") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.fingerprint = fingerprint
        self.quantization = "none"  # set by `quantize_backbone`
        self.shared = nn.Parameter(torch.zeros(config.vocab_size, config.d_model))
        self.embedding = family_of(config).embedding(config)
        self.encoder = Stack(config, decoder=False)
        if config.num_decoder_layers:
            self.decoder = Stack(config, decoder=True)
            self.head = nn.Parameter(torch.zeros(config.vocab_size, config.d_model))
        self.vocabulary: nn.Module | None = None
        """The quantized LM head, used if the whole vocabulary is scored; None: `head` is used."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)  # a parent's .train() must not wake anything in here

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.shared.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights that are not quantized."""
        return self.shared.dtype

    def forward(self, ids: Tensor, mask: Tensor, decoder_ids: Tensor, visual: Tensor | None = None) -> Tensor:
        """Teacher-forced logits (B, T, V) of the backbone alone.

        The only method through which gradients flow: Fisher importances differentiate copies of the weights. Training
        never calls it.

        Args:
            visual: (B, N, D), embedded tokens of images, which follow the text in the encoder. They have no relative
                positions. Only Fisher importances give them: otherwise the backbone reads the text alone.
        """
        taps = self._encode(ids, mask, None, visual)
        assert taps.final is not None
        state = self._decode(decoder_ids, taps.final, taps.mask, None).final
        assert state is not None
        return self.logits(state)

    @property
    def has_decoder(self) -> bool:
        """Whether a text head can use this backbone."""
        return self.config.num_decoder_layers > 0

    def embed(self, ids: Tensor) -> Tensor:
        """Map token ids (B, S), or one row's (S,), to the first block's input (B, S, D). Ids start at the first token.

        Raises:
            BackboneError: more tokens than it has positions for.
        """
        most = self.config.max_positions
        if most is not None and ids.shape[-1] > most:
            raise BackboneError(f"{self.name} reads at most {most} tokens, got {ids.shape[-1]}: cut the text")
        return self.embedding(F.embedding(ids, self.shared))

    @torch.no_grad()
    def encode(self, ids: Tensor, mask: Tensor, depth: int | None = None) -> Taps:
        """Run the encoder.

        Args:
            ids: (B, S) token ids.
            mask: (B, S) bool, True at real tokens.
            depth: stop after this many blocks; None runs all and the final norm.
        """
        return self._encode(ids, mask, depth)

    def _encode(self, ids: Tensor, mask: Tensor, depth: int | None, visual: Tensor | None = None) -> Taps:
        embeddings = self.embed(ids)
        bias = self.encoder.relative_bias(ids.shape[1], ids.shape[1])
        if visual is not None:
            embeddings = torch.cat([embeddings, visual.to(embeddings.dtype)], 1)
            mask = torch.cat([mask, mask.new_ones(visual.shape[:2])], 1)
            bias = F.pad(bias, (0, visual.shape[1], 0, visual.shape[1]))
        bias = bias + padding_bias(mask, self.dtype)
        hidden = embeddings
        blocks = []
        for block in self.encoder.blocks[:depth]:
            hidden = block(hidden, bias)
            blocks.append(hidden)
        final = self.encoder.final_norm(hidden) if len(blocks) == len(self.encoder.blocks) else None
        return Taps(embeddings=embeddings, blocks=tuple(blocks), mask=mask, final=final)

    @torch.no_grad()
    def encode_divided(self, ids: Tensor, mask: Tensor, depth: int | None, division: Division) -> list[Taps]:
        """As `encode`, without most of the padding. Returns the taps of each group of `division`.

        Args:
            mask: (B, S) bool; real tokens come first in every row.
        """
        stack = self.encoder
        parts = division.parts
        bias = stack.relative_bias
        spans = Spans.of(parts, mask, lambda part: bias(part.shape[1], part.shape[1]) + padding_bias(part, self.dtype))
        layers = [pack(parts, self.embed, ids)]
        for block in stack.blocks[:depth]:
            layers.append(block(layers[-1], spans))
        whole = len(layers) == len(stack.blocks) + 1
        if whole:
            layers.append(stack.final_norm(layers[-1]))
        indices = token_indices(parts, *ids.shape).to(ids.device)
        return [_unpacked(layers, cut(indices, group), cut(mask, group), whole) for group in division.groups]

    @torch.no_grad()
    def decode(self, ids: Tensor, memory: Tensor, memory_mask: Tensor, cache: DecoderCache | None = None) -> Taps:
        """Run the decoder over new tokens.

        Args:
            ids: (B, T), the tokens after those in `cache`; the first is the decoder's start token.
            memory: (B, S, D), the encoder's `Taps.final`.
            memory_mask: (B, S) bool.
            cache: extended in place.

        Raises:
            BackboneError: the backbone has no decoder.
        """
        return self._decode(ids, memory, memory_mask, cache)

    def _decode(self, ids: Tensor, memory: Tensor, memory_mask: Tensor, cache: DecoderCache | None) -> Taps:
        self._need_decoder()
        before = cache.length if cache else 0
        queries = ids.shape[1]
        keys = before + queries
        hidden = embeddings = self.embed(ids)
        bias = self.decoder.relative_bias(queries, keys) + causal_bias(queries, keys, self.dtype, ids.device)
        if cache and cache.valid is not None:
            bias = bias + padding_bias(cache.valid, self.dtype)
        memory_bias = padding_bias(memory_mask, self.dtype)
        if cache is None:
            memory = as_read(self.decoder.blocks, memory)
        blocks = []
        for index, block in enumerate(self.decoder.blocks):
            self_cache, cross_cache = (cache.own[index], cache.cross[index]) if cache else (None, None)
            hidden = block(hidden, bias, memory, memory_bias, self_cache, cross_cache)
            blocks.append(hidden)
        if cache:
            cache.length = keys
        mask = torch.ones_like(ids, dtype=torch.bool)
        return Taps(embeddings=embeddings, blocks=tuple(blocks), mask=mask, final=self.decoder.final_norm(hidden))

    def _need_decoder(self) -> None:
        if not self.has_decoder:
            raise BackboneError(f"{self.name} has no decoder here: use side networks with a linear or an mlp head")

    def decoder_cache(self) -> DecoderCache:
        """Return an empty cache for `decode`.

        Raises:
            BackboneError: the backbone has no decoder.
        """
        self._need_decoder()
        return DecoderCache(len(self.decoder.blocks))

    @torch.no_grad()
    def cross_kv(self, memory: Tensor) -> CrossKV:
        """Return the cross-attention keys and values of `memory` (B, S, D), the encoder's `Taps.final`.

        Raises:
            BackboneError: the backbone has no decoder.
        """
        self._need_decoder()
        return cross_kv(self.decoder.blocks, memory)

    def logits(self, state: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Apply the LM head. Gradients flow to `state`, never into the head.

        Args:
            state: (..., D), a decoder's output after its final norm, or a side network's upsampled one.
            tokens: (N,) ids to score; None scores the vocabulary.
        Returns:
            (..., N) or (..., V).
        Raises:
            BackboneError: the backbone has no decoder, and so no LM head.
        """
        self._need_decoder()
        if self.config.scale_output:
            state = state * self.config.d_model**-0.5
        if tokens is None and self.vocabulary is not None and not state.requires_grad:
            return self.vocabulary(state.to(self.dtype))
        return F.linear(state.to(self.dtype), self.head if tokens is None else self.head[tokens])


def _unpacked(layers: Sequence[Tensor], indices: Tensor, mask: Tensor, whole: bool) -> Taps:
    """Taps (B, S, D) from packed layers (1, N, D); the last layer is the final norm's output if `whole`.

    Args:
        indices: (B, S), each token's index among the N.
    """
    unpacked = [layer[0].index_select(0, indices.flatten()).unflatten(0, indices.shape) for layer in layers]
    final = unpacked.pop() if whole else None
    return Taps(embeddings=unpacked[0], blocks=tuple(unpacked[1:]), mask=mask, final=final)
