"""Command line of the scripts: options for the backbone and the length of a run, and the way to a report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from benchmarks.harness.machine import look
from benchmarks.harness.models import Loaded, load
from benchmarks.harness.samples import (
    Column,
    Figures,
    Report,
    Samples,
    Spread,
    Variant,
    options,
    pace,
    plain_errors,
    steps,
    take_turns,
    time_calls,
)
from serving.config import EngineConfig

QUICK_S = 0.01
"""Seconds of a measurement with --quick."""
LEAD_S = 0.25
BACKBONE = ("device", "dtype", "threads", "quantize", "compiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How often and how long to measure."""

    rounds: int
    seconds: float
    """Length of one measurement."""
    seed: int
    threads: int
    """Threads of torch; 0: torch chooses."""
    quick: bool
    quiet: bool
    """No progress bar."""

    def size(self, usual: int, quick: int) -> int:
        """Return `quick` with --quick, else `usual`."""
        return quick if self.quick else usual

    def timed(
        self,
        name: str,
        call: Callable[[Any], object],
        prepare: Callable[[], Any],
        count: int,
        device: str = "cpu",
        unit: str = "rows",
        clock: Callable[[], float] = time.perf_counter,
        lead_s: float = LEAD_S,
    ) -> Variant:
        """Return a variant that repeats `call`, which processes `count` units.

        Args:
            prepare: makes the argument of a call; not timed.
            device: is synchronized before the end of a call is timed.
            clock: another process's, if that computes the call.
            lead_s: seconds of calls before the timed ones. A previous variant leaves the processor's caches and threads
                in another state. 0 if a call takes seconds.
        """

        def measure() -> Figures:
            lead, wait = 0.0 if self.quick else lead_s, partial(synchronize, device)
            durations = time_calls(call, seconds=self.seconds, lead_s=lead, prepare=prepare, finish=wait, clock=clock)
            return pace(durations, count, unit)

        return Variant(name=name, measure=measure)

    def turns(self, variants: Sequence[Variant]) -> Samples:
        """`take_turns`, with a progress bar."""
        with steps(len(variants) * (self.rounds + 1), self.quiet) as step:
            return take_turns(variants, self.rounds, self.seed, step)


Ask = Callable[[Loaded, How], tuple[Samples, Mapping[str, Spread], Mapping[str, Any]]]
"""Measures; returns the samples, the ratios, and settings for the report."""


def synchronize(device: str) -> None:
    """Wait until the device, if it is a GPU, has finished its work."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def backbone_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `models.load` to a command; `source` is `--backbone`."""
    compiles = EngineConfig().compile
    for decorate in (
        click.option("--threads", type=click.IntRange(0), default=0, help="Of torch and the peers; 0: they choose."),
        click.option("--compile/--no-compile", "compiles", default=compiles, show_default=True, help="The encoder."),
        click.option("--quantize", default="none", show_default=True, help="none, int8, int4 or w8a8."),
        click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."),
        click.option("--backbone", metavar="B", help="A Hugging Face folder, or a hub id.  [default: the demo's]"),
    ):
        command = decorate(command)
    return command


def load_from(arguments: Mapping[str, Any]) -> Loaded:
    """Load the backbone that the arguments of `backbone_options` name."""
    return load(arguments["backbone"], **{name: arguments[name] for name in BACKBONE})


def measuring(rounds: int, seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a script: `backbone_options`, seconds, quick, and `harness.options`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        long = click.FloatRange(0.001, 600)
        command = click.option("--quick", is_flag=True, help="See whether it works; the figures mean nothing.")(command)
        command = click.option("--seconds", type=long, default=seconds, show_default=True, help="Of a measurement.")(
            command
        )
        return options(backbone_options(command), rounds)

    return decorate


def answer(ask: Ask, *, name: str, title: str, columns: Sequence[Column], arguments: Mapping[str, Any]) -> None:
    """Load the backbone, measure, and print the report; with --save also write it to a file."""
    with plain_errors():
        loaded = load_from(arguments)
        quick = arguments["quick"]
        how = How(
            rounds=1 if quick else arguments["rounds"],
            seconds=QUICK_S if quick else arguments["seconds"],
            seed=arguments["seed"],
            threads=arguments["threads"],
            quick=quick,
            quiet=arguments["as_json"],
        )
        machine = look(loaded.device, loaded.dtype)
        samples, ratios, settings = ask(loaded, how)
        common = {"backbone": loaded.backbone.name, "fingerprint": loaded.backbone.fingerprint}
        common |= {"quantize": loaded.backbone.quantization, "compiled": loaded.compiles}
        common |= {"rounds": how.rounds, "seconds": how.seconds, "seed": how.seed, "quick": quick}
        report = Report(
            name=name,
            title=f"{title} ({loaded.backbone.name})",
            machine=machine,
            settings={**common, **settings},
            samples=samples,
            ratios=ratios,
        )
        if arguments["save"]:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(columns, arguments["as_json"])
