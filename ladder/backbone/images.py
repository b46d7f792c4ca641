"""The images of a batch, as a frozen vision encoder sees them. Side networks read them; the backbone does not."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The features of each row's images."""

    features: Tensor
    """(B, I, L, F): I images a row, each a grid of L tokens, row by row of the picture; F features a token."""
    mask: Tensor
    """(B, I) bool, True at images that are there: rows may have fewer than I."""
    boxes: Tensor | None = None
    """(B, I, L, 4): x1, x2, y1, y2 of each token's part of its image; None: all 0, as the LST authors'."""

    @classmethod
    def of(cls, features: Tensor, boxes: Tensor | None = None) -> Self:
        """Make the images of rows that have equally many."""
        return cls(features=features, mask=features.new_ones(features.shape[:2]).bool(), boxes=boxes)

    def select(self, rows: Tensor | slice) -> "Images":
        """Take some rows, in that order; views for a slice."""
        return Images(
            features=self.features[rows],
            mask=self.mask[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
        )
