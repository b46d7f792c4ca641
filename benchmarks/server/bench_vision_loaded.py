"""Does text lose anything where a vision encoder is loaded?

    python -m benchmarks.server.bench_vision_loaded

Three real `sidecast serve`: "vision" has text tasks, image tasks and the demo's encoder, "text" and "twin" have the
text tasks alone. They are called in turn over gRPC, with single rows and with batches of new texts of about 32 tokens;
no image is sent. Two servers alike differ from start to start, so all three are started anew in each round, and twin by
text shows what is chance.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.image_tasks import HEADS, Texts, publish, text_task
from benchmarks.harness.models import Head, Loaded
from benchmarks.harness.pictures import find_encoder
from benchmarks.harness.samples import Column, Figures, Samples, Spread, pace, steps
from benchmarks.harness.served import serve
from serving.client import Client
from vision import load_encoder

VISION, TEXT, TWIN = "vision", "text", "twin"
TASKS, ROWS = 16, 32
"""Image tasks of each kind of head, and rows of a batch."""
COLUMNS = tuple(Column(figure=f"{server}_ms", heading=f"{server} ms", digits=2) for server in (VISION, TEXT, TWIN))


class Comparison:
    """The three servers, started for one round.

    Args:
        settings: of each server, by its name.
    """

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], how: How) -> None:
        self._settings, self._how, self._texts = settings, how, Texts(how.seed)
        sizes = (1, how.size(ROWS, 4))
        self.names: dict[tuple[Head, int], str] = {
            (head, rows): f"{head}, {rows} row{'s' * (rows > 1)}" for head in HEADS for rows in sizes
        }

    def measure(self) -> dict[str, Figures]:
        """Start the servers, call them in turn and stop them; return milliseconds a row by name."""
        with ExitStack() as stack:
            clients = {}
            for name, settings in self._settings.items():
                served = stack.enter_context(serve(**settings))
                clients[name] = stack.enter_context(Client(served.address))
            return {name: self._call(clients, head, rows) for (head, rows), name in self.names.items()}

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report; rows/s are the inverse of milliseconds."""
        found = {}
        for name in self.names.values():
            for server in (VISION, TWIN):
                speeds = [figures[name]["text_ms"] / figures[name][f"{server}_ms"] for figures in samples.rounds]
                found[f"{name}, {server} / text"] = Spread(tuple(speeds))
        for server in (VISION, TWIN):
            of_one = [found[f"{name}, {server} / text"].values for name in self.names.values()]
            found[f"mean, {server} / text"] = Spread(tuple(map(geometric_mean, zip(*of_one, strict=True))))
        return found

    def _call(self, clients: Mapping[str, Client], head: Head, rows: int) -> Figures:
        """Call all servers in turn, so that other work on the machine slows all alike."""
        order = list(clients)
        durations: dict[str, list[float]] = {name: [] for name in clients}
        self._call_each(clients, order, head, rows)  # not counted: the variant before left other threads and caches
        ended = time.perf_counter() + self._how.seconds
        while time.perf_counter() < ended or not durations[TEXT]:
            for name, seconds in self._call_each(clients, order, head, rows).items():
                durations[name].append(seconds)
            order = [*order[1:], order[0]]
        return {f"{name}_ms": pace(seconds, rows)["ms"] for name, seconds in durations.items()}

    def _call_each(
        self, clients: Mapping[str, Client], order: Sequence[str], head: Head, rows: int
    ) -> dict[str, float]:
        """Return the seconds of one call of new rows on each server."""
        found = {}
        for name in order:
            new = [self._texts.text_row() for _ in range(rows)]
            began = time.perf_counter()
            clients[name].predict(text_task(head), new)
            found[name] = time.perf_counter() - began
        return found


def ask(loaded: Loaded, how: How, vision: Path | None) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    tasks = how.size(TASKS, 2)
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as name, steps(how.rounds, how.quiet) as step:
        folder = Path(name)
        encoder_folder, weights = find_encoder(vision, folder)
        encoder = load_encoder(encoder_folder, dtype=loaded.dtype)
        publish(folder, loaded, encoder, tasks, how.seed)
        common = {**loaded.settings(how.threads), **({"warmup_s": 0.0} if how.quick else {})}
        text = {**common, "registry": folder / "text"}
        with_vision = {**common, "registry": folder / "vision", "vision": str(encoder_folder)}
        comparison = Comparison({VISION: with_vision, TEXT: text, TWIN: text}, how)
        samples = Samples()
        for number in range(how.rounds):
            step(f"round {number + 1}")
            samples.rounds.append(comparison.measure())
    settings = {"image_tasks": len(HEADS) * tasks, "rungs": "all", "encoder": encoder.name, "encoder_weights": weights}
    return samples, comparison.ratios(samples), settings


@click.command()
@click.option(
    "--vision",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a vision encoder, instead of the demo's.",
)
@measuring(rounds=8, seconds=4.0)
def main(vision: Path | None, **arguments: Any) -> None:
    """Rows/s of text on a server with a vision encoder and image tasks, beside servers without."""
    title = "Text, with vision loaded and without"
    answer(partial(ask, vision=vision), name="vision_loaded", title=title, columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
