"""One backbone pass over distinct inputs, read by any number of side networks.

The decoder runs only when a side network needs it, once per prefix, for all side networks: the first step is the same
for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladder.backbone.model import Backbone, Taps


class BackbonePass:
    """Encoder taps of B inputs, and decoder taps on demand."""

    def __init__(self, backbone: Backbone, taps: Taps) -> None:
        self.backbone = backbone
        self.taps = taps
        self._decoded: dict[tuple[int, ...], Taps] = {}

    @property
    def rows(self) -> int:
        """Number of inputs."""
        return self.taps.mask.shape[0]

    def decoder_taps(self, prefix: tuple[int, ...] = ()) -> Taps:
        """Return decoder taps (B, 1 + len(prefix), D) after the start token and `prefix`, which all rows share."""
        if prefix not in self._decoded:
            assert self.taps.final is not None, "the encoder stopped early; a decoder needs all of it"
            start = self.backbone.config.decoder_start_token_id
            ids = torch.tensor([[start, *prefix]], device=self.taps.mask.device).expand(self.rows, -1)
            self._decoded[prefix] = self.backbone.decode(ids, self.taps.final, self.taps.mask)
        return self._decoded[prefix]

    def decode_prefix(self, rows: Sequence[int], prefix: tuple[int, ...] = ()) -> "DecoderTaps":
        """As `decoder_taps`, but only for some rows: the others need no decoder."""
        if prefix in self._decoded or len(rows) == self.rows:
            return DecoderTaps(self.decoder_taps(prefix), {row: row for row in rows})
        part = BackbonePass(self.backbone, _memory_of(self.taps, rows))
        return DecoderTaps(part.decoder_taps(prefix), {row: index for index, row in enumerate(rows)})

    def preset(self, first_step: Taps) -> None:
        """Set the decoder's first step, cached from an earlier pass over the same inputs."""
        self._decoded[()] = first_step

    def select(self, rows: Sequence[int]) -> "BackbonePass":
        """Return the pass of some rows, in that order; it shares what this pass decodes."""
        return self if list(rows) == list(range(self.rows)) else _SelectedPass(self, rows)


@dataclass(frozen=True, slots=True)
class DecoderTaps:
    """Decoder taps of some rows of a pass."""

    taps: Taps
    where: Mapping[int, int]
    """Row of the pass to row of `taps`."""

    def select(self, rows: Sequence[int]) -> Taps:
        """Return the taps of some rows of the pass, in that order."""
        indices = [self.where[row] for row in rows]
        if indices == list(range(len(self.taps.mask))):
            return self.taps
        return self.taps.select(torch.tensor(indices, device=self.taps.mask.device))


class _SelectedPass(BackbonePass):
    def __init__(self, parent: BackbonePass, rows: Sequence[int]) -> None:
        self._parent = parent
        self._rows = torch.tensor(rows, dtype=torch.long, device=parent.taps.mask.device)
        super().__init__(parent.backbone, parent.taps.select(self._rows))

    def decoder_taps(self, prefix: tuple[int, ...] = ()) -> Taps:
        if prefix not in self._decoded:
            self._decoded[prefix] = self._parent.decoder_taps(prefix).select(self._rows)
        return self._decoded[prefix]


def _memory_of(taps: Taps, rows: Sequence[int]) -> Taps:
    """Only the taps that the decoder reads, of some rows."""
    assert taps.final is not None, "the encoder stopped early; a decoder needs all of it"
    chosen = torch.tensor(rows, dtype=torch.long, device=taps.mask.device)
    return Taps(embeddings=taps.embeddings, blocks=(), mask=taps.mask[chosen], final=taps.final[chosen])


def run_backbone(backbone: Backbone, inputs: Sequence[Sequence[int]], depth: int | None = None) -> BackbonePass:
    """Pad `inputs` (token ids) to the longest and encode them with the first `depth` blocks (None: all)."""
    return BackbonePass(backbone, backbone.encode(*padded(backbone, inputs), depth))


def padded(backbone: Backbone, inputs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad `inputs` (token ids) to the longest.

    Returns:
        ids (B, S) and mask (B, S) bool, True at real tokens, on the backbone's device.
    """
    longest = max(len(ids) for ids in inputs)
    ids = torch.full((len(inputs), longest), backbone.config.pad_token_id)
    mask = torch.zeros((len(inputs), longest), dtype=torch.bool)
    for row, tokens in enumerate(inputs):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    return ids.to(backbone.device), mask.to(backbone.device)
