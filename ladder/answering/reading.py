"""What a side network says to some inputs, as answerers ask for it: computed for it alone, or out of a joint one."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass

if TYPE_CHECKING:
    from ladder.stacked.network import Side


class Reading(Protocol):
    """One side network and B inputs."""

    @property
    def backbone(self) -> Backbone: ...

    def outputs(self) -> Tensor:
        """(B, outputs) in float32, of a head of its own."""
        ...

    def all_outputs(self) -> Tensor:
        """As `outputs`, and what `SideConfig.words` adds."""
        ...

    def state_after(self, prefix: tuple[int, ...]) -> Tensor:
        """(B, D) ready for `Backbone.logits`: what says the token after the start token and `prefix`."""
        ...


class OwnReading:
    """One side network alone, of all inputs of a pass."""

    def __init__(
        self, given: BackbonePass, side: "Side", hear: Callable[[tuple[int, ...]], Taps] | None = None
    ) -> None:
        """
        Args:
            hear: the decoder's taps after a prefix; None: the pass's own.
        """
        self._given, self._side, self._hear = given, side, hear or given.decoder_taps

    @property
    def backbone(self) -> Backbone:
        return self._given.backbone

    @cached_property
    def _memory(self) -> Tensor:
        return self._side.encode(self._given.taps)

    def outputs(self) -> Tensor:
        return self._side.read(self._memory, self._given.taps.mask)

    def all_outputs(self) -> Tensor:
        return self._side.read_all(self._memory, self._given.taps)

    def state_after(self, prefix: tuple[int, ...]) -> Tensor:
        return self._side.decode(self._hear(prefix), self._memory, self._given.taps.mask)[:, -1]
