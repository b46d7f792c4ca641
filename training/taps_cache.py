"""Backbone activations computed once, before the first epoch: a frozen backbone computes the same in every one.

Kept in bfloat16, up to a bound in bytes, shortest rows first; rows past it run through the backbone each time. The
batches in which they are computed depend on the data alone, so that an interrupted run goes on with the same numbers.
Rows with images often have the same text: then each distinct text is computed and kept once, and rows read it.
Rounding moves an activation by at most 0.4 %, in training alone: validation keeps its passes exactly, see
`training.multitask.kept_passes`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ladder import Backbone, BackbonePass, SideNetwork, Taps, run_backbone


@dataclass(frozen=True, slots=True)
class _Kept:
    """One row's activations, bfloat16."""

    blocks: Tensor
    """(kept layers + final, S, D); the final state is there for a decoder only."""
    first_step: Tensor | None
    """(decoder blocks, 1, D): the decoder's taps after its start token."""


class TapsCache:
    """Runs the backbone for batches of training rows, or returns the activations it kept."""

    def __init__(
        self,
        backbone: Backbone,
        sides: Sequence[SideNetwork],
        inputs: Sequence[tuple[int, ...]],
        also: Sequence[int] = (),
        *,
        distinct: bool = False,
    ) -> None:
        """Keeps nothing yet; see `fill`.

        Args:
            sides: the encoder blocks that they read are kept.
            inputs: token ids of all rows.
            also: more encoder blocks to keep, where a side network has a decoder.
            distinct: compute equal inputs once. The numbers then differ by rounding from those of other batches, so
                tasks without images, where few inputs are equal, do not.
        """
        self._backbone = backbone
        self._reads: list[int] | None = None
        if distinct:
            number = {ids: index for index, ids in enumerate(dict.fromkeys(inputs))}
            self._reads = [number[ids] for ids in inputs]
            inputs = list(number)
        self._inputs = inputs
        self._depth = deepest(sides)
        self._decodes = self._depth is None
        read = {layer for side in sides for layer in side.encoder.layers}
        self._layers = tuple(sorted({*read, *(also if self._decodes else ())}))
        self._kept: dict[int, _Kept] = {}
        self.kept_bytes = 0
        """Of activations."""

    def fill(
        self,
        max_bytes: int,
        batch_rows: int,
        step: Callable[[int, int], None],
        indices: Sequence[int] | None = None,
    ) -> None:
        """Run the backbone over the rows until `max_bytes` are kept.

        Args:
            batch_rows: rows of one pass.
            step: called with rows done and rows in all.
            indices: of the inputs that will be read; None: all.
        """
        read = range(len(self._reads or self._inputs)) if indices is None else indices
        wanted = set(read if self._reads is None else (self._reads[index] for index in read))
        order = sorted(wanted, key=lambda index: (len(self._inputs[index]), index))
        for start in range(0, len(order), batch_rows):
            if self.kept_bytes >= max_bytes:
                break
            batch = order[start : start + batch_rows]
            backbone_pass = run_backbone(self._backbone, [self._inputs[index] for index in batch], self._depth)
            for index, row in zip(batch, self._round(backbone_pass), strict=True):
                self._kept[index] = row
                self.kept_bytes += row.blocks.nbytes + (0 if row.first_step is None else row.first_step.nbytes)
            step(start + len(batch), len(order))
        step(len(order), len(order))

    def run(self, indices: Sequence[int]) -> BackbonePass:
        """The pass over the inputs with these indices, in this order; kept activations where all of them are kept."""
        if self._reads is None:
            return self._run(indices)
        reads = [self._reads[index] for index in indices]
        position = {read: row for row, read in enumerate(dict.fromkeys(reads))}
        return self._run(list(position)).select([position[read] for read in reads])

    def _run(self, indices: Sequence[int]) -> BackbonePass:
        inputs = [self._inputs[index] for index in indices]
        kept = [self._kept[index] for index in indices if index in self._kept]
        if len(kept) == len(indices):
            return self._pass(kept, inputs)
        return run_backbone(self._backbone, inputs, self._depth)

    def _round(self, backbone_pass: BackbonePass) -> list[_Kept]:
        """The activations of each row, without its padding, in bfloat16."""
        taps = backbone_pass.taps
        tensors = [taps.blocks[layer] for layer in self._layers] + ([taps.final] if self._decodes else [])
        stacked = torch.stack([t for t in tensors if t is not None]).to(torch.bfloat16) if tensors else taps.mask[None]
        first = torch.stack(backbone_pass.decoder_taps().blocks).to(torch.bfloat16) if self._decodes else None
        lengths = taps.mask.sum(1).tolist()
        return [
            _Kept(stacked[:, row, :length].clone(), None if first is None else first[:, row].clone())
            for row, length in enumerate(lengths)
        ]

    def _pass(self, kept: Sequence[_Kept], inputs: Sequence[tuple[int, ...]]) -> BackbonePass:
        backbone = self._backbone
        longest = max(len(ids) for ids in inputs)
        pad = backbone.config.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in inputs], device=backbone.device)
        lengths = torch.tensor([len(row) for row in inputs], device=backbone.device)
        mask = torch.arange(longest, device=backbone.device)[None] < lengths[:, None]
        embeddings = backbone.embed(ids)
        states: dict[int, Tensor] = {}
        final = None
        if self._layers or self._decodes:
            padded = [F.pad(row.blocks, (0, 0, 0, longest - row.blocks.shape[1])) for row in kept]
            stacked = torch.stack(padded, 1).to(backbone.dtype)
            states = dict(zip(self._layers, stacked, strict=False))
            final = stacked[-1] if self._decodes else None
        # blocks that no rung reads are not kept; any tensor can stand in for them
        depth = len(backbone.encoder.blocks) if self._depth is None else self._depth
        blocks = tuple(states.get(layer, embeddings) for layer in range(depth))
        backbone_pass = BackbonePass(backbone, Taps(embeddings=embeddings, blocks=blocks, mask=mask, final=final))
        if self._decodes:
            backbone_pass.preset(self._first_step(kept))
        return backbone_pass

    def _first_step(self, kept: Sequence[_Kept]) -> Taps:
        backbone = self._backbone
        blocks = torch.stack([row.first_step for row in kept if row.first_step is not None], 1).to(backbone.dtype)
        start = torch.full((len(kept), 1), backbone.config.decoder_start_token_id, device=backbone.device)
        return Taps(
            embeddings=backbone.embed(start),
            blocks=tuple(blocks),
            mask=torch.ones_like(start, dtype=torch.bool),
            final=backbone.decoder.final_norm(blocks[-1]),
        )


def deepest(sides: Sequence[SideNetwork]) -> int | None:
    """Encoder blocks that the deepest of some side networks reads; None: all, and the decoder."""
    depths = [side.encoder_depth for side in sides]
    known = [depth for depth in depths if depth is not None]
    return max(known) if len(known) == len(depths) else None
