"""Clients that keep calling one task while its versions change, and what they saw."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.commands import run_command
from demo.folders import DemoError
from sidecast import Client, SidecastError

CALLERS = 3
STAY_S = 3.0
"""How long each version serves."""


@dataclass
class SwapLog:
    """What the callers saw. Counted under a lock."""

    answers: Counter[int] = field(default_factory=Counter)
    """Answers by the version that gave them."""
    failures: list[str] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    """Versions as one caller saw them, repeats left out."""
    lags: dict[str, float] = field(default_factory=dict)
    """Seconds from the end of a command to the first answer by the version it asked for."""


def swap_under_load(address: str, task: str, better: Path, registry: Path, rows: Sequence[str]) -> SwapLog:
    """Publish `better` as production, then roll back, while clients call `task` without a pause."""
    log, lock, stop = SwapLog(), threading.Lock(), threading.Event()
    callers = [
        threading.Thread(target=_call, args=(address, task, rows, log, lock, stop, number == 0))
        for number in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    try:
        time.sleep(STAY_S)
        run_command("publish", better, "--registry", registry, "--alias", "production", "-m", "trained on all rows")
        log.lags["publish"] = _seconds_until(log, 2)
        time.sleep(STAY_S)
        run_command("rollback", task, "--registry", registry, "-m", "showing how")
        log.lags["rollback"] = _seconds_until(log, 1)
        time.sleep(STAY_S)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    return log


def _call(
    address: str,
    task: str,
    rows: Sequence[str],
    log: SwapLog,
    lock: threading.Lock,
    stop: threading.Event,
    keeps_order: bool,
) -> None:
    with Client(address) as client:
        while not stop.is_set():
            try:
                version = client.predict(task, rows, timeout=30).version
            except SidecastError as error:
                with lock:
                    log.failures.append(str(error))
                continue
            with lock:
                log.answers[version] += len(rows)
                if keeps_order and (not log.order or log.order[-1] != version):
                    log.order.append(version)


def _seconds_until(log: SwapLog, version: int, limit: float = 30.0) -> float:
    """Raises DemoError where the version does not answer."""
    started = time.monotonic()
    while not log.order or log.order[-1] != version:
        if time.monotonic() - started > limit:
            raise DemoError(f"version {version} did not answer within {limit:.0f} s", "see what the server said above")
        time.sleep(0.01)
    return time.monotonic() - started
