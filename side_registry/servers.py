"""Which servers follow the registry, and what they serve: `servers/<id>.json`, written again and again by each server.

Knows no routes and no versions, only generations. Never needed for correctness. No clock is trusted: a server is gone
when its object stays as it is, or lies far behind the others by the store's own time.
"""

import re
import time
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field, ValidationError

from side_registry.documents import SCHEMA_VERSION, Document
from side_registry.store import Entry, Store, TooLarge

BEAT_S = 10.0
"""A server announces itself this often, and whenever what it serves changes."""
LEASE_S = 30.0
"""A server that has not announced itself for so long is gone."""
FORGOTTEN_S = 86_400.0
"""The object of a server that was killed is cleared away after so long."""
MAX_SERVER_BYTES = 1 << 16

NAME = re.compile(r"servers/(?P<id>[A-Za-z0-9][A-Za-z0-9_-]{0,63})\.json")


class Announced(Document):
    """What a server says of itself."""

    schema_version: int = SCHEMA_VERSION
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """Of this run of the server; a restarted one has another."""
    address: str = Field(max_length=300)
    generation: int = Field(ge=0)
    """What it serves."""
    counter: int = Field(ge=0)
    """How often it announced itself before: what tells that it lives."""
    started: str = ""
    """ISO 8601, UTC, by its clock; for people."""
    seen: datetime | None = Field(default=None, exclude=True)
    """When the store took this, by the store's clock; for people. Set when it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    served: bool
    """Every server that is alive serves the generation. With no server at all, too."""
    servers: tuple[Announced, ...]
    """Those that are alive."""


@dataclass(frozen=True, slots=True)
class Found:
    server: Announced
    late: bool
    """Another server's object is newer by more than LEASE_S."""


class Servers:
    def __init__(self, store: Store) -> None:
        self._store = store

    def announce(self, server: Announced) -> None:
        """With its first word a server also clears away what others left long ago."""
        path = server_path(server.id)
        self._store.overwrite(path, server.to_json())
        if server.counter == 0 and (ours := self._store.find(path)):
            for entry in self._entries():
                if abs((ours.modified - entry.modified).total_seconds()) > FORGOTTEN_S:
                    self._store.remove(entry.path)

    def withdraw(self, id: str) -> None:
        self._store.remove(server_path(id))

    def alive(self) -> list[Announced]:
        """Those that the store's own times do not call gone, by address."""
        return [found.server for found in self._look() if not found.late]

    def await_generation(self, generation: int, timeout_s: float, poll_s: float) -> Awaited:
        """Block until all that are alive serve a generation, or time is up."""
        watched, deadline = Watched(), time.monotonic() + timeout_s
        while True:
            servers = watched.living(self._look(), time.monotonic())
            served = all(server.generation >= generation for server in servers)
            left = deadline - time.monotonic()
            if served or left <= 0:
                return Awaited(served=served, servers=tuple(servers))
            time.sleep(min(poll_s, left))

    def _look(self) -> list[Found]:
        """All that lie there, by address; what is no server's is passed over."""
        servers = [(server, entry.modified) for entry in self._entries() if (server := self._read(entry))]
        newest = max((modified for _, modified in servers), default=datetime.min)
        found = [Found(server, (newest - modified).total_seconds() > LEASE_S) for server, modified in servers]
        return sorted(found, key=lambda each: (each.server.address, each.server.id))

    def _entries(self) -> list[Entry]:
        return [entry for entry in self._store.entries("servers") if NAME.fullmatch(entry.path)]

    def _read(self, entry: Entry) -> Announced | None:
        try:
            data = self._store.read(entry.path, MAX_SERVER_BYTES)
            server = None if data is None else Announced.model_validate_json(data)
        except (TooLarge, ValidationError):
            return None
        if server is None or server_path(server.id) != entry.path:
            return None
        return server.model_copy(update={"seen": entry.modified})


@dataclass(slots=True)
class _Sight:
    counter: int
    since: float
    """When we first saw this counter."""
    moved: bool = False
    """It changed while we watched, which no clock can make it do."""


class Watched:
    """Who is alive, told by watching: a counter that stands still for LEASE_S of our own time is a server gone."""

    def __init__(self) -> None:
        self._sights: dict[str, _Sight] = {}

    def living(self, found: list[Found], now: float) -> list[Announced]:
        """Those that are alive at `now`, in seconds of a clock that never jumps."""
        return [each.server for each in found if self._is_alive(each, now)]

    def _is_alive(self, found: Found, now: float) -> bool:
        counter = found.server.counter
        sight = self._sights.setdefault(found.server.id, _Sight(counter, now))
        if sight.counter != counter:
            sight.counter, sight.since, sight.moved = counter, now, True
        return now - sight.since < LEASE_S and (sight.moved or not found.late)


def server_path(id: str) -> str:
    return f"servers/{id}.json"
