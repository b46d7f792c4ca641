"""Replays golden examples: answers them here, in small batches, and compares with where the version was trained.

A replay is bounded in tokens and in seconds. It is made in turns, so that the loads of other versions can go before it.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from ladder.answering import Framed, Words, split_texts
from ladder.backbone import Backbone, Tokenizer
from ladder.backbone.tokenizer import Pair
from serving.config import BatchConfig, EngineConfig, LoadConfig
from serving.engine import Engine, EngineRow, Event, Piece, Resident
from serving.engine.activation_cache import ActivationCache
from serving.errors import CorruptSide, GoldenMismatch, LoadFailed, OutOfMemory, ReplayTooLong
from serving.metrics import Metrics
from serving.versions.golden import difference, tolerance_for
from serving.versions.visual import GoldenImages
from side_registry.errors import InvalidRow
from side_registry.golden import decoding_tokens
from side_registry.specs.task_kinds import KINDS

TURN_S = 0.25
"""Seconds of work after which other loads go first. A load that has few examples ends in its first turn."""

BATCH_TOKENS = 1024
"""Most tokens of one batch of several examples. A turn cannot end within a batch, and a CPU needs seconds for 8,192."""

Outcomes = dict[EngineRow, Event]


class GoldenRow(NamedTuple):
    """A golden example as tokens."""

    ids: tuple[int, ...]
    pair: Pair | None = None
    """Where its two texts lie, for a side network that reads them apart."""
    words: Words | None = None
    """Of a task that tags words."""


class Replayer:
    """Replays versions on one backbone, for one thread at a time.

    Golden examples are answered by engines of their own: they are no traffic, so they appear neither in the server's
    metrics nor in its cache. A cache keeps the backbone's activations for later versions, which often have the same
    examples.

    Args:
        config: bounds of one replay.
        batch: bounds of one batch.
        clock: seconds.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        config: LoadConfig,
        batch: BatchConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._config = config
        self._batch = batch
        self._clock = clock
        self._metrics = Metrics()
        self.cache = ActivationCache(config.replay_bytes, self._metrics)

    def replay(self, resident: Resident, images: GoldenImages | None = None) -> Iterator[None]:
        """Replay a version's golden examples. Yields after each turn of about TURN_S seconds, until all are compared.

        Args:
            images: of the examples, for a task that reads images.

        Raises:
            GoldenMismatch: it answers otherwise than where it was trained, also after a fresh backbone pass.
            ReplayTooLong: its examples have more tokens than `replay_tokens`, or took longer than `replay_timeout_s`.
            CorruptSide: an example is no row of its task, or has a file that is no image.
            CorruptBlob, StoreFailed: an image cannot be read from the store.
            LoadFailed: the device has no memory for them now.
        """
        worked_s = turn_s = 0.0
        steps = self._replay_twice(resident, self._rows(resident), images)
        while True:
            began = self._clock()
            try:
                next(steps)
            except StopIteration:
                return
            seconds = self._clock() - began
            worked_s += seconds
            turn_s += seconds
            if worked_s > self._config.replay_timeout_s:
                why = f"they took longer than {self._config.replay_timeout_s:g} s (replay_timeout_s)"
                raise ReplayTooLong(*resident.key, why, transient=True)
            if turn_s >= TURN_S:
                turn_s = 0.0
                yield

    def _rows(self, resident: Resident) -> list[GoldenRow]:
        """The examples as tokens; of a long text whose words are tagged, its first window.

        Raises:
            ReplayTooLong, CorruptSide.
        """
        spec = resident.spec
        try:
            prompts = [spec.render(example.fields) for example in resident.manifest.examples]
        except InvalidRow as error:
            raise CorruptSide(*resident.key, f"a golden example's {error}") from error
        if KINDS[spec.kind].has_spans:
            before, after = spec.frame
            texts = [Framed(before, example.fields[spec.fields[0]], after) for example in resident.manifest.examples]
            split = split_texts(self._tokenizer, texts, spec.max_source_tokens, most=1)
            rows = [GoldenRow(text.windows[0].ids, words=text.windows[0].words) for text in split]
        else:
            encoded = self._tokenizer.encode_batch(prompts, spec.max_source_tokens)
            rows = [GoldenRow(tuple(ids)) for ids in encoded]
        tokens = sum(len(row.ids) for row in rows) + len(rows) * decoding_tokens(spec)
        limit = self._config.replay_tokens
        if tokens > limit:
            raise ReplayTooLong(*resident.key, f"they have {tokens:,} tokens, the limit is {limit:,} (replay_tokens)")
        if not resident.side.config.reads_two_texts:
            return rows
        cuts = [spec.render_pair(example.fields)[1] for example in resident.manifest.examples]
        pairs = self._tokenizer.locate(prompts, cuts, [row.ids for row in rows])
        return [row._replace(pair=pair) for row, pair in zip(rows, pairs, strict=True)]

    def _replay_twice(
        self, resident: Resident, rows: Sequence[GoldenRow], images: GoldenImages | None
    ) -> Iterator[None]:
        """Replay again without the cache before refusing: one wrong cached pass would refuse all later versions too."""
        try:
            yield from self._replay(resident, rows, images)
        except GoldenMismatch:
            self.cache.clear()
            yield
            yield from self._replay(resident, rows, images)

    def _replay(self, resident: Resident, rows: Sequence[GoldenRow], images: GoldenImages | None) -> Iterator[None]:
        engine = Engine(self._backbone, self._metrics, EngineConfig(side_timeout_s=math.inf), cache=self.cache)
        first = 0
        while first < len(rows):
            count = self._batch_rows(resident, rows[first:])
            examples = resident.manifest.examples[first : first + count]
            seen = [()] * count if images is None else (yield from images.encode(examples))
            batch = [
                EngineRow(ids=row.ids, resident=resident, images=own, pair=row.pair, words=row.words)
                for row, own in zip(rows[first : first + count], seen, strict=True)
            ]
            outcomes = yield from _answers(engine, batch)
            for index, row in enumerate(batch, start=first):
                self._compare(resident, index, outcomes[row])
            first += count
            if first < len(rows):
                yield

    def _batch_rows(self, resident: Resident, rows: Sequence[GoldenRow]) -> int:
        """How many of the first rows are one batch: at least one."""
        beams = resident.spec.generation.num_beams if decoding_tokens(resident.spec) else 1
        most = max(min(self._batch.max_batch_rows, self._batch.max_running_rows) // beams, 1)
        most_tokens = min(self._batch.max_batch_tokens, BATCH_TOKENS)
        longest = 0
        for count, row in enumerate(rows[:most]):
            longest = max(longest, len(row.ids))
            if count and (count + 1) * longest > most_tokens:
                return count
        return min(len(rows), most)

    def _compare(self, resident: Resident, index: int, outcome: Event) -> None:
        """Raises GoldenMismatch, LoadFailed."""
        manifest = resident.manifest
        if isinstance(outcome, OutOfMemory):
            raise LoadFailed(*resident.key, str(outcome), transient=True) from outcome
        if isinstance(outcome, Exception):
            raise GoldenMismatch(*resident.key, index, str(outcome)) from outcome
        assert not isinstance(outcome, Piece)
        here = str(self._backbone.dtype).removeprefix("torch.")
        dtypes = {here, str(manifest.provenance.get("dtype", here))}
        tolerance = tolerance_for(manifest.tolerance, dtypes)
        exact_text = dtypes == {"float32"} and not manifest.spec.generation.do_sample
        expected = manifest.examples[index].expected
        if why := difference(outcome, expected, tolerance, exact_text=exact_text):
            raise GoldenMismatch(*resident.key, index, why)


def _answers(engine: Engine, rows: Sequence[EngineRow]) -> Generator[None, None, Outcomes]:
    """Each row's answer or error. Yields after each of the engine's steps but the last."""
    outcomes: Outcomes = {}
    running = engine.step(rows, (), outcomes.update)
    while running:
        yield
        running = engine.step((), (), outcomes.update)
    return outcomes
