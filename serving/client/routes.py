"""Routes, comparisons of versions and servers, as a client sees them: frozen dataclasses that compare and pickle.

A share or a rate is a fraction, 0.05. `Route` and `Bounds` also take it as a percentage with its sign, "5%".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from serving.client.errors import InvalidInputError
from serving.client.shares import WHOLE, rate_of, share_of

RATES = ("error_rate", "disagreement")
"""The bounds that are rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits for a version with a share, compared with the alias's main version. Beyond them a server ends the shares.

    None: not checked.
    """

    error_rate: float | None = None
    """How much its fraction of failed rows may exceed that of the main version: 0.01, or "1%"."""
    latency: float | None = None
    """Its mean time per request over that of the main version, at most; at least 1."""
    disagreement: float | None = None
    """Fraction of its answers that may differ from the main version's: 0.05, or "5%"."""
    min_rows: int = 100
    """Rows that it must have answered before it is judged."""

    def __post_init__(self) -> None:
        for name in RATES:
            object.__setattr__(self, name, read_rate(name, getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How an alias's traffic is split. The alias's main version gets the rest."""

    shares: Mapping[int, float] = field(default_factory=dict)
    """Version to its share, a fraction: 0.05. "5%" is taken too, and becomes that."""
    shadows: tuple[int, ...] = ()
    """Versions that answer the same inputs; their answers are compared, never returned."""
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", {v: share / WHOLE for v, share in read_shares(self.shares).items()})

    @property
    def is_plain(self) -> bool:
        """Whether the alias's main version gets all traffic, with no shadow."""
        return not self.shares and not self.shadows


def read_shares(shares: Mapping[int, float | str]) -> dict[int, int]:
    """Version to its share in hundredths of a per cent, as the wire has it.

    Raises:
        InvalidInputError: one of them is no share.
    """
    read: dict[int, int] = {}
    for version, share in shares.items():
        try:
            read[version] = share_of(share)
        except ValueError as error:
            raise InvalidInputError(
                f"route.shares.{version!a}: {error}", fields={"field": "route.shares", "why": str(error)}
            ) from None
    return read


def read_rate(name: str, value: float | str | None) -> float | None:
    """The rate of a bound; None: not checked. Raises InvalidInputError where it is no rate."""
    try:
        return None if value is None else rate_of(value)
    except ValueError as error:
        field_name = f"route.bounds.{name}"
        raise InvalidInputError(f"{field_name}: {error}", fields={"field": field_name, "why": str(error)}) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """An alias's route as it is now."""

    task: str
    alias: str
    version: int
    """The alias's main version."""
    route: Route
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Statistics of one version on one server, since the route's last change."""

    version: int
    answers: bool
    """Whether its answers are returned to callers; False for a shadow."""
    rows: int
    """Rows that it answered, for callers or as a shadow."""
    failed: int
    compared: int
    """Rows that both it and the alias's main version answered."""
    agreed: int
    drift: float
    """Mean distance of the two answers over the compared rows, 0 to 1: of scores, values, texts or vectors."""
    latency_seconds: float
    """Mean time of its callers' requests."""
    cost_seconds: float
    """Mean time on the device per shadow row."""
    dropped: int
    """Rows that were not compared because the server had no time for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """An input on which a version's answer differs from that of the alias's main version."""

    time: datetime | None
    version: int
    prompt: str
    expected: str
    """Answer of the alias's main version, in words."""
    found: str
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The comparison because of which a server ended all shares of an alias's traffic."""

    why: str
    """The bound that was broken, in words."""
    generation: int
    """Of the commit that ended the shares; 0: somebody else changed the route just before."""
    time: datetime | None
    version: int
    """The alias's main version."""
    route: Route
    """That was ended."""
    versions: tuple[Comparison, ...]
    """The alias's main version first."""
    disagreements: tuple[Disagreement, ...]
    """Newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """How the versions of an alias's route compare with its main version."""

    task: str
    alias: str
    version: int
    """The alias's main version."""
    since: int
    """Generation of the route's last change, where counting began."""
    versions: tuple[Comparison, ...]
    """The alias's main version first."""
    disagreements: tuple[Disagreement, ...]
    """Newest first."""
    keeps_inputs: bool
    """Whether the server keeps the inputs of disagreements; if not, `disagreements` is empty."""
    rolled_back: RolledBack | None = None
    """Set after this server ended the alias's shares by itself, until the alias gets another route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """A server that follows the registry, by its last heartbeat."""

    id: str
    address: str
    generation: int
    """The registry's generation that it serves."""
    seen: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """How a wait for a generation ended."""

    generation: int
    served: bool
    """Whether every server that is alive serves the generation."""
    servers: tuple[ServerInfo, ...]

    @property
    def late(self) -> tuple[ServerInfo, ...]:
        """Servers that do not serve it yet."""
        return tuple(server for server in self.servers if server.generation < self.generation)
