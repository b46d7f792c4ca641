"""What `train` and `evaluate` say with a score: the baseline, and what makes the score doubtful."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from side_registry import TaskSpec
    from training.baseline import Baseline

REMEDY = "raise max_source_tokens in the task's spec, or shorten the texts"


def baseline_document(score: float | None, baseline: "Baseline | None") -> dict[str, Any]:
    """For `--json`; without a baseline its values are null."""
    if score is None or baseline is None:
        return {"baseline": None, "baseline_answer": None, "beats_baseline": None}
    return {
        "baseline": baseline.score,
        "baseline_answer": baseline.answer,
        "beats_baseline": score > baseline.score,
    }


def baseline_text(baseline: "Baseline | None") -> str:
    """What follows a score in a sentence."""
    return "" if baseline is None else f"; {baseline}"


def warnings_of(
    spec: "TaskSpec", shares: Mapping[str, float], score: float | None, baseline: "Baseline | None"
) -> list[str]:
    """Sentences about what a user should know before trusting a score.

    Args:
        shares: by the name of some rows: the share of them whose text is longer than `max_source_tokens`.
        score: None where there was nothing to score.
    """
    warnings = []
    if cut := {name: share for name, share in shares.items() if share}:
        parts = " and ".join(f"{share:.1%} of the {name}" for name, share in cut.items())
        limit = f"max_source_tokens = {spec.max_source_tokens}"
        warnings.append(f"{spec.name}: {parts} are longer than {limit}, and their ends are not read; {REMEDY}")
    if score is not None and baseline is not None and score <= baseline.score:
        known = f"{spec.metric} {score:.4f} does not beat the {baseline}"
        warnings.append(f"{spec.name}: {known}: one answer for all rows is as good; try more rows, --epochs or --lr")
    return warnings


def show_warnings(warnings: list[str], *, as_json: bool) -> None:
    """Print them on standard error; for machines they are in the document."""
    for warning in [] if as_json else warnings:
        click.echo(f"Warning: {warning}", err=True)
