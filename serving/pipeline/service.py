"""Answers requests: rows in, typed answers out. Resolves, tokenizes off the event loop, submits to the scheduler.

`resolve` finds the version of each task once: it answers all of the request's rows, whatever is swapped meanwhile.
Knows no gRPC and runs no torch.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import repeat
from time import perf_counter

from ladder.answering import Generate, Words
from ladder.answers import TextAnswer
from serving.config import RequestConfig
from serving.engine import EncodedImage, EngineRow, Key, Piece, RequestTimes, TextProgress
from serving.errors import DeadlineExpired, InvalidInput, NotLoaded, ServingError, TooManyRows, TooSlow, detached
from serving.images import ImageOutcome, ImagePool
from serving.metrics import Metrics
from serving.pipeline.observation import NoObserver, Observation, Observer
from serving.pipeline.preprocessing import Encoded, Encoder, resolve
from serving.pipeline.request import (
    Generated,
    Ids,
    Prediction,
    PredictRequest,
    Refused,
    RequestOptions,
    Target,
    prediction_or_fault,
)
from serving.pipeline.row_images import RequestImages, first_image
from serving.pipeline.tokenizer_pool import TokenizerPool
from serving.scheduler import Batcher, OnStarted
from serving.versions import Arrivals, SidePool
from side_registry.errors import RegistryError
from side_registry.groups import GroupVersion
from side_registry.specs.task import PRODUCTION, Pair, TaskRef

log = logging.getLogger(__name__)

ABANDONED = (DeadlineExpired, TooSlow, asyncio.CancelledError)
"""What ends a request whose caller no longer waits."""


class PredictService:
    """Answers requests of all tasks. Use it on the event loop of its batcher.

    Args:
        observer: gets an observation of every task whose alias has a route.
        images: encodes the images of requests; None: tasks that read images are not answered.
        arrivals: lets requests wait for versions that are still loading; None: such requests fail.
        used: told the name of each task that is called.
    """

    def __init__(
        self,
        pool: SidePool,
        batcher: Batcher,
        tokenizer: Encoder,
        config: RequestConfig | None = None,
        metrics: Metrics | None = None,
        observer: Observer | None = None,
        images: ImagePool | None = None,
        arrivals: Arrivals | None = None,
        used: Callable[[str], None] = lambda task: None,
    ) -> None:
        self._pool = pool
        self._arrivals = arrivals
        self._used = used
        self._batcher = batcher
        self._config = config or RequestConfig()
        self._metrics = metrics or Metrics()
        self._observer = observer or NoObserver()
        self._images = images
        self._tokenizers = TokenizerPool(tokenizer, self._config.tokenizer_threads, self._metrics)

    @property
    def ready(self) -> bool:
        """The registry's tasks are known; requests wait for those that are still loading."""
        return self._pool.snapshot().generation >= 0

    async def find(self, ref: TaskRef, options: RequestOptions) -> Target:
        """As `resolve`; first waits, up to the deadline, for a version that is still loading.

        Raises:
            what `resolve` raises, and DeadlineExpired.
        """
        try:
            return self.resolve(ref, options)
        except NotLoaded:
            await self.arrived(ref, options.deadline)
        return self.resolve(ref, options)

    async def find_tasks(self, refs: Sequence[TaskRef], options: RequestOptions) -> list[Target | Refused]:
        """As `resolve_tasks`; first waits, up to the deadline, for versions that are still loading.

        Raises:
            what `resolve_tasks` raises, and DeadlineExpired.
        """
        targets = self.resolve_tasks(refs, options)
        missing = [ref for ref, target in zip(refs, targets, strict=True) if isinstance(target, NotLoaded)]
        if not any(map(self._awaited, missing)):
            return targets
        await asyncio.gather(*(self.arrived(ref, options.deadline) for ref in missing))
        return self.resolve_tasks(refs, options)

    async def arrived(self, ref: TaskRef, deadline: float | None) -> None:
        """Wait while the version that answers for a task is still loading.

        Args:
            deadline: time.monotonic() seconds; None: no limit.

        Raises:
            DeadlineExpired.
        """
        while self._arrivals is not None and (key := self._awaited(ref)) is not None:
            await self._arrivals.wait(key, deadline)

    def _awaited(self, ref: TaskRef) -> Key | None:
        """The version that a request to this task should wait for."""
        return self._pool.snapshot().awaited(ref.task, version=ref.version, alias=ref.alias)

    def group(self, name: str) -> GroupVersion:
        """The tasks that a group has now. Raises UnknownGroup."""
        return self._pool.snapshot().group(name)

    def resolve(self, ref: TaskRef, options: RequestOptions) -> Target:
        """Find the version that answers a request to one task.

        Raises:
            UnknownTask, UnknownVersion, UnknownAlias, NotLoaded.
            InvalidInput: options out of bounds, or settings of texts for a task that makes none.
        """
        options.check()
        target = resolve(self._pool.snapshot(), ref, options)
        self._used(ref.task)
        return target

    def resolve_tasks(self, refs: Sequence[TaskRef], options: RequestOptions) -> list[Target | Refused]:
        """Find the versions that answer a request to many tasks, in the order of `refs`, on one state of the registry.

        The fault of one task stands in its place. `options.decoding` touches only the tasks that make texts.

        Raises:
            InvalidInput: no tasks, or options out of bounds.
        """
        if not refs:
            raise InvalidInput("tasks", "there are none; name at least one")
        options.check()
        state = self._pool.snapshot()
        if not options.route_key:  # a task that is named twice gets one version
            options = replace(options, route_key=f"{random.getrandbits(64)}")
        targets: list[Target | Refused] = []
        for ref in refs:
            try:
                targets.append(resolve(state, ref, options, many=True))
                self._used(ref.task)
            except (ServingError, RegistryError) as error:
                targets.append(detached(error))
        return targets

    def check_counts(self, tasks: int, rows: int) -> None:
        """Check how many tasks and rows a request has, before anything is made of them.

        Raises:
            InvalidInput: too many tasks.
            TooManyRows: a row of several tasks counts once for each.
        """
        if tasks > self._config.max_request_tasks:
            raise InvalidInput("tasks", f"{tasks} in one request, the limit is {self._config.max_request_tasks}")
        if tasks * rows > self._config.max_request_rows:
            raise TooManyRows(tasks * rows, self._config.max_request_rows)

    async def predict(self, request: PredictRequest) -> Prediction:
        """Answer the rows of a request that has one target.

        Raises:
            InvalidInput, TooManyRows, SideFailed, Shed, DeadlineExpired, Draining.
        """
        [outcome] = await self.predict_tasks(request)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        finally:
            del outcome  # else an error's traceback would hold this frame, and the frame the error

    async def predict_tasks(self, request: PredictRequest) -> list[Prediction | Refused]:
        """Answer the same rows by every target, in order; a task's own fault stands in its place.

        Rows that come to the same tokens for several tasks cost one backbone pass; an image that several rows or tasks
        read is encoded once.

        Raises:
            InvalidInput, TooManyRows, Shed, DeadlineExpired, Draining: these concern the whole request.
        """
        encoded = await self._encode(request)
        return await self._answer(encoded, request)

    async def stream(self, request: PredictRequest) -> AsyncGenerator[Piece | Generated, None]:
        """Answer a request of one text task and one row while the text is made: its pieces, and last the whole.

        The pieces' texts joined are the text that `predict` gives. To close the iterator cancels the row.

        Raises:
            what `predict` raises, and InvalidInput for tasks that make no texts.
        """
        began = perf_counter()
        [encoded] = await self._encode(request)
        if isinstance(encoded, Exception):
            try:
                raise _of_one_row(encoded)
            finally:
                del encoded  # as in `predict`
        progress = TextProgress(_max_new_tokens(encoded.target))
        async with aclosing(self._stream(encoded, request)) as events:
            async for event in events:
                piece = event if isinstance(event, Piece) else progress.rest(event)
                if piece and not progress.tokens:
                    self._metrics.first_piece_seconds.observe(perf_counter() - began)
                if piece:
                    progress.add(piece)
                    yield piece
                if not isinstance(event, Piece):
                    whole = Prediction.of(encoded.target, [event], encoded.truncated, encoded.token_count)
                    yield Generated(whole, progress.finish_reason)

    async def close(self) -> None:
        """Stop now. What is still in flight fails with Draining."""
        await self._batcher.close()
        self._tokenizers.close()
        if self._images:
            self._images.close()

    async def _encode(self, request: PredictRequest) -> list[Encoded | Refused]:
        """Tokenize the rows for each target and encode their images, or say what is wrong with it."""
        began = perf_counter()
        rows, options = request.rows, request.options
        if not rows:
            raise InvalidInput("rows", "there are none; send at least one")
        self.check_counts(len(request.targets), len(rows))
        self._batcher.admit(len(rows), options.deadline, self._tokenizers.rows)
        images = RequestImages.of(request.targets, rows)
        if images is None:
            self._refuse_images(request)
            encoded = await self._tokenizers.encode(request.targets, rows, options.deadline)
        else:
            encoded = await self._encode_with_images(request, images)
        for target, outcome in zip(request.targets, encoded, strict=True):
            if isinstance(target, Target) and isinstance(outcome, InvalidInput):
                own = self._pool.snapshot().own(target.resident.task, target.alias)
                self._observe(Observation.unrenderable(target, own, rows))
            elif isinstance(outcome, Encoded):
                self._metrics.truncated(outcome.target.resident.task, sum(outcome.truncated))
        if options.times:
            options.times.prepare = perf_counter() - began
            options.times.queued()
        return encoded if images is None else [images.give(outcome) for outcome in encoded]

    async def _encode_with_images(self, request: PredictRequest, images: RequestImages) -> list[Encoded | Refused]:
        """Tokenize, while the images are encoded."""
        options = request.options
        if self._images is None:
            return await self._tokenizers.encode(request.targets, request.rows, options.deadline)
        encoding = asyncio.create_task(self._images.encode(images.needed, options.tenant, options.deadline))
        encoding.add_done_callback(_retrieve)
        try:
            encoded = await self._tokenizers.encode(request.targets, request.rows, options.deadline)
            images.take(await encoding)
            return encoded
        finally:
            encoding.cancel()

    def _refuse_images(self, request: PredictRequest) -> None:
        """Reject an image that no task of the request reads, neither the version that is asked nor the main one.

        A task that was not found may read it; its own fault says more.
        """
        where = first_image(request.rows)
        if where is None:
            return
        state = self._pool.snapshot()
        for target in request.targets:
            if not isinstance(target, Target):
                return
            own = state.own(target.resident.task, target.alias or PRODUCTION)
            if own is not None and own.spec.images:
                return
        raise InvalidInput(where, "is an image, and no task of this request reads images; leave it out")

    async def _answer(
        self, encoded: Sequence[Encoded | Refused], request: PredictRequest
    ) -> list[Prediction | Refused]:
        """Submit all tasks' rows together, a task's repeated rows once, and give each task its outcomes."""
        rows: list[EngineRow] = []
        indices: dict[tuple[int, Ids, tuple[str, ...], Pair | None, Words | None], int] = {}

        def index_of(
            target: Target, ids: Ids, images: tuple[EncodedImage, ...], pair: Pair | None, words: Words | None
        ) -> int:
            row = EngineRow(
                ids,
                target.resident,
                target.answerer,
                request.options.tenant,
                images,
                pair,
                words=words,
                times=request.options.times,
            )
            key = id(target.resident), ids, row.image_names if images else (), pair, words
            if row.alone or key not in indices:
                indices[key] = len(rows)
                rows.append(row)
            return indices[key]

        tasks = [
            (
                task,
                [
                    *map(
                        index_of,
                        repeat(task.target),
                        task.ids,
                        task.images or repeat(()),
                        task.pairs or repeat(None),
                        task.words or repeat(None),
                    )
                ],
            )
            for task in encoded
            if isinstance(task, Encoded)
        ]
        begun = set[int]()
        started = perf_counter()
        try:
            outcomes = await self._batcher.submit(
                rows,
                deadline=request.options.deadline,
                priority=request.options.priority,
                begun=_noting(begun, request.options.times),
            )
        except ABANDONED:
            seconds = perf_counter() - started
            for task, task_indices in tasks:
                task_rows = [rows[index] for index in task_indices if index in begun]
                self._observe(Observation.abandoned(task.target, task_rows, seconds))
            raise
        seconds = perf_counter() - started
        predictions = []
        for task, task_indices in tasks:
            task_rows = [rows[index] for index in task_indices]
            task_outcomes = [outcomes[index] for index in task_indices]
            inputs = task.window_inputs or request.rows
            self._observe(Observation.of(task, inputs, task_rows, task_outcomes, seconds))
            predictions.append(
                prediction_or_fault(task.target, task.join(task_outcomes), task.truncated, task.token_count)
            )
        answered = iter(predictions)
        return [next(answered) if isinstance(task, Encoded) else task for task in encoded]

    async def _stream(self, encoded: Encoded, request: PredictRequest) -> AsyncGenerator[Piece | TextAnswer, None]:
        """The row's pieces, and last its text. The time that the caller takes for them is not the version's."""
        target = encoded.target
        [ids] = encoded.ids
        images = encoded.images[0] if encoded.images else ()
        times = request.options.times
        row = EngineRow(
            ids, target.resident, target.answerer, request.options.tenant, images, streams=True, times=times
        )
        begun = set[int]()
        seconds = 0.0
        started = perf_counter()
        made = self._batcher.stream(
            row,
            deadline=request.options.deadline,
            priority=request.options.priority,
            begun=_noting(begun, request.options.times),
        )
        try:
            async with aclosing(made) as events:
                async for event in events:
                    seconds += perf_counter() - started
                    if not isinstance(event, Piece):
                        self._observe(Observation.of(encoded, request.rows, [row], [event], seconds))
                    yield event
                    started = perf_counter()
        except ABANDONED:
            seconds += perf_counter() - started
            self._observe(Observation.abandoned(target, [row] if begun else [], seconds))
            raise
        except Exception as error:
            seconds += perf_counter() - started
            self._observe(Observation.of(encoded, request.rows, [row], [error], seconds))
            raise

    def _observe(self, observation: Observation | None) -> None:
        if observation is None:
            return
        try:
            self._observer.observe(observation)
        except Exception:  # a fault of the comparison must not take the caller's answer away
            log.exception("the observer of %s failed", observation.resident.task)


def _noting(begun: set[int], times: RequestTimes | None) -> OnStarted:
    """What notes the rows that go to the device, and the time until the first of them."""
    if times is None:
        return begun.update

    def note(indices: Sequence[int]) -> None:
        times.started()
        begun.update(indices)

    return note


def _retrieve(encoding: "asyncio.Task[list[ImageOutcome]]") -> None:
    """Take the error of images that nothing waits for any more: asyncio would log it as forgotten."""
    if not encoding.cancelled():
        encoding.exception()


def _of_one_row(error: Refused) -> Refused:
    """The same error, in the words of a request that has one row."""
    if isinstance(error, InvalidInput) and error.field.startswith("rows[0]"):
        return InvalidInput(error.field.replace("rows[0]", "row", 1), error.why)
    return error


def _max_new_tokens(target: Target) -> int:
    if isinstance(target.answerer, Generate):
        return target.answerer.max_new_tokens
    spec = target.resident.spec
    raise InvalidInput("task", f"{spec.name!r} is {spec.kind}: only texts are streamed; use Predict")
