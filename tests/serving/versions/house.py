"""A registry, a pool and their reconciler, with a loader that fails on demand."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from serving.config import LoadConfig
from serving.engine.rows import Key, Resident
from serving.errors import LoadFailed
from serving.metrics import Metrics
from serving.versions.pool import PoolState, SidePool
from serving.versions.reconciler import OnChange, Reconciler
from side_registry import Registry, State, Store, StoreFailed
from tests.serving.kit import empty_resident
from tests.side_registry.runs import make_run

EAGER = LoadConfig(poll_s=1e-9, retry_s=1e-9, max_retry_s=1e-9)
PATIENT = LoadConfig(poll_s=1e-9, retry_s=1000, max_retry_s=1000)


class FakeLoader:
    """Makes empty residents, except for broken versions."""

    def __init__(self) -> None:
        self.broken: dict[Key, bool] = {}
        """Versions that fail to load, and whether the failure is transient."""
        self.loads: list[Key] = []
        self.times: list[float] = []
        """Start of every load, by time.monotonic()."""
        self.gates: dict[Key, threading.Event] = {}
        self.wrong: set[Key] = set()
        """Versions whose replay fails at its end."""
        self.turns: dict[Key, int] = {}
        """How often the replay of a version pauses; 0 unless said."""
        self.replays: list[Key] = []
        """The version of each turn of a replay."""

    def replay(self, resident: Resident) -> Iterator[None]:
        for _ in range(self.turns.get(resident.key, 0)):
            self.replays.append(resident.key)
            yield
        if resident.key in self.wrong:
            raise LoadFailed(*resident.key, "its answers are wrong")

    def load(self, task: str, version: int) -> Resident:
        key = task, version
        self.loads.append(key)
        self.times.append(time.monotonic())
        if key in self.gates:
            assert self.gates[key].wait(60)
        if key in self.broken:
            raise LoadFailed(task, version, "it is broken", transient=self.broken[key])
        return empty_resident(task, version)


class FlakyRegistry:
    """A registry whose store can be unreachable."""

    def __init__(self, registry: Registry) -> None:
        self.inner = registry
        self.away = False

    def state(self, refresh: bool = True) -> State:
        self._check(refresh)
        return self.inner.state(refresh)

    def wait(self, after: int, timeout_s: float, poll_s: float = 0.2) -> State | None:
        self._check(True)
        return self.inner.wait(after, timeout_s, poll_s)

    def _check(self, refresh: bool) -> None:
        if self.away and refresh:
            raise StoreFailed("s3://bucket", "log", "connection refused")


class House:
    """A registry, a pool and their reconciler, whose steps the test makes unless it calls `start`.

    Args:
        on_change: called after each change of the pool; None records the changes.
        tidy: what the reconciler calls to return memory.
        recent: tasks that were called recently, the last one first.
    """

    def __init__(
        self,
        folder: Path,
        config: LoadConfig = EAGER,
        store: Store | None = None,
        on_change: OnChange | None = None,
        tidy: Callable[[], None] = lambda: None,
        recent: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.registry = Registry.open(store or folder / "registry", create=True)
        self.flaky = FlakyRegistry(self.registry)
        self.loader = FakeLoader()
        self.pool = SidePool()
        self.metrics = Metrics()
        self.changes: list[tuple[PoolState, PoolState]] = []
        self.reconciler = Reconciler(
            self.flaky,
            self.pool,
            lambda task, version: self.loader.load(task, version),
            config,
            self.metrics,
            on_change or (lambda *change: self.changes.append(change)),
            tidy,
            self.loader.replay,
            recent,
        )
        self._runs = 0

    def publish(self, task: str = "sst2", alias: str | None = None, number: int | None = None) -> int:
        self._runs += 1
        number = number or self._runs
        run = make_run(self.folder / f"run{number}", task, f"weights {number}".encode(), f"run-{number}")
        return self.registry.publish(run, alias=alias).version

    def settle(self) -> PoolState:
        """Step until nothing is left to do; return the pool's state."""
        for _ in range(200):
            if not self.reconciler.step():
                break
        return self.pool.snapshot()

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)
