"""`sidecast compare`: side networks next to full fine-tuning, LoRA and other methods, on the same data and seeds."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.output import say, show_table
from training.methods.method_names import FIGURES, METHOD_NAMES, VARIANT_NAMES


def _methods(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Callback of click: names with commas between them; none: all methods but their variants."""
    if value is None:
        return METHOD_NAMES
    parts = [part.strip() for part in value.split(",")]
    names = tuple(dict.fromkeys(name for part in parts for name in FIGURES.get(part, (part,))))
    if unknown := [name for name in names if name not in (*METHOD_NAMES, *VARIANT_NAMES)]:
        known = ", ".join((*METHOD_NAMES, *VARIANT_NAMES, *FIGURES))
        raise click.BadParameter(f"{unknown[0]!r} is no method; give some of {known}")
    return names


def _seeds(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Callback of click: seeds with commas between them."""
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise click.BadParameter(f"give seeds such as 0,1,2, got {value!r}")
    return seeds


def _rates(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    """Callback of click: METHOD=RATE, any number of times."""
    rates: dict[str, float] = {}
    for text in values:
        name, _, rate = text.partition("=")
        try:
            rates[name] = float(rate)
        except ValueError:
            raise click.BadParameter(f"give METHOD=RATE, such as lora=1e-3, got {text!r}") from None
        if name not in (*METHOD_NAMES[1:], *VARIANT_NAMES):
            known = ", ".join((*METHOD_NAMES[1:], *VARIANT_NAMES))
            raise click.BadParameter(f"{name!r} is no method that trains; give one of {known}")
        if not 0 < rates[name] < float("inf"):
            raise click.BadParameter(f"the learning rate of {name} must be above 0, got {rate}")
    return rates


@click.command(short_help="Compare side networks with LoRA, full fine-tuning and other methods.")
@click.argument("task")
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option("--train", "train_file", required=True, metavar="FILE", help="Training rows.")
@click.option(
    "--validation", "validation_file", required=True, metavar="FILE", help="Rows that the best epoch is chosen by."
)
@click.option("--test", "test_file", metavar="FILE", help="Rows that are scored.  [default: the validation rows]")
@click.option("--output", required=True, metavar="FOLDER", help="Where results go; a folder of its own.")
@click.option(
    "--methods", callback=_methods, metavar="M,...", help="Methods, or figures, by name.  [default: all methods]"
)
@click.option("--seeds", default="0", show_default=True, callback=_seeds, metavar="N,...", help="A run for each.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1), help="Passes over the training rows.")
@click.option("--batch-rows", default=32, show_default=True, type=click.IntRange(1), help="Rows of a training step.")
@click.option("--lr", "rates", multiple=True, callback=_rates, metavar="METHOD=RATE", help="A method's learning rate.")
@options.rename
@options.device
@options.as_json
def compare(
    task: str,
    backbone: str,
    train_file: str,
    validation_file: str,
    test_file: str | None,
    output: str,
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    epochs: int,
    batch_rows: int,
    rates: dict[str, float],
    renames: dict[str, str],
    device: str,
    as_json: bool,
) -> None:
    """Train the same backbone on the same rows by several methods, and put quality, memory, time and size in a table.

    TASK is a built-in task's name or a task spec's TOML file; its kind is classification or regression, of texts.

    FOLDER gets results.md, results.csv, results.json, pareto.html, and in runs/ a file of each finished run. After an
    interruption the same command goes on with the runs that are not finished; more methods and seeds can be added.
    Memory that runs out is a result, too.

    --methods figure-1, figure-5 ... figure-8 are the methods of a figure of the LST paper, variants of other sizes and
    starts among them. FOLDER/figure-5.png and so on show their runs, where matplotlib is installed (extra plot).
    """
    from training.builtin_tasks import load_task
    from training.compare.comparison import check_installed
    from training.compare.comparison import compare as run_comparison
    from training.compare.folder import ComparisonFolder
    from training.compare.inputs import Inputs, Settings, check_task
    from training.data import check_renames, read_labelled

    spec = load_task(task)
    check_task(spec)
    check_installed(methods)
    check_renames([spec], renames)
    parts: list[Any] = [
        None if path is None else read_labelled(path, spec, renames)
        for path in (train_file, validation_file, test_file)
    ]
    loaded, tokenizer = options.load_backbone(backbone, device, "float32")
    inputs = Inputs(
        spec=spec,
        backbone=loaded,
        source=options.backbone_source(backbone),
        tokenizer=tokenizer,
        training=parts[0],
        validation=parts[1],
        test=parts[2],
        settings=Settings(epochs=epochs, batch_rows=batch_rows),
    )
    command = shlex.join(["sidecast", *sys.argv[1:]])
    folder = ComparisonFolder(output)

    def note(text: str) -> None:
        click.echo(text, err=True)

    table = run_comparison(inputs, methods, seeds, rates, folder, command, (lambda text: None) if as_json else note)
    say(as_json, table.document(), f"{output}/results.md has the table, {output}/pareto.html memory against quality")
    if not as_json:
        show_table(table.headings, table.cells, below=table.headings[2:])
