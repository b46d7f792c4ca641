"""Actors that take turns at one store, a request at a time, in an order that a test chooses: races, reproducible."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
from obstore.store import MemoryStore

from side_registry import Registry, Store

STALLED_S = 60.0
"""Nobody has asked for a turn for so long: a test ends with an error rather than never."""


def before_next_commit(monkeypatch: pytest.MonkeyPatch, registry: Registry, action: Callable[[], object]) -> None:
    """Run `action` once, after the registry has decided on its next commit and before it writes it."""
    put_new, actions = registry.store.put_new, [action]

    def put_late(path: str, data: bytes) -> bool:
        if path.startswith("log/") and actions:
            actions.pop()()
        return put_new(path, data)

    monkeypatch.setattr(registry.store, "put_new", put_late)


class Turns:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: Counter[str] = Counter()
        """How many requests of an actor wait: one that reads ahead has several."""
        self._living: set[str] = set()
        self._next: str | None = None

    def take(self, actor: str) -> None:
        """Wait until it is this actor's turn. Who is no actor any more, or not yet, goes ahead."""
        with self._changed:
            if actor not in self._living:
                return
            self._waiting[actor] += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._next == actor)
            self._next = None
            self._changed.notify_all()

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
            if not self._changed.wait_for(self._all_wait, STALLED_S):
                raise AssertionError(f"of {sorted(self._living)} some ask for no turn; waiting: {dict(self._waiting)}")
            if not self._living:
                return False
            ready = sorted(self._living)
            self._next = ready[next(choices, 0) % len(ready)]
            self._waiting[self._next] -= 1
            self._changed.notify_all()
            return True

    def _all_wait(self) -> bool:
        return self._next is None and all(self._waiting[actor] for actor in self._living)

    def _act(self, name: str, action: Callable[[], object], results: dict[str, object]) -> None:
        try:
            results[name] = action()
        except Exception as error:
            results[name] = error
        finally:
            with self._changed:
                self._living.discard(name)
                self._changed.notify_all()


class TurnStore(Store):
    """One actor's view of objects that all actors share."""

    def __init__(self, turns: Turns, actor: str, objects: MemoryStore) -> None:
        super().__init__("memory://", objects)
        self._turns, self._actor = turns, actor

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        if name not in ("read", "stream", "find", "put_new", "overwrite", "move", "remove", "entries", "is_empty"):
            return attribute

        def in_turn(*arguments: Any) -> Any:
            self._turns.take(self._actor)
            return attribute(*arguments)

        return in_turn
