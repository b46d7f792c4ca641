"""Makes the pool follow the registry: watches, loads what is missing, swaps, evicts what is retired.

One thread, the pool's only writer. It takes one step at a time (look at the registry, load one version), so a rollback
need not wait for a queue of loads, and a version that does not load delays the others by its own attempt alone. The
registry may be away for a while: what is resident goes on answering. Knows no torch and no requests.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from serving.config import LoadConfig
from serving.engine import Key, Resident
from serving.errors import LoadError, LoadFailed
from serving.metrics import Metrics
from serving.versions.placement import add, load_order, place
from serving.versions.pool import Failure, PoolState, SidePool
from side_registry.errors import RegistryError, UnreadableCommit
from side_registry.state import State

log = logging.getLogger(__name__)

TIDY_S = 10.0
"""Between two times that the memory is tidied."""
RETRIED = 10
"""Urgency of what failed before: after everything that did not."""

OnChange = Callable[[PoolState, PoolState], None]
"""Told the pool's state before and after each change, on the reconciler's thread."""
Progress = Callable[[int, int, str], None]
"""Told how many versions were tried, of how many, and which is next ("sst2:7"; empty at the end)."""


class Source(Protocol):
    """What is needed of a registry."""

    def state(self, refresh: bool = True) -> State: ...
    def wait(self, after: int, timeout_s: float, poll_s: float = 0.2) -> State | None: ...


class Reconciler:
    """Keeps `pool` at the registry's generation.

    Args:
        load: makes a resident of (task, version); raises LoadError. Called on the reconciler's thread, and by `start`.
        tidy: called on that thread now and then, some time after residents came or went and nothing is to be loaded.
    """

    def __init__(
        self,
        registry: Source,
        pool: SidePool,
        load: Callable[[str, int], Resident],
        config: LoadConfig | None = None,
        metrics: Metrics | None = None,
        on_change: OnChange | None = None,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry, self._pool, self._load_one = registry, pool, load
        self._config, self._metrics, self._on_change = config or LoadConfig(), metrics or Metrics(), on_change
        self._pending: dict[Key, float] = {}
        """What to load, most urgent first; when it was first wanted, in time.monotonic() seconds."""
        self._polled = 0.0
        self._tidy, self._tidied, self._is_tidy = tidy, 0.0, True
        self._away = ""
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self, progress: Progress | None = None) -> None:
        """Load everything that the registry has, then go on in a thread. Returns when the first generation is served.

        Raises:
            RegistryError: the registry cannot be read.
        """
        self._adopt(self._first_state())
        total = len(self._pending)
        for done in range(total):
            task, version = next(iter(self._pending))
            if progress:
                progress(done, total, f"{task}:{version}")
            self._load(task, version)
        if progress:
            progress(total, total, "")
        self._settle()
        self._thread.start()

    def stop(self, timeout_s: float | None = 10.0) -> None:
        """End the thread; a load in progress ends first, or is left behind after `timeout_s`."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """It follows the registry."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look at the registry now: somebody knows that it has changed."""
        self._polled = 0.0
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            try:
                pause = 0.0 if self.step() else self._config.poll_s
            except Exception:
                pause = self._config.retry_s
                log.exception("the reconciler failed; it tries again in %.1f s", pause)
            self._wake.wait(pause)
            self._wake.clear()

    def step(self) -> bool:
        """Look at the registry if it is time, load one version if one is missing. True where there is more to do.

        Before a load it is always time, unless the registry is away: what is no longer wanted is not loaded.
        """
        if (self._pending and not self._away) or time.monotonic() - self._polled >= self._config.poll_s:
            self._poll()
        self._schedule_retries()
        if self._pending:
            self._load(*next(iter(self._pending)))
        self._settle()
        if not self._pending:
            self._clean_up()
        return bool(self._pending)

    def _clean_up(self) -> None:
        if not self._is_tidy and time.monotonic() - self._tidied >= TIDY_S:
            self._tidy()
            self._is_tidy, self._tidied = True, time.monotonic()

    def _first_state(self) -> State:
        try:
            state = self._registry.state()
            self._metrics.registry_read.set_to_current_time()
            return state
        except UnreadableCommit as error:
            self._gone(error)
            return self._registry.state(refresh=False)

    def _poll(self) -> None:
        self._polled = time.monotonic()
        try:
            state = self._registry.wait(self._pool.snapshot().wanted, 0.0)
            self._back()
        except RegistryError as error:
            self._gone(error)
            state = self._registry.state(refresh=False)  # what was good before a damaged commit
        if state and state.generation > self._pool.snapshot().wanted:
            self._adopt(state)

    def _gone(self, error: RegistryError) -> None:
        if self._away != str(error):
            self._away = str(error)
            served = self._pool.snapshot().generation
            log.warning("the registry cannot be read, serving goes on with generation %d: %s", served, error)

    def _back(self) -> None:
        self._metrics.registry_read.set_to_current_time()
        if self._away:
            self._away = ""
            log.warning("the registry can be read again")
            self._retry(key for key, each in self._pool.snapshot().failed.items() if each.transient)

    def _adopt(self, state: State) -> None:
        """Make the registry's new state the wanted one: at once where no load is needed, else with `_pending`."""
        before = self._pool.snapshot()
        tasks = state.live
        self._metrics.know(tasks)
        changed = [name for name in {*tasks, *before.tasks} if tasks.get(name) is not before.tasks.get(name)]
        after = replace(before, wanted=state.generation, tasks=tasks)
        for name in changed:
            after = place(after, name, tasks.get(name), before.tasks.get(name))
        self._replace(after, changed)
        self._plan(after, set(changed))
        log.info("registry generation %d: %d versions to load", state.generation, len(self._pending))

    def _plan(self, state: PoolState, changed: set[str]) -> None:
        """Order what is missing. Failed versions are tried again where their task changed, or after a long pause."""
        now = time.monotonic()
        wanted: list[tuple[int, int, Key]] = []
        for name in changed | {task for task, _ in self._pending} | {task for task, _ in state.failed}:
            task = state.tasks.get(name)
            missing = [version for version in task.live if (name, version) not in state.residents] if task else []
            for urgency, version in load_order(task, missing) if task else ():
                failure = state.failed.get((name, version))
                if failure is None:
                    wanted.append((urgency, -version, (name, version)))
                elif name in changed or now - failure.at >= self._config.max_retry_s:
                    wanted.append((RETRIED + urgency, -version, (name, version)))
        self._pending = {key: self._pending.get(key, now) for _, _, key in sorted(wanted)}

    def _schedule_retries(self) -> None:
        now = time.monotonic()
        self._retry(key for key, each in self._pool.snapshot().failed.items() if self._is_due(each, now))

    def _is_due(self, failure: Failure, now: float) -> bool:
        pause = min(self._config.retry_s * 2 ** min(failure.attempts - 1, 16), self._config.max_retry_s)
        return failure.transient and now - failure.at >= pause

    def _retry(self, failed: Iterable[Key]) -> None:
        for key in failed:
            self._pending.setdefault(key, time.monotonic())

    def _load(self, task: str, version: int) -> None:
        wanted_at = self._pending[task, version]
        try:
            resident = self._load_one(task, version)
        except LoadError as error:
            self._fail(task, version, error)
        except Exception as error:
            log.exception("loading %s:%d failed in an unforeseen way", task, version)
            self._fail(task, version, LoadFailed(task, version, f"{type(error).__name__}: {error}"))
        else:
            self._swap_in(resident)
            self._metrics.swap_seconds.observe(time.monotonic() - wanted_at)
        del self._pending[task, version]

    def _swap_in(self, resident: Resident) -> None:
        self._replace(add(self._pool.snapshot(), resident), [resident.task])
        log.info("loaded %s:%d (%d bytes)", resident.task, resident.version, resident.bytes)

    def _fail(self, task: str, version: int, error: LoadError) -> None:
        state = self._pool.snapshot()
        before = state.failed.get((task, version))
        failure = Failure(
            reason=error.reason,
            why=str(error),
            attempts=before.attempts + 1 if before else 1,
            transient=error.transient,
            at=time.monotonic(),
        )
        known = state.tasks.get(task)
        state = replace(state, failed={**state.failed, (task, version): failure})
        self._replace(place(state, task, known, known), [task])  # what was to be relieved by it may now go
        self._metrics.load_failure(task, error.reason)
        level = logging.DEBUG if before and before.why == failure.why else logging.ERROR
        log.log(level, "%s; %s goes on with what it had", error, task)

    def _settle(self) -> None:
        """The wanted generation is served once everything new in it was tried; retries do not hold it up."""
        state = self._pool.snapshot()
        if state.generation < state.wanted and all(key in state.failed for key in self._pending):
            self._replace(replace(state, generation=state.wanted))
            log.info("serving registry generation %d", state.wanted)

    def _replace(self, state: PoolState, names: Iterable[str] = ()) -> None:
        """Publish `state`, in which no other tasks than these lost or gained a resident."""
        before = self._pool.replace(state)
        for lost in _missing(before, state, names):
            self._metrics.forget(*lost.key)
            self._metrics.resident_bytes.dec(lost.bytes)
            self._is_tidy = False
        for gained in _missing(state, before, names):
            self._metrics.remember(*gained.key)
            self._metrics.resident_bytes.inc(gained.bytes)
            self._is_tidy = False
        self._metrics.resident_side_networks.set(len(state.residents))
        self._metrics.generation_wanted.set(state.wanted)
        self._metrics.generation_served.set(state.generation)
        if self._on_change:
            try:
                self._on_change(before, state)
            except Exception:
                log.exception("a listener of the pool failed")


def _missing(state: PoolState, other: PoolState, names: Iterable[str]) -> list[Resident]:
    """These tasks' residents in `state` that are not in `other`."""
    tasks = [state.tasks[name] for name in names if name in state.tasks]
    keys = [(task.name, version) for task in tasks for version in task.versions]
    return [state.residents[key] for key in keys if key in state.residents and key not in other.residents]
