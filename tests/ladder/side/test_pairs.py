"""Heads that read two texts, or a text and its images, apart: what they read, alone and stacked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ladder import Backbone, Classify, NotFiniteError, Row, SideBank, SideConfig, answer, load_backbone
from ladder.answers import ClassAnswer
from ladder.errors import InputsError, SideConfigError
from ladder.side.pairs import pair_features, pair_means, text_and_images
from ladder.stacked.network import StackedBatch
from tests.ladder.stacks import make_inputs, make_sides, one_by_one, stacked

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PICKS = [2, 0, 1, 1, 3, 2, 2]
"""Each row's side network."""
PAIRS = torch.tensor([[[0, 3], [4, 8]], [[0, 1], [1, 1]], *([[[0, 1], [0, 2]]] * 5)])
"""The second row has nothing left of its second text."""


@pytest.fixture(scope="module")
def t5(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


def test_the_features_of_a_pair_by_hand() -> None:
    state = torch.tensor([[[1.0, -2.0], [3.0, 0.0], [5.0, 1.0], [9.0, 9.0]]])
    means = pair_means(state, torch.tensor([[[0, 2], [2, 3]]]))
    assert means.tolist() == [[[2.0, -1.0], [5.0, 1.0]]]
    assert pair_features(means).tolist() == [[2.0, -1.0, 5.0, 1.0, 3.0, 2.0, 10.0, -1.0]]


def test_a_text_that_is_cut_off_reads_as_zeros() -> None:
    means = pair_means(torch.ones(1, 4, 2), torch.tensor([[[0, 3], [3, 3]]]))
    assert means.tolist() == [[[1.0, 1.0], [0.0, 0.0]]]


def test_a_text_and_its_images_are_a_pair() -> None:
    mask = torch.tensor([[True, True, False, True, True], [True, True, True, True, False]])
    assert text_and_images(mask, 3).tolist() == [[[0, 2], [3, 5]], [[0, 3], [3, 4]]]


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize("shape", [{}, {"tap_norm": "rms", "encoder_layers": (1,)}], ids=str)
def test_stacked_equal_their_modules(t5: Backbone, head: str, shape: dict[str, object]) -> None:
    sides = make_sides(t5, max(PICKS) + 1, head=head, pair=True, **shape)
    held = stacked(SideBank(t5), sides)
    taps = replace(t5.encode(*make_inputs(len(PICKS))), pairs=PAIRS)
    memory = StackedBatch([held[pick] for pick in PICKS]).encode(taps)
    found = [
        held[pick].read_all(memory[row : row + 1], taps.select(torch.tensor([row]))) for row, pick in enumerate(PICKS)
    ]
    assert_close(torch.cat(found), one_by_one([sides[pick] for pick in PICKS], taps), **CLOSE)


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize("in_bank", [True, False])
def test_equal_tokens_that_are_parted_elsewhere_are_other_rows(t5: Backbone, in_bank: bool, head: str) -> None:
    """Beside a task that reads all tokens alike, of the same shape; a row that does not say fails alone."""
    bank, how = SideBank(t5), Classify(labels=("a", "b", "c"))
    [apart] = make_sides(t5, 1, head=head, pair=True)
    [together] = make_sides(t5, 1, head="linear")
    sides = stacked(bank, [apart, together]) if in_bank else [apart, together]
    ids = (5, 8, 13, 22, 17, 1)
    pairs = [((0, 2), (2, 5)), ((0, 4), (4, 5))]
    rows = [Row(ids=ids, side=sides[0], answerer=how, pair=pair) for pair in pairs]
    rows += [Row(ids=ids, side=sides[1], answerer=how, pair=pairs[0])]
    answers = answer(t5, rows)
    scores = [found.scores for found in answers if isinstance(found, ClassAnswer)]
    assert len(set(scores)) == 3
    for row, score in zip(rows, scores, strict=True):
        [alone] = answer(t5, [replace(row, side=apart if row.side is sides[0] else together)])
        assert isinstance(alone, ClassAnswer)
        assert score == pytest.approx(alone.scores, abs=1e-4)
    failed, fine = answer(t5, [replace(rows[0], pair=None), rows[2]])
    assert isinstance(failed, InputsError)
    assert isinstance(fine, ClassAnswer)
    assert not isinstance(fine, NotFiniteError)


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_a_network_that_is_not_told_where_its_texts_are_says_so(t5: Backbone, head: str) -> None:
    [side] = make_sides(t5, 1, head=head, pair=True)
    taps = t5.encode(*make_inputs(2))
    with pytest.raises(InputsError, match="reads two texts apart"):
        side.read_all(side.encode(taps), taps)


def test_the_setting_is_in_files_only_where_it_is_on() -> None:
    assert "pair" not in SideConfig(head="linear", outputs=2).to_dict()
    config = SideConfig(head="linear", outputs=2, pair=True)
    assert SideConfig.from_dict(config.to_dict()) == config
    for head, outputs, words in (("text", 0, False), ("mlp", 2, False), ("linear", 2, True)):
        with pytest.raises(SideConfigError, match="pair needs the linear head, without words, or the attention head"):
            SideConfig(head=head, outputs=outputs, words=words, pair=True)  # type: ignore[arg-type]
