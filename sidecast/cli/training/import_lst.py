"""`sidecast import-lst`: make a run from a checkpoint of the LST authors' code."""

import hashlib
import json
from pathlib import Path
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import say
from sidecast.cli.training import untrained_run


@click.command(short_help="Make a run of a checkpoint of the LST authors' code.")
@click.argument("checkpoint")
@options.option("--backbone", required=True, metavar="B", help="The T5 it was trained on: a folder, or a hub id.")
@click.option("--output", required=True, metavar="RUN", help="The run folder to make.")
@click.option(
    "--task", metavar="TASK", help="A built-in task, or a task spec's TOML file.  [default: text, named after RUN]"
)
@click.option(
    "--settings", metavar="FILE", help="The authors' settings as JSON: use_gate, gate_T, encoder_side_layers ..."
)
@click.option(
    "--gate",
    type=click.Choice(["none", "one", "learnable", "fixed"]),
    help="Needed where the checkpoint holds no gates: none adds taps, one ignores them.",
)
@click.option("--gate-temperature", type=float, metavar="T", help="Their gate_T.  [default: 0.1]")
@click.option("--gate-start", type=float, metavar="ALPHA", help="Logit of a fixed gate that the file does not hold.")
@click.option(
    "--mix-after", "--residual-after", "mix_after", is_flag=True, default=None, help="Their add_residual_after."
)
@click.option("--reduction", type=int, metavar="R", help="Only checked: the file has it.")
@click.option("--encoder-layers", callback=options.layers, metavar="I,J,...", help="As --reduction.")
@click.option("--decoder-layers", callback=options.layers, metavar="I,J,...", help="As --reduction.")
@click.option(
    "--visual-tokens",
    "--n-boxes",
    "visual_tokens",
    type=click.IntRange(min=0),
    metavar="N",
    help="Tokens of one image: their n_boxes with --downsample; 0: the grid as it is.  [default: 36]",
)
@click.option("--head", type=click.Choice(["text"]), default="text", help="Theirs is the backbone's own LM head.")
@options.quantize
@options.as_json
def import_lst(
    checkpoint: str,
    backbone: str,
    output: str,
    task: str | None,
    settings: str | None,
    head: str,
    quantize: str,
    as_json: bool,
    **claims: Any,
) -> None:
    """Make a run folder of CHECKPOINT: a side network that ylsung/Ladder-Side-Tuning trained on a T5.

    A .safetensors or a torch file, of the side network or of the whole model. r, layers, biases, gates and
    merge_last follow from its tensors; an option that says otherwise is an error. Backbone weights in it must equal
    B's.

    A checkpoint of their CLIP-T5 reads images: its run keeps the rows that they added to the vocabulary, so B may be
    the T5 without them. Such a run can be traced; it is neither evaluated nor served yet.
    """
    import ladder
    from ladder.backbone import check_method, quantize_backbone
    from ladder.lst_compat import Claims, import_side, read_checkpoint
    from training.recipes.recipe import Recipe

    check_method(quantize)
    spec = untrained_run.task_of(task, output, kind="text")
    Recipe(head="text").side_config(spec)  # report a mistake before the backbone loads
    tensors = read_checkpoint(checkpoint)
    loaded = ladder.load_backbone(backbone, dtype="float32")
    claimed = Claims(**claims)
    if settings is not None:
        claimed = claimed.join(Claims.from_settings(_read_settings(settings), loaded.config))
    imported = import_side(tensors, loaded, claimed)
    tokenizer = untrained_run.tokenizer_of(backbone)
    quantize_backbone(loaded, quantize)  # the checkpoint is compared with its whole weights, and will read these
    made = {"made_by": "import-lst", "checkpoint": Path(checkpoint).name, "checkpoint_sha256": _sha256(checkpoint)}
    untrained_run.write(output, imported.side, spec, loaded, backbone, tokenizer, made, untrained=False)
    for note in imported.notes:
        click.echo(f"note: {note}", err=True)
    document = {
        "task": spec.name,
        "run": output,
        "side": imported.side.config.to_dict(),
        "weights": sum(parameter.numel() for parameter in imported.side.parameters()),
        "backbone_tensors": imported.compared,
        "notes": list(imported.notes),
    }
    compared = f"{imported.compared} tensors in it are {loaded.name}'s" if imported.compared else "no backbone in it"
    text = f"{spec.name}: {untrained_run.shape_text(imported.side)}; {compared}"
    reads = tokenizer if imported.side.config.visual is None else None  # images cannot be served yet
    say(as_json, document, f"{text}\n{untrained_run.ready_text(output, reads, untrained=False)}")


def _read_settings(path: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--settings {path} does not read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"--settings {path} must hold a JSON object")
    return value


def _sha256(path: str) -> str:
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
