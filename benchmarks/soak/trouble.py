"""What befalls a server on a network: callers that are killed, certificates and tokens that are renewed."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.machine import ROOT
from benchmarks.harness.samples import BenchmarkError
from benchmarks.harness.secured import Issuer

READ_S = 2.0
"""After this time, in seconds, a server has read a file that changed."""
LONGEST_LIFE_S = 0.5
"""Longest that a victim lives once it was answered, in seconds."""


@dataclass
class Troubles:
    """How often it happened."""

    killed: int = 0
    renewed: int = 0


@contextmanager
def troubling(issuer: Issuer, asked: Path, every_s: float, seed: int) -> Iterator[Troubles]:
    """Kill callers and renew certificates and tokens while the block runs, each every `every_s` seconds.

    Args:
        asked: the file that tells callers what to ask.

    Raises:
        BenchmarkError: a caller ended before it was killed.
    """
    over, troubles = threading.Event(), Troubles()

    def kill() -> None:
        draw = random.Random(seed)
        while not over.wait(every_s):
            _kill_one(asked, draw.uniform(0, LONGEST_LIFE_S), over)
            troubles.killed += 1

    def renew() -> None:
        while not over.wait(every_s):
            issuer.renew()
            over.wait(READ_S)
            issuer.hand_out()
            troubles.renewed += 1

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(kill), threads.submit(renew)]
        try:
            yield troubles
        finally:
            over.set()
        for each in running:
            each.result()


def _kill_one(asked: Path, life_s: float, over: threading.Event) -> None:
    """Start a caller, and kill it a moment after it was answered."""
    command = [sys.executable, "-m", "benchmarks.soak.victim", str(asked)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert victim.stdout
    try:
        begun = victim.stdout.readline()
        over.wait(life_s)
        if not begun or victim.poll() is not None:
            raise BenchmarkError("a caller that should be killed ended by itself; read its error above")
    finally:
        victim.kill()
        victim.communicate()


def write_asked(path: Path, document: dict[str, object], issuer: Issuer | None, http_url: str) -> None:
    """Write the file that tells callers what to ask, and how they prove who they are."""
    if issuer:
        credentials = issuer.credentials
        document = document | {
            "ca": str(credentials.ca),
            "token_file": str(credentials.token_file),
            "http_url": http_url,
        }
    path.write_text(json.dumps(document), encoding="utf-8")
