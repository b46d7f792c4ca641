"""Does a server stay right, fast and small while its registry changes a thousand times?

    python -m benchmarks.bench_soak          # `make soak`: a quarter of an hour

A real `sidecast serve`, callers in a process of their own that ask at a steady rate, and a writer that publishes,
promotes, rolls back, retires, splits and shadows versions, and now and then publishes one that no server can take; each
change once the last one is served, or with --rush whatever the server does.
Afterwards every answer is computed again from the artifact of the version that it names (`benchmarks.soak.oracle`), and
held against what the registry allowed at that time (`benchmarks.soak.audit`). A round has two halves: no changes, then
changes; after the last one there are none for as long again. "Swaps" are the requests in flight between a commit and
the server having served it, "moves" those of them that met no change for which a version was loaded: moved aliases,
weights, shadows, retirements.

Exits with 1, after its report, where anybody was told anything wrong, or where the versions are too alike to tell.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.cli import How, answer, measuring
from benchmarks.harness import Column, Figures, Samples, Spread, quantile, steps
from benchmarks.models import Loaded
from benchmarks.soak.audit import GONE
from benchmarks.soak.load import Told
from benchmarks.soak.run import Outcome, Plan, Round, Soak, Span
from benchmarks.soak.vitals import Vitals, growth

QUICK_S = 1.0
TOLD = 5
"""Faults that are told in words."""
APART = 0.99
"""The least share of pairs of versions that the oracle must tell apart: else another one's answer passes for right."""
ROUNDING = "bfloat16 rounds nearly as far as versions lie apart: give --dtype float32"
TAILS = {"swaps": "swaps", "moves": "swaps that load nothing"}
COLUMNS = (
    Column(figure="requests_per_s", heading="requests/s"),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="swap_ms", heading="commit to served, ms"),
    Column(figure="memory_mb", heading="memory MB"),
    Column(figure="faults", heading="faults", digits=0),
)


def ask(
    loaded: Loaded, how: How, tasks: int, changes: int, rate: float, rushes: bool, blame: Callable[[str], None]
) -> tuple[Samples, dict[str, Spread], dict]:
    """
    Args:
        blame: told what is wrong, once for all of it.
    """
    changes, seconds = how.size(changes, 6), QUICK_S if how.quick else how.seconds
    plan = Plan(
        tasks=how.size(tasks, 4),
        rounds=how.rounds,
        changes=changes,
        pause_s=seconds / changes,
        rate=rate,
        rushes=rushes,
        seed=how.seed,
    )
    with (
        tempfile.TemporaryDirectory(prefix="sidecast-soak-") as folder,
        steps(plan.rounds + 3, how.quiet) as step,
    ):
        soak = Soak(loaded, Path(folder), plan, how.threads)
        outcome = soak.run(step)
    for fault in outcome.faults[:TOLD]:
        click.echo(f"{fault.kind}: {fault}", err=True)
    if wrong := verdict(outcome):
        blame(f"{wrong}; {ROUNDING}" if outcome.apart < APART and loaded.dtype == "bfloat16" else wrong)
    return samples(outcome), ratios(outcome), {**asdict(plan), **counts(outcome)}


def verdict(outcome: Outcome) -> str:
    """What is wrong; empty where nothing is."""
    if outcome.faults:
        return f"{len(outcome.faults)} of {len(outcome.told)} were told something wrong"
    if outcome.apart < APART:
        return f"nothing is proved: only {outcome.apart:.3f} of a task's versions can be told apart, {APART} must be"
    return ""


def samples(outcome: Outcome) -> Samples:
    """Return the figures of each round."""
    return Samples([_round(outcome, each) for each in outcome.rounds])


def ratios(outcome: Outcome) -> dict[str, Spread]:
    """The ratio of the tails, and what should be nothing at all."""
    vitals = outcome.watch.vitals
    first, last = vitals[0], vitals[-1]
    kinds = [fault.kind for fault in outcome.faults]
    plain = {
        "errors": kinds.count("error"),
        "answers of another version than they name": kinds.count("mismatch"),
        "answers of a version that may not": kinds.count("version") + kinds.count("generation") + kinds.count("key"),
        "evictions from the activation cache": last.evictions - first.evictions,
        "inputs computed again": last.misses - first.misses,
        "MB that memory grew by": grown(outcome)["memory_mb"],
    }
    found = samples(outcome)
    seen = [each for each in TAILS if {"p99_ms"} <= {*found.figures(each)} & {*found.figures("steady")}]
    tails = {f"p99 in {TAILS[variant]} / steady": found.ratio("p99_ms", variant, "steady") for variant in seen}
    return tails | {name: Spread((float(value),)) for name, value in plain.items()}


def counts(outcome: Outcome) -> dict[str, Any]:
    """For the record: what was done and asked, how sharp the oracle is, and the server over time."""
    vitals, verbs = outcome.watch.vitals, [change.verb for change in outcome.changes]
    return {
        "changes_made": {verb: verbs.count(verb) for verb in dict.fromkeys(verbs)},
        "answers": sum(not told.reason for told in outcome.told),
        "refused_as_retired": sum(told.reason == GONE for told in outcome.told),
        "versions_that_answered": len({(told.task, told.version) for told in outcome.told}),
        "told_apart": outcome.apart,
        "grown": grown(outcome),
        "series": {name: [round(getattr(each, name), 1) for each in vitals] for name in asdict(vitals[0])},
    }


def grown(outcome: Outcome) -> dict[str, float]:
    """From before the first round's changes until after the last round's, by the second halves of both rests: changes
    take memory themselves, and a server gives back what they leave some seconds later."""
    before, after = outcome.rounds[0].steady, outcome.after
    first, last = (_second_half(span, outcome.watch.vitals) for span in (before, after))
    changes = sum(before.ended <= each.began and each.ended <= after.began for each in outcome.changes)
    return {**growth(first, last), "changes": float(changes)}


def _second_half(span: Span, vitals: Sequence[Vitals]) -> list[Vitals]:
    """One at least, the next after it, if need be."""
    begins = (span.began + span.ended) / 2
    later = [each for each in vitals if each.at >= begins]
    return [each for each in later if each.at <= span.ended] or later[:1]


def _round(outcome: Outcome, of: Round) -> dict[str, Figures]:
    steady = [told for told in outcome.told if of.steady.holds(told)]
    changing = [told for told in outcome.told if of.changing.holds(told)]
    swapping = [told for told in changing if any(swap.touches(told) for swap in of.swaps)]
    moves = [told for told in swapping if not any(load.touches(told) for load in of.loads)]
    last = [each.memory_mb for each in outcome.watch.vitals if each.at <= of.changing.ended]
    swaps = {
        "requests_per_s": _requests(changing) / (of.changing.ended - of.changing.began),
        "swap_ms": 1e3 * median(swap.ended - swap.began for swap in of.swaps),
        "memory_mb": last[-1],
        "faults": float(sum(of.changing.holds(fault.told) for fault in outcome.faults)),
    }
    rate = _requests(steady) / (of.steady.ended - of.steady.began)
    faults = float(sum(of.steady.holds(fault.told) for fault in outcome.faults))
    return {
        "steady": {"requests_per_s": rate, "faults": faults, **_latency(steady)},
        "swaps": {**swaps, **_latency(swapping)},
        "moves": _latency(moves),
    }


def _requests(told: list[Told]) -> int:
    """A request for many tasks is told once for each."""
    return len({each.started for each in told})


def _latency(told: list[Told]) -> dict[str, float]:
    """Of whole requests; nothing where there were none."""
    if not told:
        return {}
    seconds = list({each.started: each.ended - each.started for each in told}.values())
    return {"p50_ms": 1e3 * quantile(seconds, 0.5), "p99_ms": 1e3 * quantile(seconds, 0.99)}


@click.command()
@click.option("--tasks", type=click.IntRange(2), default=8, show_default=True)
@click.option("--changes", type=click.IntRange(1), default=100, show_default=True, help="Of a round.")
@click.option("--rate", type=click.FloatRange(0.1), default=12.0, show_default=True, help="Requests a second.")
@click.option("--rush/--no-rush", "rushes", default=False, show_default=True, help="Change while it still loads.")
@measuring(rounds=10, seconds=25.0)
def main(tasks: int, changes: int, rate: float, rushes: bool, **given: Any) -> None:
    """Errors, wrong answers, tails and memory of a server over a thousand changes of its registry."""
    wrong: list[str] = []
    answer(
        lambda loaded, how: ask(loaded, how, tasks, changes, rate, rushes, wrong.append),
        name="soak",
        title="A server while its registry changes",
        columns=COLUMNS,
        given=given,
    )
    if wrong:
        raise click.ClickException(wrong[0])


if __name__ == "__main__":
    main()
