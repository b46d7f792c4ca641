"""Callers in a process of their own: requests at random times, at a steady rate, and what each was told. No torch.

`calling` starts `python -m benchmarks.soak.load`, which asks until its standard input ends. The load generator of
`sidecast bench` says when requests are sent; what they ask and the record of each answer are here.
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

from benchmarks.harness import BenchmarkError, plain_errors
from benchmarks.machine import ROOT
from serving.client import Answer, AsyncClient, Classification, Embedding, Predictions, Regression, SidecastError, Text
from side_registry.task import PRODUCTION
from sidecast.loadtest.loops import open_loop
from sidecast.loadtest.plan import Open

CALL_S = 30.0
"""Timeout of a call."""
MOST_ROWS = 3
"""Of a request for one task."""
TOGETHER, PINNED, CANARIES, KEYED = 0.1, 0.1, 0.1, 0.3
"""Shares of the requests: about one text of all tasks; of the others, for a version that answered lately, for the other
alias, and with one of few keys. So have half of those for all tasks."""
KEYS = ("ann", "bob", "cem", "dee")
LATELY = 6
"""Answers of a task that are remembered for who asks for a version."""
CANARY = "canary"
"""The other alias of every task."""


Said = Sequence[float] | str
"""An answer: its numbers, or its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What became of one task's part of a request. Times are time.monotonic() seconds, the same in every process."""

    task: str
    inputs: Sequence[int]
    """Which texts."""
    started: float
    ended: float
    reason: str = ""
    """Why it failed; empty where it was answered."""
    version: int = 0
    generation: int = 0
    """The registry's, as the answer says."""
    answers: Sequence[Said] = ()
    """Of each input."""
    alias: str = PRODUCTION
    """That was asked for."""
    pinned: int = 0
    """The version that was asked for; 0: none."""
    key: str = ""
    """Of the route."""


@contextmanager
def calling(
    address: str,
    tasks: Sequence[str],
    speaking: Sequence[str],
    texts: Sequence[str],
    rate: float,
    seed: int,
    out: Path,
    fewest: int = 0,
) -> Iterator[None]:
    """Ask within the block, and at its end until `fewest` requests were sent. What was told is in the file `out` after
    it, for `read_told`.

    Args:
        speaking: those of `tasks` that make texts.

    Raises:
        BenchmarkError: the process failed.
    """
    asked = out.with_suffix(".asked.json")
    asked.write_text(
        json.dumps({"address": address, "tasks": tasks, "speaking": speaking, "texts": texts}), encoding="utf-8"
    )
    words = (str(asked), str(out), "--rate", str(rate), "--seed", str(seed), "--fewest", str(fewest))
    process = subprocess.Popen([sys.executable, "-m", __name__, *words], stdin=subprocess.PIPE, cwd=ROOT)
    try:
        yield
    finally:
        process.communicate(timeout=3 * CALL_S + 2 * fewest / rate)
    if process.returncode:
        raise BenchmarkError("the load process failed; read what it said above")


def read_told(path: Path) -> list[Told]:
    """Read the recorded answers of a load."""
    with path.open(encoding="utf-8") as lines:
        return [Told(**json.loads(line)) for line in lines]


class Caller:
    """
    Args:
        out: gets a line of JSON for each `Told`.
    """

    def __init__(
        self,
        client: AsyncClient,
        tasks: Sequence[str],
        speaking: Sequence[str],
        texts: Sequence[str],
        seed: int,
        out: TextIO,
    ) -> None:
        self._client, self._tasks, self._speaking, self._texts, self._out = client, tasks, speaking, texts, out
        self._draw = random.Random(seed)
        self._lately: dict[str, deque[int]] = {task: deque(maxlen=LATELY) for task in tasks}

    async def ask(self, rate: float, seed: int, until: asyncio.Event, fewest: int = 0) -> None:
        """Send about `rate` requests a second, whatever becomes of them, `fewest` at least, and wait for the last."""
        began, sent = time.monotonic(), itertools.count()
        times = (began + offset for offset in Open(rate).times(math.inf, seed))
        await open_loop(self._send, times, time.monotonic, going=lambda: next(sent) < fewest or not until.is_set())

    async def _send(self, due: float) -> None:
        await (self._ask_all() if self._draw.random() < TOGETHER else self._ask_one())

    async def _ask_one(self) -> None:
        task = self._draw.choice(self._tasks)
        how = self._how(self._lately[task])
        streams = task in self._speaking and self._draw.random() < 0.5
        inputs = self._inputs(1 if streams else self._draw.randint(1, MOST_ROWS))
        rows, started = [self._texts[place] for place in inputs], time.monotonic()
        try:
            if streams:
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

    def _how(self, lately: Sequence[int]) -> dict[str, Any]:
        """What a request says besides its task."""
        kinds = {"version": PINNED, "alias": CANARIES, "route_key": KEYED, "": 1 - PINNED - CANARIES - KEYED}
        [kind] = self._draw.choices(list(kinds), list(kinds.values()))
        values = {
            "version": self._draw.choice(lately or (None,)),
            "alias": CANARY,
            "route_key": self._draw.choice(KEYS),
        }
        return {kind: values[kind]} if kind else {}

    def _inputs(self, count: int) -> list[int]:
        return self._draw.sample(range(len(self._texts)), min(count, len(self._texts)))

    def _note(
        self, task: str, inputs: list[int], started: float, how: Mapping[str, Any], outcome: Mapping[str, Any]
    ) -> None:
        told = Told(
            task=task,
            inputs=inputs,
            started=started,
            ended=time.monotonic(),
            alias=how.get("alias", PRODUCTION),
            pinned=how.get("version") or 0,
            key=how.get("route_key", ""),
            **outcome,
        )
        if told.version and not told.pinned:
            self._lately[task].append(told.version)
        self._out.write(json.dumps(asdict(told)) + "\n")


def _outcome(outcome: Predictions | SidecastError) -> dict[str, Any]:
    if isinstance(outcome, SidecastError):
        return {"reason": outcome.reason}
    answers = [_said(answer) for answer in outcome]
    return {"version": outcome.version, "generation": outcome.generation, "answers": answers}


def _said(answer: Answer) -> Said:
    match answer:
        case Classification():
            return list(answer.scores.values())
        case Regression():
            return [answer.value]
        case Embedding():
            return list(answer.values)
        case Text():
            return answer.text


async def run(
    address: str,
    tasks: Sequence[str],
    speaking: Sequence[str],
    texts: Sequence[str],
    rate: float,
    seed: int,
    out: TextIO,
    fewest: int = 0,
) -> None:
    """Ask until standard input ends, `fewest` requests at least."""
    over = asyncio.Event()
    async with AsyncClient(address, timeout=CALL_S, retry=False) as client:
        asking = asyncio.create_task(Caller(client, tasks, speaking, texts, seed, out).ask(rate, seed, over, fewest))
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
    """Ask what the file ASKED says, and write what was told to the file OUT."""
    how = json.loads(asked.read_text(encoding="utf-8"))
    with plain_errors(), out.open("w", encoding="utf-8") as lines:
        asyncio.run(run(**how, rate=rate, seed=seed, out=lines, fewest=fewest))


if __name__ == "__main__":
    main()
