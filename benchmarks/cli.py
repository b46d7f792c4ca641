"""What the scripts have in common on the command line: which backbone, how long, and the way to a report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from benchmarks.harness import (
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
from benchmarks.machine import look
from benchmarks.models import Loaded, load
from serving.config import EngineConfig

QUICK_S = 0.01
"""Seconds of a measurement that only shows that it works."""
LEAD_S = 0.25
BACKBONE = ("device", "dtype", "threads", "quantize", "compiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How thoroughly a question is asked."""

    rounds: int
    seconds: float
    """Of one measurement."""
    seed: int
    threads: int
    """As on the command line; 0: torch's own choice."""
    quick: bool
    quiet: bool
    """No progress bar."""

    def size(self, usual: int, quick: int) -> int:
        """A number that `--quick` makes small."""
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
        """A variant that repeats `call`, each time on what `prepare` makes outside the time: `count` units a call.

        Calls of another variant leave the processor's caches and threads in another state, so some come before that are
        not counted: `lead_s` of them, none where a call lasts seconds. `clock` is another process's where the call is
        done there.
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
"""Measures: the samples, the ratios, and settings for the record."""


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def backbone_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which backbone, and how it runs: what `models.load` takes, with `source` as `backbone`."""
    compiles = EngineConfig().compile
    for each in (
        click.option("--threads", type=click.IntRange(0), default=0, help="Torch's and the peers'; 0: own choice."),
        click.option("--compile/--no-compile", "compiles", default=compiles, show_default=True, help="The encoder."),
        click.option("--quantize", default="none", show_default=True, help="none, int8, int4 or w8a8."),
        click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ..."),
        click.option("--backbone", metavar="B", help="A Hugging Face folder, or a hub id.  [default: the demo's]"),
    ):
        command = each(command)
    return command


def load_given(given: Mapping[str, Any]) -> Loaded:
    """The backbone of `backbone_options`."""
    return load(given["backbone"], **{name: given[name] for name in BACKBONE})


def measuring(rounds: int, seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a script: `backbone_options`, seconds, quick, and `harness.options`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        long = click.FloatRange(0.001, 600)
        command = click.option("--quick", is_flag=True, help="See whether it works; the figures mean nothing.")(command)
        command = click.option("--seconds", type=long, default=seconds, show_default=True, help="Of a measurement.")(
            command
        )
        return options(backbone_options(command), rounds)

    return decorate


def answer(ask: Ask, *, name: str, title: str, columns: Sequence[Column], given: Mapping[str, Any]) -> None:
    """Load the backbone, ask, and report: what every script's `main` does with its options."""
    with plain_errors():
        loaded = load_given(given)
        quick = given["quick"]
        how = How(
            rounds=1 if quick else given["rounds"],
            seconds=QUICK_S if quick else given["seconds"],
            seed=given["seed"],
            threads=given["threads"],
            quick=quick,
            quiet=given["as_json"],
        )
        machine = look(loaded.device, loaded.dtype)
        samples, ratios, settings = ask(loaded, how)
        asked = {"backbone": loaded.backbone.name, "fingerprint": loaded.backbone.fingerprint}
        asked |= {"quantize": loaded.backbone.quantization, "compiled": loaded.compiles}
        asked |= {"rounds": how.rounds, "seconds": how.seconds, "seed": how.seed, "quick": quick}
        report = Report(
            name=name,
            title=f"{title} ({loaded.backbone.name})",
            machine=machine,
            settings={**asked, **settings},
            samples=samples,
            ratios=ratios,
        )
        if given["save"]:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(columns, given["as_json"])
