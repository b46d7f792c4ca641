"""A batch in parts: what the encoder says of each row is what it says without, and hardly any padding is computed."""

import copy
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ladder import Backbone, load_backbone
from ladder.backbone.packing import PART_TOKENS, WORTH, Division, Part, divide
from ladder.backbone.passes import padded
from tests import families
from tests.exact import CLOSE, float64

KINDS = ("t5", "umt5", "bart")
LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    @cache
    def load(kind: str, quantize: str = "none") -> Backbone:
        folder = families.make(kind, tmp_path_factory.mktemp(kind))
        return load_backbone(str(folder), device="cpu", quantize=quantize)

    return load


def inputs(lengths: list[int]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(3, 60, (length,), generator=draw).tolist() for length in lengths]


def cost(parts: list[Part]) -> int:
    return sum(part.size + PART_TOKENS for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(lengths=LENGTHS, depth=st.sampled_from([None, 0, 1, 2, 9]))
def test_taps_in_parts_are_the_taps(backbones, kind, lengths, depth):
    backbone = copy.deepcopy(backbones(kind)).double()
    ids, mask = padded(backbone, inputs(lengths))
    parts = [Part((row,), length) for row, length in enumerate(lengths)]  # the most that there can be
    together = [Part(tuple(range(len(lengths))), max(lengths))]
    with float64():
        whole = backbone.encode(ids, mask, depth)
    for division in (Division(parts, together), Division(parts[::-1], divide(lengths, 3)), Division.of(lengths)):
        with float64():
            found = backbone.encode_divided(ids, mask, depth, division)
        for group, taps in zip(division.groups, found, strict=True):
            assert len(taps.blocks) == len(whole.blocks)
            assert (taps.final is None) == (whole.final is None)
            assert torch.equal(taps.mask, mask[list(group.rows), : group.tokens])
            for ours, theirs in zip(layers(taps), layers(whole), strict=True):
                expected = theirs[list(group.rows), : group.tokens]
                assert_close(ours[taps.mask], expected[taps.mask], **CLOSE)
                assert ours.isfinite().all()  # at padding too, where nobody may look


def layers(taps):
    return [taps.embeddings, *taps.blocks, *([] if taps.final is None else [taps.final])]


def test_whole_numbers_stay_what_they_are(backbones):
    """w8a8 rounds each token by itself, so its products are the same in any company."""
    backbone, lengths = backbones("t5", "w8a8"), [3, 9, 4, 17, 17]
    ids, mask = padded(backbone, inputs(lengths))
    division = Division(divide(lengths, PART_TOKENS), [Part(tuple(range(5)), 17)])
    whole, [found] = backbone.encode(ids, mask), backbone.encode_divided(ids, mask, None, division)
    assert whole.final is not None
    assert found.final is not None
    assert_close(found.final[mask], whole.final[mask], atol=1e-3, rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_no_other_division_costs_less(lengths):
    parts = divide(lengths, PART_TOKENS)
    ordered = sorted(lengths)
    places = range(1, len(lengths))
    least = min(
        cost([Part(tuple(range(a, b)), ordered[b - 1]) for a, b in pairwise((0, *cuts, len(lengths)))])
        for count in range(len(lengths))
        for cuts in combinations(places, count)
    )
    if len(parts) > 1:
        assert cost(parts) == least
    assert sorted(row for part in parts for row in part.rows) == list(range(len(lengths)))
    assert all(part.tokens == max(lengths[row] for row in part.rows) for part in parts)


def test_little_is_left_of_the_padding_of_mixed_lengths_and_equal_ones_stay_together():
    lengths = [12, 90, 14, 33, 35, 16, 60, 31, 13, 58, 15, 34]
    computed = Division.of(lengths).tokens
    assert (computed - sum(lengths)) / computed < 0.05 < 0.5 < 1 - sum(lengths) / (12 * 90)
    assert divide([7] * 5, 1) == [Part((0, 1, 2, 3, 4), 7)]
    assert divide([40, 40, 39], 0) == [Part((0, 1, 2), 40)]  # hardly worth it
    assert Division.of([7] * 5).is_trivial
    assert WORTH < 39 / 40
