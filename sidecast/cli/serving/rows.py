"""Rows of a task, made from the texts and the image files of a command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.client.images import read_image_file
from sidecast.cli.app import UserError


def rows_of(
    fields: Sequence[str], texts: Sequence[str], literal: Sequence[str] = (), images: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Make rows from the texts on the command line.

    Args:
        literal: texts in which no name is looked for; they come last.
        images: the names of the task's images, for messages.
    Raises:
        UserError: a name that is no field, a field twice, too many texts, or too few.
    """
    pairs = [*(_named(fields, text, images) for text in texts), *(("", text) for text in literal)]
    if len(fields) == 1 and pairs:
        return [{fields[0]: value} for _, value in pairs]
    if not fields and pairs:
        raise UserError(f"this task reads no text, only images ({', '.join(images)}); leave {pairs[0][1]!r} away")
    named = [(name, value) for name, value in pairs if name]
    unnamed = [value for name, value in pairs if not name]
    row = dict(named)
    if len(row) < len(named):
        raise UserError(f"a field is given twice; give each of {', '.join(fields)} once")
    free = [name for name in fields if name not in row]
    if len(unnamed) != len(free):
        needs = " ".join(f"{name}=TEXT" for name in fields)
        got = f"no text for {', '.join(free[len(unnamed) :])}" if len(unnamed) < len(free) else f"{len(pairs)} texts"
        takes = f"one row of {len(fields)} fields" if len(fields) > 1 else "texts"
        raise UserError(f"this task takes {takes}: {needs}; got {got}")
    return [row | dict(zip(free, unnamed, strict=True))]


def with_images(names: Sequence[str], rows: Sequence[dict[str, str]], given: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with their images: of a task with one image each row with each file, else all rows with the same files.

    Args:
        names: of the task's images.
        given: FILE or NAME=FILE.
    Raises:
        UserError: the task reads no images, a name that is none of its images or comes twice, too few or too many
            files, or one that cannot be read.
    """
    if given and not names:
        raise UserError("this task reads text alone; leave --image away")
    pairs = [_named_image(names, text) for text in given]
    needs = " ".join(f"--image {name}=FILE" for name in names)
    if len(names) == 1 and pairs:
        return [{**row, names[0]: image} for image in [_read_image(file) for _, file in pairs] for row in rows]
    named = {name: file for name, file in pairs if name}
    free = [name for name in names if name not in named]
    unnamed = [file for name, file in pairs if not name]
    if len(named) + len(unnamed) < len(pairs):
        raise UserError(f"an image is given twice; give each once: {needs}")
    if len(unnamed) != len(free):
        missing = free[len(unnamed) :]
        got = f"no file for {', '.join(missing)}" if missing else f"{len(pairs)} files"
        raise UserError(f"this task reads {len(names)} image{'s' * (len(names) > 1)}: {needs}; got {got}")
    files = named | dict(zip(free, unnamed, strict=True))
    images = {name: _read_image(files[name]) for name in names}
    return [{**row, **images} for row in rows]


def _named_image(names: Sequence[str], text: str) -> tuple[str, str]:
    """NAME=FILE in its two parts; the name is "" for any other text. Raises UserError: the name is no image's."""
    name, mark, file = text.partition("=")
    if mark and name in names:
        return name, file
    if mark and name.isidentifier() and not Path(text).exists():
        raise UserError(f"this task has no image {name!r}; its images: {', '.join(names)}")
    return "", text


def _read_image(file: str) -> bytes:
    try:
        return read_image_file(file)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        hint = "; URLs are not fetched: download the file first" if "://" in file else ""
        raise UserError(f"--image {file} cannot be read: {why}{hint}") from None


def _named(fields: Sequence[str], text: str, images: Sequence[str]) -> tuple[str, str]:
    """NAME=TEXT in its two parts; the name is "" for any other text, such as `x = 3`, `1+1=2` and `a==b`.

    Raises:
        UserError: it begins with a name and an equals sign, but this is no field.
    """
    name, mark, value = text.partition("=")
    if mark and name in fields:
        return name, value
    if mark and name in images:
        raise UserError(f"{name!r} is an image of this task: give it as --image {text}")
    if mark and name.isidentifier() and not value.startswith("=") and fields:
        raise UserError(
            f"this task has no field {name!r}; its fields: {', '.join(fields)}. If {text!r} is a text, write --text "
            f"before it, or {fields[0]}="
        )
    return "", text
