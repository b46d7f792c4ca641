"""Backbone passes over the validation rows, kept for the epochs that follow: they equal new ones to the last bit.

Kept whole, in the backbone's dtype and with their padding, so that a score does not depend on whether a pass was kept.
Batches past the bound run through the backbone each time.
"""

from collections.abc import Sequence
from dataclasses import replace

from ladder import Backbone, BackbonePass, SideNetwork, Taps, run_backbone
from ladder.backbone import padded
from training.taps_cache import deepest


class KeptPasses:
    """Runs the backbone for batches of validation rows, or returns the pass that it kept for the same inputs."""

    def __init__(self, sides: Sequence[SideNetwork], *, first_step: bool) -> None:
        """Keeps nothing until `max_bytes` is set.

        Args:
            sides: all that will read the passes.
            first_step: keep the decoder's first step too, from which a text head scores labels.
        """
        self.max_bytes = 0
        self._kept_bytes = 0
        self._layers = {layer for side in sides for layer in side.encoder.layers}
        self._depth = deepest(sides)
        self._first_step = first_step
        self._kept: dict[tuple[tuple[int, ...], ...], tuple[Taps, Taps | None]] = {}

    def run(self, backbone: Backbone, inputs: Sequence[Sequence[int]], _: int | None) -> BackbonePass:
        """As `run_backbone`, to the depth that the deepest side network needs."""
        key = tuple(map(tuple, inputs))
        if key in self._kept:
            taps, first = self._kept[key]
            embeddings = backbone.embed(padded(backbone, inputs)[0])
            backbone_pass = BackbonePass(backbone, replace(taps, embeddings=embeddings))
            if first is not None:
                backbone_pass.preset(first)
            return backbone_pass
        backbone_pass = run_backbone(backbone, inputs, self._depth)
        if self._kept_bytes < self.max_bytes:
            self._keep(key, backbone_pass)
        return backbone_pass

    def _keep(self, key: tuple[tuple[int, ...], ...], backbone_pass: BackbonePass) -> None:
        taps = backbone_pass.taps
        decodes = self._depth is None
        first = backbone_pass.decoder_taps() if decodes and self._first_step else None
        final = taps.final if decodes else None
        tensors = [block for layer, block in enumerate(taps.blocks) if layer in self._layers]
        tensors += [tensor for tensor in (final, *(first.blocks if first else ())) if tensor is not None]
        size = sum(tensor.nbytes for tensor in tensors)
        if self._kept_bytes + size > self.max_bytes:
            return
        self._kept_bytes += size
        # the mask stands in for what no rung reads, and for the embeddings, which are looked up again
        blocks = tuple(block if layer in self._layers else taps.mask for layer, block in enumerate(taps.blocks))
        self._kept[key] = (replace(taps, embeddings=taps.mask, blocks=blocks, final=final), first)
