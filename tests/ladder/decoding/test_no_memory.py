"""A device without memory: what was not finished is done again, and no text changes."""

import random
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ladder import Backbone, TextAnswer, run_backbone
from ladder.backbone import kv_cache
from ladder.decoding import loop
from ladder.decoding.beam_search import BeamSearch, Search
from ladder.decoding.continuous import RunningTexts
from ladder.stacked.network import StackedBatch
from tests.ladder import decoding_kit
from tests.ladder.decoding.continuous_kit import INPUTS, LIMIT, SETTINGS, Fault, Play, make_decoders, text_of


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return make_decoders(tmp_path_factory.mktemp("decoding") / "t5")


class NoMemory(TorchDispatchMode):
    """Has every operation of torch after the first `operations` find no memory."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self._left = operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._left -= 1
        if self._left < 0:
            raise torch.OutOfMemoryError("none left")
        return func(*args, **(kwargs or {}))


def test_what_finds_no_memory_at_any_operation_is_done_again_and_changes_no_text(decoders, monkeypatch):
    """Steps, rows that join or leave, samples and faults: no token is lost, said twice or different."""
    dice, playing, failed = random.Random(0), Play(decoders), 0
    bad = decoders.bank.add(decoding_kit.make_side(decoders.backbone, 1))
    Fault(bad, 0).install(monkeypatch)
    backbone_pass = run_backbone(decoders.backbone, INPUTS)
    for turn in range(18):
        if turn % 6 == 0:
            sides = dice.choices([0, 1, 2, 4], k=4)
            playing.join([(sides[index], how, 12, index, index, index < 3) for index, how in enumerate((0, 1, 4, 5))])
            playing.join_broken(text_of(bad, SETTINGS[1]), backbone_pass, turn % 3)
        leaving = {dice.randrange(4)} if turn % 5 == 4 else set()
        for action in (partial(playing.leave, leaving), playing.step):
            try:
                with NoMemory(dice.randrange(900)):
                    action()
            except torch.OutOfMemoryError:
                failed += 1
                if action is not playing.step:
                    action()
    assert 6 < failed < 30
    playing.finish()
    assert playing.running.bytes == 0


def test_a_row_that_fails_before_its_lane_finds_no_memory_is_reported_by_the_next_step(decoders, monkeypatch):
    playing, bad = Play(decoders), decoders.bank.add(decoding_kit.make_side(decoders.backbone, 1))
    broken, whole, tried = text_of(bad, SETTINGS[1]), StackedBatch.decode, []
    playing.running.join([broken], run_backbone(decoders.backbone, INPUTS), [1])
    playing.join([(0, 1, LIMIT, 0, 0, True)])
    told = playing.running.step()

    def decode(network, *given):
        if bad in network._sides:
            raise ArithmeticError("broken")
        if tried:  # its neighbour alone had room
            raise torch.OutOfMemoryError("none left")
        tried.append(network)
        return whole(network, *given)

    monkeypatch.setattr(StackedBatch, "decode", decode)
    with pytest.raises(torch.OutOfMemoryError):
        playing.running.step()
    monkeypatch.setattr(StackedBatch, "decode", whole)
    told += playing.running.step()
    assert [type(ending) for text, _, ending in told if text is broken] == [type(None), ArithmeticError]
    for text, tokens, _ in told:
        if text is not broken:
            playing.tokens[text] += tokens
    playing.finish()


def test_a_seeded_text_is_the_same_after_a_step_that_found_no_memory(decoders, monkeypatch):
    playing, calls = Play(decoders), [0]
    whole = loop.adjust

    def cramped(*given):
        calls[0] += 1
        if calls[0] in (4, 7):  # a neighbour has drawn already
            raise torch.OutOfMemoryError("none left")
        return whole(*given)

    playing.join([(side, 5, LIMIT, side, seed, True) for side in range(2) for seed in range(2)])
    monkeypatch.setattr(loop, "adjust", cramped)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            playing.running.step()
    playing.finish()


def test_rows_that_found_no_memory_to_leave_leave_later(decoders, monkeypatch):
    playing, whole = Play(decoders), kv_cache._extent
    playing.join([(side, 1, LIMIT, side, 0, True) for side in (0, 1, 4)])
    gone = [text_of(decoders.stacked[side], SETTINGS[1]) for side in (1, 4)]
    playing.running.join(gone, run_backbone(decoders.backbone, INPUTS), [0, 1])
    for text, tokens, _ in playing.running.step():
        if text not in gone:
            playing.tokens[text] += tokens
    for room in (0, 1, 1):  # for none, for the first shape, and then for the second but not the backbone
        calls = [0]

        def cramped(mask, room=room, calls=calls):
            calls[0] += 1
            if calls[0] > room:
                raise torch.OutOfMemoryError("none left")
            return whole(mask)

        monkeypatch.setattr(kv_cache, "_extent", cramped)
        with pytest.raises(torch.OutOfMemoryError):
            playing.running.leave(gone)
    monkeypatch.setattr(kv_cache, "_extent", whole)
    playing.running.leave(gone)
    assert len(playing.running) == 3
    playing.finish()


def test_a_row_that_ended_and_found_no_memory_to_go_ends_once(decoders, monkeypatch):
    playing, whole = Play(decoders), kv_cache._extent
    playing.join([(0, 1, 2, 0, 0, True), (1, 1, LIMIT, 1, 0, True), (4, 1, LIMIT, 2, 0, True)])
    playing.step()

    def cramped(mask):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(kv_cache, "_extent", cramped)
    with pytest.raises(torch.OutOfMemoryError):
        playing.step()
    monkeypatch.setattr(kv_cache, "_extent", whole)
    playing.finish()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_row_that_found_no_memory_to_join_joins_later_or_leaves(decoders, monkeypatch, leaves):
    """Its side network had room for it already, the backbone did not."""
    playing, whole = Play(decoders), Backbone.cross_kv
    playing.join([(0, 1, LIMIT, 0, 0, True)])
    playing.step()

    def cramped(self, memory):
        raise torch.OutOfMemoryError("none left")

    playing.join([(1, 1, LIMIT, 1, 0, True)])
    monkeypatch.setattr(Backbone, "cross_kv", cramped)
    with pytest.raises(torch.OutOfMemoryError):
        playing.step()
    monkeypatch.setattr(Backbone, "cross_kv", whole)
    if leaves:
        playing.leave({1})
    playing.finish()
    assert playing.running.bytes == 0


def test_to_leave_a_beam_search_needs_no_memory(decoders, monkeypatch):
    running = RunningTexts(decoders.backbone)
    texts = [
        text_of(decoders.sides[1], SETTINGS[7]),
        text_of(decoders.sides[1], SETTINGS[7]),
        text_of(decoders.sides[1]),
    ]
    running.join(texts, run_backbone(decoders.backbone, INPUTS), [0, 1, 2])
    running.step()
    assert len(running) == 5

    def cramped(self: BeamSearch) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(BeamSearch, "_finish", cramped)
    running.leave(texts[:1])
    assert len(running) == 3
    told = {text: ending for text, _, ending in running.step()}
    assert isinstance(told.pop(texts[1]), torch.OutOfMemoryError)
    assert told == {texts[2]: None}
    assert len(running) == 1


def test_beams_that_ended_before_there_was_no_memory_keep_their_texts(decoders, monkeypatch):
    running = RunningTexts(decoders.backbone)
    texts = [text_of(decoders.sides[1], SETTINGS[7], limit) for limit in (2, 9)]
    running.join(texts, run_backbone(decoders.backbone, INPUTS), [0, 0])

    def cramped(self: Search, indices: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(Search, "keep", cramped)
    told = {text: ending for _ in range(9) for text, _, ending in running.step()}
    assert isinstance(told[texts[0]], TextAnswer)
    assert isinstance(told[texts[1]], torch.OutOfMemoryError)
    assert running.is_idle
