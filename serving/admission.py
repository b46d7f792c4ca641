"""The way in: each task of a request is found in the pool, its rows rendered by its spec, and tokenized.

What is wrong with one task stands in its place, so that the others go on. Knows no queue and no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from serving.errors import ServingError
from serving.overrides import Overrides
from serving.pool import PoolState, Resident
from serving.prompts import InputRow, render_rows
from side_registry.errors import RegistryError
from side_registry.task import PRODUCTION, TaskRef

if TYPE_CHECKING:
    from ladder.answerers import Answerer

Ids = tuple[int, ...]
"""Tokens of one row."""
Refused = ServingError | RegistryError
"""Why a task of a request is not answered."""


class Encoder(Protocol):
    """What the service needs of a tokenizer; called from several threads."""

    def encode_batch(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Target:
    """One task of a request, found in the pool."""

    resident: Resident
    alias: str | None
    """The alias that led to it; None where the version was pinned."""
    answerer: "Answerer"
    """The resident's, with what the request sets."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One task's rows as tokens."""

    target: Target
    ids: list[Ids]


@dataclass(frozen=True, slots=True)
class _Rendered:
    target: Target
    prompts: list[str]

    @property
    def limit(self) -> int:
        return self.target.resident.spec.max_source_tokens


def resolve(state: PoolState, ref: TaskRef, generation: Overrides) -> Target | Refused:
    try:
        resident = state.resolve(ref.task, version=ref.version, alias=ref.alias)
        answerer = generation.answerer(resident)
    except (ServingError, RegistryError) as error:
        return error
    return Target(resident, None if ref.version is not None else ref.alias or PRODUCTION, answerer)


def encode(
    tokenizer: Encoder, targets: Sequence[Target | Refused], rows: Sequence[InputRow]
) -> list[Encoded | Refused]:
    """Render `rows` for every task and tokenize each distinct prompt once. For a tokenizer thread."""
    rendered = [target if isinstance(target, Exception) else _render(target, rows) for target in targets]
    prompts: dict[int, dict[str, None]] = {}
    for each in rendered:
        if isinstance(each, _Rendered):
            prompts.setdefault(each.limit, {}).update(dict.fromkeys(each.prompts))
    ids = {limit: _tokenize(tokenizer, list(texts), limit) for limit, texts in prompts.items()}
    return [
        each
        if isinstance(each, Exception)
        else Encoded(each.target, [ids[each.limit][prompt] for prompt in each.prompts])
        for each in rendered
    ]


def _render(target: Target, rows: Sequence[InputRow]) -> _Rendered | Refused:
    try:
        return _Rendered(target, render_rows(target.resident.spec, rows))
    except ServingError as error:
        return error


def _tokenize(tokenizer: Encoder, texts: list[str], limit: int) -> Mapping[str, Ids]:
    return dict(zip(texts, map(tuple, tokenizer.encode_batch(texts, limit)), strict=True))
