"""Turns what a caller sent into prompts, by a task's spec. Every fault names the row and the field.

Knows text only: no tokens, no side networks, no gRPC.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.errors import InvalidInput, TooManyRows
from side_registry.errors import InvalidRow
from side_registry.task import TaskSpec


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt: the template is not applied."""

    text: str


InputRow = Mapping[str, str] | str | Prompt
"""Fields of the template; or the value of its only field; or a whole prompt."""


def render_rows(spec: TaskSpec, rows: Sequence[InputRow]) -> list[str]:
    """The prompts of one request to one task.

    Raises:
        TooManyRows: more than the spec allows.
        InvalidInput: the first faulty row.
    """
    if len(rows) > spec.max_rows:
        raise TooManyRows(len(rows), spec.max_rows)
    return [_render(spec, row, f"rows[{place}]") for place, row in enumerate(rows)]


def _render(spec: TaskSpec, row: InputRow, where: str) -> str:
    if isinstance(row, Prompt):
        return _whole_prompt(spec, row.text, f"{where}.text")
    if isinstance(row, str):
        if len(spec.fields) != 1:
            raise InvalidInput(where, f"task {spec.name!r} needs the fields {', '.join(spec.fields)}, got one text")
        row = {spec.fields[0]: row}
    if not isinstance(row, Mapping):
        raise InvalidInput(where, f"must be a text, or fields by name, got {type(row).__name__}")
    try:
        return spec.render(row)
    except InvalidRow as error:
        raise InvalidInput(f"{where}.{_shown(error.field)}", error.why) from None


def _whole_prompt(spec: TaskSpec, text: str, where: str) -> str:
    limit = spec.max_chars * len(spec.fields) + len(spec.template)
    if not isinstance(text, str):
        raise InvalidInput(where, f"must be text, got {type(text).__name__}")
    if len(text) > limit:
        raise InvalidInput(where, f"has {len(text)} characters, at most {limit} are allowed; shorten it")
    if not text.strip():
        raise InvalidInput(where, "is empty; give it some text")
    if "\0" in text:
        raise InvalidInput(where, "holds a NUL character; remove it")
    if not _is_encodable(text):
        raise InvalidInput(where, "holds half a surrogate pair; remove it")
    return text


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(field: object) -> str:
    """A caller's own field name may be anything; an error message may not."""
    name = str(field)
    return name if name.isidentifier() and name.isascii() and len(name) <= 64 else ascii(name[:64])
