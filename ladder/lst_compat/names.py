"""The LST authors' parameter names of a side network, and ours.

Only renaming; for the meaning of their names see their code, ylsung/Ladder-Side-Tuning.
"""

import re
from collections.abc import Iterable

from ladder.backbone.families.t5 import _BLOCK, _PARTS, _RELATIVE_BIAS
from ladder.config import SideConfig

_LADDER = re.compile(
    r"(?P<stack>encoder|decoder)\.side_(?P<what>downsamples|gate_params|gate)[._](?P<index>\d+)(?P<rest>\..+)?"
)


VISUAL = "encoder.visual_embedding."
POSITIONS = f"{VISUAL}obj_order_embedding.weight"
"""In the authors' code the shared embeddings themselves, whose last rows stand for positions in an image."""
_VISUAL_PARTS = {
    "features": "feat_embedding.0",
    "features_norm": "feat_embedding.1",
    "boxes": "absolute_vis_pos_embedding.0",
    "boxes_norm": "absolute_vis_pos_embedding.1",
    "numbers": "img_order_embedding.weight",
    "positions": "obj_order_embedding.weight",
}


def kept_layers(names: Iterable[str], stack: str) -> tuple[int, ...]:
    """Return the layers of "encoder" or "decoder" that have a side block in the authors' checkpoint, ascending."""
    matches = (_BLOCK.fullmatch(name) for name in names)
    return tuple(sorted({int(m["index"]) for m in matches if m and m["side"] and m["stack"] == stack}))


def bias_owners(names: Iterable[str], stack: str) -> tuple[int, ...]:
    """Return the layers of a stack whose side block holds a relative bias, ascending; the authors' code gives it to
    one."""
    matches = (_BLOCK.fullmatch(name) for name in names)
    side_blocks = (m for m in matches if m and m["side"] and m["stack"] == stack)
    return tuple(sorted(int(m["index"]) for m in side_blocks if m["rest"] == _RELATIVE_BIAS))


def gate_layers(names: Iterable[str], stack: str, what: str) -> dict[int, str]:
    """Return the name of each layer's gate: `what` is "gate_params" (learnable) or "gate" (a number, not a logit)."""
    matches = ((name, _LADDER.fullmatch(name)) for name in names)
    return {int(m["index"]): name for name, m in matches if m and m["stack"] == stack and m["what"] == what}


def authors_name(ours: str, config: SideConfig, owner: int | None = None) -> str:
    """Return the authors' name for a parameter of our side network, with a text head and a resolved `config`.

    Args:
        owner: the layer that holds its stack's relative bias; the lowest kept one when not given.
    """
    if ours == "merge_logit":
        return "side_gate_params_merge_last"
    if ours.startswith("upsample."):
        return f"side_final_{ours}"
    stack, rest = ours.split(".", 1)
    if stack == "visual":
        part, *tail = rest.split(".")
        return VISUAL + ".".join([_VISUAL_PARTS[part], *tail])
    layers = config.encoder_layers if stack == "encoder" else config.decoder_layers
    assert isinstance(layers, tuple)
    if rest == "relative_bias.weight":
        return f"{stack}.side_block.{min(layers) if owner is None else owner}.layer.0.{_RELATIVE_BIAS}"
    if not rest.startswith("rungs."):
        return f"{stack}.{rest.replace('first_', 'side_first_').replace('final_norm', 'final_side_layer_norm')}"
    _, rung, part = rest.split(".", 2)
    return f"{stack}.{_rung_part(part, layers[int(rung)], config, decoder=stack == 'decoder')}"


def _rung_part(part: str, layer: int, config: SideConfig, *, decoder: bool) -> str:
    if part == "gate_logit":
        return f"side_gate_params.{layer}" if config.gate == "learnable" else f"side_gate_{layer}"
    if part.startswith("downsample."):
        return f"side_downsamples.{layer}.{part.removeprefix('downsample.')}"
    _, module, tail = part.split(".", 2)
    positions = {"attention": 0, "cross": 1, "feed": 2 if decoder else 1}
    position = positions[module.split("_")[0]]
    theirs = "layer_norm" if module.endswith("_norm") else next(t for t, o in _PARTS.items() if o == module)
    return f"side_block.{layer}.layer.{position}.{theirs}.{tail}"
