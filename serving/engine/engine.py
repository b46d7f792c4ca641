"""The engine: a batch of rows of many tasks in, an answer or that row's own failure out. Runs on the device thread.

It works in turns. A turn answers the new rows that need no text, lets the others join the texts that are being made,
and takes every such text one token on. Holds the backbone. The side networks come with the rows, so a swap in the pool
never reaches a batch in flight.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch

from ladder.answering import Classify, Generate, Row, plan, score
from ladder.answers import Answer, ClassAnswer, TextAnswer, ValueAnswer, VectorAnswer
from ladder.backbone import Backbone, BackbonePass
from ladder.decoding import RunningTexts, Text
from ladder.errors import is_out_of_memory
from ladder.stacked import StackedSide
from serving.config import EngineConfig
from serving.engine.activation_cache import ActivationCache
from serving.engine.cached_backbone import CachedBackbone, Encode
from serving.engine.circuit_breaker import CircuitBreaker
from serving.engine.detokenizer import IncrementalDetokenizer, Piece
from serving.engine.rows import Deliver, EngineRow, Event, Key, Resident
from serving.errors import OutOfMemory, SideFailed
from serving.metrics import Metrics, Stage

log = logging.getLogger(__name__)


class Engine:
    """One backbone on one device.

    Args:
        encode: runs the backbone's encoder in its stead, such as a compiled one.
        clock: seconds, by which side networks are too slow.
    """

    def __init__(
        self,
        backbone: Backbone,
        metrics: Metrics | None = None,
        config: EngineConfig | None = None,
        encode: Encode | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = config or EngineConfig()
        self.backbone, self._metrics = backbone, metrics or Metrics()
        self.cache = ActivationCache(config.cache_bytes, self._metrics)
        self._recall = CachedBackbone(backbone, self.cache, self._metrics, encode)
        self._clock = clock
        self._breaker = CircuitBreaker(config.side_timeout_s, "side_timeout_s", config.side_bench_s, clock=clock)
        self._texts = RunningTexts(backbone)
        self._running: dict[EngineRow, Text] = {}
        """The rows whose texts are being made, oldest first."""
        self._tellings: dict[EngineRow, IncrementalDetokenizer] = {}

    @property
    def padding_cost(self) -> float:
        """What a token of padding costs beside a real one."""
        return self._recall.padding_cost

    @property
    def running(self) -> int:
        """Rows whose texts are being made."""
        return len(self._running)

    @torch.inference_mode()
    def step(self, rows: Sequence[EngineRow], cancelled: Collection[EngineRow], deliver: Deliver) -> bool:
        """Answer new `rows`, or begin their texts; take every text that is being made one token on.

        Args:
            cancelled: rows of earlier steps that no caller waits for any more.
            deliver: told each row's pieces and its end, in this turn or a later one.
        Returns:
            Whether texts are still being made: then it wants another turn, with or without new rows.
        Raises:
            whatever is no side network's fault; then it has forgotten all rows.
        """
        try:
            self._leave(cancelled)
            self._answer([row for row in rows if row not in cancelled] if cancelled else rows, deliver)
            self._step(deliver)
        except BaseException:
            self._texts = RunningTexts(self.backbone)  # whatever state it is in
            self._running, self._tellings = {}, {}
            raise
        return bool(self._running)

    def predict(self, rows: Sequence[EngineRow]) -> list[Answer | Exception]:
        """Take turns until all are answered. Answers in the rows' order; SideFailed where a side network failed.

        For callers that have the engine to themselves: the events of other rows that are running would be lost.
        """
        places = {row: place for place, row in enumerate(rows)}
        if len(places) < len(rows):
            raise ValueError("a row is there twice; make one for each answer")
        found: dict[int, Answer | Exception] = {}

        def keep(events: Sequence[tuple[EngineRow, Event]]) -> None:
            found.update({places[row]: event for row, event in events if not isinstance(event, Piece)})

        running = self.step(rows, (), keep)
        while running:
            running = self.step((), (), keep)
        return [found[place] for place in range(len(rows))]

    def _answer(self, rows: Sequence[EngineRow], deliver: Deliver) -> None:
        """Where memory does not suffice, each half has one more try."""
        rows = self._reject_open(rows, deliver)
        left = self._try(rows, deliver)
        middle = (len(left) + 1) // 2
        for half in (left[:middle], left[middle:]):
            if lost := self._try(half, deliver):
                deliver([(row, OutOfMemory(len(rows))) for row in lost])

    def _reject_open(self, rows: Sequence[EngineRow], deliver: Deliver) -> list[EngineRow]:
        """Fail the rows of side networks whose circuit breaker is open; returns the others."""
        rejected = {
            row: SideFailed(row.task, row.resident.version, f"it {reason}")
            for row in rows
            if (reason := self._breaker.explain(row.resident.key)) is not None
        }
        if rejected:
            deliver(list(rejected.items()))
        return [row for row in rows if row not in rejected]

    def _check_time(self, resident: Resident, seconds: float) -> SideFailed | None:
        """The error for this side network's rows if it exceeded the limit; its breaker is open then."""
        reason = self._breaker.check_time(resident.key, seconds)
        return SideFailed(resident.task, resident.version, f"it {reason}") if reason else None

    def _try(self, rows: Sequence[EngineRow], deliver: Deliver) -> list[EngineRow]:
        """Answer, or begin, these rows; returns those for which memory did not suffice."""
        left = dict.fromkeys(rows)

        def deliver_and_note(events: Sequence[tuple[EngineRow, Event]]) -> None:
            for row, _ in events:
                left.pop(row, None)
            deliver(events)

        try:
            if rows:
                self._begin(rows, deliver_and_note)
            return []
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory with a batch of %d rows: %s", len(rows), error)
        self._leave(left)  # out here the failed attempt's tensors are gone
        self._make_room()
        return list(left)

    def _begin(self, rows: Sequence[EngineRow], deliver: Deliver) -> None:
        """One pass for all; answers of those that need no text, group by group; the others join the running texts."""
        asked = [row.asked for row in rows]
        planned = plan(asked)
        speaking = {place for row, place in zip(rows, planned.places, strict=True) if _needs_first_step(row)}
        with self._timed("backbone"):
            readings = self._recall.read(planned.inputs, planned.depth, sorted(speaking))
        for reading in readings:
            where = {place: own for own, place in enumerate(reading.places)}
            chosen = [row for row, place in enumerate(planned.places) if place in where]
            inputs = [where[planned.places[row]] for row in chosen]
            self._read(reading.given, [rows[row] for row in chosen], [asked[row] for row in chosen], inputs, deliver)

    def _read(
        self,
        given: BackbonePass,
        rows: Sequence[EngineRow],
        asked: Sequence[Row],
        inputs: Sequence[int],
        deliver: Deliver,
    ) -> None:
        """Rows that read `inputs` of one pass."""
        if not all(row.generates for row in rows):
            with self._timed("side"):
                self._score(given, rows, asked, inputs, deliver)
        making = [(row, place) for row, place in zip(rows, inputs, strict=True) if row.generates]
        if making:
            self._join(given, [row for row, _ in making], [place for _, place in making])

    def _score(
        self,
        given: BackbonePass,
        rows: Sequence[EngineRow],
        asked: Sequence[Row],
        inputs: Sequence[int],
        deliver: Deliver,
    ) -> None:
        alone, since = _computed_alone(rows), self._clock()

        def known(outcomes: Sequence[tuple[int, Answer | Exception]]) -> None:
            nonlocal since
            resident, slow = rows[outcomes[0][0]].resident, None
            if resident.key in alone:
                slow = self._check_time(resident, self._clock() - since)
            events = [(rows[place], slow or _checked(rows[place].resident, outcome)) for place, outcome in outcomes]
            _report(events)
            deliver(events)
            since = self._clock()

        score(given, asked, inputs, known)

    def _join(self, given: BackbonePass, rows: Sequence[EngineRow], inputs: Sequence[int]) -> None:
        texts = []
        for row in rows:
            assert isinstance(row.how, Generate)
            settings = row.how.generation
            texts.append(
                Text(
                    side=row.resident.side,
                    settings=settings,
                    limit=row.how.max_new_tokens,
                    finish=row.how.finish,
                    seed=settings.seed,
                    handle=row,
                )
            )
            self._running[row] = texts[-1]
            if row.streams:
                self._tellings[row] = IncrementalDetokenizer(row.how.decode)
        self._texts.join(texts, given, inputs)

    def _step(self, deliver: Deliver) -> None:
        """One token more for every text."""
        if not self._running:
            return
        for _ in range(2):
            began = self._clock()
            try:
                with self._timed("decode"):
                    steps = self._texts.step()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("out of memory with %d running texts: %s", len(self._running), error)
            else:
                self._tell(steps, deliver)
                self._watch_step(self._clock() - began, deliver)
                return
            self._make_room()
        self._give_up_youngest(deliver)

    def _watch_step(self, seconds: float, deliver: Deliver) -> None:
        """A step of one side network alone, or of one that is not stacked beside those that are, tells who is slow."""
        if seconds <= self._breaker.limit_s:
            return
        residents = {row.resident.key: row.resident for row in self._running}
        lone = {key: each for key, each in residents.items() if not isinstance(each.side, StackedSide)}
        suspects = lone or residents
        if len(suspects) != 1:
            log.warning("a decoder step of %d side networks took %.1f s", len(residents), seconds)
            return
        [slow] = suspects.values()
        rows = [row for row in self._running if row.resident.key == slow.key]
        if fault := self._check_time(slow, seconds):
            self._leave(rows)
            events: list[tuple[EngineRow, Event]] = [(row, fault) for row in rows]
            _report(events)
            deliver(events)

    def _tell(self, steps: Sequence[tuple[Text, Sequence[int], Answer | Exception | None]], deliver: Deliver) -> None:
        events: list[tuple[EngineRow, Event]] = []
        for text, tokens, ending in steps:
            row = text.handle
            assert isinstance(row, EngineRow)
            try:
                events += [(row, piece) for piece in list(self._pieces(row, tokens, ending))]
            except Exception as error:  # a tokenizer that cannot decode
                if ending is None:
                    self._leave([row])
                ending = error
            if ending is not None:
                events.append((row, _checked(row.resident, ending)))
                self._forget(row)
        _report(events)
        if events:
            deliver(events)
        if any(isinstance(event, OutOfMemory) for _, event in events):
            log.warning("out of memory with %d rows of beams", sum(isinstance(e, OutOfMemory) for _, e in events))
            self._make_room()

    def _pieces(self, row: EngineRow, tokens: Sequence[int], ending: Answer | Exception | None) -> Iterator[Piece]:
        telling = self._tellings.get(row)
        if telling is None:
            return
        if ending is None and (piece := telling.more(tokens)):
            yield piece
        if isinstance(ending, TextAnswer) and (piece := telling.rest(ending.tokens, ending.text)):
            yield piece

    def _give_up_youngest(self, deliver: Deliver) -> None:
        """Half of the running texts end, so that the others can go on."""
        running = list(self._running)
        youngest = running[len(running) // 2 :]
        self._leave(youngest)
        self._make_room()
        deliver([(row, OutOfMemory(len(running))) for row in youngest])

    def _leave(self, rows: Collection[EngineRow]) -> None:
        """Rows that are not running are no matter."""
        leaving = [self._running[row] for row in rows if row in self._running]
        for row in rows:
            self._forget(row)
        if not leaving:
            return
        try:
            self._texts.leave(leaving)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory where %d texts leave: %s", len(leaving), error)
        self._make_room()
        self._texts.leave(leaving)

    def _forget(self, row: EngineRow) -> None:
        self._running.pop(row, None)
        self._tellings.pop(row, None)

    def _make_room(self) -> None:
        self.cache.clear()
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        """On a GPU, until the work is done, not until it is launched."""
        with self._metrics.timed(stage):
            yield
            if self.backbone.device.type == "cuda":
                torch.cuda.synchronize(self.backbone.device)


def _needs_first_step(row: EngineRow) -> bool:
    """Its answer is read off the decoder's first step, the same for all."""
    return isinstance(row.how, Classify) and () in row.how.prefixes


def _computed_alone(rows: Sequence[EngineRow]) -> set[Key]:
    """Residents whose side network is computed with no other: what it takes is its own doing."""
    together: dict[object, set[Key]] = {}
    for row in rows:
        if row.generates:
            continue
        side = row.resident.side
        together.setdefault(side.shape if isinstance(side, StackedSide) else id(side), set()).add(row.resident.key)
    return {key for keys in together.values() if len(keys) == 1 for key in keys}


def _checked(resident: Resident, outcome: Answer | Exception) -> Answer | Exception:
    if isinstance(outcome, Exception) and is_out_of_memory(outcome):
        return OutOfMemory(1)
    if isinstance(outcome, Exception):
        failure = SideFailed(resident.task, resident.version, str(outcome) or type(outcome).__name__)
        failure.__cause__ = outcome
        return failure
    if not _is_finite(outcome):
        return SideFailed(resident.task, resident.version, "its answer is not a finite number")
    return outcome


def _is_finite(outcome: Answer) -> bool:
    if isinstance(outcome, ClassAnswer):
        return all(map(math.isfinite, outcome.scores))
    if isinstance(outcome, VectorAnswer):
        return all(map(math.isfinite, outcome.values))
    return not isinstance(outcome, ValueAnswer) or math.isfinite(outcome.value)


def _report(events: Sequence[tuple[EngineRow, Event]]) -> None:
    """One log line for each side network that failed, however many rows it had."""
    failed = {(each.task, each.version): each for _, each in events if isinstance(each, SideFailed)}
    for failure in failed.values():
        log.error("%s", failure, exc_info=failure.__cause__)
