"""How one alias's traffic is split: shares for other versions than the alias's own, and shadows. Knows no log.

The alias's own version (the top of its stack) gets what the shares leave. Pure: any two readers split alike.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from side_registry.documents import Document

WHOLE = 10_000
"""All of an alias's traffic, in hundredths of a per cent."""
MAX_VERSIONS = 8
"""Most versions with a share, and most shadows."""

Version = Annotated[int, Field(ge=1)]
Share = Annotated[int, Field(ge=1, lt=WHOLE)]


class Bounds(Document):
    """What a version with a share must keep to, beside the alias's own version. None: not looked at."""

    error_rate: float | None = Field(default=None, ge=0, le=1)
    """How much larger its part of failed rows may be."""
    latency: float | None = Field(default=None, ge=1, le=1000)
    """How many times as long its mean request may take."""
    disagreement: float | None = Field(default=None, ge=0, le=1)
    """Part of its answers that may differ."""
    min_rows: int = Field(default=100, ge=1, le=1_000_000)
    """Rows of it that must be seen before it is judged."""

    @property
    def judges(self) -> bool:
        return (self.error_rate, self.latency, self.disagreement) != (None, None, None)


class Route(Document):
    """An alias's traffic beside that of its own version."""

    shares: Mapping[Version, Share] = Field(default_factory=dict, max_length=MAX_VERSIONS)
    """Version to its share in hundredths of a per cent."""
    shadows: tuple[Version, ...] = Field(default=(), max_length=MAX_VERSIONS)
    """Versions that answer the same inputs, compared and told to nobody."""
    bounds: Bounds | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(self.shares.values()) >= WHOLE:
            raise ValueError("the shares must leave something to the alias's own version; promote the other one")
        if len(set(self.shadows)) < len(self.shadows) or set(self.shadows) & set(self.shares):
            raise ValueError("a shadow must be named once, and have no share")
        if self.bounds is not None and not self.shares:
            raise ValueError("bounds are for versions with a share, and there is none")
        return self

    @property
    def is_plain(self) -> bool:
        """All traffic is the alias's own version's, with no shadow."""
        return not self.shares and not self.shadows

    @property
    def versions(self) -> frozenset[int]:
        """Those it names."""
        return frozenset((*self.shares, *self.shadows))


PLAIN = Route()


def pick(route: Route, own: int, key: str = "") -> int:
    """The version that answers a request.

    Args:
        own: the alias's own version.
        key: requests of one key get one version, which a growing share keeps; without a key, at random.
    """
    if not route.shares:
        return own
    place = _place(key) if key else random.randrange(WHOLE)
    for version, share in sorted(route.shares.items()):
        if place < share:
            return version
        place -= share
    return own


def _place(key: str) -> int:
    """0 to WHOLE - 1, the same everywhere."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) % WHOLE
