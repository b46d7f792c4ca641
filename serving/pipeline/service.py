"""What both gRPC services call: rows in, typed answers out. Resolves, tokenizes off the event loop, batches.

A request finds its residents once, when it is admitted: all of its rows are answered by the same versions, whatever is
swapped meanwhile. Knows no gRPC and runs no torch.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from time import perf_counter

from ladder.answering import Generate
from ladder.answers import TextAnswer
from serving.config import RequestConfig
from serving.engine import EngineRow, Piece, TextProgress
from serving.errors import Cancelled, DeadlineExpired, Draining, InvalidInput, TooManyRows, TooSlow
from serving.metrics import Metrics
from serving.pipeline.observation import Nothing, Observation, Observer, left, refused, seen
from serving.pipeline.preprocessing import Encoded, Encoder, InputRow, resolve
from serving.pipeline.request import (
    DecodingOverrides,
    Generated,
    Ids,
    Prediction,
    Refused,
    RequestOptions,
    Target,
    predicted,
    prediction_or_fault,
)
from serving.pipeline.tokenizer_pool import TokenizerPool
from serving.scheduler import Batcher
from serving.versions import PoolState, SidePool
from side_registry.state import TaskState
from side_registry.task import PRODUCTION, TaskRef, TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One task as this server sees it."""

    task: str
    spec: TaskSpec | None
    """Of the version that serves production; else of the newest resident one; None where none is resident."""
    serving: Mapping[str, int]
    """Alias to the version that answers for it here, which lags behind the registry while that loads, or fails to."""
    resident: tuple[int, ...]
    failed: Mapping[int, str]
    """Version to why it did not load."""
    state: TaskState


def describe_task(state: PoolState, name: str) -> TaskInfo:
    """Raises UnknownTask."""
    known = state.task_state(name)
    serving = {alias: state.aliases[name, alias] for alias in known.aliases if (name, alias) in state.aliases}
    resident = tuple(version for version in sorted(known.versions) if (name, version) in state.residents)
    shown = serving.get(PRODUCTION, resident[-1] if resident else None)
    return TaskInfo(
        task=name,
        spec=None if shown is None else state.residents[name, shown].spec,
        serving=serving,
        resident=resident,
        failed={v: state.failed[name, v].why for v in sorted(known.versions) if (name, v) in state.failed},
        state=known,
    )


log = logging.getLogger(__name__)

LEFT = (DeadlineExpired, TooSlow, Cancelled, asyncio.CancelledError)
"""What ends a request whose caller waits no longer."""


class PredictService:
    """Use it on the event loop of its batcher.

    Args:
        observer: told of every answered task whose alias has a route.
    """

    def __init__(
        self,
        pool: SidePool,
        batcher: Batcher,
        tokenizer: Encoder,
        config: RequestConfig | None = None,
        metrics: Metrics | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._pool, self._batcher, self._config = pool, batcher, config or RequestConfig()
        self._metrics, self._observer = metrics or Metrics(), observer or Nothing()
        self._tokenizing = TokenizerPool(tokenizer, self._config.tokenizer_threads, self._metrics)
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
        target: Target | None = None,
        deadline: float | None = None,
        generation: DecodingOverrides | None = None,
        priority: int = 0,
        tenant: str = "",
        route_key: str = "",
    ) -> Prediction:
        """Answer `rows` of one task; `production` answers where neither version nor alias is named.

        Args:
            target: whom version, alias, route_key and generation led to already, by `admission.resolve`: it answers.
            deadline: time.monotonic() seconds.
            generation: settings for making texts, over the spec's.
            priority: 1, the highest, to 4; 0 for the server's default.
            tenant: requests of different ones share no cached activations.
            route_key: where an alias's traffic is split, requests of one key get one version; "": at random.

        Raises:
            UnknownTask, UnknownVersion, UnknownAlias, NotLoaded, InvalidInput, TooManyRows, SideFailed, Overloaded,
            DeadlineExpired, Draining.
        """
        wish = RequestOptions(
            deadline=deadline,
            generation=generation or DecodingOverrides(),
            priority=priority,
            tenant=tenant,
            route_key=route_key,
            target=target,
        )
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
        generation: DecodingOverrides | None = None,
        priority: int = 0,
        tenant: str = "",
        route_key: str = "",
    ) -> list[Prediction | Refused]:
        """Answer the same rows for many tasks, in the order of `refs`; a task's own fault stands in its place.

        Rows that come to the same tokens for several tasks cost one backbone pass. Arguments as of `predict`, but
        `generation` touches only those tasks that make texts.

        Raises:
            InvalidInput, TooManyRows, Overloaded, DeadlineExpired, Draining: these concern the whole request.
        """
        wish = RequestOptions(
            deadline=deadline,
            generation=generation or DecodingOverrides(),
            priority=priority,
            tenant=tenant,
            route_key=route_key or f"{random.getrandbits(64)}",  # a task that is named twice gets one version
        )
        return await self._predict(refs, rows, wish, among=True)

    async def stream(
        self,
        task: str,
        row: InputRow,
        *,
        version: int | None = None,
        alias: str | None = None,
        target: Target | None = None,
        deadline: float | None = None,
        generation: DecodingOverrides | None = None,
        priority: int = 0,
        tenant: str = "",
        route_key: str = "",
    ) -> AsyncGenerator[Piece | Generated, None]:
        """Answer one row of a text task while its text is made: its pieces, and last the whole.

        The pieces' texts joined are the text that `predict` gives. To close the iterator cancels the row.

        Raises:
            what `predict` raises, and InvalidInput for tasks that make no texts.
        """
        began = perf_counter()
        wish = RequestOptions(
            deadline=deadline,
            generation=generation or DecodingOverrides(),
            priority=priority,
            tenant=tenant,
            route_key=route_key,
            target=target,
        )
        with self._counted():
            [encoded] = await self._admit([_ref(task, version, alias)], [row], wish, among=False)
            if isinstance(encoded, Exception):
                raise _of_one_row(encoded)
            told = TextProgress(_limit(encoded.target))
            async with aclosing(self._stream(encoded, row, wish)) as events:
                async for event in events:
                    piece = event if isinstance(event, Piece) else told.rest(event)
                    if piece and not told.tokens:
                        self._metrics.first_piece_seconds.observe(perf_counter() - began)
                    if piece:
                        told.add(piece)
                        yield piece
                    if not isinstance(event, Piece):
                        yield Generated(predicted(encoded.target, [event]), told.finish_reason)

    async def _stream(
        self, encoded: Encoded, row: InputRow, wish: RequestOptions
    ) -> AsyncGenerator[Piece | TextAnswer, None]:
        """The row's pieces, and last its text. The time that the caller takes for them is not the version's."""
        target, [ids] = encoded.target, encoded.ids
        asked = EngineRow(ids, target.resident, target.answerer, salt=wish.tenant, streams=True)
        seconds, started, begun = 0.0, perf_counter(), set[int]()
        made = self._batcher.stream(asked, deadline=wish.deadline, priority=wish.priority, begun=begun.update)
        try:
            async with aclosing(made) as events:
                async for event in events:
                    seconds += perf_counter() - started
                    if not isinstance(event, Piece):
                        self._tell(seen(encoded, [row], [asked], [event], seconds))
                    yield event
                    started = perf_counter()
        except LEFT:
            self._tell(left(encoded, [asked] if begun else [], seconds + perf_counter() - started))
            raise
        except Exception as error:
            self._tell(seen(encoded, [row], [asked], [error], seconds + perf_counter() - started))
            raise

    async def _predict(
        self, refs: Sequence[TaskRef], rows: Sequence[InputRow], wish: RequestOptions, *, among: bool = False
    ) -> list[Prediction | Refused]:
        with self._counted():
            encoded = await self._admit(refs, rows, wish, among=among)
            return await self._answer(encoded, rows, wish)

    async def _admit(
        self, refs: Sequence[TaskRef], rows: Sequence[InputRow], wish: RequestOptions, *, among: bool
    ) -> list[Encoded | Refused]:
        """The tasks found and the rows tokenized, or what is wrong with them."""
        self._check_size(len(refs), len(rows))
        wish.check()
        self._batcher.admit(len(rows), wish.deadline, self._tokenizing.rows)
        targets = self._targets(refs, wish, among)
        encoded = await self._tokenizing.encode(targets, rows, wish.deadline)
        for target, each in zip(targets, encoded, strict=True):
            if isinstance(target, Target) and isinstance(each, InvalidInput):
                self._tell(refused(target, self._pool.snapshot().own(target.resident.task, target.alias), rows))
        return encoded

    def _targets(self, refs: Sequence[TaskRef], wish: RequestOptions, among: bool) -> list[Target | Refused]:
        if wish.target:
            return [wish.target]
        state = self._pool.snapshot()
        return [resolve(state, ref, wish.generation, key=wish.route_key, among=among) for ref in refs]

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

    async def _answer(
        self, encoded: Sequence[Encoded | Refused], rows: Sequence[InputRow], wish: RequestOptions
    ) -> list[Prediction | Refused]:
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
        started, begun = perf_counter(), set[int]()
        try:
            outcomes = await self._batcher.submit(
                asked, deadline=wish.deadline, priority=wish.priority, begun=begun.update
            )
        except LEFT:
            for each, own in zip(encoded, wanted, strict=True):
                if isinstance(each, Encoded):
                    theirs = [asked[place] for place in own if place in begun]
                    self._tell(left(each, theirs, perf_counter() - started))
            raise
        seconds = perf_counter() - started
        found: list[Prediction | Refused] = []
        for each, own in zip(encoded, wanted, strict=True):
            if isinstance(each, Encoded):
                theirs = [outcomes[place] for place in own]
                self._tell(seen(each, rows, [asked[place] for place in own], theirs, seconds))
                found.append(prediction_or_fault(each.target, theirs))
            else:
                found.append(each)
        return found

    def _tell(self, seen: Observation | None) -> None:
        if seen is None:
            return
        try:
            self._observer.observe(seen)
        except Exception:  # whoever compares versions does not take the callers' answers away
            log.exception("the observer of %s failed", seen.resident.task)


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
