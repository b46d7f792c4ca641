"""Actors that take turns at one store, a request at a time, in an order that a test chooses: races, reproducible."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from obstore.store import MemoryStore

from side_registry import Store


class Turns:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: set[str] = set()
        self._living: set[str] = set()
        self._next: str | None = None

    def take(self, actor: str) -> None:
        """Wait until it is this actor's turn. Who is no actor any more, or not yet, goes ahead."""
        with self._changed:
            if actor not in self._living:
                return
            self._waiting.add(actor)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._next == actor)
            self._next = None

    def play(self, actors: Mapping[str, Callable[[], object]], order: Iterable[int]) -> dict[str, object]:
        """Run all to their end. Returns results, or the exceptions raised.

        Args:
            order: whose request is next, of those that wait, in turn; where it ends, the first always.
        """
        choices = iter(order)
        results: dict[str, object] = {}
        self._living = set(actors)
        threads = [
            threading.Thread(target=self._act, args=(name, actors[name], results), daemon=True) for name in actors
        ]
        for thread in threads:
            thread.start()
        while self._grant(choices):
            pass
        for thread in threads:
            thread.join()
        return results

    def _grant(self, choices: Iterator[int]) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._next is None and self._waiting == self._living)
            if not self._living:
                return False
            ready = sorted(self._living)
            self._next = ready[next(choices, 0) % len(ready)]
            self._waiting.discard(self._next)
            self._changed.notify_all()
            return True

    def _act(self, name: str, action: Callable[[], object], results: dict[str, object]) -> None:
        try:
            results[name] = action()
        except Exception as error:
            results[name] = error
        with self._changed:
            self._living.discard(name)
            self._changed.notify_all()


class TurnStore(Store):
    """One actor's view of objects that all actors share."""

    def __init__(self, turns: Turns, actor: str, objects: MemoryStore) -> None:
        super().__init__("memory://", objects)
        self._turns, self._actor = turns, actor

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("read", "stream", "find", "put_new", "overwrite", "move", "remove", "entries", "is_empty"):
            return found

        def in_turn(*given: Any) -> Any:
            self._turns.take(self._actor)
            return found(*given)

        return in_turn
