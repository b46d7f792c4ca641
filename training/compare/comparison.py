"""Goes through the methods and seeds of a comparison; a run that is finished is not made again."""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ladder import SideConfigError
from ladder.errors import is_out_of_memory
from training.baseline import baseline_of
from training.compare.documents import FAILED, NO_MEMORY, SUCCESS, run_config, run_document
from training.compare.fitting import fit
from training.compare.folder import ComparisonFolder
from training.compare.inputs import Inputs, check_task
from training.compare.measured import Measured
from training.compare.pareto import pareto_page
from training.compare.side_run import train_side_network
from training.compare.tables import Table
from training.errors import NoMemoryError, RecipeError, RunError
from training.methods.errors import CompareError
from training.methods.methods import METHODS, Method
from training.plots import can_draw, draw_figures

Note = Callable[[str], None]


def check_installed(methods: Sequence[str]) -> None:
    """Raises ModuleNotFoundError: a method needs PEFT, and it is not installed."""
    if any(METHODS[name].peft for name in methods):
        importlib.import_module("peft")


def compare(
    inputs: Inputs,
    methods: Sequence[str],
    seeds: Sequence[int],
    rates: Mapping[str, float],
    folder: ComparisonFolder,
    command: str,
    note: Note,
) -> Table:
    """Train every method with every seed, and write the results after each run, and pictures after the last.

    Runs follow seed by seed, so that an unfinished comparison has all methods.

    Args:
        methods: names in METHODS.
        rates: learning rates that replace the methods' own, by method.
        command: the command line, for the documents.
        note: called with lines about the progress.

    Raises:
        CompareError: a task that cannot be compared, or a folder of another comparison.
    """
    check_task(inputs.spec)
    folder.begin(inputs.document())
    documents: list[dict[str, Any]] = []
    for seed in seeds:
        for name in methods:
            method = METHODS[name]
            rate = rates.get(name, method.learning_rate)
            documents.append(_run(method, seed, rate, inputs, folder, command, note))
            table = Table(documents, inputs.spec, command)
            folder.write("results.md", table.markdown())
            folder.write("results.csv", table.csv())
            folder.write("results.json", table.json())
            folder.write("pareto.html", pareto_page(table))
    table = Table(documents, inputs.spec, command)
    for figure, picture in draw_figures(table.rows, inputs.spec.metric).items() if can_draw() else ():
        folder.write_bytes(f"{figure}.png", picture)
    return table


def _run(
    method: Method,
    seed: int,
    rate: float | None,
    inputs: Inputs,
    folder: ComparisonFolder,
    command: str,
    note: Note,
) -> dict[str, Any]:
    name = f"{method.name}-seed-{seed}"
    config = run_config(method, seed, rate, inputs)
    before = folder.read_run(name)
    if before is not None:
        had = before.get("run_info", {}).get("train_config", {})
        if had.get("learning_rate") != rate:
            why = f"holds {name} with the learning rate {had.get('learning_rate')}, not {rate}; choose another --output"
            raise CompareError(str(folder.path), why)
        note(f"{name}: finished before")
        return before
    note(name)
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    started = time.monotonic()
    measured, outcome = None, {"status": SUCCESS, "error": ""}
    try:
        measured = _measure(method, seed, rate, inputs, folder, lambda text: note(f"{name}: {text}"))
    except NoMemoryError as error:
        outcome = {"status": NO_MEMORY, "error": str(error)}
    except (CompareError, RecipeError, RunError, SideConfigError) as error:
        outcome = {"status": FAILED, "error": str(error)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        outcome = {"status": NO_MEMORY, "error": str(error)}
    if outcome["error"]:
        note(f"{name}: {outcome['status']}: {outcome['error']}")
    seconds = time.monotonic() - started
    document = run_document(
        config, inputs, measured, created_at=created_at, seconds=seconds, command=command, **outcome
    )
    folder.write_run(name, document)
    return document


def _measure(
    method: Method, seed: int, rate: float | None, inputs: Inputs, folder: ComparisonFolder, note: Note
) -> Measured:
    name = f"{method.name}-seed-{seed}"
    if rate is None:
        baseline = baseline_of(inputs.spec, inputs.scored.examples)
        assert baseline is not None
        return Measured(scores={inputs.spec.metric: baseline.score})
    if method.recipe is not None:
        given = method.recipe(inputs.backbone.config)
        return train_side_network(seed, rate, given, inputs, folder.run_path(name), note)
    return fit(method, seed, rate, inputs, folder.run_path(name, ".safetensors"), note)
