"""The way in: each task of a request is found in the pool, its rows rendered by its spec, and tokenized.

What is wrong with one task stands in its place, so that the others go on. Knows no queue and no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    since: int | None = None
    """The generation that set the alias's route; None where it has none."""
    beside: tuple[Resident, ...] = ()
    """Who answers the same for the comparison of the route's versions."""
    overrides: Overrides = field(default_factory=Overrides)
    """What the request sets."""
    generation: int = -1
    """The registry's that was served when it was found."""


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
    generation: Overrides,
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
        overrides = Overrides() if among and resident.spec.kind != "text" else generation
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
    return [target if isinstance(target, Exception) else _render(target, rows) for target in targets]


def _render(target: Target, rows: Sequence[InputRow]) -> _Rendered | Refused:
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
