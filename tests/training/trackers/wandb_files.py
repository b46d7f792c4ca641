"""Reads what the wandb package writes while it is offline: a LevelDB log of its protobuf records."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

HEAD = 7
"""Bytes before the log: a mark and a version."""
BLOCK = 32_768
RECORD = struct.Struct("<IHB")
"""Before each fragment: checksum, length, and 1 whole, 2 first, 3 middle or 4 last."""


@contextmanager
def settings(monkeypatch: pytest.MonkeyPatch, folder: Path, mode: str = "offline") -> Iterator[None]:
    """Have wandb write into the folder alone. It reads its variables once, so it is ended before and after."""
    variables = {"WANDB_MODE": mode, "WANDB_DIR": str(folder), "WANDB_CONFIG_DIR": str(folder / "config")}
    folder.mkdir(exist_ok=True)
    for name, value in {**variables, "HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield
    wandb.teardown()


def runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each run, by its id, as `records` has them; files of one run follow one another."""
    wandb.teardown()  # it writes on after a run's end
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("**/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        found.setdefault(path.stem.removeprefix("run-"), []).extend(records(path))
    return found


def records(path: Path) -> list[dict[str, Any]]:
    """Of a file: the run with its config, and each step with its numbers."""
    found: list[dict[str, Any]] = []
    for data in _fragments(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("run"):
            config = {one.key: one.value_json for one in record.run.config.update}
            found.append({"project": record.run.project, "name": record.run.display_name, "config": config})
        if record.HasField("history"):
            numbers = {"/".join(one.nested_key) or one.key: one.value_json for one in record.history.item}
            mine = {name: float(value) for name, value in numbers.items() if not name.startswith("_")}
            found.append({"step": record.history.step.num, **mine})
    return found


def _fragments(data: bytes) -> Iterator[bytes]:
    at, whole = HEAD, b""
    while at + RECORD.size <= len(data):
        if BLOCK - at % BLOCK < RECORD.size:  # a block's last bytes, which hold nothing
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = RECORD.unpack_from(data, at)
        whole += data[at + RECORD.size : at + RECORD.size + length]
        at += RECORD.size + length
        if kind in (1, 4):
            yield whole
            whole = b""
