"""What a client says and hears of routes: plain frozen values that compare, print and pickle.

A share is in hundredths of a per cent everywhere: 500 is 5 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a version with a share must keep to, beside the alias's own version; else servers take its share away.

    None: not looked at.
    """

    error_rate: float | None = None
    """How much larger its part of failed rows may be: 0 to 1."""
    latency: float | None = None
    """How many times as long its mean request may take: at least 1."""
    disagreement: float | None = None
    """Part of its answers that may differ: 0 to 1."""
    min_rows: int = 100
    """Rows of it that must be seen before it is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An alias's traffic beside that of its own version, which gets what the shares leave."""

    shares: Mapping[int, int] = field(default_factory=dict)
    """Version to its share, in hundredths of a per cent."""
    shadows: tuple[int, ...] = ()
    """Versions that answer the same inputs, compared and told to nobody."""
    bounds: Bounds | None = None

    @property
    def is_plain(self) -> bool:
        """All traffic is the alias's own version's, with no shadow."""
        return not self.shares and not self.shadows


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """An alias's route as it is now."""

    task: str
    alias: str
    version: int
    """The alias's own."""
    route: Route
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one version did, as one server saw it since the route's last change."""

    version: int
    answers: bool
    """It answers callers, and not only beside them."""
    rows: int
    """That it answered, for callers or beside them."""
    failed: int
    compared: int
    """Rows that both it and the alias's own version answered."""
    agreed: int
    drift: float
    """Mean over the compared rows, 0 to 1: how far scores, values, texts or vectors lie apart."""
    latency_seconds: float
    """Mean of its requests, callers' only."""
    cost_seconds: float
    """On the device, for a row beside its callers' rows."""
    dropped: int
    """Rows not compared because the server had no time for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """An input that a version answers otherwise than the alias's own."""

    time: datetime | None
    version: int
    prompt: str
    expected: str
    """What the alias's own version answered, in words."""
    found: str
    drift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """How the versions of an alias's route compare with its own version."""

    task: str
    alias: str
    version: int
    """The alias's own."""
    since: int
    """Generation of the route's last change: everything here was seen since."""
    versions: tuple[Comparison, ...]
    """The alias's own first."""
    disagreements: tuple[Disagreement, ...]
    """Newest first."""
    keeps_inputs: bool
    """Whether the server keeps inputs of disagreements; without, there are none here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """A server that follows the registry, as it told the registry last."""

    id: str
    address: str
    generation: int
    """What it serves."""
    seen: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    generation: int
    served: bool
    """Every server that is alive serves the generation."""
    servers: tuple[ServerInfo, ...]

    @property
    def late(self) -> tuple[ServerInfo, ...]:
        """Servers that do not serve it yet."""
        return tuple(server for server in self.servers if server.generation < self.generation)
