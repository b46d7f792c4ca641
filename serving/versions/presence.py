"""Announces this server and the generation it serves in the registry, so that writers can wait for it.

Runs on a thread of its own, because a store may be slow. If the store refuses, that is logged once and serving goes on;
writers then do not wait for this server.
"""

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from side_registry.servers import BEAT_S, Announced

log = logging.getLogger(__name__)

CHECK_S = 0.05
"""Pause between two checks of the generation that is served."""
STOP_S = 2.0
"""Longest wait of `stop` for the store to take the withdrawal."""
RETRY_S = 1.0
"""Pause after the store refused."""
ALL_INTERFACES = ("0.0.0.0", "::")


class Registry(Protocol):
    """The methods of side_registry.Registry that are used here. Both raise RegistryError if the store refuses."""

    def announce(self, server: Announced) -> None:
        """Write or replace the announcement of a server."""
        ...

    def withdraw(self, id: str) -> None:
        """Remove the announcement of a server."""
        ...


class Presence:
    """Keeps this server's announcement in the registry up to date from `start` to `stop`.

    Args:
        address: of its gRPC port, HOST:PORT.
        served: returns the generation that is served now; -1 before there is one.
        beat_s: longest time between two announcements, in seconds.
    """

    def __init__(self, registry: Registry, address: str, served: Callable[[], int], *, beat_s: float = BEAT_S) -> None:
        self.id = uuid.uuid4().hex
        self.address = address
        self._registry = registry
        self._served = served
        self._beat_s = beat_s
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._counter = 0
        self._announced = -1
        """The generation of the last announcement."""
        self._due = 0.0
        """When the next announcement is due, by time.monotonic()."""
        self._is_refused = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    @property
    def now(self) -> Announced:
        """The announcement as it would be written now."""
        return Announced(
            id=self.id,
            address=self.address,
            generation=max(self._served(), 0),
            counter=self._counter,
            started=self._started,
        )

    def start(self) -> None:
        """Announce the server, then keep it announced on a thread. Blocks on the store."""
        self._announce()
        self._thread.start()

    def stop(self) -> None:
        """Withdraw the announcement. Blocks on the store, for STOP_S at most."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_S):
            if max(self._served(), 0) != self._announced or time.monotonic() >= self._due:
                self._announce()
        self._try_write(lambda: self._registry.withdraw(self.id))

    def _announce(self) -> None:
        server = self.now
        self._announced = server.generation
        self._counter += 1
        is_written = self._try_write(lambda: self._registry.announce(server))
        self._due = time.monotonic() + (self._beat_s if is_written else min(RETRY_S, self._beat_s))

    def _try_write(self, write: Callable[[], None]) -> bool:
        """Whether the registry took it. Of several refusals in a row the first is logged."""
        try:
            write()
        except Exception as error:
            if not self._is_refused:
                log.warning("the registry does not take this server's presence, so no writer waits for it: %s", error)
            self._is_refused = True
            return False
        if self._is_refused:
            log.warning("the registry takes this server's presence again")
        self._is_refused = False
        return True


def address_of(host: str, port: int) -> str:
    """HOST:PORT under which other machines may reach a server that listens on `host`."""
    name = socket.gethostname() if host in ALL_INTERFACES else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
