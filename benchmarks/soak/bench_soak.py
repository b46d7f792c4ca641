"""Does a server stay right, fast and small while its registry changes a thousand times?

    python -m benchmarks.soak.bench_soak                                  # a quarter of an hour
    python -m benchmarks.soak.bench_soak --secured --dtype float32 --seconds 60 --save    # `make soak`: half an hour

A real `sidecast serve`, callers in a process of their own that ask at a steady rate, and a writer that publishes,
promotes, rolls back, retires, splits and shadows versions, and sometimes publishes one that no server can load; each
change once the last one is served, or with --rush without waiting for the server.
Afterwards every answer is computed again from the artifact of the version that it names (`benchmarks.soak.oracle`), and
compared with what the registry allowed at that time (`benchmarks.soak.audit`). A round has two halves: no changes, then
changes; after the last one there are none for as long again. "Swaps" are the requests in flight between a commit and
the server having served it, "moves" those of them that met no change for which a version was loaded: moved aliases,
weights, shadows, retirements. A long request meets a change more often than a short one, whatever changes cost. So
their tails are divided by those of the requests of the steady half that were in flight in the same spans, counted from
the half's beginning.

With --secured the server has TLS and tokens. A part of the requests goes over HTTP, streams as server-sent events, each
on a connection of its own. Every 20 seconds a caller's process is killed while it streams, and the server gets another
certificate and the callers another token; the token before the last one is revoked. None of that may cause an error,
and no call may be refused.

Exits with 1, after its report, if an answer was wrong, or if the versions are too alike to detect a wrong one.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Loaded
from benchmarks.harness.samples import Column, Figures, Samples, Spread, quantile, steps
from benchmarks.soak.audit import GONE
from benchmarks.soak.load import Record
from benchmarks.soak.run import Outcome, Plan, Round, Soak, Span
from benchmarks.soak.versions import VARIANTS
from benchmarks.soak.vitals import Vitals, growth

QUICK_S = 1.0
TROUBLE_S = 20.0
PRINTED_FAULTS = 5
"""Faults that are printed; the report counts all."""
APART = 0.99
"""Smallest share of pairs of versions that the oracle must distinguish: else a wrong answer may look right."""
ROUNDING = "bfloat16 rounds nearly as far as versions lie apart: give --dtype float32"
TAILS = {"swaps": ("swaps", "steady as swaps"), "moves": ("swaps that load nothing", "steady as moves")}
"""Variant: its name in ratios, and the variant of requests that were in flight at the same times of the steady half."""
COLUMNS = (
    Column(figure="requests_per_s", heading="requests/s"),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="swap_ms", heading="commit to served, ms"),
    Column(figure="memory_mb", heading="memory MB"),
    Column(figure="faults", heading="faults", digits=0),
)


def ask(
    loaded: Loaded,
    how: How,
    tasks: int,
    changes: int,
    rate: float,
    rushes: bool,
    secured: bool,
    blame: Callable[[str], None],
) -> tuple[Samples, dict[str, Spread], dict]:
    """Run the soak; return samples, ratios and settings.

    Args:
        blame: called once, with a sentence, if something is wrong.
    """
    changes, seconds = how.size(changes, 6), QUICK_S if how.quick else how.seconds
    plan = Plan(
        tasks=how.size(tasks, VARIANTS),
        rounds=how.rounds,
        changes=changes,
        pause_s=seconds / changes,
        rate=rate,
        rushes=rushes,
        seed=how.seed,
        secured=secured,
        trouble_s=QUICK_S if how.quick else TROUBLE_S,
    )
    with (
        tempfile.TemporaryDirectory(prefix="sidecast-soak-") as folder,
        steps(plan.rounds + 3, how.quiet) as step,
    ):
        soak = Soak(loaded, Path(folder), plan, how.threads)
        outcome = soak.run(step)
    for fault in outcome.faults[:PRINTED_FAULTS]:
        click.echo(f"{fault.kind}: {fault}", err=True)
    if wrong := verdict(outcome):
        blame(f"{wrong}; {ROUNDING}" if outcome.apart < APART and loaded.dtype == "bfloat16" else wrong)
    return samples(outcome), ratios(outcome), {**asdict(plan), **counts(outcome)}


def verdict(outcome: Outcome) -> str:
    """Return what is wrong; empty if nothing is."""
    if outcome.faults:
        return f"{len(outcome.faults)} of {len(outcome.records)} were told something wrong"
    if outcome.refusals:
        return f"{outcome.refusals} calls were refused, by the audit log"
    if outcome.apart < APART:
        return f"nothing is proved: only {outcome.apart:.3f} of a task's versions can be told apart, {APART} must be"
    return ""


def samples(outcome: Outcome) -> Samples:
    """Return the figures of each round."""
    return Samples([_round(outcome, part) for part in outcome.rounds])


def ratios(outcome: Outcome) -> dict[str, Spread]:
    """Return the ratios of the tails, and figures that should be zero."""
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
    figures = samples(outcome)
    tails = {
        f"p99 in {name} / steady": figures.ratio("p99_ms", variant, like)
        for variant, (name, like) in TAILS.items()
        if "p99_ms" in figures.figures(variant) and "p99_ms" in figures.figures(like)
    }
    return tails | {name: Spread((float(value),)) for name, value in plain.items()}


def counts(outcome: Outcome) -> dict[str, Any]:
    """Return details for the report: the changes, the answers, the oracle's reliability, and the server over time."""
    vitals, verbs = outcome.watch.vitals, [change.verb for change in outcome.changes]
    return {
        "changes_made": {verb: verbs.count(verb) for verb in dict.fromkeys(verbs)},
        "answers": sum(not record.reason for record in outcome.records),
        "refused_as_retired": sum(record.reason == GONE for record in outcome.records),
        "versions_that_answered": len({(record.task, record.version) for record in outcome.records}),
        "callers_killed": outcome.troubles.killed,
        "certificates_and_tokens_renewed": outcome.troubles.renewed,
        "calls_refused": outcome.refusals,
        "told_apart": outcome.apart,
        "grown": grown(outcome),
        "series": {name: [round(getattr(sample, name), 1) for sample in vitals] for name in asdict(vitals[0])},
    }


def grown(outcome: Outcome) -> dict[str, float]:
    """Return the growth from before the first round's changes until after the last round's.

    It compares the second halves of both rests: changes need memory, which a server returns only seconds later.
    """
    before, after = outcome.rounds[0].steady, outcome.after
    first, last = (_second_half(span, outcome.watch.vitals) for span in (before, after))
    changes = sum(before.ended <= change.began and change.ended <= after.began for change in outcome.changes)
    return {**growth(first, last), "changes": float(changes)}


def _second_half(span: Span, vitals: Sequence[Vitals]) -> list[Vitals]:
    """Return the samples in the second half of the span; if there are none, the next one after it."""
    begins = (span.began + span.ended) / 2
    later = [sample for sample in vitals if sample.at >= begins]
    return [sample for sample in later if sample.at <= span.ended] or later[:1]


def _round(outcome: Outcome, of: Round) -> dict[str, Figures]:
    steady = [record for record in outcome.records if of.steady.holds(record)]
    changing = [record for record in outcome.records if of.changing.holds(record)]
    swapping, moving = _met(changing, of.swaps, of.loads)
    shift = of.steady.began - of.changing.began
    swaps_then, loads_then = ([span.shifted(shift) for span in spans] for spans in (of.swaps, of.loads))
    as_swaps, as_moves = _met(steady, swaps_then, loads_then)
    last = [sample.memory_mb for sample in outcome.watch.vitals if sample.at <= of.changing.ended]
    swaps = {
        "requests_per_s": _requests(changing) / (of.changing.ended - of.changing.began),
        "swap_ms": 1e3 * median(swap.ended - swap.began for swap in of.swaps),
        "memory_mb": last[-1],
        "faults": float(sum(of.changing.holds(fault.record) for fault in outcome.faults)),
    }
    rate = _requests(steady) / (of.steady.ended - of.steady.began)
    faults = float(sum(of.steady.holds(fault.record) for fault in outcome.faults))
    return {
        "steady": {"requests_per_s": rate, "faults": faults, **_latency(steady)},
        "steady as swaps": _latency(as_swaps),
        "steady as moves": _latency(as_moves),
        "swaps": {**swaps, **_latency(swapping)},
        "moves": _latency(moving),
    }


def _met(records: Sequence[Record], swaps: Sequence[Span], loads: Sequence[Span]) -> tuple[list[Record], list[Record]]:
    """Return the records that met a swap, and those of them that met no load."""
    swapping = [record for record in records if any(swap.touches(record) for swap in swaps)]
    return swapping, [record for record in swapping if not any(load.touches(record) for load in loads)]


def _requests(records: list[Record]) -> int:
    """Return the number of requests: one for many tasks has a record for each."""
    return len({record.started for record in records})


def _latency(records: list[Record]) -> dict[str, float]:
    """Return the latency of whole requests; empty if there were none."""
    if not records:
        return {}
    seconds = list({record.started: record.ended - record.started for record in records}.values())
    return {"p50_ms": 1e3 * quantile(seconds, 0.5), "p99_ms": 1e3 * quantile(seconds, 0.99)}


@click.command()
@click.option("--tasks", type=click.IntRange(2), default=8, show_default=True)
@click.option("--changes", type=click.IntRange(1), default=100, show_default=True, help="Of a round.")
@click.option("--rate", type=click.FloatRange(0.1), default=12.0, show_default=True, help="Requests a second.")
@click.option("--rush/--no-rush", "rushes", default=False, show_default=True, help="Change while it still loads.")
@click.option("--secured/--plain", default=False, show_default=True, help="TLS, tokens, HTTP, killed callers.")
@measuring(rounds=10, seconds=25.0)
def main(tasks: int, changes: int, rate: float, rushes: bool, secured: bool, **arguments: Any) -> None:
    """Errors, wrong answers, tails and memory of a server over a thousand changes of its registry."""
    wrong: list[str] = []
    answer(
        lambda loaded, how: ask(loaded, how, tasks, changes, rate, rushes, secured, wrong.append),
        name="soak",
        title="A server while its registry changes",
        columns=COLUMNS,
        arguments=arguments,
    )
    if wrong:
        raise click.ClickException(wrong[0])


if __name__ == "__main__":
    main()
