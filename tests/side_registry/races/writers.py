"""Processes that publish, started in milliseconds: one process imports the registry and forks a writer for each job.

Run as a program it reads jobs from standard input, one JSON line each. It imports no torch.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


class Writers:
    """Starts writers, kills them, and hears what those that lived did."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.side_registry.races.writers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._done: list[dict[str, Any]] = []

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def start(self, url: str, folders: list[Path], alias: str | None = None) -> int:
        """Start a writer that publishes the folders in order and moves `alias` to each version; return its pid."""
        self._tell(url=url, folders=[str(folder) for folder in folders], alias=alias)
        return self._hear("started")["started"]

    def kill(self, pid: int) -> None:
        """kill -9, whether it still runs or not, and forget what any writer said before: it may have ended first."""
        self._tell(kill=pid)
        self._hear("killed")
        self._done.clear()

    def finish(self, count: int) -> list[dict[str, Any]]:
        """What `count` writers did: `versions` that they published, or `failure`."""
        while len(self._done) < count:
            self._done.append(self._line())
        outcomes, self._done = self._done[:count], self._done[count:]
        return outcomes

    def _tell(self, **job: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def _hear(self, what: str) -> dict[str, Any]:
        while what not in (line := self._line()):
            self._done.append(line)
        return line

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    from side_registry import Registry  # noqa: F401  before the forks, once

    for line in sys.stdin:
        job = json.loads(line)
        if "kill" in job:
            os.kill(job["kill"], signal.SIGKILL)
            os.waitpid(job["kill"], 0)
            say(killed=job["kill"])
        elif pid := os.fork():
            say(started=pid)
        else:
            write(job)
            os._exit(0)


def write(job: dict[str, Any]) -> None:
    from side_registry import Registry

    try:
        registry, versions = Registry.open(job["url"], create=True), []
        for folder in job["folders"]:
            published = registry.publish(folder)
            versions.append(published.version)
            if job["alias"]:
                registry.set_alias(published.task, job["alias"], published.version)
        say(versions=versions)
    except Exception as error:
        say(failure=f"{type(error).__name__}: {error}")


def say(**message: Any) -> None:
    """A line of less than a page: writers share the pipe, and it arrives whole."""
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
