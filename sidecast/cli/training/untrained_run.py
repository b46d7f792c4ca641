"""What `import-lst` and `init` share: a task for a side network that was not trained here, and its run folder."""

import re
from pathlib import Path
from typing import Any

import click

from side_registry import TaskSpec
from side_registry.manifest import NO_TOKENIZER
from sidecast.cli import options


def task_of(task: str | None, output: str, **values: Any) -> TaskSpec:
    """The spec of `--task`, or else one named after the output folder with the template `{text}` and `values`."""
    from training.builtin_tasks import load_task

    if task is not None:
        return load_task(task)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(output).name).lstrip("-_")[:64]
    return TaskSpec(name=name or "untrained", template="{text}", **values)


def tokenizer_of(source: str) -> Any | None:
    """Load the backbone's tokenizer; None if its folder has none."""
    import ladder
    from ladder.errors import NoTokenizerError

    try:
        return ladder.load_tokenizer(source)
    except NoTokenizerError:
        return None


def write(
    output: str,
    side: Any,
    spec: TaskSpec,
    backbone: Any,
    source: str,
    tokenizer: Any,
    made: dict[str, Any],
    *,
    untrained: bool,
) -> None:
    """Write the run folder; `made` is its provenance. Without a tokenizer a line on standard error says so."""
    from training.artifact import write_run

    write_run(
        output,
        side,
        spec=spec,
        backbone=backbone,
        backbone_source=options.backbone_source(source),
        tokenizer_fingerprint=NO_TOKENIZER if tokenizer is None else tokenizer.fingerprint,
        provenance=made,
        untrained=untrained,
    )
    if side.config.visual is not None:
        click.echo("note: this run reads images, so it can be traced, but neither evaluated nor served yet", err=True)
    elif tokenizer is None:
        click.echo(
            f"note: {source} has no tokenizer, so this run can be traced, but neither evaluated nor served; copy the "
            "backbone's tokenizer there and make the run again",
            err=True,
        )


def shape_text(side: Any) -> str:
    """A side network's shape in a few words."""
    config = side.config
    weights = sum(parameter.numel() for parameter in side.parameters())
    layers = {"encoder": config.encoder_layers} | ({"decoder": config.decoder_layers} if config.has_decoder else {})
    layers_text = ", ".join(f"{name} layers {','.join(map(str, kept)) or 'none'}" for name, kept in layers.items())
    gate = f"gate {config.gate}" + (f" at temperature {config.gate_temperature:g}" if config.gate != "none" else "")
    more = ("mixed after blocks, " if config.mix_after else "") + ("merge_last, " if config.merge_last else "")
    if config.visual is not None:
        tokens = f"{config.visual.tokens} tokens" if config.visual.tokens else "a grid"
        more += f"images of {tokens} of {config.visual.features} features, "
    return f"r {config.reduction}, {layers_text}, {gate}, {more}{config.head} head, {weights:,} weights"


def ready_text(output: str, tokenizer: Any, *, untrained: bool) -> str:
    """Say which command to run next; without a tokenizer a run can only be traced."""
    if tokenizer is None:
        return f"{output} is ready: sidecast trace {output} --inputs FILE --output FILE"
    if untrained:
        return f"{output} is ready, untrained: sidecast publish {output} --registry R --allow-untrained"
    return f"{output} is ready: sidecast publish {output} --registry R"
