"""Calls that may hang, such as reads of a network folder whose server is gone: the caller waits for a limited time.

A call that is in the operating system cannot be ended. So it runs on a daemon thread; when its time is over, the caller
goes on without it, and the thread ends when the call does. Knows no store.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

MAX_IDLE = 32
"""Most threads that wait for their next call."""
MAX_HANGING = 8
"""Most calls of one TimeLimit that hang. Further ones fail at once, until one of these ends."""

Result = TypeVar("Result")


class Hangs(OSError):
    """A call took longer than its limit, or was not made because too many others hang."""


class TimeLimit:
    """Makes calls with a time limit. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hanging = 0

    @property
    def hanging(self) -> int:
        """How many calls hang: their callers went on without them."""
        return self._hanging

    def call(self, function: Callable[[], Result], seconds: float) -> Result:
        """Return the function's result, or raise its exception, within so many seconds.

        Raises:
            Hangs: it is not done by then, or MAX_HANGING calls hang already.
        """
        if self._hanging >= MAX_HANGING:
            raise Hangs(f"it does not answer: {self._hanging} earlier calls still wait for it")
        job = _Job(function)
        worker = _idle_worker()
        worker.jobs.put(job)
        try:
            result, error = job.outcome.get(timeout=seconds)
        except Empty:
            if self._abandon(job):
                raise Hangs(f"it did not answer within {seconds:g} s") from None
            result, error = job.outcome.get()  # it ended just now
        except BaseException:  # such as KeyboardInterrupt
            if not self._abandon(job):
                _idle.append(worker)
            raise
        if len(_idle) < MAX_IDLE:
            _idle.append(worker)
        else:
            worker.jobs.put(None)
        if error is not None:
            try:
                raise error
            finally:
                del error, result  # else the exception's traceback would hold itself
        return result

    def _abandon(self, job: "_Job") -> bool:
        """Count the call as one that hangs; False if it has ended meanwhile."""
        with self._lock:
            self._hanging += 1
        is_abandoned = job.abandon(self._note_end)
        if not is_abandoned:
            self._note_end()
        return is_abandoned

    def _note_end(self) -> None:
        with self._lock:
            self._hanging -= 1


class _Job:
    """One call, and what is to be done at its end if its caller does not wait for it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._function = function
        self._lock = threading.Lock()
        self._is_done = False
        self._at_end: Callable[[], None] | None = None

    def run(self) -> bool:
        """Make the call. Returns whether its caller has waited for it."""
        try:
            outcome: tuple[Any, BaseException | None] = self._function(), None
        except BaseException as error:
            outcome = None, error
        with self._lock:
            self._is_done = True
            at_end = self._at_end
        if at_end:
            at_end()
        else:
            self.outcome.put(outcome)
        del outcome  # else an exception and this frame would hold each other
        return at_end is None

    def abandon(self, at_end: Callable[[], None]) -> bool:
        """Wait no longer: `at_end` is called when the call ends. False, and no more, if it has ended."""
        with self._lock:
            if not self._is_done:
                self._at_end = at_end
            return not self._is_done


class _Worker(threading.Thread):
    """A daemon thread: no exit of the process waits for it."""

    def __init__(self) -> None:
        super().__init__(name="store call", daemon=True)
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def run(self) -> None:
        """Make calls until one is abandoned."""
        while job := self.jobs.get():
            if not job.run():
                return
            del job


_idle: deque[_Worker] = deque()


def _idle_worker() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        worker = _Worker()
        worker.start()
        return worker


os.register_at_fork(after_in_child=_idle.clear)  # the threads are the parent's
