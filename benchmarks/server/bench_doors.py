"""Measures the gRPC services: many tasks on one input, an input whose activations are cached, streams of texts.

    python -m benchmarks.server.bench_doors

A real `sidecast serve` in a process of its own, with its defaults; this process is the caller. One call at a time:
PredictTasks of 16 tasks and of one task on a new text; Predict of one task on a new text, and on a text that another
task has just answered ("kept"). A text has about 32 tokens. Then 4 and 16 streams at a time, of different lengths:
the time from the call to the first piece, and tokens a second of all streams. No text is sent twice, except for "kept".
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

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Head, Loaded, publish_tasks
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Samples, Spread, Variant, quantile
from benchmarks.harness.served import Served, serve
from serving.client import AsyncClient, Client, SidecastError
from sidecast.loadtest.loops import closed_loop
from sidecast.loadtest.sentences import SENTENCES

TASKS, TEXT_TASKS = 16, 8
"""Number of classification tasks of each kind of head, and of text tasks."""
STREAMS = (4, 16)
LENGTHS = tuple(range(8, 57, 3))
"""Lengths of the streamed texts in tokens, in turn."""
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
    """Variants with one call at a time, for classification tasks with one kind of head."""

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
            timed(f"{self.head} Predict, kept", self._one, self._kept_text, 1, unit="answers"),
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

    def _kept_text(self) -> str:
        """Return a text that another task has just answered."""
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
class StreamFigures:
    """What the callers of streams measured."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0


class Streams:
    """Variants with several streams of text tasks at a time: a caller starts the next when one ends."""

    def __init__(self, served: Served, names: list[str], how: How, numbers: Iterator[int]) -> None:
        self._served, self._names, self._how, self._numbers = served, names, how, numbers

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        levels = STREAMS[: self._how.size(len(STREAMS), 1)]
        return [
            Variant(name=f"{callers} streams", measure=lambda callers=callers: asyncio.run(self._run_streams(callers)))
            for callers in levels
        ]

    async def _run_streams(self, callers: int) -> Figures:
        """Run `callers` callers until the time is up; every caller completes its last stream."""
        figures, seconds = StreamFigures(), max(self._how.seconds * 8, 0.1)
        async with AsyncClient(self._served.address, retry=False) as client:
            if not await client.ready(10.0):
                raise BenchmarkError("the server does not answer any more")
            started = time.perf_counter()

            async def stream(began: float) -> bool:
                await self._stream(client, figures, began)
                return True

            await closed_loop(stream, callers, time.perf_counter, lambda: time.perf_counter() < started + seconds)
            spent = time.perf_counter() - started
        first = [1e3 * seconds for seconds in figures.first_s]
        return {
            "first_p50_ms": quantile(first, 0.5),
            "first_p99_ms": quantile(first, 0.99),
            "tokens_per_s": figures.tokens / spent,
        }

    async def _stream(self, client: AsyncClient, figures: StreamFigures, began: float) -> None:
        number = next(self._numbers)
        task, text = self._names[number % len(self._names)], f"{number} {SENTENCES[number % len(SENTENCES)]}"
        length = LENGTHS[number % len(LENGTHS)]
        first: float | None = None
        stream = client.stream(task, text, decoding={"min_new_tokens": length, "max_new_tokens": length})
        async for piece in stream:
            first = first or time.perf_counter() - began
            figures.tokens += len(piece.tokens)
        figures.first_s.append(first or time.perf_counter() - began)


def publish(folder: Path, loaded: Loaded, how: How) -> dict[str, list[str]]:
    """Publish all tasks in one registry; return their names by head."""
    pair: list[Head] = ["text", "linear"]
    text_heads: list[Head] = ["generate"]
    heads = pair * how.size(TASKS, 3) + text_heads * how.size(TEXT_TASKS, 2)
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
            variants = [variant for call in calls for variant in call.variants()]
            samples = how.turns([*variants, *streams.variants()])
    settings = {"tasks": len(names["text"]), "speaking_tasks": len(names["generate"]), "rungs": "all"}
    return samples, {name: spread for call in calls for name, spread in call.ratios(samples).items()}, settings


@click.command()
@measuring(rounds=5, seconds=0.6)
def main(**arguments: Any) -> None:
    """What callers wait for over gRPC: many tasks on one input, a known input, a first token."""
    answer(ask, name="doors", title="Calls over gRPC, and streams", columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
