"""Simulates one replica: a queue, a device that computes batches, and an activation cache. Times are arguments."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.simulation.service import Service


class Request(NamedTuple):
    """One row."""

    arrived: float
    input: int
    router: int = 0
    """The proxy it came through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The settings of a server that matter here."""

    max_rows: int = 64
    max_tokens: int = 8192
    row_tokens: int = 32
    """Tokens of every row."""
    wait_s: float = 0.002
    """Seconds that an idle device waits for more rows."""
    kept_inputs: int = 0
    """Inputs whose activations fit into the cache; the least recently used is dropped."""

    @property
    def batch_rows(self) -> int:
        """The most rows of a batch."""
        return max(1, min(self.max_rows, self.max_tokens // self.row_tokens))


class Replica:
    """State of one replica; `pool` calls its methods at each event."""

    def __init__(self, number: int, service: Service, config: ServerConfig) -> None:
        self.number, self._service, self._config = number, service, config
        self.queue: deque[Request] = deque()
        self.batch: list[Request] = []
        self.waits = False
        """Its device is idle and waits for more rows."""
        self.hits = self.rows = 0
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._busy_s = self._begun = 0.0
        self._rows_sampled = 0

    @property
    def ongoing(self) -> int:
        """Number of requests queued or in a batch."""
        return len(self.queue) + len(self.batch)

    @property
    def is_full(self) -> bool:
        """Whether a whole batch is queued."""
        return len(self.queue) >= self._config.batch_rows

    @property
    def queued_tokens(self) -> int:
        """Number of tokens queued."""
        return len(self.queue) * self._config.row_tokens

    def begin(self, now: float) -> float:
        """Start the next batch; return when it will be done."""
        take = min(len(self.queue), self._config.batch_rows)
        self.batch = [self.queue.popleft() for _ in range(take)]
        self.waits, self._begun = False, now
        hits = sum(map(self._is_cached, self.batch)) if self._config.kept_inputs else 0
        self.hits, self.rows = self.hits + hits, self.rows + take
        return now + self._service.seconds(take - hits + self._service.kept * hits)

    def end(self, now: float, answer: Callable[[Request], None]) -> None:
        """End the batch; call `answer` for each of its requests."""
        self._busy_s += now - self._begun
        done, self.batch = self.batch, []
        for request in done:
            answer(request)

    def take_busy_s(self, now: float) -> tuple[float, int]:
        """Return the seconds that the device computed since the last call, and the rows that it took."""
        if self.batch:
            self._busy_s, self._begun = self._busy_s + now - self._begun, now
        busy, self._busy_s = self._busy_s, 0.0
        rows, self._rows_sampled = self.rows - self._rows_sampled, self.rows
        return busy, rows

    def _is_cached(self, request: Request) -> bool:
        cached = request.input in self._kept
        self._kept[request.input] = None
        self._kept.move_to_end(request.input)
        if len(self._kept) > self._config.kept_inputs:
            self._kept.popitem(last=False)
        return cached
