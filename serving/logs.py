"""How the server writes its log: lines for people, or one JSON object for each event; each names its request.

Lines have no texts, images or tokens of callers. Knows no gRPC and no HTTP.
"""

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

AUDIT = "sidecast.audit"
"""Name of the logger of the audit log."""
PACKAGES = ("serving", "side_registry", "ladder", "vision", AUDIT)
"""Loggers of this project that a server uses."""
PLAIN = re.compile(r"[\w.@:/*+-]+", re.ASCII)
"""A value that a line for people shows without quotes."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered; "" outside of requests, and on threads."""

log = logging.getLogger(AUDIT)


class HumanFormatter(logging.Formatter):
    """Time, level, logger and message; at the end the id of the request, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        line = super().formatMessage(record)
        name = request_id.get()
        return f"{line} [request {name}]" if name and not hasattr(record, "audit") else line


class JsonFormatter(logging.Formatter):
    """One JSON object for each event. An event of the audit log has its own fields in it too."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := request_id.get():
            line["request_id"] = name
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "audit", {}))


class AuditFormatter(logging.Formatter):
    """The fields of an audit event as JSON, and nothing else."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        return json.dumps(getattr(record, "audit", {}))


def formatter(kind: str) -> logging.Formatter:
    """The formatter of a log of this kind: human or json."""
    return JsonFormatter() if kind == "json" else HumanFormatter()


def log_to_stderr(kind: str, level: str) -> None:
    """Write this process's log to standard error: for a process that has no handlers yet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(kind))
    logging.basicConfig(level=level, handlers=[handler])


def log_packages(kind: str, level: str) -> None:
    """Write the lines of this project's loggers alone to standard error: for a process that is another program's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(kind))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)


def write_audit(file: str) -> None:
    """Write the audit log to a file, as JSON alone. Where `file` is empty, its events are lines of the ordinary log.

    Raises:
        OSError: the file cannot be written.
    """
    log.setLevel(logging.INFO)
    if not file:
        return
    handler = logging.FileHandler(Path(file), encoding="utf-8")
    handler.setFormatter(AuditFormatter())
    log.handlers = [handler]
    log.propagate = False


def audit_text(event: dict[str, Any]) -> str:
    """An audit event for people, as in `change publish by ci: OK tasks=sst2`. No caller can break the line."""
    who = event["caller"] or "unknown"
    shown = {name: value for name, value in event.items() if name not in ("time", "event", "caller", "verb", "result")}
    fields = [f"{name}={_shown(value)}" for name, value in shown.items() if value not in ("", [])]
    verb = event["verb"] or "call"
    return " ".join([event["event"], _shown(verb), "by", f"{_shown(who)}:", _shown(event["result"]), *fields])


def _shown(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if PLAIN.fullmatch(text.replace(",", "")) else json.dumps(text)
