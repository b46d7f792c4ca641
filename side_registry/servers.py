"""Which servers follow the registry, and the generation that they serve: heartbeats in `servers/<id>.json`.

Knows no routes and no versions, only generations. Never needed for correctness. No server's clock is trusted: a server
is dead when its heartbeat stops, or is much older than the newest one by the store's clock. A heartbeat of the future,
which a clock that was set back leaves, is no such newest one; its own server is dead once it is seen to stand still.
"""

import re
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import Field, ValidationError

from side_registry.documents import MAX_NUMBER, SCHEMA_VERSION, Document
from side_registry.store import BadObject, Entry, Store

BEAT_S = 10.0
"""Seconds between two heartbeats of a server. One is also written whenever the served generation changes."""
LEASE_S = 30.0
"""Seconds without a heartbeat after which a server is dead."""
FORGOTTEN_S = 86_400.0
"""Seconds after which the heartbeat of a server that was killed is removed."""
MAX_SERVER_BYTES = 1 << 16

NAME = re.compile(r"servers/(?P<id>[A-Za-z0-9][A-Za-z0-9_-]{0,63})\.json")


class Announced(Document):
    """A server's heartbeat."""

    schema_version: int = SCHEMA_VERSION
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Of this run of the server; a restarted server has another id."""
    address: str = Field(max_length=300)
    generation: int = Field(ge=0, le=MAX_NUMBER)
    """The registry's generation that it serves."""
    counter: int = Field(ge=0, le=MAX_NUMBER)
    """Number of heartbeats before this one."""
    started: str = ""
    """ISO 8601, UTC, by its clock; for people."""
    seen: datetime | None = Field(default=None, exclude=True)
    """When the store received it, by the store's clock; for people. Set when it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """How a wait for a generation ended."""

    served: bool
    """Whether every server that is alive serves the generation; True when there is none."""
    servers: tuple[Announced, ...]
    """The servers that are alive."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A server's heartbeat, as it is in the store."""

    server: Announced
    late: bool
    """Another server's heartbeat is newer by more than LEASE_S, and not of the future."""


class Servers:
    """The heartbeats in one store. Each call blocks on the store and may raise StoreFailed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._detector = FailureDetector()
        """Of all reads: so a long-lived process knows which servers stand still."""

    def announce(self, server: Announced) -> None:
        """Write a heartbeat. A server's first one also removes those that other servers left long ago."""
        path = server_path(server.id)
        self._store.overwrite(path, server.to_json())
        if server.counter == 0 and (written := self._store.find(path)):
            for entry in self._entries():
                if abs((written.modified - entry.modified).total_seconds()) > FORGOTTEN_S:
                    self._store.remove(entry.path)

    def withdraw(self, id: str) -> None:
        """Remove a server's heartbeat."""
        self._store.remove(server_path(id))

    def alive(self) -> list[Announced]:
        """Servers that are alive as far as the store's times and this object's earlier reads tell, by address."""
        return self._detector.alive(self._read_all(), time.monotonic())

    def await_generation(self, generation: int, timeout_s: float, poll_s: float) -> Awaited:
        """Block until all servers that are alive serve a generation or a later one, or `timeout_s` passes."""
        deadline = time.monotonic() + timeout_s
        while True:
            servers = self.alive()
            served = all(server.generation >= generation for server in servers)
            left = deadline - time.monotonic()
            if served or left <= 0:
                return Awaited(served=served, servers=tuple(servers))
            time.sleep(min(poll_s, left))

    def _read_all(self) -> list[Heartbeat]:
        """All heartbeats, sorted by address; other objects are skipped."""
        servers = [(server, entry.modified) for entry in self._entries() if (server := self._read(entry))]
        newest = _newest([modified for _, modified in servers])
        heartbeats = [Heartbeat(server, (newest - modified).total_seconds() > LEASE_S) for server, modified in servers]
        return sorted(heartbeats, key=lambda heartbeat: (heartbeat.server.address, heartbeat.server.id))

    def _entries(self) -> list[Entry]:
        return [entry for entry in self._store.entries("servers") if NAME.fullmatch(entry.path)]

    def _read(self, entry: Entry) -> Announced | None:
        try:
            data = self._store.read(entry.path, MAX_SERVER_BYTES)
            server = None if data is None else Announced.model_validate_json(data)
        except (BadObject, ValidationError):
            return None
        if server is None or server_path(server.id) != entry.path:
            return None
        return server.model_copy(update={"seen": entry.modified})


@dataclass(slots=True)
class _Observed:
    counter: int
    since: float
    """When this process first read this counter, in seconds."""
    changed: bool = False
    """The counter changed meanwhile, so the server lives, whatever the store's clock says."""


class FailureDetector:
    """Tells living from dead servers, from repeated reads: the counter of a dead one stands still for LEASE_S."""

    def __init__(self) -> None:
        self._observed: dict[str, _Observed] = {}
        self._lock = threading.Lock()

    def alive(self, heartbeats: list[Heartbeat], now: float) -> list[Announced]:
        """The servers that are alive at `now`, in seconds of a clock that never jumps."""
        ids = {heartbeat.server.id for heartbeat in heartbeats}
        with self._lock:
            self._observed = {
                id: observed
                for id, observed in self._observed.items()
                if id in ids or now - observed.since < FORGOTTEN_S
            }
            return [heartbeat.server for heartbeat in heartbeats if self._is_alive(heartbeat, now)]

    def _is_alive(self, heartbeat: Heartbeat, now: float) -> bool:
        counter = heartbeat.server.counter
        observed = self._observed.setdefault(heartbeat.server.id, _Observed(counter, now))
        if observed.counter != counter:
            observed.counter = counter
            observed.since = now
            observed.changed = True
        return now - observed.since < LEASE_S and (observed.changed or not heartbeat.late)


def _newest(times: list[datetime]) -> datetime:
    """The newest time that is not of the future by this machine's clock; of all, if that clock is behind them all."""
    latest = datetime.now(UTC) + timedelta(seconds=LEASE_S)
    return max([each for each in times if each <= latest] or times, default=datetime.min)


def server_path(id: str) -> str:
    """Path of a server's heartbeat in the store."""
    return f"servers/{id}.json"
