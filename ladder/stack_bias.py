"""Which bucket of a relative bias stands between each two positions: the same for every side network of a shape."""

import threading

import torch
from torch import Tensor

from ladder.layers import relative_bucket

MOST_TABLES = 64
MOST_BYTES = 64 * 2**20
"""Of all tables; one that is larger is there alone."""
STEP = 256
"""Tables for one query are made for a multiple of as many keys, so that decoding needs no new one for each token."""


class Buckets:
    """Tables, made once for each length; the oldest goes. Thread-safe: a loader replays beside the device thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def table(self, queries: int, keys: int, buckets: int, farthest: int, both: bool, device: torch.device) -> Tensor:
        """(queries * keys,) for the last `queries` of `keys` positions.

        Args:
            farthest: distance from which on there is one bucket.
            both: an encoder's, that looks both ways.
        """
        if queries > 1:
            return self._known(queries, keys, buckets, farthest, both, device)
        longest = -(-keys // STEP) * STEP
        return self._known(1, longest, buckets, farthest, both, device)[longest - keys :]

    def _known(self, queries: int, keys: int, buckets: int, farthest: int, both: bool, device: torch.device) -> Tensor:
        key = (queries, keys, buckets, farthest, both, device)
        with self._lock, torch.inference_mode(False):
            if key not in self._tables:
                positions = torch.arange(keys, device=device)
                distance = positions[None, :] - positions[keys - queries :, None]
                self._tables[key] = relative_bucket(distance, buckets, farthest, both).flatten()
                self._forget_oldest()
            return self._tables[key]

    def _forget_oldest(self) -> None:
        while len(self._tables) > 1 and (
            len(self._tables) > MOST_TABLES or sum(table.nbytes for table in self._tables.values()) > MOST_BYTES
        ):
            del self._tables[next(iter(self._tables))]
