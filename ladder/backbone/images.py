"""The images of a batch, as a frozen vision encoder sees them. Side networks read them; the backbone does not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ladder.backbone.rows import take


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The features of distinct images, and which of them each row reads: rows that share an image hold it once."""

    features: Tensor
    """(N, L, F): N images, each a grid of L tokens, row by row of the picture; F features a token."""
    rows: Sequence[tuple[int, ...]]
    """For each row the indices of its images, in their order. Rows may have different numbers of images."""
    boxes: Tensor | None = None
    """(N, L, 4): x1, x2, y1, y2 of each token's part of its image; None: all 0, as the LST authors'."""

    @classmethod
    def of(cls, features: Tensor, boxes: Tensor | None = None) -> Self:
        """Make the images of rows that have equally many and share none.

        Args:
            features: (B, I, L, F), of I images a row.
            boxes: (B, I, L, 4).
        """
        count = features.shape[1]
        rows = [tuple(range(row * count, (row + 1) * count)) for row in range(len(features))]
        return cls(features=features.flatten(0, 1), rows=rows, boxes=None if boxes is None else boxes.flatten(0, 1))

    @property
    def most(self) -> int:
        """Most images of one row."""
        return max(map(len, self.rows), default=0)

    @property
    def mask(self) -> Tensor:
        """(B, I) bool, True at images that are there; I is `most`."""
        most = self.most
        real = [[number < len(row) for number in range(most)] for row in self.rows]
        return torch.tensor(real, device=self.features.device).view(-1, most)

    @property
    def padded(self) -> list[int]:
        """The index of each row's images, row by row, B * I; where a row has fewer images, that of any image."""
        most = self.most
        filler = next(index for row in self.rows for index in row)
        return [index for row in self.rows for index in (*row, *[(*row, filler)[0]] * (most - len(row)))]

    def select(self, rows: Tensor | slice | Sequence[int]) -> "Images":
        """Take some rows, in that order. Features are not copied."""
        if isinstance(rows, slice):
            return replace(self, rows=self.rows[rows])
        indices = rows.tolist() if isinstance(rows, Tensor) else rows
        return replace(self, rows=[self.rows[row] for row in indices])

    def of_rows(self, rows: Sequence[tuple[int, ...]]) -> "Images":
        """Make the images of rows that each read the images of some rows of this batch. Features are not copied."""
        return replace(self, rows=[tuple(index for row in some for index in self.rows[row]) for some in rows])

    def only_read(self) -> "Images":
        """Leave out images that no row reads."""
        read = sorted({index for row in self.rows for index in row})
        if read == list(range(len(self.features))):
            return self
        number = {index: position for position, index in enumerate(read)}
        return Images(
            features=take(self.features, read),
            rows=[tuple(number[index] for index in row) for row in self.rows],
            boxes=None if self.boxes is None else take(self.boxes, read),
        )

    def to(self, device: torch.device) -> "Images":
        """Copy to a device."""
        boxes = None if self.boxes is None else self.boxes.to(device)
        return replace(self, features=self.features.to(device), boxes=boxes)
