"""Continuous batching: each text is as if it were alone, whatever joins, leaves or fails meanwhile."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import Backbone, Generate, Generation, NotFiniteError, TextAnswer, load_backbone, run_backbone
from ladder.decoding import lanes
from ladder.decoding.continuous import RunningTexts, Text
from ladder.stacked.network import StackedBatch, StackedSide
from tests import families, tiny
from tests.ladder import decoding_kit
from tests.ladder.decoding.continuous_kit import (
    INPUTS,
    LIMIT,
    SETTINGS,
    SHAPES,
    Decoders,
    Fault,
    Play,
    finish,
    furnish,
    make_decoders,
    text_of,
)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return make_decoders(tmp_path_factory.mktemp("decoding") / "t5")


WANTED = st.tuples(
    st.integers(0, len(SHAPES) - 1),
    st.integers(0, len(SETTINGS) - 1),
    st.sampled_from([0, 1, 5, LIMIT]),
    st.integers(0, len(INPUTS) - 1),
    st.integers(0, 2),
    st.booleans(),
)
MOVES = st.one_of(
    st.lists(WANTED, min_size=1, max_size=6), st.sets(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 9)
)


def play(decoders: Decoders, moves: list) -> None:
    playing = Play(decoders)
    for move in moves:
        if isinstance(move, list):
            playing.join(move)
        elif isinstance(move, set):
            playing.leave(move)
        else:
            for _ in range(move):
                playing.step()
    playing.finish()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.lists(MOVES, max_size=8))
def test_texts_that_join_and_leave_at_any_time_equal_each_alone(decoders, moves):
    play(decoders, moves)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(MOVES, max_size=16))
def test_texts_that_join_and_leave_at_any_time_equal_each_alone_many_times(decoders, moves):
    play(decoders, moves)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_other_families_and_shapes(tmp_path, kind):
    decoders = furnish(load_backbone(MAKERS[kind](tmp_path / kind)), [{}, {}, {"decoder_layers": (1,)}])
    rows = [(side, how, 8, index, 0, stack) for side in range(3) for how, index in ((0, 0), (3, 3)) for stack in (0, 1)]
    play(decoders, [rows[:5], 3, rows[5:], 2, {1, 3}])


MAKERS: dict[str, Callable[[Path], Path]] = {
    "umt5": lambda folder: families.make("umt5", folder),
    "t5": lambda folder: tiny.make_t5(folder, vocab_size=24, feed_forward_proj="relu"),
}


def test_a_step_is_one_pass_of_the_backbone_and_one_product_with_the_head(decoders, monkeypatch):
    calls: list[tuple[str, int]] = []
    for name in ("decode", "logits"):
        whole = getattr(Backbone, name)

        def counted(self, states, *rest, name=name, whole=whole):
            calls.append((name, len(states)))
            return whole(self, states, *rest)

        monkeypatch.setattr(Backbone, name, counted)
    playing = Play(decoders)
    playing.join([(side, 1, LIMIT, side % 3, 0, side % 2 == 0) for side in range(6)])
    calls.clear()
    playing.step()
    playing.step()
    assert calls == [("decode", 6), ("logits", 6)] * 2


def test_a_stacked_batch_is_made_again_only_when_rows_come_or_go(decoders, monkeypatch):
    made = []

    class Counted(StackedBatch):
        def __init__(self, sides: Sequence[StackedSide]) -> None:
            made.append(len(sides))
            super().__init__(sides)

    monkeypatch.setattr(lanes, "StackedBatch", Counted)
    playing = Play(decoders)
    playing.join([(side, 1, LIMIT, 0, 0, True) for side in range(3)])
    for _ in range(5):
        playing.step()
    assert made == [3, 3]  # for the encoders, and for the decoders
    playing.leave({1})
    playing.join([(1, 1, LIMIT, 1, 0, True)])
    playing.step()
    playing.step()
    assert made == [3, 3, 1, 3]
    playing.finish()


def test_a_text_that_leaves_frees_its_row_and_is_returned_no_more(decoders):
    running = RunningTexts(decoders.backbone)
    texts = [text_of(decoders.stacked[1]) for _ in range(3)] + [text_of(decoders.stacked[1], SETTINGS[6])]
    backbone_pass = run_backbone(decoders.backbone, INPUTS)
    running.join(texts, backbone_pass, range(4))
    assert len(running) == 6
    running.step()
    running.leave([texts[0], texts[3]])
    assert len(running) == 2
    running.leave([texts[0]])
    late = text_of(decoders.stacked[1])
    running.join([late], backbone_pass, [0])
    running.leave([late])
    assert len(running) == 2
    endings = {}
    while not running.is_idle:
        endings |= {text: ending for text, _, ending in running.step() if ending is not None}
    assert set(endings) == set(texts[1:3])


def test_rows_that_come_and_go_for_long_hold_little_memory(decoders):
    running = RunningTexts(decoders.backbone)
    backbone_pass = run_backbone(decoders.backbone, INPUTS)
    most = 0
    for turn in range(60):
        running.join(
            [text_of(decoders.stacked[turn % 3], SETTINGS[1], 3 + turn % 7, 0)], backbone_pass, [turn % len(INPUTS)]
        )
        running.step()
        most = most if turn != 20 else 0
        most = max(most, running.bytes)
        if turn == 40:
            highest = most
    assert 0 < most == highest
    finish(running)
    assert running.bytes == 0


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize("how", ["nan", "raises", "raises later"])
def test_a_broken_side_network_fails_alone(decoders, monkeypatch, is_stacked, how):
    broken = decoding_kit.make_side(decoders.backbone, 1)
    if how == "nan":
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    bad = decoders.bank.add(broken) if is_stacked else broken
    fault = Fault(bad, 0 if how == "raises" else 3)
    if how != "nan":
        fault.install(monkeypatch)
    playing = Play(decoders)
    playing.join([(side, 1, LIMIT, side, 0, is_stacked) for side in range(3)])
    playing.step()
    backbone_pass = run_backbone(decoders.backbone, INPUTS)
    texts = [text_of(bad, SETTINGS[1]), text_of(bad, SETTINGS[1]), text_of(bad, SETTINGS[6])]
    playing.running.join(texts, backbone_pass, range(3))
    failures = {}
    while not playing.running.is_idle:
        for text, tokens, ending in playing.running.step():
            if text in texts:
                failures |= {text: ending} if ending is not None else {}
                continue
            playing.tokens[text] += tokens
            if ending is not None:
                assert ending == TextAnswer(text=str(playing.expected[text]), tokens=playing.expected[text])
                assert playing.tokens.pop(text) == playing.expected[text]
    assert not playing.tokens
    assert set(failures) == set(texts)
    assert {type(failure) for failure in failures.values()} == {NotFiniteError if how == "nan" else ArithmeticError}


def test_a_row_that_is_not_finite_fails_alone_and_leaves_its_slot_clean(decoders):
    backbone_pass = run_backbone(decoders.backbone, INPUTS[:3])
    backbone_pass.taps.blocks[0][1] = float("nan")
    playing = Play(decoders)
    broken = text_of(decoders.stacked[0], SETTINGS[1])
    playing.join([(1, 1, LIMIT, 0, 0, True), (2, 1, LIMIT, 3, 0, True)])
    playing.step()
    playing.running.join([broken], backbone_pass, [1])
    steps = {text: (tokens, ending) for text, tokens, ending in playing.running.step()}
    assert isinstance(steps.pop(broken)[1], NotFiniteError)
    for text, (tokens, _) in steps.items():
        playing.tokens[text] += tokens
    playing.join([(0, 1, LIMIT, 1, 0, True)])
    playing.finish()


def test_a_text_that_cannot_be_read_fails_alone(decoders):
    def fail(tokens):
        raise UnicodeError("no such token")

    running = RunningTexts(decoders.backbone)
    wrong = Text(decoders.stacked[0], Generation(), 2, Generate(max_new_tokens=2, decode=fail).finish, None, None)
    right = text_of(decoders.stacked[0], limit=2)
    running.join([wrong, right], run_backbone(decoders.backbone, INPUTS), [0, 0])
    unreadable, readable = finish(running)
    assert isinstance(unreadable, UnicodeError)
    assert isinstance(readable, TextAnswer)
