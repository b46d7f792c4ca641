"""Random token rows, none of which comes twice: a cached activation would falsify the measurement."""

import random
from collections.abc import Iterable, Sequence

from benchmarks.harness.models import Loaded
from serving.engine import EngineRow, Resident

FIRST = 3
"""The first token id that is neither padding, end nor unknown."""
END = 1


class Inputs:
    """Random ids of a backbone's vocabulary, in rows of exact length. The cost of a pass does not depend on the ids."""

    def __init__(self, loaded: Loaded, seed: int = 0) -> None:
        self._vocabulary, self._random = loaded.backbone.config.vocab_size, random.Random(seed)

    def row(self, tokens: int) -> tuple[int, ...]:
        """Return a row of `tokens` ids, the last of which is the end token."""
        return (*self._random.choices(range(FIRST, self._vocabulary), k=tokens - 1), END)

    def rows(self, count: int, tokens: int) -> list[tuple[int, ...]]:
        """Return `count` different rows of `tokens` token ids."""
        return [self.row(tokens) for _ in range(count)]

    def draw(self, residents: Sequence[Resident], count: int) -> list[Resident]:
        """Draw a resident for each of `count` rows at random."""
        return self._random.choices(residents, k=count)

    def ask(self, residents: Iterable[Resident], tokens: int) -> list[EngineRow]:
        """Return a row with a new input for each of `residents`."""
        return [EngineRow(self.row(tokens), resident) for resident in residents]

    def ask_one(self, residents: Iterable[Resident], tokens: int) -> list[EngineRow]:
        """Return a row with the same new input for each of `residents`."""
        ids = self.row(tokens)
        return [EngineRow(ids, resident) for resident in residents]
