"""Token rows that never come twice: what is measured must not be an answer that was kept."""

import random
from collections.abc import Iterable, Sequence

from benchmarks.models import Loaded
from serving.engine import EngineRow, Resident

FIRST = 3
"""The first token id that is neither padding, end nor unknown."""
END = 1


class Inputs:
    """Random ids of a backbone's vocabulary: what a pass costs does not depend on them, and their length is exact."""

    def __init__(self, loaded: Loaded, seed: int = 0) -> None:
        self._vocabulary, self._random = loaded.backbone.config.vocab_size, random.Random(seed)

    def row(self, tokens: int) -> tuple[int, ...]:
        """That many ids, the end token the last."""
        return (*self._random.choices(range(FIRST, self._vocabulary), k=tokens - 1), END)

    def rows(self, count: int, tokens: int) -> list[tuple[int, ...]]:
        """Return `count` different rows of `tokens` token ids."""
        return [self.row(tokens) for _ in range(count)]

    def draw(self, residents: Sequence[Resident], count: int) -> list[Resident]:
        """A resident for each of `count` rows, drawn at random: unequal counts."""
        return self._random.choices(residents, k=count)

    def ask(self, residents: Iterable[Resident], tokens: int) -> list[EngineRow]:
        """A row of its own input for each of `residents`."""
        return [EngineRow(self.row(tokens), resident) for resident in residents]

    def ask_one(self, residents: Iterable[Resident], tokens: int) -> list[EngineRow]:
        """The same input for all of `residents`."""
        ids = self.row(tokens)
        return [EngineRow(ids, resident) for resident in residents]
