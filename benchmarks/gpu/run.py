"""One run: parts within a time limit, and a file that is written anew after each measurement.

So a run that is cut off keeps what it has measured. A measurement that fails, has no memory or no time is noted in
place of its figures, and the next one goes on.
"""

import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.harness.samples import BenchmarkError, write_document
from ladder.errors import is_out_of_memory

GRACE_S = 15.0
"""A measurement that is still going on so long after the limit is cut off, with the process."""
CUT = 3
"""Exit code of a process that was cut off."""


class Run:
    """The document of a run, and its clock.

    Args:
        path: of the results file.
        limit_s: no measurement begins after it.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], limit_s: float) -> None:
        self.document: dict[str, Any] = {**head, "parts": {}, "seconds": {}, "complete": False}
        self._path = path
        self._began = time.monotonic()
        self._limit_s = self._end_s = limit_s
        self._figures: dict[str, Any] = {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End the process if it is not done some seconds after the limit; the file has what was measured."""
        timer = threading.Timer(self._limit_s + GRACE_S - self.elapsed_s, os._exit, (CUT,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def part(self, name: str, until: float) -> Iterator[None]:
        """Collect measurements under `name`. None of them begins after this share of the limit."""
        began = self.elapsed_s
        self._figures = self.document["parts"].setdefault(name, {})
        self._end_s = self._limit_s * until
        try:
            yield
        except Exception as error:
            self._figures["error"] = _told(error)
        self.document["seconds"][name] = round(self.elapsed_s - began, 1)
        self.save()

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        """Keep what `call` returns under `name`, or why there is nothing; returns it, or None."""
        if self.elapsed_s > self._end_s:
            self._keep(name, {"left_out": "no time"})
            return None
        began = self.elapsed_s
        figures, failure = None, None
        try:
            figures = call()
        except Exception as error:
            failure = _told(error)
        self._keep(name, figures if failure is None else failure)
        click.echo(f"{self.elapsed_s:6.1f} s  {name}: {self.elapsed_s - began:.1f} s", err=True)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
        return figures

    def save(self) -> None:
        """Write the file."""
        write_document(self.document, self._path)

    def finish(self) -> None:
        """Note that nothing was cut off, and write the file."""
        self.document["seconds"]["all"] = round(self.elapsed_s, 1)
        self.document["complete"] = True
        self.save()

    def faults(self) -> list[str]:
        """Name the measurements that failed, and the comparisons whose sides differ."""
        return [
            f"{part}: {name}"
            for part, figures in self.document["parts"].items()
            for name, figure in figures.items()
            if name == "error" or (isinstance(figure, dict) and ("error" in figure or figure.get("same") is False))
        ]

    def _keep(self, name: str, figures: Any) -> None:
        self._figures[name] = figures
        self.save()


def _told(error: Exception) -> dict[str, Any]:
    """What the file says of an error. A peer that is not installed, and no memory, are results."""
    if is_out_of_memory(error):
        return {"out_of_memory": True}
    if isinstance(error, BenchmarkError) and "is not installed" in str(error):
        return {"left_out": str(error)}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"}
