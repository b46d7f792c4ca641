"""The audit log: a line of JSON for every change of the registry, and for every call that was refused.

Written by the logger `sidecast.audit`. It never has tokens, texts or images.
"""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("sidecast.audit")

REFUSALS_PER_S = 100
"""Most lines of refusals a second. The next line says how many were left out, so that a flood cannot fill a disk."""
MAX_TEXT = 200
MAX_TASKS = 20


class Audit:
    """Writes the lines. Use it on one event loop."""

    def __init__(self) -> None:
        self._second = 0
        self._written = 0
        self._left_out = 0

    def change(self, **what: Any) -> None:
        """Log a change, or that one failed. Keywords are those of `_line`."""
        log.info(_line("change", **what))

    def refusal(self, **what: Any) -> None:
        """Log a refused call. Keywords are those of `_line`."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._written = 0
        if self._written >= REFUSALS_PER_S:
            self._left_out += 1
            return
        self._written += 1
        if self._left_out:
            what["left_out"] = self._left_out
            self._left_out = 0
        log.warning(_line("refusal", **what))


def _line(
    event: str,
    *,
    caller: str,
    tenant: str,
    peer: str,
    verb: str,
    method: str,
    tasks: tuple[str, ...],
    result: str,
    request_id: str,
    **more: Any,
) -> str:
    """One line of JSON; texts that a caller sent are cut, and characters beyond ASCII are escaped."""
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "caller": caller[:MAX_TEXT],
        "tenant": tenant[:MAX_TEXT],
        "peer": peer[:MAX_TEXT],
        "verb": verb,
        "method": method,
        "tasks": [task[:MAX_TEXT] for task in tasks[:MAX_TASKS]],
        "result": result,
        "request_id": request_id,
    }
    return json.dumps(line | more)


def write_audit(file: str) -> None:
    """Write the lines to a file, or to standard error where `file` is empty. Other handlers get them too.

    Raises:
        OSError: the file cannot be written.
    """
    handler = logging.FileHandler(Path(file), encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
