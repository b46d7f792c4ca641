"""Loads task specs: the built-in ones in the folder tasks/ next to this file, and a user's TOML files.

Single-sentence tasks all have the template `{sentence}`, and pair tasks one form that names their fields: equal inputs
are then equal prompts, and the backbone's activations of one serve every task.
"""

import os
from pathlib import Path

from side_registry.specs.task import TaskSpec
from training.errors import UnknownBuiltinTask

FOLDER = Path(__file__).with_name("tasks")


def load_task(name_or_path: str | Path) -> TaskSpec:
    """A built-in task by its name, or the task spec in a TOML file: what ends in `.toml` or has a folder is a file.

    Raises:
        UnknownBuiltinTask: no such name; lists the names there are.
        InvalidSpec: the file is missing or breaks a rule of task specs.
    """
    if _is_path(name_or_path):
        return TaskSpec.from_toml(Path(name_or_path))
    known = _builtin_files()
    if name_or_path not in known:
        file = f"{name_or_path}.toml"
        raise UnknownBuiltinTask(str(name_or_path), known, file if Path(file).is_file() else "")
    return TaskSpec.from_toml(known[str(name_or_path)])


def builtin_tasks() -> dict[str, TaskSpec]:
    """All built-in task specs by name, in order of their names."""
    return {name: TaskSpec.from_toml(path) for name, path in _builtin_files().items()}


def _is_path(name_or_path: str | Path) -> bool:
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text or "/" in text


def _builtin_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
