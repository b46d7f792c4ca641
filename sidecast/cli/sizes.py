"""`sidecast doctor --sizes`: a table of what side networks of common shapes would cost on a backbone."""

from collections.abc import Iterator
from typing import Any

import click

from sidecast.cli.app import UserError
from sidecast.cli.output import say, show_table

REDUCTIONS = (4, 8, 16)
OUTPUTS = 2
"""Outputs of the linear head in the table; each further output costs one row of the side width."""


def reductions(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Callback of click: `4,8,16`."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"give whole numbers such as 4,8,16; got {value!r}") from None


def show_sizes(
    backbone: str,
    reduction: tuple[int, ...] | None,
    encoder_layers: tuple[int, ...] | None,
    decoder_layers: tuple[int, ...] | None,
    tokens: int | None,
    rows: int | None,
    as_json: bool,
) -> None:
    """Print the table. Reads config.json alone; for a known backbone name, no file at all.

    Raises:
        BackboneError, SideConfigError: no such backbone, or a shape that does not fit it.
    """
    from ladder.side import CostModel, Load, backbone_shape

    shape = backbone_shape(backbone)
    narrowest = min(shape.config.d_model, shape.config.d_kv, shape.config.d_ff)
    reduction = reduction or tuple(r for r in REDUCTIONS if r <= narrowest)
    usual = Load()
    scales = CostModel(shape, Load(tokens=tokens or usual.tokens, rows=rows or usual.rows))
    layers = None if (encoder_layers, decoder_layers) == (None, None) else (encoder_layers, decoder_layers)
    estimates = [(name, scales.estimate(config)) for name, config in _configs(shape.config, reduction, layers)]
    load = {name: getattr(scales.load, name) for name in ("tokens", "rows", "new_tokens")} | {"dtype": "bfloat16"}
    document = {
        "backbone": {"name": shape.name, "parameters": scales.backbone_parameters},
        "load": load,
        "sizes": [_document(name, sizes) for name, sizes in estimates],
    }
    if as_json:
        say(True, document, "")
        return
    title = (
        f"{shape.name}: {scales.backbone_parameters:,} weights, in bfloat16; {scales.load.rows} rows of "
        f"{scales.load.tokens} tokens at a time"
    )
    headings = ("r", "rungs", "head", "weights", "share", "fp32 MB", "bf16 MB", "GFLOP/row", "of backbone's")
    show_table((*headings, "training GB", "serving GB"), [_row(name, sizes) for name, sizes in estimates], title=title)


Layers = tuple[int, ...] | None


def _configs(
    backbone: Any, reduction: tuple[int, ...], layers: tuple[Layers, Layers] | None
) -> Iterator[tuple[str, Any]]:
    """Every combination of r, rungs and head that the backbone can have."""
    from ladder import SideConfig
    from ladder.side import kept_patterns

    decoders = kept_patterns(backbone.num_decoder_layers)
    patterns = {name: (layers, decoders[name]) for name, layers in kept_patterns(backbone.num_layers).items()}
    heads = ("text", "linear") if backbone.num_decoder_layers else ("linear",)
    for r in reduction:
        for name, (encoder, decoder) in ({"given": layers} if layers else patterns).items():
            for head in heads:
                yield (
                    name,
                    SideConfig(
                        reduction=r,
                        encoder_layers=encoder,
                        decoder_layers=decoder if head == "text" else (),
                        head=head,
                        outputs=0 if head == "text" else OUTPUTS,
                    ),
                )


def _document(name: str, sizes: Any) -> dict[str, Any]:
    side = sizes.side
    return {
        "reduction": side.reduction,
        "rungs": name,
        "encoder_layers": list(side.encoder_layers),
        "decoder_layers": list(side.decoder_layers),
        "head": side.head,
        "parameters": sizes.parameters,
        "reference_parameters": sizes.reference_parameters,
        "share": sizes.share,
        "fp32_bytes": sizes.parameters * 4,
        "bf16_bytes": sizes.parameters * 2,
        "side_flops": sizes.side_flops,
        "backbone_flops": sizes.backbone_flops,
        "training_bytes": sizes.training_bytes,
        "serving_bytes": sizes.serving_bytes,
    }


def _row(name: str, sizes: Any) -> tuple[str, ...]:
    return (
        str(sizes.side.reduction),
        name,
        sizes.side.head,
        f"{sizes.parameters:,}",
        f"{sizes.share:.3%}",
        f"{sizes.parameters * 4 / 1e6:.2f}",
        f"{sizes.parameters * 2 / 1e6:.2f}",
        f"{sizes.side_flops / 1e9:.2f}",
        f"{sizes.flops_share:.1%}",
        f"{sizes.training_bytes / 1e9:.2f}",
        f"{sizes.serving_bytes / 1e9:.2f}",
    )


def check_options(sizes: bool, backbone: str | None, **values: Any) -> None:
    """Raise UserError for `--sizes` without a backbone, or for its options without `--sizes`."""
    if sizes and backbone is None:
        raise UserError("--sizes needs --backbone B: a folder, a hub id, or a name such as t5-base")
    names = [name for name, value in values.items() if value is not None]
    if not sizes and names:
        raise UserError(f"--{names[0].replace('_', '-')} is for --sizes; give both")
