"""Callers in a process of their own: requests at random times, at a steady rate, and what each was told. No torch.

`calling` starts `python -m benchmarks.soak.load`, which asks until its standard input ends.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import click

from benchmarks.harness import BenchmarkError, plain_errors
from benchmarks.machine import ROOT
from serving.client import AsyncClient
from serving.client_errors import SidecastError
from serving.client_results import Answer, Classification, Embedding, Predictions, Regression

CALL_S = 30.0
"""Timeout of a call."""
MOST_ROWS = 3
"""Of a request for one task."""
TOGETHER = 0.1
"""Share of the requests that ask all tasks about one text."""


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
    answers: Sequence[Sequence[float]] = ()
    """Each input's numbers."""


@contextmanager
def calling(
    address: str, tasks: Sequence[str], texts: Sequence[str], rate: float, seed: int, out: Path
) -> Iterator[None]:
    """Ask within the block; what was told is in the file `out` after it, for `read_told`.

    Raises:
        BenchmarkError: the process failed.
    """
    asked = out.with_suffix(".asked.json")
    asked.write_text(json.dumps({"address": address, "tasks": tasks, "texts": texts}), encoding="utf-8")
    words = (str(asked), str(out), "--rate", str(rate), "--seed", str(seed))
    process = subprocess.Popen([sys.executable, "-m", __name__, *words], stdin=subprocess.PIPE, cwd=ROOT)
    try:
        yield
    finally:
        process.communicate(timeout=3 * CALL_S)
    if process.returncode:
        raise BenchmarkError("the load process failed; read what it said above")


def read_told(path: Path) -> list[Told]:
    with path.open(encoding="utf-8") as lines:
        return [Told(**json.loads(line)) for line in lines]


class Caller:
    """
    Args:
        out: gets a line of JSON for each `Told`.
    """

    def __init__(self, client: AsyncClient, tasks: Sequence[str], texts: Sequence[str], seed: int, out: TextIO) -> None:
        self._client, self._tasks, self._texts, self._out = client, tasks, texts, out
        self._draw = random.Random(seed)

    async def ask(self, rate: float, until: asyncio.Event) -> None:
        """Send about `rate` requests a second, whatever becomes of them, and wait for the last."""
        at = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            while not until.is_set():
                at += self._draw.expovariate(rate)
                await asyncio.sleep(at - time.monotonic())
                calls.create_task(self._ask_all() if self._draw.random() < TOGETHER else self._ask_one())

    async def _ask_one(self) -> None:
        task, count = self._draw.choice(self._tasks), self._draw.randint(1, MOST_ROWS)
        inputs = self._draw.sample(range(len(self._texts)), min(count, len(self._texts)))
        started = time.monotonic()
        try:
            outcome = await self._client.predict(task, [self._texts[place] for place in inputs])
        except SidecastError as error:
            outcome = error
        self._note(task, inputs, started, time.monotonic(), outcome)

    async def _ask_all(self) -> None:
        place, started = self._draw.randrange(len(self._texts)), time.monotonic()
        outcomes: dict[str, Predictions | SidecastError]
        try:
            outcomes = await self._client.predict_tasks(self._tasks, [self._texts[place]])
        except SidecastError as error:
            outcomes = dict.fromkeys(self._tasks, error)
        ended = time.monotonic()
        for task, outcome in outcomes.items():
            self._note(task, [place], started, ended, outcome)

    def _note(
        self, task: str, inputs: list[int], started: float, ended: float, outcome: Predictions | SidecastError
    ) -> None:
        told = Told(task=task, inputs=inputs, started=started, ended=ended, **_outcome(outcome))
        self._out.write(json.dumps(asdict(told)) + "\n")


def _outcome(outcome: Predictions | SidecastError) -> dict:
    if isinstance(outcome, SidecastError):
        return {"reason": outcome.reason}
    answers = [_numbers(answer) for answer in outcome]
    return {"version": outcome.version, "generation": outcome.generation, "answers": answers}


def _numbers(answer: Answer) -> list[float]:
    match answer:
        case Classification():
            return list(answer.scores.values())
        case Regression():
            return [answer.value]
        case Embedding():
            return list(answer.values)
        case _:
            raise BenchmarkError(f"the soak asks for no such answers: {answer!r}")


async def run(address: str, tasks: Sequence[str], texts: Sequence[str], rate: float, seed: int, out: TextIO) -> None:
    """Ask until standard input ends."""
    over = asyncio.Event()
    async with AsyncClient(address, timeout=CALL_S, retry=False) as client:
        asking = asyncio.create_task(Caller(client, tasks, texts, seed, out).ask(rate, over))
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([asking, ending], return_when=asyncio.FIRST_COMPLETED)
        over.set()
        await asking


@click.command()
@click.argument("asked", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--rate", type=float, required=True)
@click.option("--seed", type=int, required=True)
def main(asked: Path, out: Path, rate: float, seed: int) -> None:
    """Ask what the file ASKED says, and write what was told to the file OUT."""
    how = json.loads(asked.read_text(encoding="utf-8"))
    with plain_errors(), out.open("w", encoding="utf-8") as lines:
        asyncio.run(run(**how, rate=rate, seed=seed, out=lines))


if __name__ == "__main__":
    main()
