"""CoNLL files: a token and its tag a line, in the first and the last column; blank lines end sentences."""

from collections.abc import Iterator
from pathlib import Path

from training.errors import DataError

SUFFIX = ".conll"
DOCUMENT = "-DOCSTART-"
"""Token of a line that begins a document, and is none of its words."""


def is_conll(path: str | Path) -> bool:
    """Whether a file is one, by its name's suffix."""
    return Path(path).suffix.lower() == SUFFIX


def read_conll(path: str | Path) -> Iterator[tuple[int, list[str], list[str]]]:
    """Read each sentence: its first line, from 1, its tokens and their tags.

    Columns are divided by tabs where a line has one, else by spaces.

    Raises:
        DataError: unreadable, not UTF-8, or a line of one column.
    """
    tokens: list[str] = []
    tags: list[str] = []
    first = 1
    for number, line in _lines(path):
        columns = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if not "".join(columns).strip() or columns[0] == DOCUMENT:
            if tokens:
                yield first, tokens, tags
            tokens, tags = [], []
            continue
        if len(columns) < 2:
            raise DataError(path, number, f"has one column, {columns[0][:40]!r}; give a token and its tag in each line")
        first = number if not tokens else first
        tokens.append(columns[0])
        tags.append(columns[-1].strip())
    if tokens:
        yield first, tokens, tags


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    number = 1
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except UnicodeDecodeError:
        raise DataError(path, None, f"is not UTF-8 after line {number}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error
