"""Has other versions answer what callers asked, when the device has nothing else to do, and compares the answers.

Callers never wait for it but for a small batch in progress, and nothing that goes wrong here is theirs. Runs on the
event loop of the batcher. Knows no torch and no gRPC.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ladder.answering import Answerer
from serving.config import ShadowConfig
from serving.engine import EngineRow, Key, Resident, Resting
from serving.errors import Draining, InvalidInput, NotServed
from serving.metrics import Metrics
from serving.pipeline import Encoded, Encoder, Ids, Observation, Target, encode, tells
from serving.rollout.agreement import Said
from serving.rollout.comparison import Comparisons, Window
from serving.scheduler import Outcome, ShadowRequest

log = logging.getLogger(__name__)


class Queue(Protocol):
    """What is needed of a batcher."""

    def shadow(self, request: ShadowRequest) -> None: ...


class ShadowRunner:
    """An observer that counts what callers were answered, and asks those who are to answer beside.

    A version that is slow in shadow, or fails over and over, is not asked for a while.

    Args:
        tokenizer: for versions whose template makes another prompt of a caller's input.
        is_there: whether a version is still resident.
    """

    def __init__(
        self,
        queue: Queue,
        comparisons: Comparisons,
        tokenizer: Encoder,
        config: ShadowConfig | None = None,
        metrics: Metrics | None = None,
        is_there: Callable[[Key], bool] = lambda key: True,
    ) -> None:
        self._queue, self._comparisons = queue, comparisons
        self._config, self._metrics = config or ShadowConfig(), metrics or Metrics()
        self._resting = Resting(self._config.shadow_timeout_s, lambda: asyncio.get_running_loop().time(), is_there)
        self._tokenizer, self._thread = tokenizer, ThreadPoolExecutor(1, thread_name_prefix="shadow-tokenizer")
        self._encoding = 0
        """Rows that become tokens once more."""
        self._tasks: set[asyncio.Task[None]] = set()

    def observe(self, seen: Observation) -> None:
        """After the caller has its answer."""
        asyncio.get_running_loop().call_soon(self._observe, seen)

    def close(self) -> None:
        """Ask nothing more that would have to be tokenized."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _observe(self, seen: Observation) -> None:
        window = self._comparisons.window(seen.resident.task, seen.alias)
        if window is None or window.routed.since != seen.since or seen.resident.version not in window:
            return  # the route has changed since
        if seen.is_abandoned:
            window.left(seen.resident.version, len(seen.rows), seen.seconds)
            return
        if seen.unrendered:
            window.refused(seen.resident.version, seen.unrendered)
            return
        failed = sum(isinstance(outcome, Exception) for outcome in seen.outcomes)
        window.answered(seen.resident.version, len(seen.rows), failed, seen.seconds)
        case = _Case(seen, window, self._metrics)
        for resident in seen.shadows if case.compares else ():
            if resident.version in window:
                self._ask(case, resident)

    def _ask(self, case: "_Case", resident: Resident) -> None:
        """The rows that have one answer: those that are drawn anew each time cannot be compared."""
        answerer = _answerer(case.seen, resident)
        places = [place for place, row in enumerate(case.seen.rows) if answerer and not row.alone]
        count = len(places)
        places = places[: 0 if self._resting.rests(resident.key) else self._config.max_shadow_rows]
        case.dropped(resident, count - len(places))
        if not places:
            return
        if _prompts_alike(case.seen.resident, resident):
            self._submit(case, resident, places, [case.seen.rows[place].ids for place in places])
        else:
            task = asyncio.get_running_loop().create_task(self._encode(case, resident, places))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _encode(self, case: "_Case", resident: Resident, places: list[int]) -> None:
        """Its own tokens of the callers' inputs."""
        if self._encoding + len(places) > self._config.max_shadow_rows:
            case.dropped(resident, len(places))
            return
        self._encoding += len(places)
        target, inputs = Target(resident, None, resident.answerer), [case.seen.inputs[place] for place in places]
        work = partial(encode, self._tokenizer, [([target], inputs)])
        try:
            [result] = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError:  # it was closed
            result = Draining()
        finally:
            self._encoding -= len(places)
        encoded = result if isinstance(result, Exception) else result[0]
        if isinstance(encoded, Encoded):
            self._submit(case, resident, places, encoded.ids)
        elif isinstance(encoded, NotServed):
            case.dropped(resident, len(places))
        else:  # it makes no prompt of what callers send
            for place in places:
                case.told(resident, place, encoded)

    def _submit(self, case: "_Case", resident: Resident, places: list[int], ids: list[Ids]) -> None:
        answerer, salts = _answerer(case.seen, resident), [case.seen.rows[place].salt for place in places]
        rows = [EngineRow(own, resident, answerer, salt) for own, salt in zip(ids, salts, strict=True)]
        if not rows[0].alone:
            self._queue.shadow(_Asked(case, resident, places, rows, self._resting, self._comparisons))


@dataclass(slots=True)
class _Case:
    """One task of one request: what each version said to its rows."""

    seen: Observation
    window: Window
    metrics: Metrics
    _said: dict[Key, list[Outcome]] = field(default_factory=dict)
    _residents: dict[Key, Resident] = field(default_factory=dict)
    _own: Resident | None = None

    def __post_init__(self) -> None:
        versions = (self.seen.resident, *self.seen.shadows)
        self._own = next((each for each in versions if each.version == self.window.routed.version), None)
        self._take(self.seen.resident, list(self.seen.outcomes))

    @property
    def compares(self) -> bool:
        """The alias's own version answers too."""
        return self._own is not None

    def told(self, resident: Resident, place: int, outcome: Outcome) -> None:
        """What a version said beside the caller's."""
        failed = isinstance(outcome, Exception)
        self.window.asked(resident.version, failed=failed)
        if failed:
            self.metrics.shadowed(resident.task, resident.version, "failed")
        if resident.key not in self._said:
            self._take(resident, [None] * len(self.seen.rows))
        self._said[resident.key][place] = outcome
        others = self._residents.values() if resident is self._own else [resident]
        for other in others:
            if other is not self._own:
                self._compare(other, place)

    def dropped(self, resident: Resident, rows: int) -> None:
        if rows:
            self.window.dropped(resident.version, rows)
            self.metrics.shadowed(resident.task, resident.version, "dropped", rows)

    def spent(self, resident: Resident, seconds: float) -> None:
        self.window.spent(resident.version, seconds)
        self.metrics.shadow_took(resident.task, resident.version, seconds)

    def _take(self, resident: Resident, outcomes: list[Outcome]) -> None:
        self._said[resident.key], self._residents[resident.key] = outcomes, resident

    def _compare(self, resident: Resident, place: int) -> None:
        """Where both it and the alias's own version have answered."""
        expected, found = self._answer(self._own, place), self._answer(resident, place)
        if expected and found:
            prompt = self.seen.prompts[place]
            agreed, drift = self.window.compare(resident.version, prompt, expected, found)
            self.metrics.shadowed(resident.task, resident.version, "agreed" if agreed else "disagreed")
            self.metrics.drifted(resident.task, resident.version, drift)

    def _answer(self, resident: Resident | None, place: int) -> Said | None:
        said = self._said.get(resident.key) if resident else None
        outcome = said[place] if said else None
        return (
            None if resident is None or outcome is None or isinstance(outcome, Exception) else (resident.spec, outcome)
        )


class _Asked(ShadowRequest):
    """One version's rows of a case."""

    def __init__(
        self,
        case: _Case,
        resident: Resident,
        places: list[int],
        rows: list[EngineRow],
        resting: Resting,
        comparisons: Comparisons,
    ) -> None:
        super().__init__(rows, resident.key, apart=resting.is_suspect(resident.key))
        self._case, self._resident, self._places = case, resident, places
        self._resting, self._comparisons = resting, comparisons

    @property
    def is_wanted(self) -> bool:
        seen = self._case.seen
        return self._comparisons.window(seen.resident.task, seen.alias) is self._case.window

    def spent(self, seconds: float) -> None:
        self._case.spent(self._resident, seconds)

    def took(self, seconds: float, alone: bool) -> None:
        self._resting.took(self._resident.key, seconds, alone)

    def _tell(self, place: int, event: Any) -> None:
        if not isinstance(event, NotServed):
            self._resting.ended(self._resident.key, event if isinstance(event, Exception) else None)
        if not tells(event):
            self._tell_dropped(1)
            return
        try:
            self._case.told(self._resident, self._places[place], event)
        except Exception:  # told among callers' answers, which go on
            log.exception("an answer of %s:%d in shadow cannot be compared", *self._resident.key)

    def _tell_dropped(self, rows: int) -> None:
        self._case.dropped(self._resident, rows)


def _prompts_alike(asked: Resident, beside: Resident) -> bool:
    left, right = asked.spec, beside.spec
    return (left.template, left.max_source_tokens) == (right.template, right.max_source_tokens)


def _answerer(seen: Observation, beside: Resident) -> Answerer | None:
    """By the version's own settings, with what the caller set; None where it cannot answer so, to be compared."""
    try:
        return seen.overrides.answerer(beside)
    except InvalidInput:
        return None
