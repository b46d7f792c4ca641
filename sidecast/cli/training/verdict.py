"""What `train` and `evaluate` say with a score: the baseline, and what makes the score doubtful."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from side_registry import TaskSpec
    from training.baseline import Baseline
    from training.data import Example

REMEDY = "raise max_source_tokens in the task's spec, or shorten the texts"

SHOWN = 5
"""Most labels that a warning lists."""


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


def length_warnings(spec: "TaskSpec", shares: Mapping[str, float]) -> list[str]:
    """One sentence, or none, about texts that are cut.

    Args:
        shares: by the name of some rows: the share of them whose text is longer than `max_source_tokens`.
    """
    cut = {name: share for name, share in shares.items() if share}
    if not cut:
        return []
    parts = " and ".join(f"{share:.1%} of the {name}" for name, share in cut.items())
    limit = f"max_source_tokens = {spec.max_source_tokens}"
    return [f"{spec.name}: {parts} are longer than {limit}, and their ends are not read; {REMEDY}"]


def class_warnings(spec: "TaskSpec", training: Sequence["Example"], validation: Sequence["Example"]) -> list[str]:
    """A sentence about labels that no training row has, and one about validation rows that all have one label."""
    has_many = spec.kind == "multilabel"
    if spec.kind != "classification" and not has_many:
        return []
    warnings: list[str] = []
    learned = {label for example in training for label in (example.target if has_many else (example.target,))}
    if missing := [label for label in spec.labels if label not in learned]:
        names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        warnings.append(f"{spec.name}: no training row has the label {names}: it is never learned; check the file")
    if has_many:
        return warnings
    seen = {example.target for example in validation}
    if len(seen) == 1 and len(spec.labels) > 1:
        only = f"all {len(validation)} validation rows have the label {next(iter(seen))}"
        warnings.append(f"{spec.name}: {only}, so that their score says little; give rows of every label")
    return warnings


def score_warnings(spec: "TaskSpec", score: float | None, baseline: "Baseline | None") -> list[str]:
    """One sentence, or none, about a score that does not beat its baseline."""
    if score is None or baseline is None or score > baseline.score:
        return []
    known = f"{spec.metric} {score:.4f} does not beat the {baseline}"
    return [f"{spec.name}: {known}: one answer for all rows is as good; try more rows, --epochs or --lr"]


def cache_warnings(spec: "TaskSpec", fault: str | None) -> list[str]:
    """One sentence, or none, about features of images that are not kept on disk."""
    if fault is None:
        return []
    return [f"{spec.name}: features of images are not kept for the next run: {fault}; give another --cache-dir"]


def show_warnings(warnings: list[str], *, as_json: bool) -> None:
    """Print them on standard error; for machines they are in the document."""
    for warning in [] if as_json else warnings:
        click.echo(f"Warning: {warning}", err=True)
