"""A table's rows as tokens: prompts rendered from its columns, and the texts of tasks that tag words in windows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from ladder.answering import Framed, WindowedText, split_texts
from serving.pipeline import Encoder
from side_registry.errors import InvalidRow
from side_registry.specs.task import Pair, TaskSpec

Ids = tuple[int, ...]

IMAGES_AT_ONCE = 256
"""Most images whose features are in memory: 200 MB of a grid of 256 tokens with 768 features in float32."""


@dataclass(frozen=True)
class TokenizedTable:
    """A table whose rows were rendered and tokenized for each task."""

    table: pa.Table
    ids: Sequence[Sequence[Ids | WindowedText | Exception]]
    """For each task, each row's token ids or, where the task tags words, its text; or why it has none."""
    pairs: Sequence[Sequence[Pair | None]]
    """For each task, where each row's two texts lie among its tokens, if its side network reads them apart."""
    truncated: Sequence[int]
    """For each task, how many rows' texts are cut."""
    images: Sequence[Sequence[tuple[str, ...]]]
    """For each task, the names of each row's images, in the order of its spec's; none where `ids` has a fault."""
    files: Mapping[str, bytes]
    """The bytes of all images, by name."""

    @cached_property
    def prompts(self) -> int:
        """Distinct prompts, over all tasks."""
        return len({ids for rows in self.ids for row in rows for ids in _inputs_of(row)})

    def names_of(self, rows: range) -> set[str]:
        """The names of the images of some rows."""
        return {name for of_task in self.images for index in rows for name in of_task[index]}

    def spans(self) -> Iterator[range]:
        """The rows in spans of at most IMAGES_AT_ONCE images; of a table without images, one span."""
        start = 0
        held: set[str] = set()
        for index in range(self.table.num_rows):
            names = self.names_of(range(index, index + 1))
            if held and len(held | names) > IMAGES_AT_ONCE:
                yield range(start, index)
                start = index
                held = set()
            held |= names
        yield range(start, self.table.num_rows)


def render(spec: TaskSpec, columns: Sequence[Sequence[Any]], rows: int) -> list[str | Exception]:
    """The rows' prompts, or why a row has none. `columns` are the values of the spec's fields; there may be none."""
    values = zip(*columns, strict=True) if columns else [()] * rows
    return [_prompt(spec, dict(zip(spec.fields, row, strict=True))) for row in values]


def split_column(
    tokenizer: Encoder, spec: TaskSpec, prompts: Sequence[str | Exception], values: Sequence[Any]
) -> tuple[list[WindowedText | Exception], int]:
    """Each row's text for tagging its words, and how many are cut; `values` are those of the only field."""
    before, after = spec.frame
    texts = {
        index: Framed(before, str(value), after)
        for index, (prompt, value) in enumerate(zip(prompts, values, strict=True))
        if isinstance(prompt, str)
    }
    distinct = list(dict.fromkeys(texts.values()))
    by_text = dict(zip(distinct, split_texts(tokenizer, distinct, spec.max_source_tokens), strict=True))
    rows = [prompt if isinstance(prompt, Exception) else by_text[texts[index]] for index, prompt in enumerate(prompts)]
    return rows, sum(by_text[framed].truncated for framed in texts.values())


def tokenize_prompts(
    tokenizer: Encoder, prompts: Sequence[str | Exception], limit: int
) -> tuple[list[Ids | Exception], int]:
    """Each prompt's token ids, and how many prompts are cut. Each distinct prompt is tokenized once."""
    texts = list(dict.fromkeys(prompt for prompt in prompts if isinstance(prompt, str)))
    encoded, cut = tokenizer.encode_cut(texts, limit)
    ids = dict(zip(texts, map(tuple, encoded), strict=True))
    is_cut = dict(zip(texts, cut, strict=True))
    rows = [ids[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
    return rows, sum(is_cut[prompt] for prompt in prompts if isinstance(prompt, str))


def _prompt(spec: TaskSpec, values: Mapping[str, Any]) -> str | Exception:
    try:
        return spec.render({name: as_text(name, value) for name, value in values.items()})
    except InvalidRow as error:
        return error


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column's values as Python's; a text that is not UTF-8 becomes its UnicodeDecodeError."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def as_text(name: str, value: Any) -> Any:
    """Numbers become their text, as in training. Raises InvalidRow."""
    if value is None:
        raise InvalidRow(name, "is null; give a text")
    if isinstance(value, UnicodeDecodeError):
        raise InvalidRow(name, f"is not UTF-8 ({value.reason} at byte {value.start})")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _inputs_of(row: Ids | WindowedText | Exception) -> list[Ids]:
    """What the backbone reads of a row."""
    if isinstance(row, Exception):
        return []
    return [window.ids for window in row.windows] if isinstance(row, WindowedText) else [row]
