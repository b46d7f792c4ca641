"""Inputs of a trace: token ids and, for side networks that read images, features; from a file of tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ladder.answering.answerers import IGNORED
from ladder.backbone.images import Images
from ladder.config import BackboneConfig
from ladder.errors import InputsError

NLVR = "nlvr_"
"""Before the names of what belongs to two images a row (the task NLVR2)."""
READ = (
    "input_ids",
    "attention_mask",
    "labels",
    "vis_feats",
    "boxes",
    *(f"{NLVR}{name}" for name in ("vis_feats", "boxes", "img_order_ids", "obj_order_ids")),
)
"""Names of tensors in a file of inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One batch, checked against a backbone."""

    ids: Tensor
    """(B, S) token ids."""
    mask: Tensor
    """(B, S) bool, True at real tokens."""
    labels: Tensor | None = None
    """(B, T) token ids, padded with IGNORED."""
    images: Images | None = None
    """Of a side network that reads images."""
    pairs: Images | None = None
    """Two images a row, for out.nlvr_logits."""


def read_inputs(path: str | Path, config: BackboneConfig, prefix: str = "") -> Inputs:
    """Read the tensors that `make_inputs` takes from a safetensors file; others in it are ignored.

    Args:
        prefix: if the file has input_ids with this prefix, all names are read with it.

    Raises:
        InputsError: unreadable, or as `make_inputs`.
    """
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as opened:
            names = set(opened.keys())
            prefix = prefix if f"{prefix}input_ids" in names else ""
            tensors = {name: opened.get_tensor(prefix + name) for name in READ if prefix + name in names}
    except (SafetensorError, OSError) as error:
        raise InputsError(f"{path} is no whole safetensors file: {error}") from None
    try:
        return make_inputs(tensors, config)
    except InputsError as error:
        raise InputsError(f"{path}: {error}") from None


def make_inputs(tensors: Mapping[str, Tensor], config: BackboneConfig) -> Inputs:
    """Check tensors by name.

    Without attention_mask every token is real or, as in the authors' code, with vis_feats every token but padding.

    Raises:
        InputsError: input_ids missing, a wrong shape or type, ids outside the vocabulary, a row of padding.
    """
    if "input_ids" not in tensors:
        raise InputsError("input_ids is missing: token ids, (rows, tokens)")
    ids = _ids("input_ids", tensors["input_ids"], config.vocab_size)
    if config.max_positions is not None and ids.shape[1] > config.max_positions:
        raise InputsError(f"input_ids has {ids.shape[1]} tokens a row, and this backbone reads {config.max_positions}")
    mask = ids != config.pad_token_id if "vis_feats" in tensors else torch.ones_like(ids, dtype=torch.bool)
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
    pairs = _images(tensors, NLVR, len(ids), 2)
    if pairs is not None:
        _check_order(tensors, pairs)
    return Inputs(ids=ids, mask=mask, labels=labels, images=_images(tensors, "", len(ids), 1), pairs=pairs)


def _images(tensors: Mapping[str, Tensor], prefix: str, rows: int, count: int) -> Images | None:
    """The images of `rows` rows, (rows, images, tokens, ...); three sizes are `count` images one after another."""
    named = {}
    for name in ("vis_feats", "boxes"):
        tensor = tensors.get(f"{prefix}{name}")
        if tensor is None:
            continue
        if tensor.ndim not in (3, 4) or not tensor.is_floating_point() or tensor.numel() == 0 or len(tensor) != rows:
            raise InputsError(
                f"{prefix}{name} must be floating-point numbers of shape ({rows}, tokens, width) or ({rows}, images, "
                f"tokens, width), got {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.ndim == 3 and tensor.shape[1] % count:
            raise InputsError(
                f"{prefix}{name} has {tensor.shape[1]} tokens a row, and {count} images have equally many"
            )
        if not torch.isfinite(tensor).all():
            raise InputsError(f"{prefix}{name} holds values that are not finite numbers")
        named[name] = tensor.float() if tensor.ndim == 4 else tensor.float().unflatten(1, (count, -1))
    features, boxes = named.get("vis_feats"), named.get("boxes")
    if features is None:
        return None
    if boxes is not None and boxes.shape != (*features.shape[:3], 4):
        raise InputsError(
            f"{prefix}boxes must have 4 numbers for each token of {prefix}vis_feats, got {tuple(boxes.shape)} for "
            f"{tuple(features.shape)}"
        )
    return Images.of(features, boxes)


def _check_order(tensors: Mapping[str, Tensor], pairs: Images) -> None:
    """Images and their tokens are numbered from 0 in the order in which they are given; a file may say the same."""
    rows, count, cells, _ = pairs.features.shape
    expected = {
        "img_order_ids": torch.arange(count).repeat_interleave(cells),
        "obj_order_ids": torch.arange(cells).repeat(count),
    }
    for name, ids in expected.items():
        given = tensors.get(f"{NLVR}{name}")
        if given is not None and not torch.equal(given.long(), ids.expand(rows, -1)):
            what = "image" if name == "img_order_ids" else "token of each image"
            raise InputsError(f"{NLVR}{name} must number each {what} from 0, in the order of {NLVR}vis_feats")


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
