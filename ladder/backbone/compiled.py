"""The backbone's encoder compiled by torch. No request waits for the compiler.

`warm_up` compiles and tries everything before the first request. Nothing is compiled afterwards: shapes without
compiled code run eagerly. On a CPU the same code serves all shapes. On a GPU each shape of a bounded set has its own
CUDA graph, and inputs are padded to the next shape; larger inputs run eagerly.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ladder.backbone.model import Backbone, Taps

log = logging.getLogger(__name__)

Shape = tuple[int, int]
"""(rows, tokens)."""
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
TOKENS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""The shapes of a GPU are pairs of these: a compromise between padding and the number of graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest batches to compile for."""

    rows: int
    tokens: int
    """Of all rows together, with their padding."""

    def shapes(self) -> list[Shape]:
        """Return all shapes within the limits, largest first, so that a GPU's memory is allocated once."""
        rows = [count for count in ROWS if count <= self.rows]
        return [(count, tokens) for tokens in TOKENS[::-1] for count in rows[::-1] if count * tokens <= self.tokens]


class CompiledEncoder:
    """`Backbone.encode`, compiled. It runs eagerly before `warm_up`, and for shapes that were not compiled.

    Args:
        backend: of torch.compile.
    """

    def __init__(self, backbone: Backbone, limits: Limits, backend: str | Callable[..., Any] = "inductor") -> None:
        self._backbone = backbone
        self._graphs = backbone.device.type == "cuda" and backend == "inductor"
        self._shapes = limits.shapes() if self._graphs else []
        self._run: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = torch.compile(
            self._layers, dynamic=True, backend=backend, mode="reduce-overhead" if self._graphs else None
        )
        self.ready = False

    def __call__(self, ids: Tensor, mask: Tensor, depth: int | None = None) -> Taps:
        """As `Backbone.encode`."""
        whole = depth is None or depth >= len(self._backbone.encoder.blocks)
        shape = self._padded_shape(ids.shape[0], ids.shape[1]) if self.ready and whole else None
        if shape is None:
            return self._backbone.encode(ids, mask, depth)
        with torch.compiler.set_stance("eager_on_recompile"), torch.no_grad():
            layers = self._compute(ids, mask, shape)
        embeddings, *blocks, final = layers
        return Taps(embeddings=embeddings, blocks=tuple(blocks), mask=mask, final=final)

    @torch.no_grad()
    def warm_up(self, examples: Sequence[Shape] = ((4, 32), (1, 32))) -> bool:
        """Compile every shape. Takes minutes. Returns False, and logs a warning, if this machine cannot compile.

        Call it on the thread that will call the encoder, and in the same gradient mode.

        Args:
            examples: shapes to compile with on a CPU, where shapes share their code. A single row has separate code.
        """
        try:
            for rows, tokens in self._shapes or examples:
                for _ in range(
                    3 if self._graphs else 1
                ):  # a graph is recorded by the second call, replayed by the third
                    ids = torch.full((rows, tokens), self._backbone.config.eos_token_id, device=self._backbone.device)
                    self._compute(ids, torch.ones_like(ids, dtype=torch.bool), (rows, tokens))
        except Exception as error:  # no compiler, or a backbone that cannot be compiled
            why = " ".join(str(error).strip().split("\n")[:2])  # torch names the backend first, then the fault
            log.warning("the encoder runs eagerly, compiling it failed: %s", why)
            return False
        self.ready = True
        return True

    def _padded_shape(self, rows: int, tokens: int) -> Shape | None:
        """The smallest compiled shape that is large enough; None if there is none."""
        if not self._graphs:
            return rows, tokens
        fits = [shape for shape in self._shapes if shape[0] >= rows and shape[1] >= tokens]
        return min(fits, key=lambda shape: shape[0] * shape[1], default=None)

    def _compute(self, ids: Tensor, mask: Tensor, shape: Shape) -> tuple[Tensor, ...]:
        rows, tokens = ids.shape
        if shape == (rows, tokens) and not self._graphs:
            return self._run(ids, mask)
        wide = ids.new_full(shape, self._backbone.config.pad_token_id)
        real = mask.new_zeros(shape)
        real[rows:, 0] = True  # a row without any token would be NaN
        wide[:rows, :tokens], real[:rows, :tokens] = ids, mask
        # a graph's next replay overwrites its outputs, which the cache and running texts keep
        return tuple(layer[:rows, :tokens].clone() for layer in self._run(wide, real))

    def _layers(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        taps = self._backbone.encode(ids, mask)
        assert taps.final is not None
        return (taps.embeddings, *taps.blocks, taps.final)
