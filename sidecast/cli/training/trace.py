"""`sidecast trace`: store every activation of a run for given token ids in one file."""

from pathlib import Path
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import say


@click.command(short_help="Store every activation of a run for given token ids.")
@click.argument("run")
@click.option("--inputs", required=True, metavar="FILE", help="A safetensors file with input_ids; see above.")
@click.option("--output", required=True, metavar="FILE", help="The safetensors file to write.")
@options.backbone
@click.option(
    "--max-new-tokens", type=click.IntRange(0, 16384), default=13, show_default=True, help="Of gen.*; 0: no gen.*"
)
@click.option("--beams", type=click.IntRange(2, 16), metavar="N", help="Decode with N beams too: gen.beam<N>.")
@click.option(
    "--legacy-beams/--present-beams",
    default=True,
    show_default=True,
    help="Beams as in transformers 4.6, which the LST authors used, or as in 5.",
)
@options.device
@click.option("--dtype", default="float32", show_default=True, help="auto, float32 or bfloat16.")
@options.as_json
def trace(
    run: str,
    inputs: str,
    output: str,
    backbone: str | None,
    max_new_tokens: int,
    beams: int | None,
    legacy_beams: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Store what flows through the backbone and RUN's side network for one batch of token ids. No tokenizer is needed.

    \b
    --inputs holds  input_ids (B, S), attention_mask (B, S; else all ones), labels (B, T; padded with -100);
                    for a run that reads images, vis_feats (B, L, F), boxes (B, L, 4; else 0).
    --output gets   act.encoder.embeds, act.encoder.block.<i>.out, act.encoder.final_layer_norm.out,
                    act.encoder.side_first_downsample.out, act.encoder.side_downsamples.<i>.out,
                    act.encoder.side_gate.<i>, act.encoder.side_block.<i>.in and .out, act.encoder.side_state.<i>.out,
                    act.encoder.final_side_layer_norm.out; decoder likewise; act.side_final_upsample.out;
                    out.logits, out.loss (1) for labels, gen.greedy; out.head for a head of its own.
    
                    With images also act.visual_embedding.out, act.encoder.side_inputs_embeds and the decoder's,
                    out.token_loss, out.loss_per_sample_mean; out.nlvr_logits for nlvr_vis_feats (B, 2 L, F) and
                    nlvr_boxes, two images a row.

    <i> is the backbone block's number. Without labels the decoder reads its start token alone.
    """
    import ladder
    from ladder.lst_compat import read_inputs
    from ladder.lst_compat import trace as run_trace
    from side_registry import read_artifact
    from training.evaluation import load_side_of
    from training.run_folder import RunFolder

    _check_output(output, inputs)
    artifact = read_artifact(run)
    source = backbone or RunFolder(run).backbone_source()
    quantize = artifact.manifest.backbone.quantization
    loaded = ladder.load_backbone(source, device=options.pick_device(device), dtype=dtype, quantize=quantize)
    side = load_side_of(artifact, loaded)
    token_ids = read_inputs(inputs, loaded.config)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "beams": beams, "legacy_beams": legacy_beams}
    named = run_trace(loaded, side, token_ids, **how)
    _save(output, named)
    rows, tokens = token_ids.ids.shape
    document = {
        "run": run,
        "output": output,
        "rows": rows,
        "tokens": tokens,
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(named.items())},
        "loss": float(named["out.loss"]) if "out.loss" in named else None,
    }
    say(as_json, document, f"{output}: {len(named)} tensors of {rows} rows of {tokens} tokens{_loss_text(document)}")


def _loss_text(document: dict[str, Any]) -> str:
    return "" if document["loss"] is None else f", loss {document['loss']:.6f}"


def _check_output(output: str, inputs: str) -> None:
    """Raise UserError for a file that cannot be written, before anything is computed."""
    path = Path(output).expanduser().resolve()
    if not path.parent.is_dir():
        raise UserError(f"--output {output} cannot be written: there is no folder {path.parent}")
    if path == Path(inputs).expanduser().resolve():
        raise UserError(f"--output {output} is the --inputs file itself; give another")


def _save(output: str, named: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(named, Path(output).expanduser())
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
