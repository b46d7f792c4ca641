"""Import of the authors' CLIP-T5: the visual embedding, the added rows of the vocabulary, its settings, and faults."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from ladder import CheckpointError, SideConfig, SideNetwork
from ladder.config import VisualConfig
from ladder.lst_compat.checkpoint import import_side
from ladder.lst_compat.names import POSITIONS, VISUAL
from ladder.lst_compat.settings import Claims
from tests.ladder.lst_compat.test_checkpoint import BACKBONE, export, make_backbone, random_side

TIED = make_backbone()
TIED.load_state_dict(BACKBONE.state_dict() | {"head": BACKBONE.shared})
"""A backbone whose LM head is its embeddings, as in T5 1.0."""
ROWS, ADDED = 30, 12
"""Rows of the backbone's vocabulary, and those that a checkpoint has more."""
COPIES = ("shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
TOKENS = VisualConfig(features=5, tokens=4, positions=ROWS + ADDED, vocabulary=ROWS + ADDED)


def make_side(**changes: object) -> SideNetwork:
    side = random_side(SideConfig(**{"reduction": 2, "visual": TOKENS} | changes))  # type: ignore[arg-type]
    with torch.no_grad():
        side.visual.positions.normal_()
        side.visual.positions[:ROWS] = TIED.shared
    return side


def whole(side: SideNetwork) -> dict[str, Tensor]:
    """As the authors' trainer saves it: with its vocabulary, under each name that shares it."""
    theirs = export(side)
    vocabulary = theirs[POSITIONS]
    return theirs | dict.fromkeys(COPIES, vocabulary)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reduction": 5, "encoder_layers": (0, 2), "decoder_layers": (1,)},
        {"encoder_layers": (1,), "decoder_layers": (0, 1), "bias": False},
        {"encoder_layers": (2,), "decoder_layers": (), "gate": "fixed", "gate_start": 0.1},
        {"gate": "none", "mix_after": True},
    ],
    ids=str,
)
def test_what_is_exported_comes_back_bit_for_bit(changes: dict[str, object]) -> None:
    side = make_side(**changes)
    claims = Claims(gate=side.config.gate, mix_after=side.config.mix_after, visual_tokens=4)
    imported = import_side(whole(side), TIED, claims)
    assert imported.notes == ()
    assert imported.compared == 5  # the vocabulary under five names
    found = imported.side
    assert found.config.visual == TOKENS
    for name in ("reduction", "encoder_layers", "decoder_layers", "gate", "mix_after", "bias"):
        assert getattr(found.config, name) == getattr(side.config, name), name
    for name, tensor in side.state_dict().items():
        if not (name.endswith("gate_logit") and side.config.gate == "fixed"):
            assert torch.equal(found.state_dict()[name], tensor), name


def test_the_papers_tokens_are_assumed_and_said() -> None:
    imported = import_side(whole(make_side()), TIED)
    assert imported.side.config.visual is not None
    assert imported.side.config.visual.tokens == 36
    [note] = imported.notes
    assert "images have 36 tokens, as in the paper, since no tensor tells" in note


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"n_boxes": 4, "downsample": True}, 4),
        ({"n_boxes": 40, "downsample": True}, 36),
        ({"n_boxes": 36, "downsample": False}, 0),
        ({"side_reduction_factor": 2, "n_boxes": 9, "feat_dim": 5.0, "n_images": 2, "pos_dim": 4.0}, 9),
        ({"task_reduction_factor": 2, "encoder_side_layers": "[0, 1, 2]", "n_boxes": 9, "sparse_sample": False}, 9),
    ],
)
def test_their_settings(settings: dict[str, object], tokens: int) -> None:
    claims = Claims.from_settings(settings, TIED.config)
    imported = import_side(whole(make_side()), TIED, claims)
    assert imported.side.config.visual is not None
    assert imported.side.config.visual.tokens == tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_boxes": 4, "oneddownsample": True}, "the settings have oneddownsample True: only False is supported"),
        ({"n_boxes": 4, "use_vis_order_embedding": False}, "use_vis_order_embedding False: only True is supported"),
        ({"n_boxes": 4.5}, "the settings' n_boxes must be a int, got 4.5"),
        ({"r": 2, "side_reduction_factor": 4}, "the settings' r and side_reduction_factor differ"),
        ({"n_boxes": 4, "feat_dim": 2048}, "feat_dim 2048 is claimed, and the checkpoint says 5"),
        ({"n_boxes": 4, "n_images": 1}, "n_images 1 is claimed, and the checkpoint says 2"),
        (
            {"n_boxes": 4, "encoder_side_layers": "[0, 2]"},
            "encoder layers 0,2 are claimed, and the checkpoint has 0,1,2",
        ),
        ({"n_boxes": 4, "encoder_side_layers": "all"}, "must be a list of layer numbers or null, got 'all'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        import_side(whole(make_side()), TIED, Claims.from_settings(settings, TIED.config))
    assert message in str(caught.value)


def test_an_encoder_that_reads_images_reads_the_table_of_the_layer_listed_first() -> None:
    theirs = whole(make_side(encoder_layers=(0, 2)))
    name = "encoder.side_block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    theirs[name.format(2)] = table = theirs.pop(name.format(0))
    imported = import_side(theirs, TIED, Claims(encoder_layers=(2, 0), visual_tokens=4))
    assert torch.equal(imported.side.state_dict()["encoder.relative_bias.weight"], table)
    assert imported.notes == ()


def test_a_backbone_with_the_added_rows() -> None:
    side = make_side()
    larger = make_backbone(vocab_size=ROWS + ADDED)
    vocabulary = {"shared": side.visual.positions, "head": side.visual.positions}
    larger.load_state_dict(TIED.state_dict() | vocabulary)
    imported = import_side(whole(side), larger, Claims(visual_tokens=4))
    assert torch.equal(imported.side.visual.positions, side.visual.positions)


ORDER = f"{VISUAL}img_order_embedding.weight"
FEATURES = f"{VISUAL}feat_embedding"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.fromkeys((POSITIONS, *COPIES)), "the checkpoint reads images and lacks shared.weight"),
        ({ORDER: None}, f"the checkpoint lacks {ORDER}"),
        ({ORDER: torch.ones(24)}, f"the checkpoint's {ORDER} has shape (24,), and needs two sizes"),
        ({f"{FEATURES}.1.weight": None}, f"it lacks {FEATURES}.1.weight"),
        ({f"{FEATURES}.2.weight": torch.ones(24, 24)}, f"it has {FEATURES}.2.weight besides"),
        (
            {f"{VISUAL}absolute_vis_pos_embedding.0.weight": torch.ones(24, 4)},
            "has shape (24, 4), and (24, 5) is needed",
        ),
        ({f"{VISUAL}layer_norm.weight": torch.ones(24)}, f"it has {VISUAL}layer_norm.weight besides"),
        (dict.fromkeys((POSITIONS, *COPIES), torch.ones(ROWS + ADDED, 24)), "belongs to another backbone: its shared"),
        ({"lm_head.weight": torch.ones(ROWS + ADDED, 24)}, "the checkpoint's head is not its shared"),
        ({"vis_encoder.conv1.weight": torch.ones(1)}, "has vis_encoder.conv1.weight, which is no part of a T5"),
    ],
)
def test_a_fault_names_the_tensor_as_the_authors_do(change: Mapping[str, Tensor | None], message: str) -> None:
    theirs: dict[str, Tensor | None] = {**whole(make_side()), **change}
    with pytest.raises(CheckpointError) as caught:
        import_side({name: t for name, t in theirs.items() if t is not None}, TIED, Claims(visual_tokens=4))
    assert message in str(caught.value)


def test_images_are_claimed_of_a_checkpoint_without_them() -> None:
    with pytest.raises(CheckpointError, match="images are claimed, and the checkpoint has no encoder"):
        import_side(export(random_side(SideConfig(reduction=2))), TIED, Claims(visual_tokens=4))
