"""How one alias's traffic is split: shares for versions other than its main version, and shadows. Knows no log.

Shares have the unit of the log and of the wire, whole hundredths of a per cent. Commands and clients take fractions and
percentages.

The alias's main version, to which the alias points, gets the traffic that the shares leave. Pure functions: any two
readers split alike.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from side_registry.documents import MAX_NUMBER, Document

WHOLE = 10_000
"""All of an alias's traffic, in hundredths of a per cent."""
MAX_VERSIONS = 8
"""Most versions with a share; also most shadows."""

Version = Annotated[int, Field(ge=1, le=MAX_NUMBER)]


def _stored(share: object) -> object:
    """Refuse a share as people write it, 0.05 or "5%", with what to write here."""
    if (isinstance(share, float) and not share.is_integer()) or (isinstance(share, str) and not share.isdigit()):
        raise ValueError("the registry keeps whole hundredths of a per cent: 500 for 5%")
    return share


Share = Annotated[int, Field(ge=1, lt=WHOLE), BeforeValidator(_stored)]


class Bounds(Document):
    """Limits for a version with a share, compared with the alias's main version. None: not checked."""

    error_rate: float | None = Field(default=None, ge=0, le=1)
    """How much its fraction of failed rows may exceed that of the main version."""
    latency: float | None = Field(default=None, ge=1, le=1000)
    """Its mean time per request over that of the main version, at most."""
    disagreement: float | None = Field(default=None, ge=0, le=1)
    """Fraction of its answers that may differ from the main version's."""
    min_rows: int = Field(default=100, ge=1, le=1_000_000)
    """Rows that it must have answered before it is judged."""


class Route(Document):
    """The versions besides an alias's main version that get its traffic."""

    shares: Mapping[Version, Share] = Field(default_factory=dict, max_length=MAX_VERSIONS)
    """Version to its share in hundredths of a per cent."""
    shadows: tuple[Version, ...] = Field(default=(), max_length=MAX_VERSIONS)
    """Versions that answer the same inputs; their answers are compared, never returned."""
    bounds: Bounds | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(self.shares.values()) >= WHOLE:
            raise ValueError("the shares must leave something to the alias's main version; promote the other one")
        if len(set(self.shadows)) < len(self.shadows) or set(self.shadows) & set(self.shares):
            raise ValueError("a shadow must be named once, and have no share")
        if self.bounds is not None and not self.shares:
            raise ValueError("bounds are for versions with a share, and there is none")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the alias's main version gets all traffic, with no shadow."""
        return not self.shares and not self.shadows

    @property
    def versions(self) -> frozenset[int]:
        """All versions that it names: with a share, or as a shadow."""
        return frozenset((*self.shares, *self.shadows))


PLAIN = Route()


def pick(route: Route, own_version: int, key: str = "") -> int:
    """The version that answers a request.

    Args:
        own_version: the alias's main version.
        key: requests with the same key get the same version, also when its share grows; without a key, random.
    """
    if not route.shares:
        return own_version
    bucket = _bucket(key) if key else random.randrange(WHOLE)
    for version, share in sorted(route.shares.items()):
        if bucket < share:
            return version
        bucket -= share
    return own_version


def _bucket(key: str) -> int:
    """0 to WHOLE - 1, the same in every process."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) % WHOLE
