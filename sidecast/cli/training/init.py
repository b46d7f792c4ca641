"""`sidecast init`: make a run of an untrained side network, to inspect where training starts."""

from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.progress import Progress, TaskID

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say
from sidecast.cli.training import untrained_run

Step = Callable[[int, int], None]
"""Told rows done and rows in all."""


@click.command(short_help="Make a run of an untrained side network.")
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option("--output", required=True, metavar="RUN", help="The run folder to make.")
@click.option(
    "--init",
    type=click.Choice(["random", "magnitude", "fisher"]),
    default="random",
    show_default=True,
    help="Random, or the backbone's weights pruned by magnitude or by Fisher information.",
)
@click.option(
    "--order",
    type=click.Choice(["consistent", "reference"]),
    default="consistent",
    show_default=True,
    help="How to prune: our way, or the LST authors'.",
)
@click.option(
    "--task",
    metavar="TASK",
    help="A built-in task, or a task spec's TOML file.  [default: named after RUN, by its head]",
)
@click.option("--data", metavar="FILE", help="Labelled rows of TASK, for Fisher: .jsonl, .csv, .tsv, .parquet.")
@click.option(
    "--samples-file", metavar="FILE", help="Token ids instead of --data: safetensors with input_ids and labels."
)
@click.option("--samples", type=click.IntRange(1), help="How many rows of --data, drawn by the seed.  [default: 128]")
@click.option("--seed", type=int, help="Of the random start and of the rows drawn.  [default: 0]")
@click.option("--reduction", type=int, help="r: side widths are the backbone's divided by r.  [default: 8]")
@click.option(
    "--encoder-layers", callback=options.layers, metavar="I,J,...", help="Blocks with a rung.  [default: all]"
)
@click.option("--decoder-layers", callback=options.layers, metavar="I,J,...", help="As --encoder-layers.")
@click.option("--gate", type=click.Choice(["none", "one", "learnable", "fixed"]), help="[default: learnable]")
@click.option("--gate-form", type=click.Choice(["scalar", "channel"]), help="[default: scalar]")
@click.option("--gate-temperature", type=float, metavar="T", help="[default: 0.1]")
@click.option("--gate-start", type=float, metavar="ALPHA", help="Every rung's gate's logit.  [default: 0]")
@click.option("--mix-after", is_flag=True, default=None, help="Mix taps in after the side blocks, not before.")
@click.option("--no-bias", "bias", is_flag=True, flag_value=False, default=None, help="No biases in projections.")
@click.option("--merge-last", is_flag=True, default=None, help="Mix the backbone's last state in (text head).")
@click.option(
    "--head", type=click.Choice(["text", "linear", "attention", "mlp"]), help="[default: the task's; without one, text]"
)
@click.option(
    "--outputs", type=click.IntRange(1), metavar="N", help="Of a linear, attention or mlp head without --task."
)
@options.device
@options.quantize
@options.as_json
def init(
    backbone: str,
    output: str,
    init: str,
    order: str,
    task: str | None,
    data: str | None,
    samples_file: str | None,
    samples: int | None,
    device: str,
    quantize: str,
    head: str | None,
    outputs: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Make a run folder of a side network as training would start it: random, or pruned from the backbone.

    Fisher information needs rows: --data with --task, or --samples-file with token ids. In a samples file, labels are
    padded with -100, and an attention_mask tells padding in input_ids; names may begin with fisher_.

    The run says that it is untrained: sidecast publish takes it only with --allow-untrained.
    """
    import ladder
    from ladder.backbone import check_method, quantize_backbone
    from training.data import read_examples
    from training.recipes.recipe import Recipe

    check_method(quantize)
    _check_rows(init, task, data, samples_file, samples)
    spec = _spec(task, output, head, outputs)
    if spec.images:
        raise UserError(f"task {spec.name} reads images, and init makes side networks that read text alone; train one")
    shape = {"encoder_layers": "all", "tap_norm": "none", "pair": "together"} | {
        name: value for name, value in values.items() if value is not None
    }
    recipe = Recipe(head=head or "auto", **shape)  # type: ignore[arg-type]
    config = recipe.side_config(spec)  # report mistakes in settings and data before the backbone loads
    if outputs is not None and outputs != config.outputs:
        raise UserError(f"task {spec.name} with a {config.head} head has {config.outputs} outputs, not {outputs}")
    examples = [] if data is None else read_examples(data, spec)
    loaded = ladder.load_backbone(backbone, device=options.pick_device(device), dtype="float32")
    tokenizer = untrained_run.tokenizer_of(backbone)
    side = _new_side(config, loaded, recipe.seed)
    with progress_bar(quiet=as_json) as bars:
        step = _bar(bars, f"{spec.name}: Fisher information")
        if samples_file is not None:
            used = _start_from_ids(side, loaded, samples_file, order, step)
        else:
            used = _start(side, loaded, spec, tokenizer, examples, samples, init, order, recipe.seed, step)
    quantize_backbone(loaded, quantize, loaded.device)  # the start comes from its whole weights, what it reads does not
    made = {"made_by": "init", "init": init, "order": order, "seed": recipe.seed, "samples": used}
    untrained_run.write(output, side.eval(), spec, loaded, backbone, tokenizer, made, untrained=True)
    document = {
        "task": spec.name,
        "run": output,
        "init": init,
        "samples": used,
        "side": side.config.to_dict(),
        "weights": sum(parameter.numel() for parameter in side.parameters()),
    }
    text = f"{spec.name}: {init} start, {untrained_run.shape_text(side)}"
    say(as_json, document, f"{text}\n{untrained_run.ready_text(output, tokenizer, untrained=True)}")


def _check_rows(init: str, task: str | None, data: str | None, samples_file: str | None, samples: int | None) -> None:
    if init == "fisher" and (data is None) == (samples_file is None):
        raise UserError("--init fisher needs rows: give one of --data (with --task) and --samples-file")
    if init != "fisher" and (data or samples_file):
        raise UserError(f"--data and --samples-file are for --init fisher, this is --init {init}")
    if samples is not None and data is None:
        raise UserError("--samples is how many rows of --data; of a --samples-file all are used")
    if data is not None and task is None:
        raise UserError("--data needs --task, which says what its rows are")


def _spec(task: str | None, output: str, head: str | None, outputs: int | None) -> Any:
    """The spec of `--task`; without one, text, numbers as labels for several outputs, a value for one output."""
    if task is not None:
        return untrained_run.task_of(task, output)
    if head in (None, "text"):
        return untrained_run.task_of(None, output, kind="text")
    if outputs is None:
        raise UserError(f"a {head} head needs --task, or --outputs N")
    if outputs == 1:
        return untrained_run.task_of(None, output, kind="regression")
    return untrained_run.task_of(None, output, kind="classification", labels=tuple(str(i) for i in range(outputs)))


def _new_side(config: Any, backbone: Any, seed: int) -> Any:
    """Make a side network with the random start that `sidecast train` makes from this seed."""
    import torch

    from ladder import SideNetwork

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SideNetwork(config, backbone.config).to(backbone.device)


def _start(
    side: Any,
    backbone: Any,
    spec: Any,
    tokenizer: Any,
    examples: Sequence[Any],
    samples: int | None,
    init: str,
    order: str,
    seed: int,
    step: Step,
) -> int:
    """Initialize a side network in place; return how many rows were used."""
    from training.recipes.initialization import SAMPLES, start_side

    if init == "fisher" and tokenizer is None:
        raise UserError("--data needs a backbone folder with a tokenizer; give token ids by --samples-file")
    count = min(samples or SAMPLES, len(examples))
    start_side(
        side,
        backbone,
        init=init,  # type: ignore[arg-type]
        order=order,  # type: ignore[arg-type]
        spec=spec,
        tokenizer=tokenizer,
        examples=examples,
        samples=count,
        seed=seed,
        progress=step,
    )
    return count


def _start_from_ids(side: Any, backbone: Any, path: str, order: str, step: Step) -> int:
    """As `_start`, by Fisher information on all rows of token ids in a file."""
    from ladder.answering import IGNORED
    from ladder.lst_compat import read_inputs
    from ladder.side import initialize
    from training.fisher import Sample, fisher

    inputs = read_inputs(path, backbone.config, prefix="fisher_")
    if inputs.labels is None:
        raise UserError(f"{path} has no labels, which Fisher information is about")
    samples = [
        Sample(tuple(ids[mask].tolist()), tuple(labels[labels != IGNORED].tolist()))
        for ids, mask, labels in zip(inputs.ids, inputs.mask, inputs.labels, strict=True)
    ]
    importance = fisher(backbone, samples, encoder_only=not side.config.has_decoder, progress=step)
    initialize(side, backbone, importance, order=order)  # type: ignore[arg-type]
    return len(samples)


def _bar(bars: Progress, text: str) -> Step:
    """Return a callback that draws a bar from the first row on."""
    drawn: list[TaskID] = []

    def step(done: int, total: int) -> None:
        if not drawn:
            drawn.append(bars.add_task(text, total=total, note="rows"))
        bars.update(drawn[0], completed=done)

    return step
