"""What does the search for the best batch gain over filling a batch with rows that are not longer than its first one?

    python -m benchmarks.engine.bench_selection

Rows with lengths distributed as in GLUE's eight tasks are answered by the engine, in this process, until none are left:
the same rows for both ways to select a batch, so --seconds has no effect. A fixed number of them waits at a time, fewer
at the end. The search looks at all runs of neighbours in length around the row that is next; filling takes that row and
shorter ones, the longest first. Both are measured with packing (the engine on a CPU computes a batch in parts of
similar lengths) and without (as on a GPU). The processor's time stands next to the wall clock's: it depends less on
what else runs on the machine.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from benchmarks.engine.bench_tasks import predict
from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Loaded, make_residents
from benchmarks.harness.samples import Column, Figures, Samples, Spread, Variant
from serving.config import BatchConfig
from serving.engine import Engine, EngineRow, Resident
from serving.metrics import Metrics
from serving.scheduler.requests import Bundle, Request
from serving.scheduler.selection import choose, window_size

TASKS = 8
WAITING = (64, 256)
ROWS_PER_WAITING = 2
"""Rows of a measurement, for each row that waits at a time."""
GLUE_TOKENS: Mapping[str, tuple[int, int]] = {
    "cola": (13, 5), "mnli": (47, 20), "mrpc": (61, 14), "qnli": (57, 25), "qqp": (36, 14), "rte": (82, 50),
    "sst2": (17, 12), "stsb": (35, 18),
}  # fmt: skip
"""Mean and standard deviation of the tokens of a task's row."""
LEAST_TOKENS = 4
COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="cpu_ms_per_row", heading="CPU ms/row"),
    Column(figure="padding", heading="padding", digits=4),
    Column(figure="batch_rows", heading="rows/batch"),
    Column(figure="select_ms", heading="ms/selection", digits=3),
)


class Stream:
    """One queue, one engine, and one way to select batches.

    Args:
        waiting: rows in the queue, until no more come.
        packs: the engine computes a batch in parts of similar lengths.
        searches: select by search; else by filling.
    """

    def __init__(
        self, loaded: Loaded, residents: Sequence[Resident], how: How, waiting: int, *, packs: bool, searches: bool
    ) -> None:
        self._metrics = Metrics()
        self._residents = residents
        self._waiting = waiting
        self._searches = searches
        self._engine = Engine(loaded.backbone, self._metrics, encode=None if packs else loaded.backbone.encode)
        self._config = BatchConfig(padding_cost=self._engine.padding_cost)
        self._inputs = Inputs(loaded, how.seed)
        self._random = random.Random(how.seed)

    def _draw(self) -> Bundle:
        number = self._random.randrange(TASKS)
        mean, deviation = list(GLUE_TOKENS.values())[number]
        shape = (mean / deviation) ** 2
        tokens = max(LEAST_TOKENS, round(self._random.gammavariate(shape, mean / shape)))
        request = Request([EngineRow(self._inputs.row(tokens), self._residents[number])], None, 1, 0.0)
        request.bundle([0])
        return request.bundles[0]

    def measure(self) -> Figures:
        """Answer all rows. Drawing them is outside the time; selecting batches is not."""
        rows = [self._draw() for _ in range(ROWS_PER_WAITING * self._waiting)]
        left = rows
        batches = 0
        selecting_s = computing_s = 0.0
        before = self._counts()
        cpu_before = time.process_time()
        while left:
            began = time.perf_counter()
            window = left[: min(self._waiting, window_size(self._config))]
            batch = choose(window, self._config) if self._searches else choose(window[1:], self._config, window[:1])
            selected = time.perf_counter()
            predict(self._engine, [bundle.request.rows[0] for bundle in batch])  # type: ignore[misc]
            computing_s += time.perf_counter() - selected
            selecting_s += selected - began
            batches += 1
            taken = set(batch)
            left = [bundle for bundle in left if bundle not in taken]
        cpu_s = time.process_time() - cpu_before
        tokens, padding = (now - then for now, then in zip(self._counts(), before, strict=True))
        return {
            "rows_per_s": len(rows) / (selecting_s + computing_s),
            "cpu_ms_per_row": 1000 * cpu_s / len(rows),
            "padding": padding / tokens,
            "batch_rows": len(rows) / batches,
            "select_ms": 1000 * selecting_s / batches,
        }

    def _counts(self) -> tuple[float, float]:
        """Tokens of backbone passes so far, padding included, and padding."""
        names = ("sidecast_batch_tokens_sum", "sidecast_padding_tokens_total")
        tokens, padding = (self._metrics.registry.get_sample_value(name) or 0.0 for name in names)
        return tokens, padding


def ask(loaded: Loaded, how: How) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure every number of waiting rows, with and without packing."""
    modes = {"packed": True, "not packed": False}
    if loaded.device != "cpu" or loaded.compiles:
        del modes["packed"]  # the engine packs on a CPU alone
    residents = make_residents(loaded, TASKS, HEADS["linear"], how.seed)
    waiting = (16,) if how.quick else WAITING
    variants: list[Variant] = []
    pairs: list[str] = []
    for count in waiting:
        for mode, packs in modes.items():
            pairs.append(f"{count} waiting, {mode}")
            for way, searches in (("search", True), ("fill", False)):
                stream = Stream(loaded, residents, how, count, packs=packs, searches=searches)
                variants.append(Variant(name=f"{pairs[-1]}, {way}", measure=stream.measure))
    samples = how.turns(variants)
    ratios = {}
    for pair in pairs:
        search, fill = f"{pair}, search", f"{pair}, fill"
        ratios[f"{search} / fill"] = samples.ratio("rows_per_s", search, fill)
        ratios[f"{pair}, fill / search, CPU time"] = samples.ratio("cpu_ms_per_row", fill, search)
    return samples, ratios, {"tasks": TASKS, "waiting": waiting, "max_batch_rows": BatchConfig().max_batch_rows}


@click.command()
@measuring(rounds=5, seconds=1.0)
def main(**arguments: Any) -> None:
    """What the search for the best batch gains over filling one with shorter rows."""
    answer(ask, name="selection", title="Selecting a batch", columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
