"""The backbone's encoder and first decoder step, recorded for a bounded set of shapes; other shapes run eagerly.

Inputs are padded to the next recorded shape. `ladder.backbone.compiled` compiles the encoder as well, which takes
minutes; recording takes seconds.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ladder.backbone.compiled import Shape
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.recordings import Recorder, Recording, Values


def next_shape(shapes: Iterable[Shape], rows: int, tokens: int) -> Shape | None:
    """Return the smallest shape that is large enough; None if there is none."""
    fits = [shape for shape in shapes if shape[0] >= rows and shape[1] >= tokens]
    return min(fits, key=lambda shape: shape[0] * shape[1], default=None)


class RecordedBackbone:
    """Passes of a backbone. Called as `Backbone.encode`. It runs eagerly before `warm_up`.

    Args:
        shapes: (rows, tokens) to record, such as `Limits.shapes`.
    """

    def __init__(self, backbone: Backbone, shapes: Iterable[Shape], recorder: Recorder) -> None:
        self._backbone = backbone
        self._shapes = sorted(shapes, key=lambda shape: -shape[0] * shape[1])  # memory is allocated for the largest
        self._recorder = recorder
        self._encoders: dict[Shape, Recording] = {}
        self._first_steps: dict[Shape, Recording] = {}

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Record every shape. Call it on the thread that will call this object."""
        for shape in self._shapes:
            ids = torch.full(shape, self._backbone.config.eos_token_id, device=self._backbone.device)
            mask = torch.ones_like(ids, dtype=torch.bool)
            self._encoders[shape] = Recording.of(self._recorder, self._encode, (ids, mask))
            if self._backbone.has_decoder:
                memory = self._backbone.embed(ids).clone()
                recording = Recording.of(self._recorder, self._decode, (memory, torch.ones_like(mask)))
                self._first_steps[shape] = recording

    def __call__(self, ids: Tensor, mask: Tensor, depth: int | None = None) -> Taps:
        """As `Backbone.encode`."""
        whole = depth is None or depth >= len(self._backbone.encoder.blocks)
        shape = next_shape(self._encoders, *ids.shape) if whole else None
        if shape is None:
            return self._backbone.encode(ids, mask, depth)
        rows, tokens = ids.shape
        embeddings, *blocks, final = self._encoders[shape].run((ids, _whole_rows(mask, shape[0])))
        cut = [layer[:rows, :tokens].clone() for layer in (embeddings, *blocks, final)]
        return Taps(embeddings=cut[0], blocks=tuple(cut[1:-1]), mask=mask, final=cut[-1])

    def first_step(self, memory: Tensor, mask: Tensor) -> Taps:
        """Run the decoder on the start token. Arguments as `Backbone.decode`'s memory (B, S, D) and its mask (B, S)."""
        rows = len(mask)
        shape = next_shape(self._first_steps, *mask.shape)
        if shape is None:
            layers = self._decode(memory, mask)
        else:
            recorded = self._first_steps[shape].run((memory, _whole_rows(mask, shape[0])))
            layers = tuple(layer[:rows].clone() for layer in recorded)
        embeddings, *blocks, final = layers
        return Taps(embeddings=embeddings, blocks=tuple(blocks), mask=mask.new_ones(rows, 1), final=final)

    def _encode(self, ids: Tensor, mask: Tensor) -> Values:
        taps = self._backbone.encode(ids, mask)
        assert taps.final is not None
        return (taps.embeddings, *taps.blocks, taps.final)

    def _decode(self, memory: Tensor, mask: Tensor) -> Values:
        start = mask.new_full((len(mask), 1), self._backbone.config.decoder_start_token_id, dtype=torch.long)
        taps = self._backbone.decode(start, memory, mask)
        assert taps.final is not None
        return (taps.embeddings, *taps.blocks, taps.final)


def _whole_rows(mask: Tensor, rows: int) -> Tensor:
    """`mask` with `rows` rows, the further ones of one token: a row without any would be NaN."""
    if len(mask) == rows:
        return mask
    more = torch.zeros(rows - len(mask), mask.shape[1], dtype=torch.bool, device=mask.device)
    more[:, 0] = True
    return torch.cat([mask, more])
