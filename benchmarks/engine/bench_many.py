"""What do thousands of tasks cost: time of a batch, memory, time of a start and of a publish?

    python -m benchmarks.engine.bench_many            # a server of 1,000 tasks; 10,000 in the engine
    python -m benchmarks.engine.bench_many --full     # a server of 10,000

The engine, in this process: 10,000 side networks of the usual size (a linear head, a rung on every second block), all
with different weights on the device. Batches of 32 rows are for tasks drawn from all of them, or for one of them; they
are compared with batches of an engine that has one side network. Then the same with a text head and a rung on every
block, as many as fit into --gigabytes. The server: the time of its start, which downloads and verifies each task and
replays its golden examples; its memory; and the time from a publish over gRPC to the first answer of the new version,
compared with a server of one task. Inputs are random tokens, and none is used twice.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
import torch

from benchmarks.engine.bench_tasks import predict
from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Head, Loaded, Rungs, make_residents, make_run, make_spec, publish_copies
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Samples, Spread, Variant
from benchmarks.harness.served import serve
from ladder import SideNetwork
from ladder.stacked import SideBank
from serving.client import Client
from serving.engine import Resident

ROWS, TOKENS = 32, 32
ALL = 10_000
SERVED = 1_000
ALL_LOADS_S = 3600.0
"""As `first_loads_s`: the servers are ready, and measured, once all is loaded."""
TASK = "task-00000"
COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="ms", heading="ms a call", digits=2),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """Side networks of one size."""

    name: str
    head: Head
    rungs: Rungs

    def make(self, loaded: Loaded) -> Resident:
        """Make one resident side network of this kind."""
        [resident] = make_residents(loaded, 1, HEADS[self.head], rungs=self.rungs)
        return resident

    def copies(self, loaded: Loaded, bank: SideBank, first: Resident, count: int) -> Iterator[Resident]:
        """Yield `count` residents in `bank`, all with different weights."""
        side = SideNetwork(first.side.config, loaded.backbone.config).eval()
        for number in range(count):
            with torch.no_grad():
                for parameter in side.parameters():
                    parameter.add_(1e-6)
            yield replace(first, task=f"task-{number:05d}", side=bank.add(side))


USUAL = Kind("usual", "linear", "auto")
LARGE = Kind("large", "text", "all")


class Crowd:
    """Residents of one kind on one device: one alone, and many."""

    def __init__(self, kind: Kind, loaded: Loaded, how: How, count: int) -> None:
        self.kind, self.loaded, self.how = kind, loaded, how
        self.engine, self.inputs = loaded.engine(), Inputs(loaded, how.seed)
        self.alone = kind.make(loaded)
        self._before = psutil.Process().memory_info().rss
        self._bank = SideBank(loaded.backbone)
        self.everyone = list(kind.copies(loaded, self._bank, self.alone, count))
        self._grown = psutil.Process().memory_info().rss - self._before

    def settings(self) -> dict[str, Any]:
        """Return the memory of the residents: by their weights, and by the growth of the process."""
        count = len(self.everyone)
        weights = self._bank.bytes
        return {
            "resident": count,
            "megabytes_each": round(weights / count / 1e6, 3),
            "gigabytes": round(weights / 1e9, 3),
            "gigabytes_grown": round(self._grown / 1e9, 3),
        }

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        draw, ask = self.inputs.draw, self.inputs.ask
        one = self.everyone[len(self.everyone) // 2]
        return [
            self._batch("1 resident", lambda: ask([self.alone] * ROWS, TOKENS)),
            self._batch("all asked", lambda: ask(draw(self.everyone, ROWS), TOKENS)),
            self._batch("one asked", lambda: ask([one] * ROWS, TOKENS)),
        ]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        return {
            f"{self.kind.name}, {what} / 1 resident": samples.ratio(
                "rows_per_s", f"{self.kind.name}, {what}", f"{self.kind.name}, 1 resident"
            )
            for what in ("all asked", "one asked")
        }

    def _batch(self, what: str, prepare: Any) -> Variant:
        call = partial(predict, self.engine)
        return self.how.timed(f"{self.kind.name}, {what}", call, prepare, ROWS, self.loaded.device)


class Server:
    """A server with many copies of a task; publishes new versions of one of them."""

    def __init__(self, loaded: Loaded, how: How, folder: Path, count: int, stack: ExitStack) -> None:
        self.loaded, self.count, self._folder, self._made = loaded, count, folder, 0
        started = time.perf_counter()
        publish_copies(folder, loaded, count)
        self.publish_s = time.perf_counter() - started
        settings = {"registry": folder / "registry", "first_loads_s": ALL_LOADS_S, **loaded.settings(how.threads)}
        self.served = stack.enter_context(serve(**settings))
        if self.served.tasks != count:
            raise BenchmarkError(f"the server knows {self.served.tasks} of {count} tasks; read its log above")
        self.gigabytes = self.served.resident_bytes / 1e9
        self._client = stack.enter_context(Client(self.served.address))

    def settings(self) -> dict[str, Any]:
        """Return figures about the server's start, for the report."""
        return {
            "tasks": self.count,
            "start_s": round(self.served.start_s, 1),
            "gigabytes": round(self.gigabytes, 3),
            "published_in_s": round(self.publish_s, 1),
        }

    def variant(self) -> Variant:
        """Return what is measured: the time from publish to the first answer."""
        return Variant(name=f"publish to answer, {self.count} tasks", measure=self._publish)

    def _publish(self) -> Figures:
        """Publish a new version as `production`; measure until it answers."""
        self._made += 1
        run = make_run(
            self._folder / f"new-{self._made}", self.loaded, make_spec(0, "linear"), "linear", 1000 + self._made, "auto"
        )
        started = time.perf_counter()
        published = self._client.publish(run, alias="production", timeout=60.0)
        while self._client.predict(TASK, [f"is version {self._made} there"]).version != published.version:
            pass
        return {"ms": 1e3 * (time.perf_counter() - started)}


@contextmanager
def servers(loaded: Loaded, how: How, counts: Sequence[int]) -> Iterator[list[Server]]:
    """Start servers with these numbers of tasks. All run at once; they are measured in turns."""
    with ExitStack() as stack:
        made = []
        for count in counts:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecast-bench-")))
            made.append(Server(loaded, how, folder, count, stack))
        yield made


def ask(
    loaded: Loaded, how: How, full: bool = False, gigabytes: float = 8.0
) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    settings: dict[str, Any] = {"rows": ROWS, "tokens": TOKENS, "reduction": 8}
    parts: list[Samples] = []
    spreads: dict[str, Spread] = {}
    for kind, most in ((USUAL, how.size(ALL, 20)), (LARGE, how.size(ALL, 20))):
        crowd = Crowd(kind, loaded, how, count_that_fits(kind, loaded, most, gigabytes if kind is LARGE else None))
        parts.append(how.turns(crowd.variants()))
        spreads |= crowd.ratios(parts[-1])
        settings[kind.name] = crowd.settings()
        del crowd  # frees its memory for the next
    many = how.size(ALL if full else SERVED, 3)
    with servers(loaded, how, (1, many)) as [one, several]:
        samples = how.turns([one.variant(), several.variant()])
        settings["served"] = [one.settings(), several.settings()]
    name = f"publish to answer, {many} tasks / 1"
    spreads[name] = samples.ratio("ms", several.variant().name, one.variant().name)
    return merge([*parts, samples]), spreads, settings


def count_that_fits(kind: Kind, loaded: Loaded, most: int, gigabytes: float | None) -> int:
    """Return how many residents fit into `gigabytes` and into three quarters of the free memory, at most `most`."""
    resident_bytes = kind.make(loaded).bytes
    free = torch.cuda.mem_get_info()[0] if loaded.hardware == "cuda" else psutil.virtual_memory().available
    room = 0.75 * free if gigabytes is None else min(gigabytes * 2**30, 0.75 * free)
    return max(1, min(most, int(room // resident_bytes)))


def merge(parts: Sequence[Samples]) -> Samples:
    """Merge the rounds of variants that were measured separately."""
    return Samples(
        [
            {name: figures for turn in turns for name, figures in turn.items()}
            for turns in zip(*(part.rounds for part in parts), strict=True)
        ]
    )


@click.command()
@click.option("--full", is_flag=True, help="A server of 10,000 tasks rather than 1,000: many minutes.")
@click.option("--gigabytes", type=click.FloatRange(0.001), default=8.0, show_default=True, help="For the large ones.")
@measuring(rounds=5, seconds=0.6)
def main(full: bool, gigabytes: float, **arguments: Any) -> None:
    """Measure batches, memory, start and publishes with thousands of tasks."""
    answer(
        lambda loaded, how: ask(loaded, how, full, gigabytes),
        name="many",
        title="Many resident side networks",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
