"""Many side networks of one shape as one computation, with the answers of each alone."""

from ladder.stacked.bank import SideBank
from ladder.stacked.network import Side, StackedSide
from ladder.stacked.recorded import RecordedSides

__all__ = [
    "RecordedSides",
    "Side",
    "SideBank",
    "StackedSide",
]
