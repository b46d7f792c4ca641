"""Requests that wait for versions which are still to be loaded on this server.

A request waits on its event loop, without a thread. The version that it waits for is loaded before all others. Knows
no torch and no registry.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from serving.engine import Key
from serving.errors import DeadlineExpired
from serving.versions.pool import PoolState, SidePool


class Arrivals:
    """Wakes waiting requests when their versions are loaded, or cannot be.

    Args:
        ask: has a version loaded before all others; called once for all requests that wait for it.
    """

    def __init__(self, pool: SidePool, ask: Callable[[Key], None]) -> None:
        self._pool = pool
        self._ask = ask
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}
        self._lock = threading.Lock()

    async def wait(self, key: Key, deadline: float | None) -> None:
        """Wait until this version is no longer loading, or its task has changed in the registry.

        Args:
            deadline: time.monotonic() seconds; None: no limit.

        Raises:
            DeadlineExpired: it is still loading at the deadline.
        """
        arrived = asyncio.get_running_loop().create_future()
        with self._lock:
            is_first = key not in self._waiting
            self._waiting.setdefault(key, set()).add(arrived)
        try:
            if not self._pool.snapshot().is_loading(key):  # it came before `notify` could know of this request
                return
            if is_first:
                self._ask(key)
            left = None if deadline is None else deadline - time.monotonic()
            await asyncio.wait_for(arrived, left)
        except TimeoutError:
            raise DeadlineExpired from None
        finally:
            self._forget(key, arrived)

    def notify(self, before: PoolState, after: PoolState) -> None:
        """Wake the requests that need not wait after this change of the pool. Called on the reconciler's thread."""
        with self._lock:
            ended = [
                key
                for key in self._waiting
                if not after.is_loading(key) or after.tasks.get(key[0]) is not before.tasks.get(key[0])
            ]
            woken = [future for key in ended for future in self._waiting.pop(key)]
        for future in woken:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                future.get_loop().call_soon_threadsafe(_end, future)

    def _forget(self, key: Key, arrived: "asyncio.Future[None]") -> None:
        with self._lock:
            waiting = self._waiting.get(key, set())
            waiting.discard(arrived)
            if not waiting:
                self._waiting.pop(key, None)


def _end(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
