"""What does a caller wait for over gRPC: many tasks on one input, an input that is known, the first token of a text?

    python -m benchmarks.bench_doors

A real `sidecast serve` in a process of its own, with its defaults; this process asks and does nothing else. One call at
a time: PredictTasks of 16 tasks on one text and of one, and Predict of one task on a text that another was just asked
about, beside a new one, of about 32 tokens. Then streams, as many at a time as --streams says, each of another length:
seconds from the call to the first piece of its text, and all of the server's tokens a second. Texts never come twice,
unless a variant says "kept".
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import click

from benchmarks.cli import How, answer, measuring
from benchmarks.harness import BenchmarkError, Column, Figures, Samples, Spread, Variant, quantile
from benchmarks.models import Head, Loaded, publish_tasks
from benchmarks.served import Served, serve
from serving.client import AsyncClient, Client, SidecastError
from sidecast.loadtest.loops import closed_loop
from sidecast.loadtest.sentences import SENTENCES

TASKS, SPEAKING = 16, 8
"""Tasks that classify, and tasks that make texts."""
STREAMS = (4, 16)
LENGTHS = tuple(range(8, 57, 3))
"""Tokens of the streamed texts, one after the other."""
WORDS = (
    "the film that my daughter and I saw on Sunday was neither good nor bad, and far too long for what it has to say"
)
COLUMNS = (
    Column(figure="ms", heading="ms a call", digits=2),
    Column(figure="first_p50_ms", heading="first token p50 ms"),
    Column(figure="first_p99_ms", heading="p99 ms"),
    Column(figure="tokens_per_s", heading="tokens/s"),
)


class Calls:
    """One call at a time, of classifying tasks with heads of one kind."""

    def __init__(self, head: str, names: list[str], client: Client, how: How, numbers: Iterator[int]) -> None:
        self.head, self.names, self._client, self._how, self._numbers = head, names, client, how, numbers

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        timed, many = self._how.timed, len(self.names)
        return [
            timed(f"{self.head} PredictTasks, 1 task", lambda text: self._ask(1, text), self._text, 1, unit="answers"),
            timed(
                f"{self.head} PredictTasks, {many} tasks",
                lambda text: self._ask(many, text),
                self._text,
                many,
                unit="answers",
            ),
            timed(f"{self.head} Predict, new", self._one, self._text, 1, unit="answers"),
            timed(f"{self.head} Predict, kept", self._one, self._known, 1, unit="answers"),
        ]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        many = f"{self.head} PredictTasks, {len(self.names)} tasks"
        return {
            f"{many} / 1": samples.ratio("ms", many, f"{self.head} PredictTasks, 1 task"),
            f"{self.head} Predict, new / kept": samples.ratio(
                "ms", f"{self.head} Predict, new", f"{self.head} Predict, kept"
            ),
        }

    def _text(self) -> str:
        return f"{next(self._numbers)} {WORDS}"

    def _known(self) -> str:
        """One that another task was just asked about."""
        text = self._text()
        self._client.predict(self.names[0], [text])
        return text

    def _ask(self, tasks: int, text: str) -> None:
        for outcome in self._client.predict_tasks(self.names[:tasks], [text]).values():
            if isinstance(outcome, SidecastError):
                raise outcome

    def _one(self, text: str) -> None:
        self._client.predict(self.names[-1], [text])


@dataclass(slots=True)
class Heard:
    """What the callers of streams saw."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0


class Streams:
    """Streams of text tasks, some at a time: callers that each start the next where one ends."""

    def __init__(self, served: Served, names: list[str], how: How, numbers: Iterator[int]) -> None:
        self._served, self._names, self._how, self._numbers = served, names, how, numbers

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        levels = STREAMS[: self._how.size(len(STREAMS), 1)]
        return [
            Variant(name=f"{callers} streams", measure=lambda callers=callers: asyncio.run(self._listen(callers)))
            for callers in levels
        ]

    async def _listen(self, callers: int) -> Figures:
        """So many callers; each ends its last stream after the time is up, and at least one."""
        heard, seconds = Heard(), max(self._how.seconds * 8, 0.1)
        async with AsyncClient(self._served.address, retry=False) as client:
            if not await client.ready(10.0):
                raise BenchmarkError("the server does not answer any more")
            started = time.perf_counter()

            async def stream(began: float) -> bool:
                await self._stream(client, heard, began)
                return True

            await closed_loop(stream, callers, time.perf_counter, lambda: time.perf_counter() < started + seconds)
            spent = time.perf_counter() - started
        first = [1e3 * each for each in heard.first_s]
        return {
            "first_p50_ms": quantile(first, 0.5),
            "first_p99_ms": quantile(first, 0.99),
            "tokens_per_s": heard.tokens / spent,
        }

    async def _stream(self, client: AsyncClient, heard: Heard, began: float) -> None:
        number = next(self._numbers)
        task, text = self._names[number % len(self._names)], f"{number} {SENTENCES[number % len(SENTENCES)]}"
        length = LENGTHS[number % len(LENGTHS)]
        first: float | None = None
        stream = client.stream(task, text, generation={"min_new_tokens": length, "max_new_tokens": length})
        async for piece in stream:
            first = first or time.perf_counter() - began
            heard.tokens += len(piece.tokens)
        heard.first_s.append(first or time.perf_counter() - began)


def publish(folder: Path, loaded: Loaded, how: How) -> dict[str, list[str]]:
    """The names of tasks by their head, all in one registry."""
    pair: list[Head] = ["text", "linear"]
    speaking: list[Head] = ["generate"]
    heads = pair * how.size(TASKS, 3) + speaking * how.size(SPEAKING, 2)
    registry = publish_tasks(folder, loaded, len(heads), heads, how.seed)
    names: dict[str, list[str]] = {}
    for name, head in zip(sorted(registry.state().tasks), heads, strict=True):
        names.setdefault(head, []).append(name)
    return names


def ask(loaded: Loaded, how: How) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        names = publish(Path(folder), loaded, how)
        numbers = count(10_000_000)
        with (
            serve(registry=Path(folder) / "registry", **loaded.settings(how.threads)) as served,
            Client(served.address) as client,
        ):
            calls = [Calls(head, names[head], client, how, numbers) for head in ("text", "linear")]
            streams = Streams(served, names["generate"], how, numbers)
            variants = [variant for each in calls for variant in each.variants()]
            samples = how.turns([*variants, *streams.variants()])
    settings = {"tasks": len(names["text"]), "speaking_tasks": len(names["generate"]), "rungs": "all"}
    return samples, {name: spread for each in calls for name, spread in each.ratios(samples).items()}, settings


@click.command()
@measuring(rounds=5, seconds=0.6)
def main(**given: Any) -> None:
    """What callers wait for over gRPC: many tasks on one input, a known input, a first token."""
    answer(ask, name="doors", title="Calls over gRPC, and streams", columns=COLUMNS, given=given)


if __name__ == "__main__":
    main()
