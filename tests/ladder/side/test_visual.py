"""A side network that reads images equals the slow reference, in any batch, and says what it cannot read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

from ladder import (
    Backbone,
    BackboneConfig,
    CheckpointError,
    Classify,
    SideConfig,
    SideConfigError,
    SideNetwork,
    Taps,
    load_backbone,
    load_side,
    run_backbone,
    save_side,
)
from ladder.answering.reading import SingleReading
from ladder.backbone import Images
from ladder.config import VisualConfig
from ladder.errors import InputsError
from ladder.side import backbone_shape
from ladder.side.network import forward
from tests.ladder.side.test_network import random_side
from tests.reference.lst import SlowSide

VISUAL = VisualConfig(features=6, tokens=4, positions=9)
SHAPES = {
    "all": SideConfig(reduction=4, visual=VISUAL),
    "dropped": SideConfig(reduction=2, encoder_layers=(1,), decoder_layers=(0,), visual=VISUAL),
    "no rungs": SideConfig(reduction=8, encoder_layers=(), decoder_layers=(), visual=VISUAL),
    "gate none": SideConfig(reduction=4, gate="none", visual=VISUAL),
    "gate one": SideConfig(reduction=4, gate="one", bias=False, visual=VISUAL),
    "mix after": SideConfig(reduction=4, mix_after=True, gate="fixed", gate_start=0.07, visual=VISUAL),
    "rms taps": SideConfig(reduction=4, tap_norm="rms", visual=VISUAL),
    "not damped": SideConfig(reduction=4, gate_start=0.1, visual=replace(VISUAL, damped=False)),
    "more tokens": SideConfig(reduction=4, visual=replace(VISUAL, tokens=9)),
}


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


def make_images(rows: int, count: int = 2, cells: int = 9, width: int = 6) -> Images:
    torch.manual_seed(9)
    return Images.of(torch.randn(rows, count, cells, width), torch.rand(rows, count, cells, 4))


def with_images(backbone: Backbone, images: Images | None, inputs: list[list[int]]) -> Taps:
    return replace(run_backbone(backbone, inputs).taps, images=images)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_slow_reference(backbone: Backbone, shape: str) -> None:
    side = random_side(SHAPES[shape], backbone.config)
    slow = SlowSide(side.state_dict(), side.config, backbone.config)
    images, decoder_ids = make_images(1), torch.tensor([[0, 40, 50]])
    assert images.boxes is not None
    taps = with_images(backbone, images, [[5, 6, 7, 8, 1]])
    decoder_taps = backbone.decode(decoder_ids, taps.final, taps.mask)
    read = list(zip(images.features, images.boxes, strict=True))
    slow_memory = slow.encode(taps.embeddings[0], [block[0] for block in taps.blocks], read)
    memory = side.encode(taps)
    assert_close(memory[0], slow_memory, atol=1e-4, rtol=1e-4)
    slow_state = slow.decode(decoder_taps.embeddings[0], [b[0] for b in decoder_taps.blocks], slow_memory)
    state = side.decode(decoder_taps, memory, side.memory_mask(taps))
    assert_close(state[0], slow_state, atol=1e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_its_batch(backbone: Backbone) -> None:
    """Texts of different lengths are padded before the images; rows may have fewer images than others."""
    side = random_side(SHAPES["all"], backbone.config)
    images = replace(make_images(3), rows=[(0, 1), (2,), (4, 5)])
    inputs = [[5, 6, 7, 8, 1], [9, 1], [20, 3, 1]]
    together = states(backbone, side, with_images(backbone, images, inputs))
    for row, ids in enumerate(inputs):
        alone = with_images(backbone, images.select([row]), [ids])
        assert_close(together[row : row + 1], states(backbone, side, alone))


def states(backbone: Backbone, side: SideNetwork, taps: Taps) -> Tensor:
    start = torch.zeros(len(taps.mask), 1, dtype=torch.long)
    decoder_taps = backbone.decode(start, taps.final, taps.mask)
    return side.decode(decoder_taps, side.encode(taps), side.memory_mask(taps))


def test_a_linear_head_reads_the_images_too(backbone: Backbone) -> None:
    config = SideConfig(head="linear", outputs=2, reduction=4, words=True, visual=VISUAL)
    side = random_side(config, backbone.config)
    taps = with_images(backbone, make_images(2), [[5, 6, 1], [9, 1]])
    memory = side.encode(taps)
    mean = torch.stack([memory[row][side.memory_mask(taps)[row]].mean(0) for row in range(2)])
    words = torch.stack([taps.embeddings[row][taps.mask[row]].mean(0) for row in range(2)])
    expected = side.head(mean) + side.words(words)
    assert_close(side.read_all(memory, taps), expected)
    backbone_pass = run_backbone(backbone, [[5, 6, 1], [9, 1]])
    backbone_pass.taps = taps
    scores = Classify(labels=("a", "b")).answers(SingleReading(backbone_pass, side))
    assert_close(torch.tensor([answer.scores for answer in scores]), side.head(mean).softmax(-1))


def test_missing_boxes_are_zero(backbone: Backbone) -> None:
    side = random_side(SHAPES["all"], backbone.config)
    images = make_images(1)
    bare, zero = (replace(images, boxes=boxes) for boxes in (None, torch.zeros(2, 9, 4)))
    found = [side.encode(with_images(backbone, some, [[5, 1]])) for some in (bare, zero)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "this side network reads images besides the text: give each row its images"),
        (make_images(1, width=5), "images have 5 features a token, and this side network reads 6"),
        (make_images(1, count=3), "inputs have 3 images, and this side network reads at most 2"),
        (make_images(1, cells=8), "images have 8 tokens, and a square grid of at least 4 is needed"),
        (make_images(1, cells=1), "images have 1 tokens, and a square grid of at least 4 is needed"),
    ],
)
def test_images_that_it_cannot_read(backbone: Backbone, images: Images | None, message: str) -> None:
    side = random_side(SHAPES["all"], backbone.config)
    with pytest.raises(InputsError, match=message):
        side.encode(with_images(backbone, images, [[5, 1]]))


def test_grids_as_they_are(backbone: Backbone) -> None:
    side = random_side(SideConfig(reduction=4, visual=replace(VISUAL, tokens=0)), backbone.config)
    taps = with_images(backbone, make_images(1, cells=7), [[5, 1]])
    assert side.encode(taps).shape[1] == side.memory_mask(taps).shape[1] == 2 + 2 * 7
    with pytest.raises(InputsError, match="images have 10 tokens, and this side network has 9 positions"):
        side.encode(with_images(backbone, make_images(1, cells=10), [[5, 1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 0}, "visual features must be >= 1, got 0"),
        ({"images": 0}, "visual images must be >= 1"),
        ({"tokens": 5}, "visual tokens must be a square number, got 5"),
        ({"tokens": 16}, "visual tokens must be at most positions 9, got 16"),
        ({"vocabulary": 5}, "visual vocabulary must be 0 or >= positions 9, got 5"),
    ],
)
def test_settings_that_make_no_sense(change: dict, message: str) -> None:
    with pytest.raises(SideConfigError, match=message):
        replace(VISUAL, **change)


def test_heads_and_backbones_that_read_no_images(backbone: Backbone) -> None:
    with pytest.raises(SideConfigError, match="an mlp head reads the last token of a text"):
        SideConfig(head="mlp", outputs=2, visual=VISUAL)
    with pytest.raises(SideConfigError, match="beside a backbone of type t5 or mt5, got umt5"):
        SHAPES["all"].resolve(replace(backbone.config, model_type="umt5"))


def test_a_file_keeps_settings_and_positions(tmp_path: Path, backbone: Backbone) -> None:
    side = random_side(SHAPES["not damped"], backbone.config)
    save_side(tmp_path / "side.safetensors", side)
    again = load_side(tmp_path / "side.safetensors", backbone.config)
    assert again.config == side.config
    assert torch.equal(again.visual.positions, side.visual.positions)
    images, ids = make_images(1), torch.tensor([[5, 6, 1]])
    given = (ids, ids > 0, torch.tensor([[0, 7]]), images)
    assert torch.equal(forward(backbone, again, *given), forward(backbone, side, *given))


def test_a_side_network_of_texts_is_written_as_before(tmp_path: Path, backbone: Backbone) -> None:
    side = random_side(SideConfig(reduction=4), backbone.config)
    save_side(tmp_path / "side.safetensors", side)
    with safe_open(tmp_path / "side.safetensors", framework="pt") as opened:
        header = json.loads(opened.metadata()["sidecast.side_network"])
        assert not any("visual" in name for name in [*header["config"], *opened.keys()])


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        ("yes", "visual must be an object, got 'yes'"),
        ({"tokens": 4}, "visual features are missing"),
        ({"features": 6.0}, "visual features must be of type int, got 6.0"),
        ({"features": 6, "damped": 1}, "visual damped must be of type bool, got 1"),
        ({"features": 6, "depth": 1}, r"unknown side network settings visual \['depth'\]: made by a newer Sidecast"),
    ],
)
def test_settings_that_do_not_read(visual: object, message: str) -> None:
    with pytest.raises(SideConfigError, match=message):
        SideConfig.from_dict({"visual": visual})


def test_a_checkpoint_for_other_features_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    side = random_side(SHAPES["all"], backbone.config)
    side.config = replace(side.config, visual=replace(VISUAL, features=7))
    save_side(tmp_path / "side.safetensors", side)
    with pytest.raises(CheckpointError, match=r"visual.features.weight has shape \(32, 6\), .* needs \(32, 7\)"):
        load_side(tmp_path / "side.safetensors", backbone.config)


def test_the_papers_number_of_weights() -> None:
    """17.97 million at T5-base and r 4, 7.46 % of all weights; positions are not trained."""
    shape = replace(backbone_shape("t5-base").config, vocab_size=32200)
    with torch.device("meta"):
        side = SideNetwork(SideConfig(reduction=4, visual=VisualConfig(features=2048)), shape)
        all_weights = sum(p.numel() for name, p in Backbone(shape).named_parameters() if name != "head")  # tied
    trained = sum(parameter.numel() for parameter in side.parameters())
    assert round(trained / 1e6, 2) == 17.97
    assert round(100 * trained / (trained + all_weights), 2) == 7.46


def test_random_starts_are_the_authors(backbone: Backbone) -> None:
    """Projections as torch starts them; embeddings normal; blocks as without images."""
    shape = BackboneConfig(
        d_model=512, d_kv=64, d_ff=1024, num_heads=8, num_layers=1, num_decoder_layers=1, vocab_size=30
    )
    torch.manual_seed(0)
    side = SideNetwork(SideConfig(reduction=4, visual=VisualConfig(features=300)), shape).requires_grad_(False)
    for linear in (side.visual.features, side.upsample, side.encoder.first_downsample):
        most = linear.in_features**-0.5
        assert 0.99 * most < float(linear.weight.abs().max()) <= most
        assert float(linear.bias.abs().max()) > 0.5 * most
    assert abs(float(side.visual.positions.std()) - 1) < 0.02
    query = side.encoder.rungs[0].block.attention.q.weight
    assert abs(float(query.std()) * (512 * 64) ** 0.5 - 1) < 0.05
