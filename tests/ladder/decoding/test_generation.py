"""Sampling and the controls of repetition and length: equal to Hugging Face's; a row's text is its seed's alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ladder import Generate, Generation, GenerationError, NotFiniteError, Row, answer
from ladder.decoding.generate import generate
from ladder.decoding.logits import adjust, draw
from tests.ladder import decoding_kit
from tests.ladder.oracle import Oracle
from tests.marks import slow

SEED = 7


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return decoding_kit.make_backbone(tmp_path_factory.mktemp("decoding") / "t5")


# settings


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"num_beams": 0}, "num_beams must be a whole number from 1 to 16, got 0"),
        ({"num_beams": 2.0}, "num_beams must be a whole number from 1 to 16, got 2.0"),
        ({"top_k": -1}, "top_k must be a whole number from 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be"),
        ({"min_new_tokens": True}, "min_new_tokens must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"temperature": 0}, r"temperature must be a number from 0\.001 to 1000, got 0"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 1.5}, "top_p must be a number from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
        ({"length_penalty": 11}, "length_penalty must be"),
        ({"do_sample": 1}, "do_sample must be true or false, got 1"),
        ({"early_stopping": "always"}, "early_stopping must be true, false or 'never', got 'always'"),
        ({"num_beams": 2, "do_sample": True}, "num_beams must be 1 where do_sample is on, got 2"),
        ({"legacy_beams": True, "early_stopping": "never"}, "early_stopping must be true or false"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, rule):
    with pytest.raises(GenerationError, match=rule) as caught:
        Generation(**wrong)
    assert caught.value.reason == "GENERATION"


# scores, each against Hugging Face's own processor


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    how=st.builds(
        Generation,
        do_sample=st.booleans(),
        temperature=st.sampled_from([0.3, 1.0, 2.5]),
        top_k=st.sampled_from([0, 1, 4, 99]),
        top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        repetition_penalty=st.sampled_from([0.5, 1.0, 3.0]),
        no_repeat_ngram_size=st.integers(0, 4),
        min_new_tokens=st.integers(0, 6),
    ),
    earlier=st.lists(st.integers(0, 3), min_size=0, max_size=7),
    seed=st.integers(0, 99),
)
def test_scores_equal_hugging_faces(how, earlier, seed):
    said = torch.tensor([[0, *earlier], [0, *reversed(earlier)]])
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed)) * 3
    theirs: list[Any] = []
    if how.repetition_penalty != 1:
        theirs.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.no_repeat_ngram_size:
        theirs.append(NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size))
    if how.min_new_tokens:
        theirs.append(MinNewTokensLengthLogitsProcessor(1, how.min_new_tokens, 1))
    if how.do_sample:
        theirs.append(TemperatureLogitsWarper(how.temperature))
        theirs += [TopKLogitsWarper(how.top_k)] if how.top_k else []
        theirs += [TopPLogitsWarper(how.top_p)] if how.top_p < 1 else []
    expected = logits.clone()
    for processor in theirs:
        expected = processor(said, expected)
    before = logits.clone()
    assert_close(adjust(logits, said, how, 1), expected, atol=0, rtol=0)
    assert torch.equal(logits, before)


def test_rows_without_a_possible_token_end_and_leave_their_neighbours_alone():
    scores = torch.tensor([[0.0, 0.0, 9.0], [float("nan")] * 3, [float("-inf")] * 3, [0.0, float("inf"), 0.0]])
    generators = [torch.Generator().manual_seed(SEED) for _ in scores]
    assert draw(scores, [0, 1, 2, 3], generators, 1).tolist() == [2, 1, 1, 1]


# whole texts, against Hugging Face's generate


CONTROLS = {
    "sampling": {"do_sample": True},
    "temperature": {"do_sample": True, "temperature": 0.4},
    "top_k": {"do_sample": True, "top_k": 3, "temperature": 1.7},
    "top_p": {"do_sample": True, "top_p": 0.6, "repetition_penalty": 1.5},
    "all": {"do_sample": True, "top_k": 9, "top_p": 0.9, "temperature": 2.0, "no_repeat_ngram_size": 2}
    | {"repetition_penalty": 1.2, "min_new_tokens": 5},
    "repetition": {"repetition_penalty": 2.0},
    "ngram": {"no_repeat_ngram_size": 2},
    "min": {"min_new_tokens": 6},
    "greedy": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in ("all", "min", "greedy") else slow(name) for name in CONTROLS])
def test_texts_equal_hugging_faces_of_each_row_alone(backbone, name):
    how, side = CONTROLS[name], decoding_kit.make_side(backbone, len(name))
    [ours] = generate(backbone, [decoding_kit.segment(backbone, side, decoding=Generation(**how, seed=SEED))])
    oracle = Oracle(backbone, side)
    theirs = {"do_sample": False} | ({"top_k": 0} | how if "do_sample" in how else how)
    for row, tokens in zip(decoding_kit.INPUTS, ours, strict=True):
        torch.manual_seed(SEED)
        assert [tokens] == oracle.tokens(torch.tensor([row]), decoding_kit.LIMIT, **theirs)


def rows_with(backbone, side, hows: list[Generation]) -> list[Row]:
    return [
        Row(ids=ids, side=side, answerer=Generate(max_new_tokens=decoding_kit.LIMIT, decode=str, generation=how))
        for how in hows
        for ids in decoding_kit.INPUTS
    ]


def test_a_rows_text_depends_on_its_own_seed_and_settings_alone(backbone):
    sampled = Generation(do_sample=True, temperature=1.5)
    hows = [replace(sampled, seed=1), replace(sampled, seed=2), Generation(num_beams=3), Generation()]
    rows = rows_with(backbone, decoding_kit.make_side(backbone, 0), hows)
    together = answer(backbone, rows)
    assert together == [answer(backbone, [row])[0] for row in rows[::-1]][::-1]
    assert together[:3] != together[3:6]


def test_rows_that_differ_in_their_seeds_alone_are_decoded_together(backbone, monkeypatch):
    side, sampled, steps = decoding_kit.make_side(backbone, 0), Generation(do_sample=True, min_new_tokens=9), []
    decode = type(side).decode
    monkeypatch.setattr(type(side), "decode", lambda self, *given: steps.append(1) or decode(self, *given))
    answer(backbone, rows_with(backbone, side, [replace(sampled, seed=seed) for seed in (1, 2, None)]))
    assert len(steps) == decoding_kit.LIMIT


def test_without_a_seed_every_row_is_new(backbone):
    side, how = decoding_kit.make_side(backbone, 0), Generation(do_sample=True, temperature=5.0, min_new_tokens=9)
    rows = rows_with(backbone, side, [how] * 4)
    torch.manual_seed(0)
    first = answer(backbone, rows)
    torch.manual_seed(0)
    assert answer(backbone, rows) != first
    assert len({text.tokens for text in first if not isinstance(text, Exception)}) > 6


@pytest.mark.parametrize("how", [{"do_sample": True}, {"repetition_penalty": 2.0}, {"num_beams": 3}])
def test_a_row_that_is_not_finite_fails_alone(backbone, how):
    side, generation = decoding_kit.make_side(backbone, 0), Generation(**how, seed=SEED)
    [healthy] = generate(backbone, [decoding_kit.segment(backbone, side, decoding=generation)])
    segment = decoding_kit.segment(backbone, side, decoding=generation)
    segment.taps.blocks[0][1] = float("nan")
    [broken] = generate(backbone, [segment])
    assert isinstance(broken[1], NotFiniteError)
    assert [broken[0], broken[2]] == [healthy[0], healthy[2]]
