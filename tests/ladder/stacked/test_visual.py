"""Stacked side networks that read images equal their modules: encoded, decoded, scored and among networks of texts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ladder import Backbone, BackbonePass, Classify, Generation, Row, SideBank, SideNetwork, Taps, load_backbone
from ladder.answering.batch_plan import plan
from ladder.answering.label_trie import LabelTrie
from ladder.answering.mixed_batch import answer, score
from ladder.answers import ClassAnswer
from ladder.backbone import Images, run_backbone
from ladder.config import VisualConfig
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.errors import InputsError
from ladder.stacked.network import Side, StackedBatch
from tests.ladder.decoding_kit import INPUTS, make_backbone, make_side
from tests.ladder.stacks import make_inputs, make_sides, stacked, tokens_of

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
VISUAL = VisualConfig(features=6, tokens=4, positions=9)
PICKS = [2, 0, 1, 1, 3, 2, 2]
"""Each row's side network."""


@pytest.fixture(scope="module")
def t5(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


def make_images(rows: int) -> Images:
    """Two images a row; every other row has the first alone."""
    random = torch.Generator().manual_seed(9)
    features = torch.randn(2 * rows, 9, 6, generator=random)
    reads = [(2 * row,) if row % 2 else (2 * row, 2 * row + 1) for row in range(rows)]
    return Images(features=features, rows=reads, boxes=torch.rand(2 * rows, 9, 4, generator=random))


def make_visual_sides(backbone: Backbone, count: int, **shape: object) -> list[SideNetwork]:
    sides = make_sides(backbone, count, **{"visual": VISUAL} | shape)  # type: ignore[arg-type]
    with torch.no_grad():
        for side in sides:
            side.visual.positions.normal_()
    return sides


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"gate": "none", "mix_after": True, "encoder_layers": (0, 2), "decoder_layers": (1,)},
        {"gate_form": "channel", "gate_start": 0.04, "bias": False, "encoder_layers": (1,)},
        {"gate_start": 0.04, "visual": replace(VISUAL, damped=False)},
        {"visual": replace(VISUAL, tokens=0), "encoder_layers": ()},
        {"head": "linear", "words": True},
        {"head": "linear", "pair": True},
        {"tap_norm": "rms", "encoder_layers": (1,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("inputs", [None, [0, 1, 0, 1, 0, 0, 1], [0] * 7])
def test_equals_its_modules(t5: Backbone, shape: dict[str, object], inputs: list[int] | None) -> None:
    """Rows of several side networks, each of its own input or of one that it shares."""
    sides = make_visual_sides(t5, max(PICKS) + 1, **shape)
    held = stacked(SideBank(t5), sides)
    taps = replace(t5.encode(*make_inputs(len(PICKS))), images=make_images(len(PICKS)))
    reads = inputs or list(range(len(PICKS)))
    batch = StackedBatch([held[pick] for pick in PICKS])
    memory, mask = batch.encode(taps, inputs), batch.memory_mask(taps)[reads]
    read_taps = taps.select(torch.tensor(reads))
    if shape.get("head") == "linear":
        found = [held[pick].read_all(memory, read_taps)[row] for row, pick in enumerate(PICKS)]
        expected = [alone(t5, sides[pick], row_of(read_taps, row)) for row, pick in enumerate(PICKS)]
        return assert_close(torch.stack(found), torch.cat(expected), **CLOSE)
    decoded = t5.decode(make_inputs(len(PICKS), 4, seed=2)[0], read_taps.final, read_taps.mask)
    expected = [alone(t5, sides[pick], row_of(read_taps, row), row_of(decoded, row)) for row, pick in enumerate(PICKS)]
    assert_close(batch.decode(decoded, memory, mask), torch.cat(expected), **CLOSE)
    cache, parts = batch.decoder_cache(), (slice(0, 1), slice(1, 3), slice(3, 4))
    steps = [batch.decode(tokens_of(decoded, part), memory, mask, cache) for part in parts]
    return assert_close(torch.cat(steps, 1), torch.cat(expected), **CLOSE)


def row_of(taps: Taps, row: int) -> Taps:
    return taps.select(torch.tensor([row]))


def alone(backbone: Backbone, side: SideNetwork, taps: Taps, decoded: Taps | None = None) -> Tensor:
    memory = side.encode(taps)
    return side.read_all(memory, taps) if decoded is None else side.decode(decoded, memory, side.memory_mask(taps))


def test_networks_that_read_other_images_are_computed_apart(t5: Backbone) -> None:
    bank = SideBank(t5)
    [one] = stacked(bank, make_visual_sides(t5, 1))
    [other] = stacked(bank, make_visual_sides(t5, 1, visual=replace(VISUAL, tokens=9)))
    [text] = stacked(bank, make_sides(t5, 1))
    assert len({one.shape, other.shape, text.shape}) == 3


def test_texts_and_beams_among_networks_of_texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stacked, of images and of texts, in one loop: each row's tokens are those of its module for that row alone."""
    backbone = make_backbone(tmp_path_factory.mktemp("decoding") / "t5")
    sides = [make_side(backbone, seed, visual=VISUAL if seed % 2 else None) for seed in range(4)]
    bank = SideBank(backbone)
    images = make_images(len(INPUTS))
    taps = replace(run_backbone(backbone, INPUTS).taps, images=images)
    rows = [replace(run_backbone(backbone, [ids]).taps, images=images.select([row])) for row, ids in enumerate(INPUTS)]
    for how in (Generation(), Generation(num_beams=3)):
        expected = [[generate(backbone, [segment(side, row, how)])[0][0] for row in rows] for side in sides]
        assert len({tuple(map(tuple, rows)) for rows in expected}) > 1
        assert generate(backbone, [segment(bank.add(side), taps, how) for side in sides]) == expected


def segment(side: Side, taps: Taps, how: Generation) -> Segment:
    return Segment(side=side, taps=taps, limit=6, decoding=how)


@pytest.mark.parametrize("head", ["text", "linear"])
def test_scores_in_a_mixed_batch(t5: Backbone, head: str) -> None:
    labels = ("a", "b", "c")
    trie = LabelTrie([(5, 1), (5, 6, 1), (7, 1)]) if head == "text" else None
    answerer = Classify(labels=labels, trie=trie)
    sides: list[Side] = [*make_visual_sides(t5, 2, head=head), *make_sides(t5, 1, head=head)]
    held = [SideBank(t5).add(side) for side in sides]
    ids = ((5, 6, 7, 1), (9, 1), (20, 3, 1))
    images = make_images(len(ids))

    def scores(chosen: list[Side], read: tuple[tuple[int, ...], ...], seen: Images) -> list[tuple[float, ...]]:
        rows = [Row(ids=tokens, side=side, answerer=answerer) for side in chosen for tokens in read]
        planned = plan(rows)
        order = torch.tensor([read.index(tokens) for _, tokens in planned.inputs])
        taps = replace(run_backbone(t5, [tokens for _, tokens in planned.inputs]).taps, images=seen.select(order))
        outcomes: dict[int, object] = {}
        score(BackbonePass(t5, taps), planned.groups, outcomes.update)  # type: ignore[arg-type]
        answers = [outcomes[index] for index in range(len(rows))]
        assert all(isinstance(found, ClassAnswer) for found in answers), answers
        return [found.scores for found in answers if isinstance(found, ClassAnswer)]

    together = scores(held, ids, images)
    apart = [
        scores([side], (tokens,), images.select(torch.tensor([row])))[0]
        for side in sides
        for row, tokens in enumerate(ids)
    ]
    assert_close(torch.tensor(together), torch.tensor(apart), **CLOSE)


def test_a_row_without_its_image_fails_alone(t5: Backbone) -> None:
    answerer = Classify(labels=("a", "b", "c"))
    bank = SideBank(t5)
    sides = [*make_visual_sides(t5, 1, head="linear"), *make_sides(t5, 1, head="linear")]
    rows = [Row(ids=(5, 1), side=bank.add(side), answerer=answerer) for side in sides]
    image, text = answer(t5, rows)
    assert isinstance(image, InputsError)
    assert isinstance(text, ClassAnswer)
