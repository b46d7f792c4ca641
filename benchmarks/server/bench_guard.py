"""A guard asks 8 classifiers about every request: as a task group, as 8 separate models, as 8 LoRAs of PEFT.

    python -m benchmarks.server.bench_guard

A call is one new text of about 32 tokens and the answers of all classifiers; one call at a time. No text comes twice.

- Sidecast: a real `sidecast serve` in a process of its own, asked over gRPC with PredictTasks by a group. Side networks
  have r 8, a linear head and a rung on every second block, as `sidecast train` makes them for classification.
- separate models: 8 `transformers` pipelines in this process, each with its own encoder and linear head.
- PEFT: one encoder in this process with 8 LoRAs of rank 8 and 8 linear heads. The LoRAs are asked in turn, a pass for
  each; and in one mixed batch (`adapter_names`) of 8 rows. Without PEFT these rows are left out.

All have the same backbone, dtype and threads, and tokenise the text in the call. Calls of the peers cross no process.
`weights_mb`: bytes of all parameters that a variant holds; Sidecast's server holds the decoder too, which these tasks
do not use. `peak_rss_mb`: most memory of the server's process, where the system tells it.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.classifiers import LoraClassifiers, Pipelines, stored_bytes
from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Loaded, load_residents, publish_copies
from benchmarks.harness.samples import Column, Samples, Spread, Variant
from benchmarks.harness.served import Served, serve
from benchmarks.server.bench_doors import WORDS
from serving.client import Client, SidecastError

TASKS = 8
GROUP = "guard"
PROCESS_STATUS = "/proc/{pid}/status"
SIDECAST, SEPARATE = "Sidecast, a group over gRPC", "separate models in pipelines"
IN_TURN, MIXED = "PEFT, LoRAs in turn", "PEFT, LoRAs in a mixed batch"
COLUMNS = (
    Column(figure="calls_per_s", heading="calls/s"),
    Column(figure="ms", heading="ms a call", digits=2),
    Column(figure="weights_mb", heading="weights MB"),
    Column(figure="peak_rss_mb", heading="peak RSS MB"),
)


class Group:
    """The group of a running server."""

    def __init__(self, served: Served, client: Client) -> None:
        self._served, self._client = served, client

    def ask(self, text: str) -> None:
        """Ask all classifiers of the group; raise the error of one that failed."""
        for outcome in self._client.predict_group(GROUP, [text]).values():
            if isinstance(outcome, SidecastError):
                raise outcome

    def peak(self) -> dict[str, float]:
        """Return the most memory of the server's process so far; empty if the system does not tell."""
        status = Path(PROCESS_STATUS.format(pid=self._served.pid))
        if not status.is_file():
            return {}
        [kilobytes] = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return {"peak_rss_mb": int(kilobytes) * 1024 / 1e6}


def asked(
    how: How,
    name: str,
    ask: Callable[[str], object],
    numbers: Iterator[int],
    weights: int,
    device: str,
    more: Callable[[], dict[str, float]] = dict,
) -> Variant:
    """Return a variant that asks about new texts.

    Args:
        weights: bytes of the parameters that it holds.
        more: further figures, read after the calls.
    """
    variant = how.timed(name, ask, lambda: f"{next(numbers)} {WORDS}", 1, device, unit="calls")
    return replace(variant, measure=lambda: {**variant.measure(), "weights_mb": weights / 1e6, **more()})


def peers(loaded: Loaded, how: How, tasks: int, numbers: Iterator[int]) -> list[Variant]:
    """Return the variants of the peers."""
    device = loaded.device
    separate = Pipelines(loaded, tasks)
    variants = [asked(how, SEPARATE, separate.ask, numbers, stored_bytes(*separate.models), device)]
    if find_spec("peft") is None:
        click.echo("peft is not installed: its rows are left out; pip install 'sidecast[bench]'", err=True)
        return variants
    loras = LoraClassifiers(loaded, tasks)
    held = stored_bytes(loras.model, loras.heads)
    ways = {IN_TURN: loras.ask_in_turn, MIXED: loras.ask_mixed}
    return [*variants, *(asked(how, name, ask, numbers, held, device) for name, ask in ways.items())]


def ratios(samples: Samples, tasks: int) -> dict[str, Spread]:
    """Return the ratios of the report: calls a second and bytes of weights beside each peer."""
    theirs = [name for name in samples.variants if name != SIDECAST]
    speeds = {f"{tasks} tasks, Sidecast / {name}": samples.ratio("calls_per_s", SIDECAST, name) for name in theirs}
    sizes = {f"weights, Sidecast / {name}": samples.ratio("weights_mb", SIDECAST, name) for name in theirs}
    return speeds | sizes


def ask(loaded: Loaded, how: How) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    tasks, numbers = how.size(TASKS, 3), count(10_000_000)
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_copies(Path(folder), loaded, tasks)
        registry.set_group(GROUP, sorted(registry.state().tasks), author="benchmark")
        sides = sum(resident.bytes for resident in load_residents(registry, loaded))
        held = stored_bytes(loaded.backbone) + sides
        with (
            serve(registry=Path(folder) / "registry", **loaded.settings(how.threads)) as served,
            Client(served.address) as client,
        ):
            group = Group(served, client)
            ours = asked(how, SIDECAST, group.ask, numbers, held, loaded.device, group.peak)
            samples = how.turns([ours, *peers(loaded, how, tasks, numbers)])
    settings = {"tasks": tasks, "rank": 8, "reduction": 8, "rungs": "auto", "head": "linear"}
    return samples, ratios(samples, tasks), settings


@click.command()
@measuring(rounds=5, seconds=0.6)
def main(**arguments: Any) -> None:
    """Ask 8 classifiers about one text: a task group, separate models, LoRAs."""
    answer(ask, name="guard", title="8 classifiers on one text", columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
