"""Clients that call one task without a pause while its versions change, and a log of their answers."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.commands import Commands
from demo.folders import DemoError
from serving.client import Row
from sidecast import Client, SidecastError

CALLERS = 3


@dataclass
class SwapLog:
    """What the callers saw. Counted under a lock."""

    answers: Counter[int] = field(default_factory=Counter)
    """Answers by the version that gave them."""
    failures: list[str] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    """Versions in the order that one caller saw them, without repeats."""
    lags: dict[str, float] = field(default_factory=dict)
    """Seconds from the end of a command to the first answer by the version it asked for."""


def swap_under_load(
    address: str, task: str, better: Path, registry: Path, rows: Sequence[Row], stay_s: float, commands: Commands
) -> SwapLog:
    """Publish `better` as production, then roll back, while clients call `task` without a pause.

    Args:
        stay_s: how long each version serves, in seconds.
    Raises:
        DemoError: a command failed, or the version that it asked for did not answer.
    """
    log = SwapLog()
    lock = threading.Lock()
    stop = threading.Event()
    callers = [
        threading.Thread(target=_call, args=(address, task, rows, log, lock, stop, number == 0))
        for number in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    try:
        time.sleep(stay_s)
        commands.run("publish", better, "--registry", registry, "--promote", "-m", "trained on all rows")
        log.lags["publish"] = _seconds_until(log, 2)
        time.sleep(stay_s)
        commands.run("rollback", task, "--registry", registry, "-m", "showing how")
        log.lags["rollback"] = _seconds_until(log, 1)
        time.sleep(stay_s)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    return log


def _call(
    address: str,
    task: str,
    rows: Sequence[Row],
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
    """Wait until `version` answers; DemoError after `limit` seconds."""
    started = time.monotonic()
    while not log.order or log.order[-1] != version:
        if time.monotonic() - started > limit:
            raise DemoError(
                f"version {version} did not answer within {limit:.0f} s", "read the server's messages above"
            )
        time.sleep(0.01)
    return time.monotonic() - started
