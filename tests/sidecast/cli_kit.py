"""Runs Sidecast's commands as a user does: in this process, or in a process of their own."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecast.cli.app import main

ROOT = Path(__file__).parents[2]
START_S = 60.0


@dataclass(frozen=True)
class Ran:
    """Result of a command: exit code and output."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` printed: one document, on one line."""
        [line] = self.out.splitlines()
        return json.loads(line)

    @property
    def mistake(self) -> str:
        """The message of a user's mistake: one line on standard error, exit code 2, no standard output."""
        assert (self.code, self.out) == (2, ""), self
        [line] = self.err.splitlines()
        assert line.startswith("Error: "), line
        return line.removeprefix("Error: ")


def sidecast(*words: object) -> Ran:
    """Run `sidecast WORDS...` in this process. An unexpected error is raised."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as exit_:
            code = exit_.code
    assert isinstance(code, int), code
    return Ran(code, out.getvalue(), err.getvalue())


def done(*words: object) -> Ran:
    """Run a command that must succeed."""
    ran = sidecast(*words)
    assert ran.code == 0, ran.err
    return ran


def python(*words: object, text_input: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, without SIDECAST_* variables."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        cwd=ROOT,
        env=plain_environment(),
        input=text_input,
        capture_output=True,
        text=True,
        timeout=60,
    )


def plain_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAST_")}
    return kept | {"OMP_NUM_THREADS": "1"}


class Serving:
    """`sidecast serve` on free ports, for the length of a with block."""

    def __init__(self, folder: Path, *words: object) -> None:
        self._log, self._words = folder / "serve.log", words
        self.process: subprocess.Popen[str]
        self.ready: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return self.ready["address"]

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def __enter__(self) -> "Serving":
        ports = ("--port", "0", "--metrics-port", "0")
        with self._log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecast.cli", "serve", *map(str, self._words), *ports, "--json"],
                cwd=ROOT,
                env=plain_environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        stopper = threading.Timer(START_S, self.process.kill)
        stopper.start()
        assert self.process.stdout
        line = self.process.stdout.readline()
        stopper.cancel()
        assert line, self.log
        self.ready = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdout
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> float:
    """Wait until `holds()`; return the seconds that it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout_s, "it never came"
        time.sleep(0.02)
    return time.monotonic() - started


@contextlib.contextmanager
def callers(count: int, call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Call repeatedly from `count` threads; yields the list of results and errors, which grows."""
    results: list[Any] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            try:
                results.append(call())
            except Exception as error:
                results.append(error)

    threads = [threading.Thread(target=loop) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stop.set()
        for thread in threads:
            thread.join()
