"""A teacher's answers in a file beside the runs: a command that goes on, or tries other settings, asks it only once."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from side_registry.documents import replacing
from training.absorbing.teacher import HfTeacher
from training.errors import RunError

FOLDER = ".answers"
"""In the folder of the runs."""
NAME = "answers"


def kept_answers(
    teacher: HfTeacher, rows: Sequence[Sequence[str]], output: Path, step: Callable[[int, int], None]
) -> Tensor:
    """As `HfTeacher.answers`; from the file of an earlier call with the same teacher and rows, if there is one.

    Raises:
        TeacherError: as `HfTeacher.answers`.
        RunError: the file cannot be written.
    """
    path = output / FOLDER / f"{_digest(teacher.folder.identity, rows)}.safetensors"
    if path.is_file():
        try:
            return load_file(path)[NAME]
        except (SafetensorError, KeyError):
            pass  # damaged: asked again
    answers = teacher.answers(rows, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(save({NAME: answers}))
    except OSError as error:
        raise RunError(output, f"cannot be written ({error.strerror}); choose another --output") from None
    return answers


def _digest(identity: str, rows: Sequence[Sequence[str]]) -> str:
    digest = hashlib.sha256(identity.encode())
    for row in rows:
        digest.update(json.dumps(list(row)).encode() + b"\n")
    return digest.hexdigest()
