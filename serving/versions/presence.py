"""Tells the registry that this server follows it and which generation it serves, so that writers can wait for it.

A thread of its own: a store may take its time, and the event loop must not. A store that refuses is told once in the
log; serving goes on, only that nobody waits for this server.
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

LOOK_S = 0.05
"""How often it looks at what is served."""
STOP_S = 2.0
"""Longest that a stop waits for the store to take the withdrawal."""
RETRY_S = 1.0
"""Pause after the store refused."""
EVERYWHERE = ("0.0.0.0", "::")


class Registry(Protocol):
    """What is needed of one. Both raise RegistryError where the store refuses."""

    def announce(self, server: Announced) -> None: ...
    def withdraw(self, id: str) -> None: ...


class Presence:
    """
    Args:
        address: gRPC, HOST:PORT.
        served: the generation that is served now; -1 before there is one.
    """

    def __init__(self, registry: Registry, address: str, served: Callable[[], int], *, beat_s: float = BEAT_S) -> None:
        self.id, self.address = uuid.uuid4().hex, address
        self._registry, self._served, self._beat_s = registry, served, beat_s
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._counter, self._told, self._due = 0, -1, 0.0
        self._refused = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    @property
    def now(self) -> Announced:
        """What there is to say of this server."""
        return Announced(
            id=self.id,
            address=self.address,
            generation=max(self._served(), 0),
            counter=self._counter,
            started=self._started,
        )

    def start(self) -> None:
        """Announce the server, then go on in a thread. Blocks on the store."""
        self._announce()
        self._thread.start()

    def stop(self) -> None:
        """Withdraw it. Blocks on the store, for STOP_S at most."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            if max(self._served(), 0) != self._told or time.monotonic() >= self._due:
                self._announce()
        self._tell(lambda: self._registry.withdraw(self.id))

    def _announce(self) -> None:
        server = self.now
        self._told = server.generation
        self._counter += 1
        taken = self._tell(lambda: self._registry.announce(server))
        self._due = time.monotonic() + (self._beat_s if taken else min(RETRY_S, self._beat_s))

    def _tell(self, what: Callable[[], None]) -> bool:
        """Whether the registry took it. The first refusal of a row is logged."""
        try:
            what()
        except Exception as error:
            if not self._refused:
                log.warning("the registry does not take this server's presence, so no writer waits for it: %s", error)
            self._refused = True
            return False
        if self._refused:
            log.warning("the registry takes this server's presence again")
        self._refused = False
        return True


def address_of(host: str, port: int) -> str:
    """Where others may find a server that listens on `host`."""
    name = socket.gethostname() if host in EVERYWHERE else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
