"""`sidecast absorb`: a side network for each of some fine-tuned models, which learns from the model's own answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say
from sidecast.cli.settings import GroupedCommand, setting_options
from sidecast.cli.training.bars import Bars
from sidecast.cli.training.task_files import PerTask
from sidecast.cli.training.verdict import show_warnings
from training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from side_registry import TaskSpec
    from training.absorbing import Absorbed
    from training.absorbing.gate import AbsorbGate

SETTINGS = (
    "epochs", "batch_rows", "learning_rate", "seed", "patience", "reduction", "encoder_layers", "dropout",
    "distill_temperature", "cache_gb",
)  # fmt: skip
"""Of a recipe, those that are of use where a teacher's answers are all that is learned from."""
SPECIAL: dict[str, dict[str, Any]] = {
    "learning_rate": {"flag": "--lr"},
    "encoder_layers": {
        "type": str,
        "callback": options.layers_or_all,
        "metavar": "I,J,...",
        "help": "Encoder blocks with a rung, numbered from 0, or all.  [default: every second]",
    },
}
OTHERS = frozenset(Recipe.names()) - frozenset(SETTINGS)


@click.command(cls=GroupedCommand, short_help="Make side networks of fine-tuned Hugging Face or PEFT models.")
@click.argument("teachers", metavar="[TASK=]FOLDER...", nargs=-1, required=True)
@options.option("--backbone", required=True, metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@click.option(
    "--texts",
    required=True,
    metavar="FILE",
    help="Texts for the models to answer: .txt (one a line), .jsonl, .csv, .tsv, .parquet. Targets are not read.",
)
@click.option("--output", required=True, metavar="DIR", help="Folder of the runs: DIR/TASK for each model.")
@options.registry
@click.option("--alias", help="Alias to point at the new versions. A new task's first version becomes production.")
@click.option(
    "--agreement",
    type=float,
    metavar="A",
    help="Publish only with this agreement or more on held-out texts, 0 to 1.  [default: 0.97; none with --within]",
)
@click.option(
    "--within",
    type=float,
    metavar="POINTS",
    help="Publish only if the score on --labelled is at most so many points of 100 below the model's.",
)
@click.option(
    "--labelled", "labelled_files", multiple=True, metavar="[TASK=]FILE", help="Rows with targets, to score both on."
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="NAME",
    help="Column of the text, for tasks without a spec; twice for pairs of texts.  [default: text]",
)
@click.option("--base", metavar="FOLDER", help="The base model of PEFT folders.  [default: the one they name]")
@options.rename
@options.device
@options.dtype
@options.quantize
@options.as_json
@setting_options(Recipe, "Recipe", special=SPECIAL, without=OTHERS)
def absorb(
    teachers: Sequence[str],
    backbone: str,
    texts: str,
    output: str,
    registry: str | None,
    alias: str | None,
    agreement: float | None,
    within: float | None,
    labelled_files: Sequence[str],
    fields: Sequence[str],
    base: str | None,
    renames: dict[str, str],
    device: str,
    dtype: str,
    quantize: str,
    as_json: bool,
    **recipe: Any,
) -> None:
    """Make a side network of each fine-tuned model in a FOLDER: a Hugging Face model or a PEFT adapter.

    A model is of any architecture, with its own tokenizer; it gives one label or one number for a text or a pair of
    texts. It answers --texts, and a side network on the backbone learns its answers. Several models read the same texts
    and share each backbone pass.

    TASK is a built-in task's name, a task spec's TOML file, or the name of a new task with the model's labels; without
    it, the folder's name.

    A tenth of the texts teaches nothing: agreement is measured on it. What passes is published to --registry; if a
    model does not pass, the exit code is 1. At the end, memory, file sizes and latency are compared with the models'.

    Weights are read from safetensors files alone, and no code in a FOLDER is run.
    """
    from training.absorbing import AbsorbPlan
    from training.absorbing import absorb as absorb_all
    from training.absorbing.folders import look_into
    from training.data import check_renames, read_labelled, read_unlabelled
    from training.recipes.named_recipes import named_recipe

    if alias is not None and registry is None:
        raise UserError("--alias needs --registry R, where versions are published")
    gate = _gate(agreement, within, has_labelled=bool(labelled_files))
    named = [_named(teacher) for teacher in teachers]
    folders = [look_into(folder, base) for _, folder in named]
    specs = [_spec(task, folder, fields or ("text",)) for (task, _), folder in zip(named, folders, strict=True)]
    check_renames(specs, renames)
    given = {name: value for name, value in recipe.items() if value is not None} | {"distill": 1.0}
    recipes = [
        named_recipe("default", [spec], given | {"teacher": str(folder.path)})
        for spec, folder in zip(specs, folders, strict=True)
    ]
    labelled = PerTask.parse("--labelled", labelled_files, [spec.name for spec in specs])
    files = [labelled.of(spec.name) for spec in specs]
    if within is not None and (lacking := [spec.name for spec, file in zip(specs, files, strict=True) if file is None]):
        raise UserError(f"--labelled has no file for {lacking[0]}; --within needs rows with targets for each task")
    scored = [
        None if file is None else read_labelled(file, spec, renames) for spec, file in zip(specs, files, strict=True)
    ]
    rows = read_unlabelled(texts, specs[0], renames)
    loaded, tokenizer = options.load_backbone(backbone, device, dtype, quantize)
    plan = AbsorbPlan(
        specs=specs,
        folders=folders,
        texts=rows,
        labelled=scored,
        backbone=loaded,
        backbone_source=options.backbone_source(backbone),
        tokenizer=tokenizer,
        recipes=recipes,
        gate=gate,
        output=Path(output).expanduser(),
        reading={"renames": renames} if renames else {},
    )
    with progress_bar(quiet=as_json) as bars:
        results, savings = absorb_all(plan, Bars(bars, "absorb"))
    versions = _publish(results, registry, alias)
    show_warnings([warning for result in results for warning in _doubts(result)], as_json=as_json)
    document = {
        "models": [_document(result, versions.get(result.spec.name)) for result in results],
        "savings": savings.to_dict(),
    }
    lines = [_line(result, versions.get(result.spec.name)) for result in results]
    say(as_json, document, "\n".join([*lines, savings.text]))
    refused = [result.refusal for result in results if result.refusal is not None]
    if refused:
        raise refused[0]


def _gate(agreement: float | None, within: float | None, *, has_labelled: bool) -> "AbsorbGate":
    from training.absorbing.gate import AGREEMENT, AbsorbGate

    if within is not None and not has_labelled:
        raise UserError("--within compares scores on rows with targets; give them with --labelled FILE")
    if agreement is None and within is None:
        agreement = AGREEMENT
    return AbsorbGate(agreement=agreement, within=within)


def _named(teacher: str) -> tuple[str, str]:
    """The task and the folder of one argument; a folder's own name may have an equals sign."""
    task, _, folder = teacher.partition("=")
    if not folder or Path(teacher).expanduser().is_dir():
        return "", teacher
    return task, folder


def _spec(task: str, folder: Any, fields: Sequence[str]) -> "TaskSpec":
    """A built-in task, one of a TOML file, or a new one with the model's labels."""
    from training.absorbing import teacher_spec
    from training.builtin_tasks import load_task
    from training.errors import UnknownBuiltinTask

    if not task:
        return teacher_spec(folder, "", fields)
    try:
        return load_task(task)
    except UnknownBuiltinTask:
        return teacher_spec(folder, task, fields)


def _publish(results: Sequence["Absorbed"], registry: str | None, alias: str | None) -> dict[str, int]:
    """Publish what passed; the versions by task."""
    passed = [result for result in results if result.refusal is None]
    if registry is None or not passed:
        return {}
    from side_registry import Registry

    opened = Registry.open(registry, create=True)
    return {result.spec.name: result.publish(opened, alias=alias) for result in passed}


def _doubts(result: "Absorbed") -> list[str]:
    if result.usual < 1:
        return []
    return [f"{result.spec.name}: the model gave all held-out texts one label, so that agreement says nothing"]


def _document(result: "Absorbed", version: int | None) -> dict[str, Any]:
    return {
        "task": result.spec.name,
        "run": str(result.folder),
        "measured": result.measured,
        "rows": result.rows,
        "commonest_label": result.usual,
        "faults": list(result.faults),
        "version": version,
    }


def _line(result: "Absorbed", version: int | None) -> str:
    measured = dict(result.measured)
    texts = [f"agreement {measured.pop('agreement'):.4f} on {result.rows} held-out texts"]
    if result.spec.kind == "classification":
        texts[0] += f" (its commonest label alone: {result.usual:.4f})"
    texts += [f"{name} {value:.4f}" for name, value in measured.items()]
    if result.faults:
        texts.append("not published")
    elif version is not None:
        texts.append(f"published version {version}")
    else:
        texts.append(f"{result.folder} is ready: sidecast publish {result.folder} --registry R")
    return f"{result.spec.name}: {', '.join(texts)}"
