"""Records every activation of a backbone and one side network for one batch, by name, to compare implementations.

The names are those of the LST authors' modules (act.encoder.side_block.3.out; 3 is the backbone block's number).
`docs/models/tracing.md` lists them. Needs no tokenizer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.answering.answerers import IGNORED
from ladder.backbone.images import Images
from ladder.backbone.model import Backbone, Taps
from ladder.config import BackboneConfig
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.decoding.settings import Generation
from ladder.errors import InputsError
from ladder.lst_compat.inputs import Inputs
from ladder.side.network import Rung, SideNetwork, SideStack

Named = dict[str, Tensor]


@torch.inference_mode()
def trace(
    backbone: Backbone,
    side: SideNetwork,
    inputs: Inputs,
    *,
    max_new_tokens: int = 13,
    beams: int | None = None,
    legacy_beams: bool = True,
) -> Named:
    """Return all activations and outputs of one pass by name, on the CPU; no two share memory.

    Args:
        side: in evaluation mode, on the backbone's device. If it keeps rows of its vocabulary that the backbone lacks
            (`VisualConfig.vocabulary`), the backbone gets them here: logits are those of the authors' whole vocabulary.
        max_new_tokens: of gen.greedy and gen.beam<N>; 0 for neither.
        beams: N, to decode with beams too.
        legacy_beams: as transformers 4.6 did, with which the authors measured; see `Generation`.

    Raises:
        InputsError: a side network that reads images, and inputs without them or with others than it reads.
    """
    visual = side.config.visual is not None
    if visual and inputs.images is None:
        raise InputsError("vis_feats is missing: this side network reads images; (rows, tokens, features)")
    backbone = _with_added_rows(backbone, side)
    device = backbone.device
    ids = inputs.ids.to(device)
    mask = inputs.mask.to(device)
    seen: Named = {}
    with _watched(side, seen):
        taps = backbone.encode(ids, mask)
        if visual:
            taps = replace(taps, images=_to(inputs.images, device))
        memory = side.encode(taps)
        memory_mask = side.memory_mask(taps)
        seen |= _named_taps("encoder", taps)
        if visual:
            seen["act.encoder.side_inputs_embeds"] = torch.cat([taps.embeddings, seen["act.visual_embedding.out"]], 1)
        if not side.config.has_decoder:
            seen["out.head"] = side.read_all(memory, taps)
            return _stored(seen)
        assert taps.final is not None
        labels = None if inputs.labels is None else inputs.labels.to(device)
        decoder_taps = backbone.decode(_decoder_ids(len(ids), labels, backbone), taps.final, mask)
        seen |= _named_taps("decoder", decoder_taps)
        logits = seen["out.logits"] = backbone.logits(side.decode(decoder_taps, memory, memory_mask))
    if visual:
        seen["act.decoder.side_inputs_embeds"] = decoder_taps.embeddings
    if labels is not None:
        seen |= _losses(logits, labels, of_tokens=visual)
    if visual and inputs.pairs is not None:
        first = backbone.decode(_decoder_ids(len(ids), None, backbone), taps.final, mask)
        pairs = replace(taps, images=_to(inputs.pairs, device))
        seen["out.nlvr_logits"] = backbone.logits(side.decode(first, side.encode(pairs), side.memory_mask(pairs)))
    ways = {"gen.greedy": Generation()}
    if beams is not None:
        ways[f"gen.beam{beams}"] = Generation(num_beams=beams, legacy_beams=legacy_beams)
    for name, generation in ways.items() if max_new_tokens else ():
        segment = Segment(side=side, taps=taps, limit=max_new_tokens, decoding=generation)
        [rows] = generate(backbone, [segment])
        seen[name] = _padded(rows, max_new_tokens, backbone.config)
    return _stored(seen)


def _losses(logits: Tensor, labels: Tensor, *, of_tokens: bool) -> Named:
    """The mean loss; `of_tokens` adds each token's, and the mean over rows of each row's mean (CLIP-T5's loss)."""
    flat = logits.flatten(0, 1).float(), labels.flatten()
    named = {"out.loss": F.cross_entropy(*flat, ignore_index=IGNORED)[None]}
    if of_tokens:
        losses = F.cross_entropy(*flat, ignore_index=IGNORED, reduction="none")
        means = losses.view_as(labels).sum(1) / (labels != IGNORED).sum(1).clamp(min=1)
        named |= {"out.token_loss": losses, "out.loss_per_sample_mean": means.mean()[None]}
    return named


def _with_added_rows(backbone: Backbone, side: SideNetwork) -> Backbone:
    """The backbone with those rows of the authors' vocabulary that the side network keeps and the backbone lacks.

    It shares the other weights. Its vocabulary is that of the checkpoint, so that logits and texts are the authors'.
    """
    visual = side.config.visual
    missing = 0 if visual is None else visual.vocabulary - backbone.config.vocab_size
    if missing <= 0:
        return backbone
    larger = copy(backbone)
    larger._parameters = dict(backbone._parameters)
    larger._modules = dict(backbone._modules)
    larger.config = replace(backbone.config, vocab_size=backbone.config.vocab_size + missing)
    larger.vocabulary = None  # a quantized LM head has no such rows
    rows = side.visual.positions[-missing:].to(backbone.dtype)
    for name in ("shared", "head") if backbone.has_decoder else ("shared",):
        setattr(larger, name, nn.Parameter(torch.cat([getattr(backbone, name), rows]), requires_grad=False))
    return larger


def _to(images: Images | None, device: torch.device) -> Images:
    assert images is not None
    return images.to(device)


def _decoder_ids(rows: int, labels: Tensor | None, backbone: Backbone) -> Tensor:
    """(B, T): the decoder's input for `labels`, shifted by the start token; without labels only the start token."""
    config = backbone.config
    start = torch.full((rows, 1), config.decoder_start_token_id, device=backbone.device)
    if labels is None:
        return start
    shifted = torch.cat([start, labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)


@contextmanager
def _watched(side: SideNetwork, seen: Named) -> Iterator[None]:
    """Store the activations of `side` in `seen` while the context is open."""
    stacks = [(name, stack) for name, stack in side.named_children() if isinstance(stack, SideStack)]
    handles = [handle for name, stack in stacks for handle in _watch_stack(name, stack, seen)]
    if side.config.visual is not None:
        handles.append(side.visual.register_forward_hook(_keep("act.visual_embedding.out", seen)))
    if hasattr(side, "upsample"):
        handles.append(side.upsample.register_forward_hook(_keep("act.side_final_upsample.out", seen)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_stack(name: str, stack: SideStack, seen: Named) -> Iterator[torch.utils.hooks.RemovableHandle]:
    act = f"act.{name}"
    yield stack.first_downsample.register_forward_hook(_keep(f"{act}.side_first_downsample.out", seen))
    yield stack.final_norm.register_forward_hook(_keep(f"{act}.final_side_layer_norm.out", seen))
    for layer, rung in zip(stack.layers, stack.rungs, strict=True):
        assert isinstance(rung, Rung)
        yield rung.downsample.register_forward_hook(_keep(f"{act}.side_downsamples.{layer}.out", seen))
        yield rung.block.register_forward_hook(
            _keep(f"{act}.side_block.{layer}.out", seen, f"{act}.side_block.{layer}.in")
        )
        yield rung.register_forward_hook(_keep(f"{act}.side_state.{layer}.out", seen))
        if rung.kind in ("learnable", "fixed"):
            seen[f"{act}.side_gate.{layer}"] = torch.sigmoid(rung.gate_logit / rung.temperature)


def _keep(name: str, seen: Named, before: str | None = None):
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        seen[name] = out
        if before is not None:
            seen[before] = inputs[0]

    return hook


def _named_taps(stack: str, taps: Taps) -> Named:
    named = {f"act.{stack}.block.{index}.out": block for index, block in enumerate(taps.blocks)}
    named[f"act.{stack}.embeds"] = taps.embeddings
    if taps.final is not None:
        named[f"act.{stack}.final_layer_norm.out"] = taps.final
    return named


def _padded(rows: list[tuple[int, ...] | Exception], limit: int, config: BackboneConfig) -> Tensor:
    """(B, N) with the start token first and the end token after a row that ended, as Hugging Face's generate
    returns."""
    texts = []
    for row in rows:
        if isinstance(row, Exception):
            raise row
        texts.append([config.decoder_start_token_id, *row, *([config.eos_token_id] if len(row) < limit else [])])
    longest = max(len(text) for text in texts)
    return torch.tensor([text + [config.pad_token_id] * (longest - len(text)) for text in texts])


def _stored(seen: Named) -> Named:
    """Copies on the CPU: safetensors does not accept two names for the same memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in seen.items()}
