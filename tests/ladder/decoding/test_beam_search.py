"""Beam search: equal to Hugging Face's on the same logits for any settings; rows and faults keep to themselves."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import Generation, NotFiniteError, SideNetwork
from ladder.decoding.generate import generate
from ladder.side.network import forward
from tests.exact import float64
from tests.ladder import decoding_kit
from tests.ladder.oracle import Oracle
from tests.marks import slow
from tests.reference.beam import beam_search as slow_beam_search


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return decoding_kit.make_backbone(tmp_path_factory.mktemp("decoding") / "t5")


SETTINGS = st.fixed_dictionaries(
    {"num_beams": st.integers(2, 5)},
    optional={
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
        "early_stopping": st.sampled_from([True, "never"]),
        "min_new_tokens": st.integers(1, 6),
        "no_repeat_ngram_size": st.integers(1, 3),
        "repetition_penalty": st.sampled_from([0.7, 1.3, 4.0]),
    },
)


def check_against_hugging_face(backbone, how: dict[str, Any], seed: int, limit: int) -> None:
    """In float64: where two beams are as good but for rounding, a cache and none would choose differently."""
    backbone, side = copy.deepcopy(backbone).double(), decoding_kit.make_side(backbone, seed).double()
    with float64():
        [ours] = generate(backbone, [decoding_kit.segment(backbone, side, limit=limit, decoding=Generation(**how))])
        assert ours == Oracle(backbone, side).tokens(decoding_kit.padded(), limit, do_sample=False, **how)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, slow(0.0), slow(1.0), 2.0])
def test_equals_hugging_face(backbone, early_stopping, length_penalty):
    how = {"num_beams": 3, "early_stopping": early_stopping, "length_penalty": length_penalty}
    check_against_hugging_face(backbone, how, 2, decoding_kit.LIMIT)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(how=SETTINGS, seed=st.integers(0, 9), limit=st.integers(1, 9))
def test_equals_hugging_face_with_any_settings(backbone, how, seed, limit):
    check_against_hugging_face(backbone, how, seed, max(limit, how.get("min_new_tokens", 0)))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(how=SETTINGS, seed=st.integers(0, 99), limit=st.integers(6, 16))
def test_equals_hugging_face_with_many_settings(backbone, how, seed, limit):
    check_against_hugging_face(backbone, how, seed, limit)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    beams=st.integers(2, 5),
    seed=st.integers(0, 9),
    limit=st.integers(1, 9),
    length_penalty=st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
    early_stopping=st.booleans(),
)
def test_legacy_beams_equal_the_slow_search_of_4_6(backbone, beams, seed, limit, length_penalty, early_stopping):
    side, how = (
        decoding_kit.make_side(backbone, seed),
        {"length_penalty": length_penalty, "early_stopping": early_stopping},
    )
    generation = Generation(num_beams=beams, legacy_beams=True, **how)
    [ours] = generate(backbone, [decoding_kit.segment(backbone, side, limit=limit, decoding=generation)])
    for row, tokens in zip(decoding_kit.INPUTS, ours, strict=True):
        ids = torch.tensor([row])

        def logits(texts: torch.Tensor, ids: torch.Tensor = ids) -> torch.Tensor:
            ids = ids.expand(len(texts), -1)
            return forward(backbone, side, ids, ids > 0, texts)[:, -1]

        slow = slow_beam_search(logits, beams=beams, limit=limit, start=0, end=1, **how)
        assert list(tokens) == slow


def mixed(backbone, sides: list[SideNetwork]) -> list[Any]:
    ways = [{"num_beams": 2}, {"num_beams": 4, "early_stopping": True}, {}, {"num_beams": 3}]
    limits = [4, 9, 6, 2]
    return [
        decoding_kit.segment(backbone, side, limit=limit, decoding=Generation(**how))
        for side, how, limit in zip(sides, ways, limits, strict=True)
    ]


def test_segments_of_different_widths_and_limits_equal_each_alone(backbone):
    shapes = [{}, {"reduction": 2, "decoder_layers": (0, 2)}, {"merge_last": True}, {"decoder_layers": ()}]
    sides = [decoding_kit.make_side(backbone, seed, **shape) for seed, shape in enumerate(shapes)]
    together = generate(backbone, mixed(backbone, sides))
    alone = [generate(backbone, [each])[0] for each in mixed(backbone, sides)]
    assert together == alone
    assert len({len(text) for texts in together for text in texts}) > 2


@pytest.mark.parametrize("broken", [0, slow(1), slow(2), 3])
@pytest.mark.parametrize("how", ["nan", "raises", "raises later"])
def test_a_broken_side_network_fails_alone(backbone, broken, how, monkeypatch):
    sides = [decoding_kit.make_side(backbone, seed) for seed in range(4)]
    healthy = generate(backbone, mixed(backbone, sides))
    side = sides[broken]
    if how == "nan":
        for parameter in side.parameters():
            parameter.fill_(float("nan"))
    elif how == "raises":
        side.encoder.first_downsample = None
    else:
        decode = side.decode

        def fail_at_the_second_token(taps, memory, mask, cache):
            if cache.length:
                raise RuntimeError("broken")
            return decode(taps, memory, mask, cache)

        monkeypatch.setattr(side, "decode", fail_at_the_second_token)
    for place, (texts, before) in enumerate(zip(generate(backbone, mixed(backbone, sides)), healthy, strict=True)):
        if place == broken:
            failed = [isinstance(text, NotFiniteError if how == "nan" else Exception) for text in texts]
            assert any(failed) if how == "raises later" else all(failed)  # a text may have ended before
        else:
            assert texts == before


def test_one_row_that_is_not_finite_fails_alone(backbone):
    side, how = decoding_kit.make_side(backbone, 0), Generation(num_beams=3)
    [healthy] = generate(backbone, [decoding_kit.segment(backbone, side, decoding=how)])
    segment = decoding_kit.segment(backbone, side, decoding=how)
    segment.taps.blocks[0][1] = float("nan")
    [broken] = generate(backbone, [segment])
    assert isinstance(broken[1], NotFiniteError)
    assert [broken[0], broken[2]] == [healthy[0], healthy[2]]


def test_no_new_tokens_no_text(backbone):
    side = decoding_kit.make_side(backbone, 0)
    none = decoding_kit.segment(backbone, side, limit=0, decoding=Generation(num_beams=2))
    some = decoding_kit.segment(backbone, side, limit=3, decoding=Generation(num_beams=2))
    assert generate(backbone, [none]) == [[(), (), ()]]
    first, second = generate(
        backbone, [decoding_kit.segment(backbone, side, limit=0, decoding=Generation(num_beams=2)), some]
    )
    assert first == [(), (), ()]
    assert any(second)


def test_the_source_is_read_once_a_row_and_not_once_a_beam(backbone, monkeypatch):
    rows = []
    decode = type(backbone).decode
    monkeypatch.setattr(
        type(backbone), "decode", lambda self, ids, *rest: rows.append(len(ids)) or decode(self, ids, *rest)
    )
    side = decoding_kit.make_side(backbone, 0)
    generate(backbone, [decoding_kit.segment(backbone, side, decoding=Generation(num_beams=4))])
    assert rows[:3] == [3, 12, 12]
