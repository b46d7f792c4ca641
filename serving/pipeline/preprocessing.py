"""Turns the rows of a request into tokens: resolves each task, renders its prompts, tokenizes them.

A fault of one task stands in that task's place, so that the others go on. Knows no queue and no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from serving.errors import InvalidInput, ServingError, TooManyRows
from serving.pipeline.request import DecodingOverrides
from serving.versions import PoolState
from side_registry.errors import InvalidRow, RegistryError
from side_registry.task import PRODUCTION, TaskRef, TaskSpec
from side_registry.task_kinds import KINDS

if TYPE_CHECKING:
    pass
from serving.pipeline.request import Ids, Refused, Target


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


class Encoder(Protocol):
    """What the service needs of a tokenizer; called from several threads."""

    def encode_batch(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """One task's rows as tokens."""

    target: Target
    prompts: list[str]
    ids: list[Ids]


@dataclass(frozen=True, slots=True)
class _Rendered:
    target: Target
    prompts: list[str]

    @property
    def limit(self) -> int:
        return self.target.resident.spec.max_source_tokens


def resolve(
    state: PoolState,
    ref: TaskRef,
    generation: DecodingOverrides,
    *,
    key: str = "",
    among: bool = False,
) -> Target | Refused:
    """The task of a request.

    Args:
        key: the request's, by which the alias's route leads it to a version; "": at random.
        among: others. One that makes no texts is not touched by `generation` then.
    """
    try:
        resident = state.resolve(ref.task, version=ref.version, alias=ref.alias, key=key)
        overrides = DecodingOverrides() if among and not KINDS[resident.spec.kind].makes_text else generation
        answerer = overrides.answerer(resident)
    except (ServingError, RegistryError) as error:
        return error
    found = Target(resident, None, answerer, overrides=overrides, generation=state.generation)
    if ref.version is not None:
        return found
    alias = ref.alias or PRODUCTION
    since = state.routed_since(ref.task, alias, resident.version)
    beside = () if since is None else state.beside(ref.task, alias, resident.version)
    return replace(found, alias=alias, since=since, beside=beside)


def encode(
    tokenizer: Encoder, requests: Sequence[tuple[Sequence[Target | Refused], Sequence[InputRow]]]
) -> list[list[Encoded | Refused] | Exception]:
    """Render each request's rows for its targets, and tokenize with one call. For a tokenizer thread.

    A request that cannot be done is its exception, and the others are done without it.
    """
    try:
        return [*_tokenized(tokenizer, [_rendered(targets, rows) for targets, rows in requests])]
    except Exception as error:
        if len(requests) == 1:
            return [error]
    return [outcome for request in requests for outcome in encode(tokenizer, [request])]


def _rendered(targets: Sequence[Target | Refused], rows: Sequence[InputRow]) -> "list[_Rendered | Refused]":
    return [target if isinstance(target, Exception) else _render_target(target, rows) for target in targets]


def _render_target(target: Target, rows: Sequence[InputRow]) -> _Rendered | Refused:
    try:
        return _Rendered(target, render_rows(target.resident.spec, rows))
    except ServingError as error:
        return error


def _tokenized(tokenizer: Encoder, requests: "Sequence[list[_Rendered | Refused]]") -> list[list[Encoded | Refused]]:
    """Each distinct prompt of all the requests is tokenized once."""
    prompts: dict[int, dict[str, None]] = {}
    for request in requests:
        for each in request:
            if isinstance(each, _Rendered):
                prompts.setdefault(each.limit, {}).update(dict.fromkeys(each.prompts))
    ids = {limit: _tokenize(tokenizer, list(texts), limit) for limit, texts in prompts.items()}

    def encoded(each: _Rendered | Refused) -> Encoded | Refused:
        if isinstance(each, Exception):
            return each
        return Encoded(each.target, each.prompts, [ids[each.limit][prompt] for prompt in each.prompts])

    return [[encoded(each) for each in request] for request in requests]


def _tokenize(tokenizer: Encoder, texts: list[str], limit: int) -> Mapping[str, Ids]:
    return dict(zip(texts, map(tuple, tokenizer.encode_batch(texts, limit)), strict=True))
