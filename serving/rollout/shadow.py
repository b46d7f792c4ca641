"""Has shadow versions answer what callers asked, when the device has nothing else to do, and compares the answers.

A caller waits for at most one small shadow batch that is in progress, and no error here reaches one. Runs on the
batcher's event loop. Knows no torch and no gRPC.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol
from weakref import WeakSet

from ladder.answering import Answerer, Words
from ladder.backbone.tokenizer import Pair
from serving.config import ShadowConfig
from serving.engine import CircuitBreaker, EncodedImage, EngineRow, Key, Resident
from serving.errors import Draining, InvalidInput, NotServed
from serving.metrics import Metrics
from serving.pipeline import Encoded, Encoder, Ids, Observation, Target, encode, tells
from serving.rollout.agreement import VersionAnswer
from serving.rollout.comparison import Comparisons, Window
from serving.scheduler import Event, Outcome, ShadowRequest

log = logging.getLogger(__name__)


SHADOW_FAILURES = 32
"""Rows of a version that may fail in a row before it is not asked for a while."""

FIRST_PAUSE_S = 30.0
MAX_PAUSE_S = 3600.0
"""The first pause and the longest one; each is twice the one before it."""


MAX_IMAGE_BYTES = 64 << 20
"""Most bytes of images' features that rows in shadow hold, on the engine's device, until they are answered."""


class TokenizedInput(NamedTuple):
    """A caller's input as a version's template makes it; an EngineRow has the same."""

    ids: Ids
    pair: Pair | None
    words: Words | None


class Queue(Protocol):
    """What is needed of a batcher."""

    def shadow(self, request: ShadowRequest) -> None:
        """Answer the request when the device has nothing else to do."""
        ...


class ShadowRunner:
    """An observer of answered requests: counts them, and has the shadow versions answer the same rows.

    A version that is slow, or fails many times in a row, is not asked for a while, each time for longer. Where several
    versions share a step that takes too long, none of them is asked for a while.

    Args:
        tokenizer: for versions whose template makes another prompt of a caller's input.
        is_resident: whether the server holds a version.
    """

    def __init__(
        self,
        queue: Queue,
        comparisons: Comparisons,
        tokenizer: Encoder,
        config: ShadowConfig | None = None,
        metrics: Metrics | None = None,
        is_resident: Callable[[Key], bool] = lambda key: True,
    ) -> None:
        self._queue = queue
        self._comparisons = comparisons
        self._config = config or ShadowConfig()
        self._metrics = metrics or Metrics()
        self._breaker = CircuitBreaker(
            self._config.shadow_timeout_s,
            "shadow_timeout_s",
            FIRST_PAUSE_S,
            timed="a step of shadow rows",
            role="in shadow, ",
            max_pause_s=MAX_PAUSE_S,
            max_failures=SHADOW_FAILURES,
            clock=lambda: asyncio.get_running_loop().time(),
            is_resident=is_resident,
        )
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow-tokenizer")
        self._encoding = 0
        """Rows that are being tokenized again."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._with_images = WeakSet[ShadowRows]()
        """Requests that hold images, as long as something holds them."""

    def observe(self, seen: Observation) -> None:
        """Take an observation; it is handled after the caller has its answer."""
        asyncio.get_running_loop().call_soon(self._observe, seen)

    def close(self) -> None:
        """Ask nothing more that would have to be tokenized."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _observe(self, seen: Observation) -> None:
        window = self._comparisons.window(seen.resident.task, seen.alias)
        if window is None or window.routed.since != seen.since or seen.resident.version not in window:
            return  # the route has changed since
        if seen.is_abandoned:
            window.abandoned(seen.resident.version, len(seen.rows), seen.seconds)
            return
        if seen.unrendered:
            window.unrenderable(seen.resident.version, seen.unrendered)
            return
        failed = sum(isinstance(outcome, Exception) for outcome in seen.outcomes)
        window.answered(seen.resident.version, len(seen.rows), failed, seen.seconds)
        case = ComparisonCase(seen, window, self._metrics)
        if not case.compares:
            return
        for resident in seen.shadows:
            if resident.version in window:
                self._ask(case, resident)

    def _ask(self, case: "ComparisonCase", resident: Resident) -> None:
        """Have one version answer the case's rows. Sampled rows are left out: two draws cannot be compared."""
        answerer = _answerer(case.seen, resident)
        indices = [index for index, row in enumerate(case.seen.rows) if answerer and not row.alone]
        count = len(indices)
        indices = indices[: 0 if self._breaker.is_open(resident.key) else self._config.max_shadow_rows]
        case.drop(resident, count - len(indices))
        if not indices:
            return
        if _prompts_alike(case.seen.resident, resident):
            rows = [case.seen.rows[index] for index in indices]
            self._submit(case, resident, indices, rows)
        else:
            task = asyncio.get_running_loop().create_task(self._encode(case, resident, indices))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _encode(self, case: "ComparisonCase", resident: Resident, indices: list[int]) -> None:
        """Tokenize the callers' inputs with this version's template, and submit them."""
        if self._encoding + len(indices) > self._config.max_shadow_rows:
            case.drop(resident, len(indices))
            return
        self._encoding += len(indices)
        target = Target(resident, None, resident.answerer)
        inputs = [case.seen.inputs[index] for index in indices]
        work = partial(encode, self._tokenizer, [([target], inputs)], most_windows=1)  # one row for each input
        try:
            [result] = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError:  # it was closed
            result = Draining()
        finally:
            self._encoding -= len(indices)
        encoded = result if isinstance(result, Exception) else result[0]
        if isinstance(encoded, Encoded):
            pairs = encoded.pairs or [None] * len(indices)
            words = encoded.words or [None] * len(indices)
            self._submit(case, resident, indices, [*map(TokenizedInput, encoded.ids, pairs, words)])
        elif isinstance(encoded, NotServed):
            case.drop(resident, len(indices))
        else:  # its template makes no prompt of what callers send
            for index in indices:
                case.add_outcome(resident, index, encoded)

    def _submit(
        self,
        case: "ComparisonCase",
        resident: Resident,
        indices: list[int],
        inputs: Sequence[TokenizedInput | EngineRow],
    ) -> None:
        answerer = _answerer(case.seen, resident)
        answerable: list[int] = []
        rows: list[EngineRow] = []
        for one, index in zip(inputs, indices, strict=True):
            asked = case.seen.rows[index]
            images = _images(asked, resident)
            if isinstance(images, InvalidInput):
                case.add_outcome(resident, index, images)
                continue
            answerable.append(index)
            rows.append(EngineRow(one.ids, resident, answerer, asked.salt, images, one.pair, words=one.words))
        if not rows or rows[0].alone:
            return
        request = ShadowRows(case, resident, answerable, rows, self._breaker, self._comparisons)
        if self._has_room(request):
            self._queue.shadow(request)
        else:
            case.drop(resident, len(rows))

    def _has_room(self, request: "ShadowRows") -> bool:
        """Whether the images of a request may be held too; they count from now on."""
        if not request.image_bytes:
            return True
        held = sum(waiting.image_bytes for waiting in self._with_images if not waiting.is_over)
        if held + request.image_bytes > MAX_IMAGE_BYTES:
            return False
        self._with_images.add(request)
        return True


@dataclass(slots=True)
class ComparisonCase:
    """One task of one request: what each version answered to its rows. `index` is a row's position among them."""

    seen: Observation
    window: Window
    metrics: Metrics
    _outcomes: dict[Key, list[Outcome]] = field(default_factory=dict)
    """Of each version, one for each row; None while it is not there."""
    _residents: dict[Key, Resident] = field(default_factory=dict)
    """The versions with outcomes."""
    _main: Resident | None = None
    """The alias's main version, if it answers these rows."""

    def __post_init__(self) -> None:
        versions = (self.seen.resident, *self.seen.shadows)
        main = self.window.routed.version
        self._main = next((resident for resident in versions if resident.version == main), None)
        self._outcomes[self.seen.resident.key] = list(self.seen.outcomes)
        self._residents[self.seen.resident.key] = self.seen.resident

    @property
    def compares(self) -> bool:
        """Whether the alias's main version answers too, so that there is something to compare with."""
        return self._main is not None

    def add_outcome(self, resident: Resident, index: int, outcome: Outcome) -> None:
        """Take what a version answered in shadow, and compare it with what is there."""
        failed = isinstance(outcome, Exception)
        self.window.asked(resident.version, failed=failed)
        if failed:
            self.metrics.shadowed(resident.task, resident.version, "failed")
        if resident.key not in self._outcomes:
            self._outcomes[resident.key] = [None] * len(self.seen.rows)
            self._residents[resident.key] = resident
        self._outcomes[resident.key][index] = outcome
        others = self._residents.values() if resident is self._main else [resident]
        for other in others:
            if other is not self._main:
                self._compare(other, index)

    def drop(self, resident: Resident, rows: int) -> None:
        """Count rows that this version is not asked, or was given up for."""
        if rows:
            self.window.dropped(resident.version, rows)
            self.metrics.shadowed(resident.task, resident.version, "dropped", rows)

    def add_device_time(self, resident: Resident, seconds: float) -> None:
        """Count device time that this version's rows took."""
        self.window.add_device_time(resident.version, seconds)
        self.metrics.shadow_took(resident.task, resident.version, seconds)

    def _compare(self, resident: Resident, index: int) -> None:
        """Compare one row with the alias's main version, once both have answered it."""
        expected = self._answer(self._main, index)
        actual = self._answer(resident, index)
        if expected and actual:
            prompt = _shown(self.seen.prompts[index], self.seen.rows[index])
            agreed, drift = self.window.compare(resident.version, prompt, expected, actual)
            self.metrics.shadowed(resident.task, resident.version, "agreed" if agreed else "disagreed")
            self.metrics.drifted(resident.task, resident.version, drift)

    def _answer(self, resident: Resident | None, index: int) -> VersionAnswer | None:
        """What a version answered to a row; None: nothing yet, or an error."""
        if resident is None or resident.key not in self._outcomes:
            return None
        outcome = self._outcomes[resident.key][index]
        return None if outcome is None or isinstance(outcome, Exception) else (resident.spec, outcome)


class ShadowRows(ShadowRequest):
    """One version's rows of a comparison case.

    Args:
        indices: of the rows in the case.
    """

    def __init__(
        self,
        case: ComparisonCase,
        resident: Resident,
        indices: list[int],
        rows: list[EngineRow],
        breaker: CircuitBreaker,
        comparisons: Comparisons,
    ) -> None:
        super().__init__(rows)
        self._case = case
        self._resident = resident
        self._indices = indices
        self._breaker = breaker
        self._comparisons = comparisons
        held = {image for row in (*rows, *case.seen.rows) for image in row.images}
        self.image_bytes = sum(image.features.nbytes for image in held)
        """Of the features that it holds, and its comparison case."""

    @property
    def is_wanted(self) -> bool:
        """Whether the route is still the one under which the rows were asked."""
        seen = self._case.seen
        return self._comparisons.window(seen.resident.task, seen.alias) is self._case.window

    def add_device_time(self, seconds: float) -> None:
        """Count its share of a step's time as the version's cost."""
        self._case.add_device_time(self._resident, seconds)

    def check_step_time(self, seconds: float) -> None:
        """Stop asking the version for a while if a step with its rows took too long."""
        self._breaker.check_time(self._resident.key, seconds)

    def _on_event(self, index: int, event: Event) -> None:
        if not isinstance(event, NotServed):
            self._breaker.count_outcome(self._resident.key, event if isinstance(event, Exception) else None)
        if not tells(event):
            self._on_dropped(1)
            return
        try:
            self._case.add_outcome(self._resident, self._indices[index], event)
        except Exception:  # events of callers' rows are delivered by the same call, and must not be lost
            log.exception("a shadow answer of %s:%d cannot be compared", *self._resident.key)

    def _on_dropped(self, rows: int) -> None:
        self._case.drop(self._resident, rows)


def _images(asked: EngineRow, resident: Resident) -> tuple[EncodedImage, ...] | InvalidInput:
    """The images that a version reads of a row that another one was asked; an error if the row has not all of them."""
    fields = dict(zip(asked.resident.spec.images, asked.images, strict=True)) if asked.images else {}
    missing = [field for field in resident.spec.images if field not in fields]
    if missing:
        return InvalidInput(missing[0], f"is missing; task {resident.task!r} reads it in version {resident.version}")
    return tuple(fields[field] for field in resident.spec.images)


def _shown(prompt: str, row: EngineRow) -> str:
    """A row as people see it: its prompt, and the digests of its images."""
    if not row.images:
        return prompt
    named = zip(row.resident.spec.images, row.image_names, strict=True)
    return f"{prompt} [{', '.join(f'{field}: {name}' for field, name in named)}]"


def _prompts_alike(left: Resident, right: Resident) -> bool:
    """Whether what was made of an input for the left is what the right reads too."""
    if right.side.config.reads_two_texts and not left.side.config.reads_two_texts:
        return False
    return (left.spec.template, left.spec.max_source_tokens) == (right.spec.template, right.spec.max_source_tokens)


def _answerer(seen: Observation, resident: Resident) -> Answerer | None:
    """The version's own settings with what the caller set; None: it cannot answer so, and cannot be compared."""
    try:
        return seen.overrides.answerer(resident)
    except InvalidInput:
        return None
