"""Callers in a process of their own: requests at random times, at a steady rate. Records every answer. No torch.

`calling` starts `python -m benchmarks.soak.load`, which sends requests until its standard input ends. The load
generator of `sidecast bench` decides when a request is sent; this module decides its content and records the answer.
"""

import asyncio
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from benchmarks.harness.machine import ROOT
from benchmarks.harness.samples import BenchmarkError, plain_errors
from benchmarks.harness.secured import Credentials
from benchmarks.soak.http_calls import HttpCalls
from serving.client import Answer, AsyncClient, Classification, Embedding, Predictions, Regression, SidecastError, Text
from side_registry.specs.task import PRODUCTION
from sidecast.loadtest.loops import open_loop
from sidecast.loadtest.plan import Open

CALL_S = 30.0
"""Timeout of a call."""
MOST_ROWS = 3
"""Most rows of a request for one task."""
TOGETHER, PINNED, CANARIES, KEYED = 0.1, 0.1, 0.1, 0.3
"""Shares of requests. TOGETHER: one text for all tasks, half of them with a route key. Of the others: for a version
that answered recently, for the alias CANARY, and with a route key."""
OVER_HTTP = 0.3
"""Share of the requests for one task that go over HTTP, where the server has TLS and tokens."""
KEYS = ("ann", "bob", "cem", "dee")
RECENT = 6
"""Number of the last answers of a task whose versions may be requested by number."""
CANARY = "canary"
"""The other alias of every task."""
AnswerValue = Sequence[float] | str
"""An answer: its numbers, or its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The outcome of one task's part of a request. Times are time.monotonic() seconds, the same in every process."""

    task: str
    inputs: Sequence[int]
    """Indices of the texts."""
    started: float
    ended: float
    reason: str = ""
    """Reason of the error; empty if it was answered."""
    version: int = 0
    generation: int = 0
    """Generation of the registry that the answer names."""
    answers: Sequence[AnswerValue] = ()
    """One for each input."""
    alias: str = PRODUCTION
    """The requested alias."""
    pinned: int = 0
    """The requested version; 0: none."""
    key: str = ""
    """The route key; empty: none."""


@contextmanager
def calling(asked: Path, rate: float, seed: int, out: Path, fewest: int = 0) -> Iterator[None]:
    """Send requests while the block runs, and at least `fewest`. Afterwards, `read_records` reads the file `out`.

    Args:
        asked: what to ask, as `write_asked` writes it.

    Raises:
        BenchmarkError: the process failed.
    """
    words = (str(asked), str(out), "--rate", str(rate), "--seed", str(seed), "--fewest", str(fewest))
    process = subprocess.Popen([sys.executable, "-m", __name__, *words], stdin=subprocess.PIPE, cwd=ROOT)
    try:
        yield
    finally:
        process.communicate(timeout=3 * CALL_S + 2 * fewest / rate)
    if process.returncode:
        raise BenchmarkError("the load process failed; read its error above")


def read_records(path: Path) -> list[Record]:
    """Read the recorded answers of a load."""
    with path.open(encoding="utf-8") as lines:
        return [Record(**json.loads(line)) for line in lines]


class Caller:
    """Sends random requests and records their outcomes.

    Args:
        out: gets a line of JSON for each `Record`.
        over_http: sends some of the requests for one task; None: all go over gRPC.
    """

    def __init__(
        self,
        client: AsyncClient,
        tasks: Sequence[str],
        text_tasks: Sequence[str],
        texts: Sequence[str],
        seed: int,
        out: TextIO,
        over_http: HttpCalls | None = None,
    ) -> None:
        self._over_http = over_http
        self._client, self._tasks, self._text_tasks, self._texts, self._out = client, tasks, text_tasks, texts, out
        self._draw = random.Random(seed)
        self._recent: dict[str, deque[int]] = {task: deque(maxlen=RECENT) for task in tasks}

    async def ask(self, rate: float, seed: int, until: asyncio.Event, fewest: int = 0) -> None:
        """Send about `rate` requests a second, without waiting for answers, but at least `fewest`."""
        began, sent = time.monotonic(), itertools.count()
        times = (began + offset for offset in Open(rate).times(math.inf, seed))
        await open_loop(self._send, times, time.monotonic, going=lambda: next(sent) < fewest or not until.is_set())

    async def _send(self, due: float) -> None:
        await (self._ask_all() if self._draw.random() < TOGETHER else self._ask_one())

    async def _ask_one(self) -> None:
        task = self._draw.choice(self._tasks)
        how = self._how(self._recent[task])
        streams = task in self._text_tasks and self._draw.random() < 0.5
        inputs = self._inputs(1 if streams else self._draw.randint(1, MOST_ROWS))
        http = self._over_http if self._over_http and self._draw.random() < OVER_HTTP else None
        rows, started = [self._texts[index] for index in inputs], time.monotonic()
        try:
            if http:
                outcome = await (http.stream(task, rows[0], how) if streams else http.predict(task, rows, how))
            elif streams:
                outcome = await self._stream(task, rows[0], how)
            else:
                outcome = _outcome(await self._client.predict(task, rows, **how))
        except SidecastError as error:
            outcome = {"reason": error.reason}
        self._note(task, inputs, started, how, outcome)

    async def _stream(self, task: str, row: str, how: dict[str, Any]) -> dict[str, Any]:
        stream = self._client.stream(task, row, **how)
        pieces = [piece.text async for piece in stream]
        whole = await stream.result()
        return {"version": whole.version, "generation": whole.generation, "answers": ["".join(pieces)]}

    async def _ask_all(self) -> None:
        how: dict[str, Any] = {"route_key": self._draw.choice(KEYS)} if self._draw.random() < 0.5 else {}
        inputs, started = self._inputs(1), time.monotonic()
        outcomes: Mapping[str, Predictions | SidecastError]
        try:
            outcomes = await self._client.predict_tasks(self._tasks, [self._texts[inputs[0]]], **how)
        except SidecastError as error:
            outcomes = dict.fromkeys(self._tasks, error)
        for task, outcome in outcomes.items():
            self._note(task, inputs, started, how, _outcome(outcome))

    def _how(self, recent: Sequence[int]) -> dict[str, Any]:
        """Draw the request's version, alias or route key; empty: none of them."""
        kinds = {"version": PINNED, "alias": CANARIES, "route_key": KEYED, "": 1 - PINNED - CANARIES - KEYED}
        [kind] = self._draw.choices(list(kinds), list(kinds.values()))
        values = {
            "version": self._draw.choice(recent or (None,)),
            "alias": CANARY,
            "route_key": self._draw.choice(KEYS),
        }
        return {kind: values[kind]} if kind else {}

    def _inputs(self, count: int) -> list[int]:
        return self._draw.sample(range(len(self._texts)), min(count, len(self._texts)))

    def _note(
        self, task: str, inputs: list[int], started: float, how: Mapping[str, Any], outcome: Mapping[str, Any]
    ) -> None:
        record = Record(
            task=task,
            inputs=inputs,
            started=started,
            ended=time.monotonic(),
            alias=how.get("alias", PRODUCTION),
            pinned=how.get("version") or 0,
            key=how.get("route_key", ""),
            **outcome,
        )
        if record.version and not record.pinned:
            self._recent[task].append(record.version)
        self._out.write(json.dumps(asdict(record)) + "\n")


def _outcome(outcome: Predictions | SidecastError) -> dict[str, Any]:
    if isinstance(outcome, SidecastError):
        return {"reason": outcome.reason}
    answers = [_value(answer) for answer in outcome]
    return {"version": outcome.version, "generation": outcome.generation, "answers": answers}


def _value(answer: Answer) -> AnswerValue:
    match answer:
        case Classification():
            return list(answer.scores.values())
        case Regression():
            return [answer.value]
        case Embedding():
            return list(answer.values)
        case Text():
            return answer.text
        case _:
            raise TypeError(f"the soak has no task that answers {answer!r}")


async def run(
    address: str,
    tasks: Sequence[str],
    text_tasks: Sequence[str],
    texts: Sequence[str],
    rate: float,
    seed: int,
    out: TextIO,
    fewest: int = 0,
    ca: str = "",
    token_file: str = "",
    http_url: str = "",
) -> None:
    """Send requests until standard input ends, `fewest` at least; over HTTP too where the server has TLS and tokens."""
    over = asyncio.Event()
    credentials = Credentials(Path(ca), Path(token_file)) if ca else None
    over_http = HttpCalls(http_url, credentials, CALL_S) if credentials else None
    options = credentials.client() if credentials else {}
    async with AsyncClient(address, timeout=CALL_S, retry=False, **options) as client:
        caller = Caller(client, tasks, text_tasks, texts, seed, out, over_http)
        asking = asyncio.create_task(caller.ask(rate, seed, over, fewest))
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([asking, ending], return_when=asyncio.FIRST_COMPLETED)
        over.set()
        await asking


@click.command()
@click.argument("asked", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rate", type=float, required=True)
@click.option("--seed", type=int, required=True)
@click.option("--fewest", type=int, default=0)
def main(asked: Path, out: Path, rate: float, seed: int, fewest: int) -> None:
    """Send the requests that the file ASKED describes, and write the records to the file OUT."""
    how = json.loads(asked.read_text(encoding="utf-8"))
    with plain_errors(), out.open("w", encoding="utf-8") as lines:
        asyncio.run(run(**how, rate=rate, seed=seed, out=lines, fewest=fewest))


if __name__ == "__main__":
    main()
