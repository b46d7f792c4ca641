"""The audit log: an event for every change of the registry, and for every call that was refused.

Written by the logger `sidecast.audit`; `serving.logs` decides on the form. It never has tokens, texts or images.
"""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from serving.logs import AUDIT, audit_text

log = logging.getLogger(AUDIT)

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
        """Log a change, or that one failed. Keywords are those of `_event`."""
        event = _event("change", **what)
        log.info("%s", audit_text(event), extra={"audit": event})

    def refusal(self, **what: Any) -> None:
        """Log a refused call. Keywords are those of `_event`."""
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
        event = _event("refusal", **what)
        log.warning("%s", audit_text(event), extra={"audit": event})


def refuse_version(task: str, version: int, reason: str, why: str) -> None:
    """Log that the server itself does not load a version. For the thread that loads."""
    event = _event(
        "refusal",
        caller="",
        tenant="",
        peer="",
        verb="load",
        method="",
        tasks=(task,),
        result=reason,
        request_id="",
        version=version,
        why=why[:MAX_TEXT],
    )
    log.warning("%s", audit_text(event), extra={"audit": event})


def _event(
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
) -> dict[str, Any]:
    """The event's fields; texts that a caller sent are cut."""
    fields: dict[str, Any] = {
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
    return fields | more
