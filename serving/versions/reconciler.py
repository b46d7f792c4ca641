"""Makes the pool follow the registry: watches it, loads missing versions, swaps them in, evicts retired ones.

One thread, the pool's only writer. It takes one step at a time (read the registry, load one version), so a rollback
does not wait for a queue of loads, and a version that fails to load delays the others by one attempt. A version whose
golden examples take long waits for the loads of all others between two turns of its replay. Tasks that were called
recently come first; a version that a request waits for comes before all others. While the registry cannot be read,
resident versions go on answering. Knows no torch and no requests.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""Shortest time between two calls of `tidy`, in seconds."""
STOP_S = 3.0
"""Longest wait for a load or a read of the registry in progress, in seconds. The thread does not keep the process."""
MAX_REPLAYS = 8
"""Most replays that have begun and wait for their next turn: each holds the memory of a batch."""
BACKLOG_POLL_S = 0.05
"""Time between two looks at the registry while a server loads what was published before its start, in seconds."""
RETRY_URGENCY = 10
"""Added to the urgency of versions that failed before: they come after all others."""

OnChange = Callable[[PoolState, PoolState], None]
"""Called with the pool's state before and after each change, on the reconciler's thread."""
Progress = Callable[[int, int, str], None]
"""Called with the number of versions tried, of all, and the next one ("sst2:7"; empty at the end)."""


class Source(Protocol):
    """The methods of side_registry.Registry that are used here."""

    def state(self, refresh: bool = True) -> State:
        """The registry's state; `refresh` reads commits that are not known yet. Raises RegistryError."""
        ...

    def wait(self, after: int, timeout_s: float, poll_s: float = 0.2) -> State | None:
        """The state once it is past generation `after`; None if it is not in time. Raises RegistryError."""
        ...


class Reconciler:
    """Keeps `pool` at the registry's generation.

    Args:
        load: makes a resident of (task, version); raises LoadError. Called on the reconciler's thread, and by `start`.
        replay: verifies a resident's answers, in turns; raises LoadError. It serves once the iterator ends.
        on_change: called after each change of the pool.
        tidy: returns memory to the system. Called on the reconciler's thread after residents came or left, once nothing
            is left to load, and at most every TIDY_S seconds.
        recent: names of tasks, the one that was called last first. Their versions are loaded before those of others.
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
        replay: Callable[[Resident], Iterator[None]] = lambda resident: iter(()),
        recent: Sequence[str] = (),
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._load_version = load
        self._config = config or LoadConfig()
        self._metrics = metrics or Metrics()
        self._on_change = on_change
        self._tidy = tidy
        self._replay = replay
        self._recency = {name: rank for rank, name in enumerate(recent)}
        self._backlog: set[Key] = set()
        """Versions to load that were published before the start. No generation waits for them, since no version
        answers in their place."""
        self._asked: deque[Key] = deque()
        """Versions that requests wait for, the first one first. Filled by other threads."""
        self._interrupted: Key | None = None
        """The version of `_asked` whose replay takes more turns: another version is loaded before its next turn."""
        self._pending: dict[Key, float] = {}
        """Versions to load, most urgent first, and when each was first wanted, by time.monotonic()."""
        self._began: dict[Key, float] = {}
        """When the loads in progress began, in time.monotonic() seconds."""
        self._replays: dict[Key, tuple[Resident, Iterator[None]]] = {}
        """Versions to load whose replay has begun, and takes more turns. The first one goes on first."""
        self._polled_at = 0.0
        self._tidied_at = 0.0
        self._is_tidy = True
        self._read_fault = ""
        """Why the registry cannot be read now; empty if it can."""
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def begin(self, progress: Progress | None = None, within_s: float = math.inf) -> None:
        """Read the registry and load its versions, for `within_s` seconds; the thread loads the rest.

        A load that has begun by then is finished. The registry's generation is served then: a request for a version
        that is not loaded yet can wait for it.

        Raises:
            RegistryError: the registry cannot be read.
        """
        until = time.monotonic() + within_s
        self._adopt(self._first_state())
        if not self._pool.snapshot().tasks:
            log.warning("the registry has no task yet: publish one, or check the address of the registry")
        self._backlog = set(self._pending)
        total = len(self._pending)
        while self._pending and time.monotonic() < until:
            task, version = self._next()
            if progress:
                progress(total - len(self._pending), total, f"{task}:{version}")
            self._load(task, version)
        if progress:
            progress(total - len(self._pending), total, "")
        self._settle()
        if self._pending:
            log.info("%d versions are loaded while the server answers", len(self._pending))

    def start(self, progress: Progress | None = None) -> None:
        """Follow the registry on a thread. Unless `begin` was called, it is called first, and loads everything.

        Raises:
            RegistryError: the registry cannot be read.
        """
        if self._pool.snapshot().wanted < 0:
            self.begin(progress)
        self._thread.start()

    def ask(self, key: Key) -> None:
        """Load this version before all others, because a request waits for it. May be called on any thread."""
        self._asked.append(key)

    def stop(self, timeout_s: float | None = STOP_S) -> None:
        """End the thread. Waits for a load in progress, for `timeout_s` at most (None: without limit)."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and follows the registry."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Read the registry now instead of at the next poll. For callers who know that it has changed."""
        self._polled_at = 0.0
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
        """Read the registry if it is time; if a version is missing, load it, or go on with its replay.

        Before each load it is time, unless the registry cannot be read: a version that was retired meanwhile is not
        loaded. Before the loads of the start it is time every BACKLOG_POLL_S.

        Returns:
            whether there is more to do.
        """
        if time.monotonic() - self._polled_at >= self._poll_pause():
            self._poll()
        self._schedule_retries()
        if self._pending:
            self._load(*self._next())
        self._settle()
        if not self._pending and not self._is_tidy and time.monotonic() - self._tidied_at >= TIDY_S:
            self._tidy()
            self._is_tidy = True
            self._tidied_at = time.monotonic()
        return bool(self._pending)

    def _poll_pause(self) -> float:
        """Time from one look at the registry to the next one, in seconds."""
        if not self._pending or self._read_fault:
            return self._config.poll_s
        return min(BACKLOG_POLL_S, self._config.poll_s) if self._backlog else 0.0

    def _first_state(self) -> State:
        try:
            state = self._registry.state()
            self._metrics.registry_read.set_to_current_time()
            return state
        except UnreadableCommit as error:
            self._note_fault(error)
            return self._registry.state(refresh=False)

    def _poll(self) -> None:
        self._polled_at = time.monotonic()
        try:
            state = self._registry.wait(self._pool.snapshot().wanted, 0.0)
            self._note_read()
        except RegistryError as error:
            self._note_fault(error)
            state = self._registry.state(refresh=False)  # the state before a damaged commit
        if state and state.generation > self._pool.snapshot().wanted:
            self._adopt(state)

    def _note_fault(self, error: RegistryError) -> None:
        if self._read_fault != str(error):
            self._read_fault = str(error)
            served = self._pool.snapshot().generation
            log.warning("the registry cannot be read, serving goes on with generation %d: %s", served, error)

    def _note_read(self) -> None:
        self._metrics.registry_read.set_to_current_time()
        if self._read_fault:
            self._read_fault = ""
            log.warning("the registry can be read again")
            failed = self._pool.snapshot().failed
            self._retry(key for key, failure in failed.items() if failure.transient)

    def _adopt(self, state: State) -> None:
        """Make `state` the wanted one: apply what needs no load at once, and queue the versions to load."""
        before = self._pool.snapshot()
        tasks = state.live
        self._metrics.know(tasks)
        changed = [name for name in {*tasks, *before.tasks} if tasks.get(name) is not before.tasks.get(name)]
        after = replace(before, wanted=state.generation, tasks=tasks, groups=state.live_groups)
        for name in changed:
            after = place(after, name, tasks.get(name), before.tasks.get(name))
        self._replace(after, changed)
        self._plan(after, set(changed))
        self._backlog = {key for key in self._backlog if key in self._pending and key[0] not in changed}
        log.info("registry generation %d: %d versions to load", state.generation, len(self._pending))

    def _plan(self, state: PoolState, changed: set[str]) -> None:
        """Queue the missing versions. Failed ones are tried again if their task changed, or after a long pause."""
        now = time.monotonic()
        ranked: list[tuple[int, int, int, Key]] = []
        for name in changed | {task for task, _ in self._pending} | {task for task, _ in state.failed}:
            task = state.tasks.get(name)
            missing = [version for version in task.live if (name, version) not in state.residents] if task else []
            for urgency, version in load_order(task, missing) if task else ():
                failure = state.failed.get((name, version))
                recency = self._recency.get(name, len(self._recency))
                if failure is None:
                    ranked.append((urgency, recency, -version, (name, version)))
                elif name in changed or now - failure.at >= self._config.max_retry_s:
                    ranked.append((RETRY_URGENCY + urgency, recency, -version, (name, version)))
        self._pending = {key: self._pending.get(key, now) for *_, key in sorted(ranked)}
        self._replays = {key: replay for key, replay in self._replays.items() if key in self._pending}

    def _schedule_retries(self) -> None:
        now = time.monotonic()
        failed = self._pool.snapshot().failed
        self._retry(key for key, failure in failed.items() if self._is_due(failure, now))

    def _is_due(self, failure: Failure, now: float) -> bool:
        pause = min(self._config.retry_s * 2 ** min(failure.attempts - 1, 16), self._config.max_retry_s)
        return failure.transient and now - failure.at >= pause

    def _retry(self, failed: Iterable[Key]) -> None:
        for key in failed:
            self._pending.setdefault(key, time.monotonic())

    def _next(self) -> Key:
        """The version to load, or whose replay goes on, in this step.

        It is one that a request waits for, unless such a one had a turn of its replay in the step before; else the most
        urgent version whose load has not begun; if all have, or many replays wait, the next replay.
        """
        if self._interrupted is not None:
            self._asked.append(self._interrupted)
            self._interrupted = None
        else:
            while self._asked:
                key = self._asked.popleft()
                if key in self._pending:
                    self._interrupted = key  # until its load ends
                    return key
        begins = self._pending if len(self._replays) < MAX_REPLAYS else ()
        return next((key for key in begins if key not in self._replays), None) or next(iter(self._replays))

    def _load(self, task: str, version: int) -> None:
        """Load a version, or take its replay one turn further."""
        wanted_at = self._pending[task, version]
        began = self._began.setdefault((task, version), time.monotonic())
        fault = ""
        try:
            resident = self._turn(task, version)
        except LoadError as error:
            fault = error.reason
            self._fail(task, version, error)
        except Exception as error:
            log.exception("unexpected error while loading %s:%d", task, version)
            fault = LoadFailed.reason
            self._fail(task, version, LoadFailed(task, version, f"{type(error).__name__}: {error}"))
        else:
            if resident is None:
                return
            self._replace(add(self._pool.snapshot(), resident), [task])
            log.info("loaded %s:%d (%d bytes)", task, version, resident.bytes)
            self._metrics.swap_seconds.observe(time.monotonic() - wanted_at)
        if self._metrics.tracer is not None:
            self._metrics.tracer.swap(task, version, wanted_at, began, fault)
        del self._pending[task, version]
        del self._began[task, version]
        self._backlog.discard((task, version))
        if self._interrupted == (task, version):
            self._interrupted = None

    def _turn(self, task: str, version: int) -> Resident | None:
        """The version, ready to serve; None while its replay takes more turns. Raises LoadError."""
        key = task, version
        if key in self._replays:
            resident, replay = self._replays.pop(key)
        else:
            resident = self._load_version(task, version)
            replay = self._replay(resident)
        for _ in replay:
            self._replays[key] = resident, replay  # the last in line: the others go first
            return None
        return resident

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
        self._replace(place(state, task, known, known), [task])  # no other version waits for this one any more
        self._metrics.load_failure(task, error.reason)
        level = logging.DEBUG if before and before.why == failure.why else logging.ERROR
        log.log(level, "%s; %s goes on with what it had", error, task)

    def _settle(self) -> None:
        """Count the wanted generation as served once all of its new versions were tried.

        Neither retries nor what was published before the start delay it.
        """
        state = self._pool.snapshot()
        if state.generation < state.wanted and self._pending.keys() <= (state.failed.keys() | self._backlog):
            self._replace(replace(state, generation=state.wanted))
            log.info("serving registry generation %d", state.wanted)

    def _replace(self, state: PoolState, names: Iterable[str] = ()) -> None:
        """Publish `state` and update the metrics. Only the tasks in `names` may have gained or lost residents."""
        before = self._pool.replace(state)
        evicted = _missing(before, state, names)
        for resident in evicted:
            self._metrics.forget(*resident.key)
            self._metrics.resident_bytes.dec(resident.bytes)
        added = _missing(state, before, names)
        for resident in added:
            self._metrics.remember(*resident.key)
            self._metrics.resident_bytes.inc(resident.bytes)
        if evicted or added:
            self._is_tidy = False
        self._metrics.resident_side_networks.set(len(state.residents))
        self._metrics.generation_wanted.set(state.wanted)
        self._metrics.generation_served.set(state.generation)
        if self._on_change:
            try:
                self._on_change(before, state)
            except Exception:
                log.exception("the callback after a change of the pool failed")


def _missing(state: PoolState, other: PoolState, names: Iterable[str]) -> list[Resident]:
    """Residents of the tasks in `names` that are in `state` but not in `other`."""
    tasks = [state.tasks[name] for name in names if name in state.tasks]
    keys = [(task.name, version) for task in tasks for version in task.versions]
    return [state.residents[key] for key in keys if key in state.residents and key not in other.residents]
