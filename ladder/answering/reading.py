"""What an answerer reads of a side network for some inputs: computed for it alone, or within a group of them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ladder.backbone.images import Images
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass
from ladder.side.pairs import pairs_of

if TYPE_CHECKING:
    from ladder.answering.words import Words
    from ladder.stacked.network import Side


class Reading(Protocol):
    """One side network and B inputs."""

    @property
    def backbone(self) -> Backbone:
        """The backbone, whose LM head text heads share."""
        ...

    def outputs(self) -> Tensor:
        """Compute the outputs of the side network's head, (B, outputs) in float32."""
        ...

    def all_outputs(self) -> Tensor:
        """As `outputs`, and what `SideConfig.words` adds."""
        ...

    def token_outputs(self) -> tuple[Tensor, Tensor]:
        """Apply a linear head to every token: (B, S, outputs) in float32, and which tokens are real, (B, S) bool."""
        ...

    @property
    def words(self) -> "Sequence[Words | None]":
        """For each input, the words of its text, where they are to be tagged."""
        ...

    def state_after(self, prefix: tuple[int, ...]) -> Tensor:
        """Compute the state (B, D), ready for `Backbone.logits`, that predicts the token after start and `prefix`."""
        ...


class SingleReading:
    """One side network alone, for all inputs of a pass or for rows that read them; see `Reading`.

    Args:
        decoder_taps: the decoder's taps of each row after a prefix; None: the pass's.
        inputs: for each row, the row of the pass that it reads; None: row i reads row i.
        images: of these rows, for a side network that reads images; None: those of the pass.
        pairs: of these rows, see `Taps.pairs`; None: those of the pass.
        words: of these rows' texts, where they are to be tagged.
    """

    def __init__(
        self,
        backbone_pass: BackbonePass,
        side: "Side",
        decoder_taps: Callable[[tuple[int, ...]], Taps] | None = None,
        inputs: Sequence[int] | None = None,
        images: Images | None = None,
        pairs: Tensor | None = None,
        words: "Sequence[Words | None]" = (),
    ) -> None:
        self._pass = backbone_pass
        self._side = side
        self._decoder_taps = decoder_taps or backbone_pass.decoder_taps
        self._reads = inputs, images
        self._pairs = pairs
        self.words = words

    @property
    def backbone(self) -> Backbone:
        """The pass's."""
        return self._pass.backbone

    @cached_property
    def _memory(self) -> Tensor:
        return self._side.encode(self._pass.taps, *self._reads)

    def outputs(self) -> Tensor:
        """See `Reading.outputs`."""
        taps = self._pass.taps
        mask = self._side.memory_mask(taps, *self._reads)
        pairs = pairs_of(self._side.config, taps, mask) if self._pairs is None else self._pairs
        return self._side.read(self._memory, mask, pairs)

    def all_outputs(self) -> Tensor:
        """See `Reading.all_outputs`."""
        return self._side.read_all(self._memory, self._pass.taps, *self._reads)

    def token_outputs(self) -> tuple[Tensor, Tensor]:
        """See `Reading.token_outputs`."""
        return self._side.read_tokens(self._memory), self._side.memory_mask(self._pass.taps, *self._reads)

    def state_after(self, prefix: tuple[int, ...]) -> Tensor:
        """See `Reading.state_after`."""
        mask = self._side.memory_mask(self._pass.taps, *self._reads)
        return self._side.decode(self._decoder_taps(prefix), self._memory, mask)[:, -1]
