"""The folder of a comparison.

    comparison.json            what all runs share, and the command
    runs/lora-seed-0.json      one finished run, in the form of PEFT's method_comparison
    runs/lora-seed-0.safetensors   what it trained; of a side network a run folder, `runs/lst-seed-0`
    results.md, results.csv, results.json, pareto.html
    figure-1.png ...           the LST paper's figures of these runs, where matplotlib is installed

Each file is replaced at once. A run that was interrupted has no JSON file, and is made again.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.methods.errors import CompareError

COMPARISON = "comparison.json"
RUNS = "runs"
PART = ".part"


class ComparisonFolder:
    """Files of one comparison. Nothing is made or read before `begin`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def begin(self, shared: Mapping[str, Any]) -> None:
        """Make the folder, or go on with one of the same comparison.

        Args:
            shared: what all runs share, JSON-ready.

        Raises:
            CompareError: it holds something else, or cannot be written.
        """
        try:
            (self.path / RUNS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CompareError(
                str(self.path), f"cannot be written ({error.strerror}); choose another --output"
            ) from None
        file = self.path / COMPARISON
        if not file.exists():
            others = [entry.name for entry in self.path.iterdir() if entry.name != RUNS and entry.suffix != PART]
            if others or any((self.path / RUNS).iterdir()):
                why = f"holds {min(others or [RUNS])} and no comparison; choose another --output"
                raise CompareError(str(self.path), why)
            self.write(COMPARISON, json.dumps(dict(shared), indent=2, sort_keys=True) + "\n")
            return
        before = _read(file)
        differing = sorted(name for name in {*before, *shared} if before.get(name) != shared.get(name))
        if differing:
            why = f"holds a comparison with another {', '.join(differing)}; choose another --output or delete it"
            raise CompareError(str(self.path), why)

    def run_path(self, name: str, suffix: str = "") -> Path:
        """Where a run keeps what it trained."""
        return self.path / RUNS / (name + suffix)

    def read_run(self, name: str) -> dict[str, Any] | None:
        """The document of a finished run; None where it is not finished. Raises CompareError: it is damaged."""
        file = self.run_path(name, ".json")
        return _read(file) if file.exists() else None

    def write_run(self, name: str, document: Mapping[str, Any]) -> None:
        """Store a finished run. Raises CompareError."""
        self.write(f"{RUNS}/{name}.json", json.dumps(document, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Replace a file at once. Raises CompareError: it cannot be written."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """As `write`."""
        file = self.path / name
        part = file.with_name(file.name + PART)
        try:
            with part.open("wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            part.replace(file)
        except OSError as error:
            raise CompareError(str(file), f"cannot be written: {error.strerror}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompareError(str(file), f"cannot be read ({error}); delete it, and its run is made again") from None
    if not isinstance(document, dict):
        raise CompareError(str(file), "is no document of a comparison; delete it")
    return document
