"""The engine: answers rows of many tasks, or says why a row has no answer. Runs on the device thread.

It works in turns. A turn answers the new rows that need no text, adds the others to the running texts, and decodes one
token of every running text. It holds the backbone. The side networks come with the rows, so a swap in the pool does not
affect a batch in flight.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch

from ladder.answering import Generate, Group, plan, score
from ladder.answers import Answer, TextAnswer
from ladder.backbone import Backbone, BackbonePass, Images, pass_bytes
from ladder.decoding import RunningTexts, Text
from ladder.errors import is_out_of_memory
from ladder.stacked import StackedSide
from serving.config import EngineConfig
from serving.engine.activation_cache import ActivationCache
from serving.engine.cached_backbone import CachedBackbone, Encode
from serving.engine.circuit_breaker import CircuitBreaker
from serving.engine.detokenizer import IncrementalDetokenizer, Piece
from serving.engine.images import odd_rows, stack_images
from serving.engine.outcomes import checked, log_failures
from serving.engine.request_times import DeviceStage, RequestTimes, times_of
from serving.engine.rows import Deliver, EngineRow, Event, Key, Resident
from serving.errors import OutOfMemory, PassTooLarge, SideFailed
from serving.metrics import Metrics

log = logging.getLogger(__name__)

USUAL_TOKENS = 512
"""Rows up to this length have `side_timeout_s`; longer ones have proportionally more."""

IMAGE_COPIES = 3
"""Copies of a batch's features at a time: stacked, in the backbone's dtype, and as a side network pools them."""


class Engine:
    """One backbone on one device.

    Args:
        encode: runs the encoder instead of the backbone, such as a compiled one.
        clock: returns seconds; slow side networks are found by it.
        cache: keeps activations; None: a new one, of the configuration's bytes.
    """

    def __init__(
        self,
        backbone: Backbone,
        metrics: Metrics | None = None,
        config: EngineConfig | None = None,
        encode: Encode | None = None,
        clock: Callable[[], float] = time.monotonic,
        cache: ActivationCache | None = None,
    ) -> None:
        config = config or EngineConfig()
        self.backbone = backbone
        self._metrics = metrics or Metrics()
        self.cache = ActivationCache(config.cache_bytes, self._metrics) if cache is None else cache
        self._cached_backbone = CachedBackbone(backbone, self.cache, self._metrics, encode)
        self._clock = clock
        self._pass_bytes = config.max_pass_bytes or math.inf
        self._breaker = CircuitBreaker(config.side_timeout_s, "side_timeout_s", config.side_bench_s, clock=clock)
        self._texts = RunningTexts(backbone)
        self._running: dict[EngineRow, Text] = {}
        """Rows with running texts, oldest first."""
        self._detokenizers: dict[EngineRow, IncrementalDetokenizer] = {}

    @property
    def padding_cost(self) -> float:
        """Cost of a token of padding; a real token costs 1."""
        return self._cached_backbone.padding_cost

    @property
    def running(self) -> int:
        """Rows with running texts."""
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
            self._texts = RunningTexts(self.backbone)  # the state of the old one is unknown
            self._running = {}
            self._detokenizers = {}
            raise
        return bool(self._running)

    def predict(self, rows: Sequence[EngineRow]) -> list[Answer | Exception]:
        """Answer all rows, for a caller who has the engine to itself: events of other running rows are lost.

        Returns:
            Answers in the rows' order; SideFailed in place of a row whose side network failed.

        Raises:
            ValueError: a row is given twice.
        """
        if len(set(rows)) < len(rows):
            raise ValueError("a row is there twice; make one for each answer")
        outcomes: dict[EngineRow, Answer | Exception] = {}

        def keep(events: Sequence[tuple[EngineRow, Event]]) -> None:
            outcomes.update({row: event for row, event in events if not isinstance(event, Piece)})

        running = self.step(rows, (), keep)
        while running:
            running = self.step((), (), keep)
        return [outcomes[row] for row in rows]

    def _answer(self, rows: Sequence[EngineRow], deliver: Deliver) -> None:
        """Answer, or begin, new rows, in parts that fit the memory of a pass."""
        rows = self._reject_open(rows, deliver)
        if any(row.images for row in rows) and (odd := odd_rows(rows)):
            deliver(list(odd.items()))
            rows = [row for row in rows if row not in odd]
        for part in self._parts(self._reject_too_large(rows, deliver)):
            self._answer_part(part, deliver)

    def _answer_part(self, rows: Sequence[EngineRow], deliver: Deliver) -> None:
        """Answer, or begin, new rows. Without memory, each half of them has one more try."""
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

    def _reject_too_large(self, rows: Sequence[EngineRow], deliver: Deliver) -> list[EngineRow]:
        """Fail the rows that need too much memory even alone; returns the others."""
        rejected = {
            row: PassTooLarge(row.side_tokens, needed, int(self._pass_bytes))
            for row in rows
            if (needed := self._estimate(1, row.side_tokens, row.image_numbers)) > self._pass_bytes
        }
        if rejected:
            deliver(list(rejected.items()))
        return [row for row in rows if row not in rejected]

    def _parts(self, rows: Sequence[EngineRow]) -> list[Sequence[EngineRow]]:
        """Divide a batch so that each part fits the memory of a pass; nearly always it is one part, in its order."""
        if not rows:
            return []
        numbers = sum(row.image_numbers for row in rows)
        if self._estimate(len(rows), max(row.side_tokens for row in rows), numbers) <= self._pass_bytes:
            return [rows]
        parts: list[Sequence[EngineRow]] = []
        part: list[EngineRow] = []
        numbers = 0
        for row in sorted(rows, key=lambda row: row.side_tokens):
            numbers += row.image_numbers
            if part and self._estimate(len(part) + 1, row.side_tokens, numbers) > self._pass_bytes:
                parts.append(part)
                part = []
                numbers = row.image_numbers
            part.append(row)
        return [*parts, part]

    def _estimate(self, rows: int, tokens: int, image_numbers: int = 0) -> int:
        """Bytes that a pass needs.

        Args:
            tokens: most of one row, with those of its images: more than the backbone computes.
            image_numbers: of the features of all rows' images; an image that rows share may count for each.
        """
        itemsize = self.backbone.dtype.itemsize
        return pass_bytes(self.backbone.config, rows, tokens, itemsize) + IMAGE_COPIES * image_numbers * itemsize

    def _check_time(self, resident: Resident, seconds: float, tokens: int) -> SideFailed | None:
        """The error for this side network's rows if it exceeded the limit; its breaker is open then.

        Args:
            tokens: of the longest row: a long text takes long in any side network, which is not to blame for it.
        """
        reason = self._breaker.check_time(resident.key, seconds, max(1.0, tokens / USUAL_TOKENS))
        return SideFailed(resident.task, resident.version, f"it {reason}") if reason else None

    def _try(self, rows: Sequence[EngineRow], deliver: Deliver) -> list[EngineRow]:
        """Answer, or begin, these rows; returns those for which there was no memory."""
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
        self._leave(left)  # after the except block: only then the failed attempt's tensors are free
        self._free_memory()
        return list(left)

    def _begin(self, rows: Sequence[EngineRow], deliver: Deliver) -> None:
        """Run the backbone once for all rows; answer those that need no text, and let the others join the texts."""
        planned = plan([row.model_row for row in rows])
        asked = times_of(row.times for row in rows)
        with self._timed("backbone", asked):
            readings = self._cached_backbone.read(planned.inputs, planned.depth, planned.first_step_inputs)
            images = stack_images(self.backbone, rows, planned.images) if planned.images else None
        known = frozenset().union(*(reading.known for reading in readings))
        if known or asked:
            self._note_inputs(rows, planned.groups, known)
        for times in asked:
            times.batch_rows += len(rows)
        for reading in readings:
            groups = planned.select(reading.inputs)
            scored = [group for group in groups if not group.makes_texts]
            self._score(rows, scored, reading.backbone_pass, images, deliver)
            self._join(rows, [group for group in groups if group.makes_texts], reading.backbone_pass, images)

    def _note_inputs(self, rows: Sequence[EngineRow], groups: Sequence[Group], known: frozenset[int]) -> None:
        """Count each version's rows whose input was in the cache, and what a request's inputs were."""
        cached: dict[Key, int] = {}
        inputs: dict[RequestTimes, set[int]] = {}
        for group in groups:
            for index, read in zip(group.indices, group.inputs, strict=True):
                row = rows[index]
                if read in known:
                    cached[row.resident.key] = cached.get(row.resident.key, 0) + 1
                if row.times:
                    inputs.setdefault(row.times, set()).add(read)
        for (task, version), count in cached.items():
            self._metrics.cached(task, version, count)
        for times, read_by in inputs.items():
            times.inputs += len(read_by)
            times.cached_inputs += len(read_by & known)

    def _score(
        self,
        rows: Sequence[EngineRow],
        groups: Sequence[Group],
        backbone_pass: BackbonePass,
        images: Images | None,
        deliver: Deliver,
    ) -> None:
        if not groups:
            return
        alone = {rows[index].resident.key for group in groups if group.has_one_side for index in group.indices}
        since = self._clock()
        began = {times: (perf_counter(), times.side) for times in times_of(row.times for row in rows)}

        def deliver_outcomes(outcomes: Sequence[tuple[int, Answer | Exception]]) -> None:
            nonlocal since
            for times in began and times_of(rows[index].times for index, _ in outcomes):
                at, before = began[times]
                times.side = before + perf_counter() - at  # before its answer: nothing may be noted after it
            resident = rows[outcomes[0][0]].resident  # all of them are of one side network
            slow = None
            if resident.key in alone:
                longest = max(rows[index].side_tokens for index, _ in outcomes)
                slow = self._check_time(resident, self._clock() - since, longest)
            events = [(rows[index], slow or checked(resident, outcome)) for index, outcome in outcomes]
            log_failures(events)
            deliver(events)
            since = self._clock()

        with self._timed("side"):
            score(backbone_pass, groups, deliver_outcomes, images)

    def _join(
        self,
        rows: Sequence[EngineRow],
        groups: Sequence[Group],
        backbone_pass: BackbonePass,
        images: Images | None,
    ) -> None:
        texts: list[Text] = []
        inputs: list[int] = []
        seen: list[tuple[int, ...]] = []
        for group in groups:
            texts += [self._text(rows[index]) for index in group.indices]
            inputs += group.inputs
            seen += group.images or [()] * len(group.rows)
        self._texts.join(texts, backbone_pass, inputs, None if images is None else images.of_rows(seen))

    def _text(self, row: EngineRow) -> Text:
        answerer = row.how
        assert isinstance(answerer, Generate)
        decoding = answerer.generation
        if row.streams:
            self._detokenizers[row] = IncrementalDetokenizer(answerer.decode)
        self._running[row] = Text(
            side=row.resident.side,
            decoding=decoding,
            limit=answerer.max_new_tokens,
            finish=answerer.finish,
            seed=decoding.seed,
            handle=row,
        )
        return self._running[row]

    def _step(self, deliver: Deliver) -> None:
        """Decode one token of every text. Without memory, the youngest half of the texts fail instead."""
        if not self._running:
            return
        began = self._clock()
        try:
            asked = times_of(row.times for row in self._running)
            with self._timed("decode", asked):
                steps = self._texts.step()
            for times in asked:
                times.steps += 1
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out of memory with %d running texts: %s", len(self._running), error)
            steps = None
        if steps is None:  # after the except block: only then the failed step's tensors are free
            self._fail_youngest(deliver)
            return
        self._tell(steps, deliver)
        self._watch_step(self._clock() - began, deliver)

    def _fail_youngest(self, deliver: Deliver) -> None:
        """End half of the running texts, so that the next step finds memory for the others."""
        self._free_memory()
        running = list(self._running)
        youngest = running[len(running) // 2 :]
        self._leave(youngest)
        deliver([(row, OutOfMemory(len(running))) for row in youngest])

    def _watch_step(self, seconds: float, deliver: Deliver) -> None:
        """Blame a slow step on the only side network, or on the only one that is not stacked; else on none."""
        if seconds <= self._breaker.limit_s:
            return
        residents = {row.resident.key: row.resident for row in self._running}
        lone = {key: resident for key, resident in residents.items() if not isinstance(resident.side, StackedSide)}
        suspects = lone or residents
        if len(suspects) != 1:
            log.warning("a decoder step of %d side networks took %.1f s", len(residents), seconds)
            return
        [slow] = suspects.values()
        rows = [row for row in self._running if row.resident.key == slow.key]
        if fault := self._check_time(slow, seconds, max(row.side_tokens for row in rows)):
            self._leave(rows)
            events: list[tuple[EngineRow, Event]] = [(row, fault) for row in rows]
            log_failures(events)
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
                events.append((row, checked(row.resident, ending)))
                self._forget(row)
        log_failures(events)
        if events:
            deliver(events)
        if any(isinstance(event, OutOfMemory) for _, event in events):
            log.warning("out of memory in a beam search")
            self._free_memory()

    def _pieces(self, row: EngineRow, tokens: Sequence[int], ending: Answer | Exception | None) -> Iterator[Piece]:
        detokenizer = self._detokenizers.get(row)
        if detokenizer is None:
            return
        if ending is None and (piece := detokenizer.more(tokens)):
            yield piece
        if isinstance(ending, TextAnswer) and (piece := detokenizer.rest(ending.tokens, ending.text)):
            yield piece

    def _leave(self, rows: Collection[EngineRow]) -> None:
        """Remove the rows that are running; the others are ignored."""
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
        self._free_memory()
        self._texts.leave(leaving)

    def _forget(self, row: EngineRow) -> None:
        self._running.pop(row, None)
        self._detokenizers.pop(row, None)

    def _free_memory(self) -> None:
        self.cache.clear()
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _timed(self, stage: DeviceStage, asked: Collection[RequestTimes] = ()) -> Iterator[None]:
        """Time a stage; on a GPU until the work is done, not until it is launched.

        Args:
            asked: of the requests that want to know it.
        """
        began = perf_counter()
        with self._metrics.timed(stage):
            yield
            if self.backbone.device.type == "cuda":
                torch.cuda.synchronize(self.backbone.device)
        for times in asked:
            times.add(stage, perf_counter() - began)
