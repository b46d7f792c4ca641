"""What both doors call: rows in, typed answers out. Validates, tokenizes off the event loop, batches.

A request finds its residents once, when it is admitted: all of its rows are answered by the same versions, whatever is
swapped meanwhile. Knows no gRPC and runs no torch.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from ladder.answers import Answer
from serving.admission import Encoded, Encoder, Ids, Refused, Target, encode, resolve
from serving.batching import Batcher, within
from serving.config import RequestConfig
from serving.engine import EngineRow
from serving.errors import Draining, InvalidInput, ServingError, TooManyRows
from serving.metrics import Metrics
from serving.overrides import Overrides
from serving.pool import PoolState, SidePool
from serving.prompts import InputRow, Prompt
from serving.row_queue import Outcome
from side_registry.state import TaskState
from side_registry.task import PRODUCTION, TaskRef, TaskSpec

__all__ = ["InputRow", "PredictService", "Prediction", "Prompt", "TaskInfo"]


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
        self._pool, self._batcher, self._tokenizer = pool, batcher, tokenizer
        self._config, self._metrics = config or RequestConfig(), metrics or Metrics()
        self._threads = ThreadPoolExecutor(self._config.tokenizer_threads, thread_name_prefix="tokenizer")
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
        return _info(self._pool.snapshot(), name)

    def tasks(self) -> list[TaskInfo]:
        """Every task of the registry, by name."""
        state = self._pool.snapshot()
        return [_info(state, name) for name in sorted(state.tasks)]

    async def predict(
        self,
        task: str,
        rows: Sequence[InputRow],
        *,
        version: int | None = None,
        alias: str | None = None,
        deadline: float | None = None,
        generation: Overrides | None = None,
    ) -> Prediction:
        """Answer `rows` of one task; `production` answers where neither version nor alias is named.

        Args:
            deadline: time.monotonic() seconds.
            generation: settings for making texts, over the spec's.

        Raises:
            UnknownTask, UnknownVersion, UnknownAlias, NotLoaded, InvalidInput, TooManyRows, SideFailed, Overloaded,
            DeadlineExpired, Draining.
        """
        if version is not None and alias is not None:
            raise InvalidInput("version", "name a version or an alias, not both")
        [outcome] = await self._predict([TaskRef(task, alias, version)], rows, deadline, generation or Overrides())
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def predict_tasks(
        self, refs: Sequence[TaskRef], rows: Sequence[InputRow], *, deadline: float | None = None
    ) -> list[Prediction | Refused]:
        """Answer the same rows for many tasks, in the order of `refs`; a task's own fault stands in its place.

        Rows that come to the same tokens for several tasks cost one backbone pass.

        Raises:
            InvalidInput, TooManyRows, Overloaded, DeadlineExpired, Draining: these concern the whole request.
        """
        return await self._predict(refs, rows, deadline, Overrides())

    async def _predict(
        self, refs: Sequence[TaskRef], rows: Sequence[InputRow], deadline: float | None, generation: Overrides
    ) -> list[Prediction | Refused]:
        with self._counted():
            self._check_size(len(refs), len(rows))
            self._batcher.admit(len(rows), deadline)
            state = self._pool.snapshot()
            targets = [resolve(state, ref, generation) for ref in refs]
            async with within(deadline):
                encoded = await self._encode(targets, rows)
            answered = await self._answer(encoded, deadline)
            return [_prediction(state, each) for each in answered]

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
        self._threads.shutdown(wait=False)

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

    async def _encode(self, targets: Sequence[Target | Refused], rows: Sequence[InputRow]) -> list[Encoded | Refused]:
        loop = asyncio.get_running_loop()
        with self._metrics.timed("tokenize"):
            return await loop.run_in_executor(self._threads, encode, self._tokenizer, targets, rows)

    async def _answer(self, encoded: Sequence[Encoded | Refused], deadline: float | None) -> list[_Answered | Refused]:
        """Submit all tasks' rows together, a task's repeated rows once, and hand each task its outcomes."""
        asked: list[EngineRow] = []
        places: dict[tuple[int, Ids], int] = {}

        def place(target: Target, ids: Ids) -> int:
            row, key = EngineRow(ids, target.resident, target.answerer), (id(target.resident), ids)
            if row.alone or key not in places:
                places[key] = len(asked)
                asked.append(row)
            return places[key]

        wanted = [
            [place(each.target, ids) for ids in each.ids] if isinstance(each, Encoded) else [] for each in encoded
        ]
        outcomes = await self._batcher.submit(asked, deadline=deadline)
        return [
            each if isinstance(each, Exception) else _Answered(each.target, [outcomes[place] for place in own])
            for each, own in zip(encoded, wanted, strict=True)
        ]


def _prediction(state: PoolState, answered: _Answered | Refused) -> Prediction | Refused:
    """The task's answers, or the first fault among them. A fault that is nobody's in particular is raised."""
    if isinstance(answered, Exception):
        return answered
    resident = answered.target.resident
    for outcome in answered.outcomes:
        if isinstance(outcome, ServingError):
            return outcome
        if isinstance(outcome, Exception):
            raise outcome
    return Prediction(
        task=resident.task,
        version=resident.version,
        alias=answered.target.alias,
        generation=state.generation,
        spec=resident.spec,
        answers=tuple(answered.outcomes),
    )


def _info(state: PoolState, name: str) -> TaskInfo:
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
