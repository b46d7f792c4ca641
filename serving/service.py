"""What both doors call: rows in, typed answers out. Validates, tokenizes off the event loop, batches.

A request finds its residents once, when it is admitted: all of its rows are answered by the same versions, whatever is
swapped meanwhile. Knows no gRPC and runs no torch.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from time import perf_counter

from ladder.answerers import Generate
from ladder.answers import Answer
from serving.admission import Encoded, Encoder, Ids, Refused, Target, resolve
from serving.batching import Batcher
from serving.config import RequestConfig
from serving.engine import EngineRow
from serving.errors import Draining, InvalidInput, ServingError, TooManyRows
from serving.fair_order import PRIORITIES
from serving.metrics import Metrics
from serving.overrides import Overrides
from serving.pieces import Piece
from serving.pool import PoolState, SidePool
from serving.prompts import InputRow, Prompt
from serving.row_queue import Outcome
from serving.task_info import TaskInfo, describe_task
from serving.tokenizing import Tokenizing
from serving.told import FinishReason, Told
from side_registry.task import TaskRef, TaskSpec

__all__ = ["Generated", "InputRow", "Piece", "PredictService", "Prediction", "Prompt", "TaskInfo", "check_priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One task's answers, in the rows' order, and which version gave them."""

    task: str
    version: int
    alias: str | None
    """The alias that led to the version; None where it was pinned."""
    generation: int
    """The registry's generation that was fully applied here when the request was admitted."""
    spec: TaskSpec
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The end of a streamed text."""

    prediction: Prediction
    """Its only answer is the whole text."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class _Wish:
    """How a request wants to be answered."""

    deadline: float | None
    generation: Overrides
    priority: int
    tenant: str


@dataclass(frozen=True, slots=True)
class _Answered:
    target: Target
    outcomes: list[Outcome]


class PredictService:
    """Use it on the event loop of its batcher."""

    def __init__(
        self,
        pool: SidePool,
        batcher: Batcher,
        tokenizer: Encoder,
        config: RequestConfig | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._pool, self._batcher, self._config = pool, batcher, config or RequestConfig()
        self._metrics = metrics or Metrics()
        self._tokenizing = Tokenizing(tokenizer, self._config.tokenizer_threads, self._metrics)
        self._in_flight = 0
        self._draining = False
        self._quiet = asyncio.Event()

    @property
    def generation_served(self) -> int:
        """The newest generation that is fully applied here; -1 before the first."""
        return self._pool.snapshot().generation

    @property
    def generation_wanted(self) -> int:
        """The registry's newest generation known here; -1 before the first."""
        return self._pool.snapshot().wanted

    @property
    def ready(self) -> bool:
        """The first load is done, and the server is not shutting down."""
        return self.generation_served >= 0 and not self._draining

    def task(self, name: str) -> TaskInfo:
        """Raises UnknownTask."""
        return describe_task(self._pool.snapshot(), name)

    def tasks(self) -> list[TaskInfo]:
        """Every task of the registry, by name."""
        state = self._pool.snapshot()
        return [describe_task(state, name) for name in sorted(state.tasks)]

    async def predict(
        self,
        task: str,
        rows: Sequence[InputRow],
        *,
        version: int | None = None,
        alias: str | None = None,
        deadline: float | None = None,
        generation: Overrides | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> Prediction:
        """Answer `rows` of one task; `production` answers where neither version nor alias is named.

        Args:
            deadline: time.monotonic() seconds.
            generation: settings for making texts, over the spec's.
            priority: 1, the highest, to 4; 0 for the server's default.
            tenant: requests of different ones share no cached activations.

        Raises:
            UnknownTask, UnknownVersion, UnknownAlias, NotLoaded, InvalidInput, TooManyRows, SideFailed, Overloaded,
            DeadlineExpired, Draining.
        """
        wish = _Wish(deadline, generation or NOTHING, priority, tenant)
        [outcome] = await self._predict([_ref(task, version, alias)], rows, wish)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def predict_tasks(
        self,
        refs: Sequence[TaskRef],
        rows: Sequence[InputRow],
        *,
        deadline: float | None = None,
        generation: Overrides | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> list[Prediction | Refused]:
        """Answer the same rows for many tasks, in the order of `refs`; a task's own fault stands in its place.

        Rows that come to the same tokens for several tasks cost one backbone pass. Arguments as of `predict`, but
        `generation` touches only those tasks that make texts.

        Raises:
            InvalidInput, TooManyRows, Overloaded, DeadlineExpired, Draining: these concern the whole request.
        """
        return await self._predict(refs, rows, _Wish(deadline, generation or NOTHING, priority, tenant), among=True)

    async def stream(
        self,
        task: str,
        row: InputRow,
        *,
        version: int | None = None,
        alias: str | None = None,
        deadline: float | None = None,
        generation: Overrides | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[Piece | Generated, None]:
        """Answer one row of a text task while its text is made: its pieces, and last the whole.

        The pieces' texts joined are the text that `predict` gives. To close the iterator cancels the row.

        Raises:
            what `predict` raises, and InvalidInput for tasks that make no texts.
        """
        start, wish = perf_counter(), _Wish(deadline, generation or NOTHING, priority, tenant)
        with self._counted():
            state, [encoded] = await self._admit([_ref(task, version, alias)], [row], wish, among=False)
            if isinstance(encoded, Exception):
                raise _of_one_row(encoded)
            target, [ids], told = encoded.target, encoded.ids, Told(_limit(encoded.target))
            asked = EngineRow(ids, target.resident, target.answerer, salt=tenant, streams=True)
            async with aclosing(self._batcher.stream(asked, deadline=deadline, priority=priority)) as events:
                async for event in events:
                    piece = event if isinstance(event, Piece) else told.rest(event)
                    if piece and not told.tokens:
                        self._metrics.first_piece_seconds.observe(perf_counter() - start)
                    if piece:
                        told.add(piece)
                        yield piece
                    if not isinstance(event, Piece):
                        yield Generated(_predicted(state, target, (event,)), told.finish_reason)

    async def _predict(
        self, refs: Sequence[TaskRef], rows: Sequence[InputRow], wish: _Wish, *, among: bool = False
    ) -> list[Prediction | Refused]:
        with self._counted():
            state, encoded = await self._admit(refs, rows, wish, among=among)
            answered = await self._answer(encoded, wish)
            return [_prediction(state, each) for each in answered]

    async def _admit(
        self, refs: Sequence[TaskRef], rows: Sequence[InputRow], wish: _Wish, *, among: bool
    ) -> tuple[PoolState, list[Encoded | Refused]]:
        """The tasks found and the rows tokenized, or what is wrong with them."""
        self._check_size(len(refs), len(rows))
        check_priority(wish.priority)
        self._batcher.admit(len(rows), wish.deadline, self._tokenizing.rows)
        state = self._pool.snapshot()
        targets = [resolve(state, ref, wish.generation, among=among) for ref in refs]
        return state, await self._tokenizing.encode(targets, rows, wish.deadline)

    async def drain(self) -> None:
        """Refuse new requests, finish those in flight, then stop."""
        self._draining = True
        while self._in_flight:
            self._quiet.clear()
            await self._quiet.wait()
        await self.close()

    async def close(self) -> None:
        """Stop now. What is still in flight fails with Draining."""
        self._draining = True
        await self._batcher.close()
        self._tokenizing.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Let a request in, unless the server drains, and know when the last one has left."""
        if self._draining:
            raise Draining()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()

    def _check_size(self, tasks: int, rows: int) -> None:
        if not tasks:
            raise InvalidInput("tasks", "there are none; name at least one")
        if tasks > self._config.max_request_tasks:
            raise InvalidInput("tasks", f"{tasks} in one request, the limit is {self._config.max_request_tasks}")
        if not rows:
            raise InvalidInput("rows", "there are none; send at least one")
        if tasks * rows > self._config.max_request_rows:
            raise TooManyRows(tasks * rows, self._config.max_request_rows)

    async def _answer(self, encoded: Sequence[Encoded | Refused], wish: _Wish) -> list[_Answered | Refused]:
        """Submit all tasks' rows together, a task's repeated rows once, and hand each task its outcomes."""
        asked: list[EngineRow] = []
        places: dict[tuple[int, Ids], int] = {}

        def place(target: Target, ids: Ids) -> int:
            row, key = EngineRow(ids, target.resident, target.answerer, wish.tenant), (id(target.resident), ids)
            if row.alone or key not in places:
                places[key] = len(asked)
                asked.append(row)
            return places[key]

        wanted = [
            [place(each.target, ids) for ids in each.ids] if isinstance(each, Encoded) else [] for each in encoded
        ]
        outcomes = await self._batcher.submit(asked, deadline=wish.deadline, priority=wish.priority)
        return [
            each if isinstance(each, Exception) else _Answered(each.target, [outcomes[place] for place in own])
            for each, own in zip(encoded, wanted, strict=True)
        ]


NOTHING = Overrides()


def check_priority(priority: int, where: str = "priority") -> None:
    """Raises InvalidInput, naming the field `where`."""
    if priority and priority not in PRIORITIES:
        rule = f"must be 1 (the highest) to {max(PRIORITIES)}, or 0 for the server's default"
        raise InvalidInput(where, f"{rule}; got {priority}")


def _ref(task: str, version: int | None, alias: str | None) -> TaskRef:
    if version is not None and alias is not None:
        raise InvalidInput("version", "name a version or an alias, not both")
    return TaskRef(task, alias, version)


def _of_one_row(error: Refused) -> Refused:
    """The same, in the words of a request that has one row."""
    if isinstance(error, InvalidInput) and error.field.startswith("rows[0]"):
        return InvalidInput(error.field.replace("rows[0]", "row", 1), error.why)
    return error


def _limit(target: Target) -> int:
    """Tokens that its text may have."""
    if isinstance(target.answerer, Generate):
        return target.answerer.max_new_tokens
    spec = target.resident.spec
    raise InvalidInput("task", f"{spec.name!r} is {spec.kind}: only texts are told while they are made; use Predict")


def _prediction(state: PoolState, answered: _Answered | Refused) -> Prediction | Refused:
    """The task's answers, or the first fault among them. A fault that is nobody's in particular is raised."""
    if isinstance(answered, Exception):
        return answered
    for outcome in answered.outcomes:
        if isinstance(outcome, ServingError):
            return outcome
        if isinstance(outcome, Exception):
            raise outcome
    return _predicted(state, answered.target, tuple(answered.outcomes))


def _predicted(state: PoolState, target: Target, answers: tuple[Answer, ...]) -> Prediction:
    return Prediction(
        task=target.resident.task,
        version=target.resident.version,
        alias=target.alias,
        generation=state.generation,
        spec=target.resident.spec,
        answers=answers,
    )
