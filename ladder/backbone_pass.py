"""One backbone pass over distinct inputs, read by any number of side networks.

The decoder runs only when a side network asks, once per prefix, for all of them: the first step is everybody's.
"""

from collections.abc import Sequence

import torch

from ladder.backbone import Backbone, Taps


class BackbonePass:
    """Encoder taps of B inputs, and decoder taps on demand."""

    def __init__(self, backbone: Backbone, taps: Taps) -> None:
        self.backbone, self.taps = backbone, taps
        self._decoded: dict[tuple[int, ...], Taps] = {}

    @property
    def rows(self) -> int:
        return self.taps.mask.shape[0]

    def decoder_taps(self, prefix: tuple[int, ...] = ()) -> Taps:
        """Decoder taps (B, 1 + len(prefix), D) after the start token and `prefix`, the same for every row."""
        if prefix not in self._decoded:
            assert self.taps.final is not None, "the encoder stopped early; a decoder needs all of it"
            start = self.backbone.config.decoder_start_token_id
            ids = torch.tensor([[start, *prefix]], device=self.taps.mask.device).expand(self.rows, -1)
            self._decoded[prefix] = self.backbone.decode(ids, self.taps.final, self.taps.mask)
        return self._decoded[prefix]

    def preset(self, first_step: Taps) -> None:
        """Give the decoder's first step, kept from an earlier pass over the same inputs."""
        self._decoded[()] = first_step

    def select(self, rows: Sequence[int]) -> "BackbonePass":
        """The pass of some rows, in that order; it shares what its parent decodes."""
        return self if list(rows) == list(range(self.rows)) else _SelectedPass(self, rows)


class _SelectedPass(BackbonePass):
    def __init__(self, parent: BackbonePass, rows: Sequence[int]) -> None:
        self._parent, self._rows = parent, torch.tensor(rows, dtype=torch.long, device=parent.taps.mask.device)
        super().__init__(parent.backbone, parent.taps.select(self._rows))

    def decoder_taps(self, prefix: tuple[int, ...] = ()) -> Taps:
        if prefix not in self._decoded:
            self._decoded[prefix] = self._parent.decoder_taps(prefix).select(self._rows)
        return self._decoded[prefix]


def run_backbone(backbone: Backbone, inputs: Sequence[Sequence[int]], depth: int | None = None) -> BackbonePass:
    """Pad `inputs` (token ids) to the longest and encode them, down to `depth` blocks (None: all)."""
    longest = max(len(ids) for ids in inputs)
    ids = torch.full((len(inputs), longest), backbone.config.pad_token_id)
    mask = torch.zeros((len(inputs), longest), dtype=torch.bool)
    for row, tokens in enumerate(inputs):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    return BackbonePass(backbone, backbone.encode(ids.to(backbone.device), mask.to(backbone.device), depth))
