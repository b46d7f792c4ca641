"""Records every activation of a backbone and one side network for one batch, by name, to compare implementations.

The names are those of the LST authors' modules (act.encoder.side_block.3.out; 3 is the backbone block's number).
`docs/tracing.md` lists them. Needs no tokenizer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.answering.answerers import IGNORED
from ladder.backbone.model import Backbone, Taps
from ladder.config import BackboneConfig
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.decoding.settings import Generation
from ladder.errors import InputsError
from ladder.side.network import Rung, SideNetwork, SideStack

Named = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One batch, checked against a backbone."""

    ids: Tensor
    """(B, S) token ids."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    labels: Tensor | None = None
    """(B, T) token ids, padded with IGNORED."""


def read_inputs(path: str | Path, config: BackboneConfig, prefix: str = "") -> Inputs:
    """Read input_ids, attention_mask and labels from a safetensors file; other tensors in it are ignored.

    Args:
        prefix: if the file has input_ids with this prefix, all three names are read with it.

    Raises:
        InputsError: unreadable, input_ids missing, a wrong shape or type, ids outside the vocabulary, a row of padding.
    """
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as opened:
            names = set(opened.keys())
            prefix = prefix if f"{prefix}input_ids" in names else ""
            wanted = ("input_ids", "attention_mask", "labels")
            tensors = {name: opened.get_tensor(prefix + name) for name in wanted if prefix + name in names}
    except (SafetensorError, OSError) as error:
        raise InputsError(f"{path} is no whole safetensors file: {error}") from None
    try:
        return make_inputs(tensors, config)
    except InputsError as error:
        raise InputsError(f"{path}: {error}") from None


def make_inputs(tensors: Mapping[str, Tensor], config: BackboneConfig) -> Inputs:
    """Check tensors by name; without attention_mask every token is real.

    Raises:
        InputsError: as `read_inputs`.
    """
    if "input_ids" not in tensors:
        raise InputsError("input_ids is missing: token ids, (rows, tokens)")
    ids = _ids("input_ids", tensors["input_ids"], config.vocab_size)
    if config.max_positions is not None and ids.shape[1] > config.max_positions:
        raise InputsError(f"input_ids has {ids.shape[1]} tokens a row, and this backbone reads {config.max_positions}")
    mask = torch.ones_like(ids, dtype=torch.bool)
    if "attention_mask" in tensors:
        ones = tensors["attention_mask"]
        if ones.shape != ids.shape or ones.is_floating_point() or not ((ones == 0) | (ones == 1)).all():
            raise InputsError(
                f"attention_mask must be ones and zeros (whole numbers) of shape {tuple(ids.shape)}, as input_ids; got "
                f"{ones.dtype} {tuple(ones.shape)}"
            )
        mask = ones.bool()
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise InputsError(f"attention_mask leaves no token in row {empty[0]}")
    labels = None
    if "labels" in tensors:
        labels = _ids("labels", tensors["labels"], config.vocab_size, ignored=True)
        if len(labels) != len(ids):
            raise InputsError(f"labels has {len(labels)} rows, and input_ids {len(ids)}")
        if not (labels != IGNORED).any():
            raise InputsError(f"labels has no label: all are {IGNORED}")
    return Inputs(ids=ids, mask=mask, labels=labels)


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
        side: in evaluation mode, on the backbone's device.
        max_new_tokens: of gen.greedy and gen.beam<N>; 0 for neither.
        beams: N, to decode with beams too.
        legacy_beams: as transformers 4.6 did, with which the authors measured; see `Generation`.
    """
    device = backbone.device
    ids = inputs.ids.to(device)
    mask = inputs.mask.to(device)
    seen: Named = {}
    with _watched(side, seen):
        taps = backbone.encode(ids, mask)
        memory = side.encode(taps)
        seen |= _named_taps("encoder", taps)
        if not side.config.has_decoder:
            seen["out.head"] = side.read_all(memory, taps)
            return _stored(seen)
        assert taps.final is not None
        labels = None if inputs.labels is None else inputs.labels.to(device)
        decoder_taps = backbone.decode(_decoder_ids(len(ids), labels, backbone), taps.final, mask)
        seen |= _named_taps("decoder", decoder_taps)
        logits = seen["out.logits"] = backbone.logits(side.decode(decoder_taps, memory, mask))
    if labels is not None:
        seen["out.loss"] = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)[None]
    ways = {"gen.greedy": Generation()}
    if beams is not None:
        ways[f"gen.beam{beams}"] = Generation(num_beams=beams, legacy_beams=legacy_beams)
    for name, generation in ways.items() if max_new_tokens else ():
        segment = Segment(side=side, taps=taps, limit=max_new_tokens, decoding=generation)
        [rows] = generate(backbone, [segment])
        seen[name] = _padded(rows, max_new_tokens, backbone.config)
    return _stored(seen)


def _ids(name: str, tensor: Tensor, vocabulary: int, *, ignored: bool = False) -> Tensor:
    if tensor.ndim != 2 or tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() == 0:
        raise InputsError(
            f"{name} must be whole numbers of shape (rows, tokens), got {tensor.dtype} {tuple(tensor.shape)}"
        )
    ids = tensor.long()
    wrong = (ids < 0) | (ids >= vocabulary)
    if ignored:
        wrong &= ids != IGNORED
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        rule = f"within 0 and {vocabulary - 1}" + (f", or {IGNORED}" if ignored else "")
        raise InputsError(f"{name}[{row}, {column}] must be {rule}, got {int(ids[row, column])}")
    return ids


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
