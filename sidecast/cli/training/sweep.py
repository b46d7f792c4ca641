"""Several values of a recipe's settings on the command line, and what `train` prints of the runs that they make."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from sidecast.cli.output import progress_bar, scores_text, show_table
from sidecast.cli.training.bars import SweepBars
from sidecast.cli.training.curves import Curves, Tracking
from sidecast.cli.training.verdict import (
    baseline_document,
    baseline_text,
    length_warnings,
    score_warnings,
    show_warnings,
)
from training.recipes.recipe import SWEPT, Recipe

if TYPE_CHECKING:
    from training.baseline import Baseline
    from training.job import Job
    from training.sweep import Sweep


class Several(click.ParamType):
    """One value, or several with commas between them: a tuple."""

    name = "several"

    def __init__(self, setting: str) -> None:
        kind = get_type_hints(Recipe)[setting]
        self.choices = get_args(kind)
        self.one = click.Choice(self.choices) if self.choices else click.types.convert_type(kind)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As that of one value, with `,...`."""
        return ("|".join(self.choices) if self.choices else self.one.name.upper()) + ",..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Fail on a value that is no value of the setting, or is there twice."""
        if isinstance(value, tuple):
            return value
        values = tuple(self.one.convert(part.strip(), param, ctx) for part in str(value).split(","))
        if len(set(values)) < len(values):
            self.fail(f"{value} has a value twice; name each once", param, ctx)
        return values


def combinations(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each run; one run where no setting has several values. Later settings vary faster."""
    grid = {name: given[name] for name in SWEPT if name in given}
    rest = {name: value for name, value in given.items() if name not in SWEPT}
    return [{**rest, **dict(zip(grid, values, strict=True))} for values in itertools.product(*grid.values())]


def run_sweep(
    jobs: Sequence["Job"], output: str, tracking: Tracking, truncated: dict[str, float], *, as_json: bool
) -> dict[str, Any]:
    """Train the runs of one task together; print the results, or with `as_json` nothing. Return the document.

    Args:
        tracking: is written when all runs are done.
        truncated: the share of the training and of the validation rows that is cut.
    """
    from training.baseline import baseline_of
    from training.sweep import train_many
    from training.sweep.grid import run_name, varying

    started = time.monotonic()
    spec = jobs[0].spec
    warnings = length_warnings(spec, {f"{name} rows": share for name, share in truncated.items()})
    show_warnings(warnings, as_json=as_json)
    curves: dict[str, Curves] = {}
    for job in jobs:
        name = run_name(job.recipe, varying(jobs))
        curves[name] = Curves(Path(output) / name, [job], tracking, name=name)
    with progress_bar(quiet=as_json) as bars:
        sweep = train_many(jobs, output, SweepBars(bars, f"{spec.name}, {len(jobs)} runs"))
    for run in sweep.runs:
        curves[run.name].finish()
    failed = [f"{spec.name}: run {run.name} failed: {run.error}" for run in sweep.runs if run.error is not None]
    baseline = baseline_of(spec, jobs[0].validation.examples)
    unbeaten = score_warnings(spec, sweep.best.score, baseline)
    if not as_json:
        _show(sweep, output, baseline)
    show_warnings(failed + unbeaten, as_json=as_json)
    return {
        **sweep.to_dict(),
        "output": output,
        "run": str(Path(output) / "best"),
        "score": sweep.best.score,
        **baseline_document(sweep.best.score, baseline),
        "truncated": truncated,
        "seconds": round(time.monotonic() - started, 1),
        "warnings": warnings + failed + unbeaten,
    }


def _show(sweep: "Sweep", output: str, baseline: "Baseline | None") -> None:
    spec = sweep.best.job.spec
    names = list(sweep.by_setting[0].settings)
    rows = [
        [*(one.settings[name] for name in names), len(one.scores), _number(one.mean), _number(one.deviation)]
        for one in sweep.by_setting
    ]
    show_table([*(name.replace("_", " ") for name in names), "runs", f"mean {spec.metric}", "deviation"], rows)
    artifact = sweep.best.artifact
    assert artifact is not None
    metrics = {name: value for name, value in artifact.manifest.metrics.items() if name != "loss"}
    epoch = artifact.manifest.provenance["epoch"]
    scores = f"{scores_text(metrics)} on the validation rows (epoch {epoch}){baseline_text(baseline)}"
    click.echo(f"{spec.name}: best is {sweep.best.name}: {scores}")
    click.echo(f"{output}/best is ready: sidecast publish {output}/best --registry R")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
