"""What the registry's JSON documents have in common: frozen, unknown fields kept, faults explained in one sentence.

And how a file is replaced whole.
"""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA_VERSION = 1
"""Of the marker, commits, checkpoints and manifests. A reader refuses what is newer than itself."""

MAX_NUMBER = 2**63 - 1
"""Largest version or generation: what 64 bits hold, as in gRPC's messages."""

SHOWN_FAULTS = 3


class Document(BaseModel):
    """A document on disk. Fields that this program does not know survive reading and writing."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="strings", hide_input_in_errors=True)

    def to_json(self, indent: int | None = None) -> bytes:
        """The document as UTF-8, with a newline at its end."""
        return self.model_dump_json(indent=indent).encode() + b"\n"


def explain(error: ValidationError) -> str:
    """Pydantic's report as one sentence: `labels: must be distinct; low: ...`."""
    faults = [fault_text(fault) for fault in error.errors(include_url=False, include_input=False)]
    more = f" (and {len(faults) - SHOWN_FAULTS} more faults)" if len(faults) > SHOWN_FAULTS else ""
    return "; ".join(faults[:SHOWN_FAULTS]) + more


def newer_schema(version: int) -> str | None:
    """Why a document of this schema version cannot be read; None when it can."""
    if version <= SCHEMA_VERSION:
        return None
    return f"its schema version {version} is newer than this program's {SCHEMA_VERSION}, upgrade sidecast"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, renamed to `path` when the block ends without error. Readers see the old file, or all of it."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def fault_text(fault: Mapping[str, Any]) -> str:
    """One of pydantic's `errors()`, with the place where it is."""
    message = fault["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {message}" if where else message
