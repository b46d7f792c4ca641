"""Many side networks of one shape as one computation, with the answers of each alone."""

from ladder.stacked.bank import SideBank
from ladder.stacked.network import Side, StackedSide

__all__ = [
    "Side",
    "SideBank",
    "StackedSide",
]
