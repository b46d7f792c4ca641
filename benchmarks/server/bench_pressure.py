"""How much padding has a saturated server, and how many answers come in time at twice its capacity?

    python -m benchmarks.server.bench_pressure

A real `sidecast serve`, with its defaults, and callers in a process of their own. First, callers that wait for each
answer, more than fit into a batch: the capacity, and the share of padding among the tokens of backbone passes, by the
server's metrics. Then requests that arrive at random, at twice the capacity measured so far, each with a deadline of
--deadline seconds (a batch takes about one): those answered in time, over the capacity of the same round.
Texts are those of GLUE's eight tasks, equally many of each, as prompts of the built-in templates, if --data has them;
else the sentences of `sidecast bench`. No text is sent twice in a measurement.
"""

import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.load import measure_arrivals, measure_load
from benchmarks.harness.machine import ROOT
from benchmarks.harness.models import HEADS, Loaded, publish_tasks
from benchmarks.harness.samples import Column, Figures, Samples, Spread, Variant
from benchmarks.harness.served import Served, serve
from training.builtin_tasks import load_task

TASKS = 8
CALLERS = (64, 256)
OVERLOAD, OVERLOADED = 2.0, "twice the capacity, deadline {:g} s"
DEADLINES_S = (2.0, 5.0)
QUICK_S = 1.0
ROWS_PER_TASK = 2000
"""Rows of each of GLUE's tasks."""
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
DATA = ROOT.parent / "shared" / "data" / "glue"
COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="padding", heading="padding", digits=4),
    Column(figure="batch_rows", heading="rows/batch"),
    Column(figure="offered_per_s", heading="offered/s"),
    Column(figure="errors", heading="errors", digits=0),
)


class Pressure:
    """The loads on one server."""

    def __init__(
        self, served: Served, names: Sequence[str], texts: Sequence[str] | None, how: How, deadlines_s: Sequence[float]
    ) -> None:
        self._served, self._names, self._texts, self._how = served, names, texts, how
        self._deadlines_s, self._seed = deadlines_s, how.seed
        self._seconds = QUICK_S if how.quick else how.seconds
        self._capacities: list[float] = []

    def variants(self) -> list[Variant]:
        """Return what is measured. The overloads come last: their rate is a multiple of the measured capacity."""
        levels = (4,) if self._how.quick else CALLERS
        saturating = [
            Variant(name=f"{callers} callers", measure=partial(self._saturate, callers)) for callers in levels
        ]
        overloading = [
            Variant(name=OVERLOADED.format(deadline_s), measure=partial(self._overload, deadline_s))
            for deadline_s in self._deadlines_s
        ]
        return [*saturating, *overloading]

    def _saturate(self, callers: int) -> Figures:
        seen = measure_load(
            self._served,
            self._names,
            concurrency=callers,
            seconds=self._seconds,
            seed=self._next_seed(),
            texts=self._texts,
        )
        self._capacities.append(seen.rows_per_s)
        return {"rows_per_s": seen.rows_per_s, "errors": float(sum(seen.errors.values())), **batches(seen.grown)}

    def _overload(self, deadline_s: float) -> Figures:
        seen = measure_arrivals(
            self._served,
            self._names,
            rate=OVERLOAD * statistics.median(self._capacities),
            deadline_s=min(deadline_s, QUICK_S) if self._how.quick else deadline_s,
            seconds=self._seconds,
            seed=self._next_seed(),
            texts=self._texts,
        )
        figures = {"rows_per_s": seen.good_per_s, "offered_per_s": seen.offered_per_s}
        return {**figures, "errors": float(sum(seen.errors.values())), **batches(seen.grown)}

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed


def batches(grown: dict[str, float]) -> dict[str, float]:
    """Return the mean rows of a batch, and the share of padding among the tokens."""
    tokens = max(grown["sidecast_batch_tokens_sum"], 1.0)
    return {
        "padding": grown["sidecast_padding_tokens_total"] / tokens,
        "batch_rows": grown["sidecast_batch_rows_sum"] / max(grown["sidecast_batch_rows_count"], 1.0),
    }


def read_texts(data: Path, seed: int) -> list[str] | None:
    """Return prompts of GLUE's tasks, equally many of each; None if there are no such files."""
    draw, texts = random.Random(seed), list[str]()
    for name in GLUE:
        source = data / name / "train.jsonl"
        if source.is_file():
            spec, lines = load_task(name), source.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in draw.sample(lines, min(ROWS_PER_TASK, len(lines)))]
            texts += [spec.render({field: row[field] for field in spec.fields}) for row in rows]
    return texts or None


def ask(
    loaded: Loaded, how: How, data: Path, deadlines_s: Sequence[float]
) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    texts = read_texts(data, how.seed)
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, how.size(TASKS, 2), HEADS["mixed"], how.seed)
        names = sorted(registry.state().tasks)
        with serve(registry=Path(folder) / "registry", **loaded.settings(how.threads)) as served:
            variants = Pressure(served, names, texts, how, deadlines_s).variants()
            samples = how.turns(variants)
    spreads = ratios(samples)
    return (
        samples,
        spreads,
        {
            "tasks": len(names),
            "texts": "glue" if texts else "sentences",
            "deadlines_s": list(deadlines_s),
            "rungs": "all",
        },
    )


def ratios(samples: Samples) -> dict[str, Spread]:
    """Return the padding, and answers in time over the capacity: the highest rate of any number of callers."""
    saturating = [name for name in samples.variants if name.endswith("callers")]
    spreads = {f"padding, {name}": samples.spread(name, "padding") for name in saturating}
    for overloaded in samples.variants:
        if overloaded not in saturating:
            over_capacities = [samples.ratio("rows_per_s", overloaded, name).values for name in saturating]
            spreads[f"in time at {overloaded} / capacity"] = Spread(tuple(map(min, zip(*over_capacities, strict=True))))
    return spreads


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=DATA,
    help="GLUE as <task>/validation.jsonl; without it, a list of sentences.",
)
@click.option(
    "--deadline",
    "deadlines_s",
    type=click.FloatRange(0.01),
    multiple=True,
    default=DEADLINES_S,
    show_default=True,
    help="Seconds.",
)
@measuring(rounds=3, seconds=6.0)
def main(data: Path, deadlines_s: tuple[float, ...], **arguments: Any) -> None:
    """Measure padding at saturation, and answers in time at twice the capacity."""
    answer(
        lambda loaded, how: ask(loaded, how, data, deadlines_s),
        name="pressure",
        title="A server under pressure",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
