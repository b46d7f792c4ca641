"""Texts of many tasks made together: each as if it were alone, whoever joins, leaves or breaks beside it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ladder import Backbone, Generate, Generation, NotFiniteError, SideNetwork, TextAnswer, load_backbone, run_backbone
from ladder.backbone import kv_cache
from ladder.backbone.passes import BackbonePass
from ladder.decoding import lanes as running_lanes
from ladder.decoding import loop as running_rows
from ladder.decoding.beam_search import BeamSearch, Search
from ladder.decoding.continuous import RunningTexts, Text
from ladder.decoding.logits import adjust, draw
from ladder.decoding.loop import random_numbers
from ladder.side.network import forward
from ladder.stacked.bank import SideBank
from ladder.stacked.network import Side, StackedBatch, StackedSide
from tests import families, tiny
from tests.ladder import decoding_kit

LIMIT = 20
SHAPES = [{}, {}, {}, {"merge_last": True}, {"mix_after": True}, {"decoder_layers": (0, 2)}, {"decoder_layers": ()}]
HOWS = [
    Generation(),
    Generation(min_new_tokens=12),
    Generation(repetition_penalty=2.0),
    Generation(no_repeat_ngram_size=2, min_new_tokens=15),
    Generation(do_sample=True, temperature=1.5),
    Generation(do_sample=True, top_k=5, min_new_tokens=3),
    Generation(num_beams=3),
    Generation(num_beams=2, min_new_tokens=6),
]
INPUTS = (*decoding_kit.INPUTS, (7, 7, 7, 7, 7, 7, 7, 7, 7, 4, 1), (1,))


@dataclass(frozen=True, repr=False)
class House:
    """A backbone, side networks on it, and a bank that holds what can be stacked."""

    backbone: Backbone
    sides: list[SideNetwork]
    stacked: list[Side]
    bank: SideBank
    _slow: dict[object, tuple[int, ...]] = field(default_factory=dict)

    def answer(self, side: int, how: Generation, limit: int, ids: tuple[int, ...], seed: int) -> tuple[int, ...]:
        """A row's tokens, slowly: no batch, no cache. Beams are searched alone."""
        key = (side, how, limit, ids, seed)
        if key not in self._slow:
            make = slow_beams if how.num_beams > 1 else slow_text
            self._slow[key] = make(self.backbone, self.sides[side], how, limit, ids, seed)
        return self._slow[key]


@torch.inference_mode()
def slow_text(backbone, side, how, limit, ids, seed) -> tuple[int, ...]:
    config, said, random = backbone.config, [0], random_numbers(how, seed, torch.device("cpu"))
    source = torch.tensor([ids])
    while len(said) <= limit:
        earlier = torch.tensor([said])
        logits = forward(backbone, side, source, torch.ones_like(source, dtype=torch.bool), earlier)[:, -1]
        scores = adjust(logits, earlier, how, config.eos_token_id)
        token = int(scores.argmax() if random is None else draw(scores, [0], [random], config.eos_token_id))
        if token == config.eos_token_id:
            break
        said.append(token)
    return tuple(said[1:])


def slow_beams(backbone, side, how, limit, ids, seed) -> tuple[int, ...]:
    running = RunningTexts(backbone)
    running.join([text_of(side, how, limit, seed)], run_backbone(backbone, [ids]), [0])
    return finish(running)[0].tokens


def text_of(side, how=HOWS[0], limit: int = LIMIT, seed: int | None = 0, handle: object = None) -> Text:
    return Text(side, how, limit, Generate(max_new_tokens=limit, decode=str, generation=how).finish, seed, handle)


def finish(running: RunningTexts) -> list[TextAnswer]:
    """The endings, in the order in which they came."""
    endings = []
    while not running.is_idle:
        endings += [ending for _, _, ending in running.step() if ending is not None]
    return endings


@cache
def make_house(folder) -> House:
    backbone = decoding_kit.make_backbone(folder)
    return furnish(backbone, SHAPES)


def furnish(backbone, shapes) -> House:
    sides = [decoding_kit.make_side(backbone, seed, **shape) for seed, shape in enumerate(shapes)]
    bank = SideBank(backbone)
    return House(backbone, sides, [bank.add(side) for side in sides], bank)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return make_house(tmp_path_factory.mktemp("decoding") / "t5")


class Play:
    """Running texts, what has been told of each, and what each is to be."""

    def __init__(self, house: House) -> None:
        self.house, self.running = house, RunningTexts(house.backbone)
        self.heard: dict[Text, tuple[int, ...]] = {}
        self.expected: dict[Text, tuple[int, ...]] = {}
        self.broken: set[Text] = set()

    def break_text(self, text: Text, backbone_pass: BackbonePass, index: int) -> None:
        """A text joins that is to fail."""
        self.running.join([text], backbone_pass, [index])
        self.broken.add(text)

    def join(self, wanted: list[tuple[int, int, int, int, int, bool]]) -> None:
        inputs = [INPUTS[place] for _, _, _, place, _, _ in wanted]
        given = run_backbone(self.house.backbone, inputs)
        texts = []
        for side, how, limit, place, seed, is_stacked in wanted:
            network = (self.house.stacked if is_stacked else self.house.sides)[side]
            texts.append(text_of(network, HOWS[how], limit, seed))
            self.heard[texts[-1]] = ()
            self.expected[texts[-1]] = self.house.answer(side, HOWS[how], limit, INPUTS[place], seed)
        self.running.join(texts, given, range(len(texts)))

    def leave(self, places: set[int]) -> None:
        here = list(self.heard)
        gone = [here[place] for place in places if place < len(here)]
        self.running.leave(gone)
        for text in gone:
            del self.heard[text]

    def step(self) -> None:
        for text, tokens, ending in self.running.step():
            if text in self.broken:
                assert (tokens, type(ending)) == ((), ArithmeticError)
                self.broken.remove(text)
                continue
            self.heard[text] += tokens
            if ending is None:
                assert self.heard[text] == self.expected[text][: len(self.heard[text])]
            else:
                expected = self.expected[text]
                assert ending == TextAnswer(text=str(expected), tokens=expected)
                assert self.heard.pop(text) == expected

    def finish(self) -> None:
        while not self.running.is_idle:
            self.step()
        assert not self.heard
        assert not self.broken
        assert len(self.running) == 0


WANTED = st.tuples(
    st.integers(0, len(SHAPES) - 1),
    st.integers(0, len(HOWS) - 1),
    st.sampled_from([0, 1, 5, LIMIT]),
    st.integers(0, len(INPUTS) - 1),
    st.integers(0, 2),
    st.booleans(),
)
MOVES = st.one_of(
    st.lists(WANTED, min_size=1, max_size=6), st.sets(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 9)
)


def play(house: House, moves: list) -> None:
    playing = Play(house)
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
def test_texts_that_join_and_leave_at_any_time_equal_each_alone(house, moves):
    play(house, moves)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(MOVES, max_size=16))
def test_texts_that_join_and_leave_at_any_time_equal_each_alone_many_times(house, moves):
    play(house, moves)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_other_families_and_shapes(tmp_path, kind):
    house = furnish(load_backbone(MAKERS[kind](tmp_path / kind)), [{}, {}, {"decoder_layers": (1,)}])
    rows = [(side, how, 8, place, 0, stack) for side in range(3) for how, place in ((0, 0), (3, 3)) for stack in (0, 1)]
    play(house, [rows[:5], 3, rows[5:], 2, {1, 3}])


MAKERS: dict[str, Callable[[Path], Path]] = {
    "umt5": lambda folder: families.make("umt5", folder),
    "t5": lambda folder: tiny.make_t5(folder, vocab_size=24, feed_forward_proj="relu"),
}


def test_a_step_is_one_pass_of_the_backbone_and_one_product_with_the_head(house, monkeypatch):
    calls: list[tuple[str, int]] = []
    for name in ("decode", "logits"):
        whole = getattr(Backbone, name)

        def counted(self, given, *rest, name=name, whole=whole):
            calls.append((name, len(given)))
            return whole(self, given, *rest)

        monkeypatch.setattr(Backbone, name, counted)
    playing = Play(house)
    playing.join([(side, 1, LIMIT, side % 3, 0, side % 2 == 0) for side in range(6)])
    calls.clear()
    playing.step()
    playing.step()
    assert calls == [("decode", 6), ("logits", 6)] * 2


def test_side_networks_are_lined_up_again_only_when_rows_come_or_go(house, monkeypatch):
    made = []

    class Counted(StackedBatch):
        def __init__(self, sides: Sequence[StackedSide]) -> None:
            made.append(len(sides))
            super().__init__(sides)

    monkeypatch.setattr(running_lanes, "StackedBatch", Counted)
    playing = Play(house)
    playing.join([(side, 1, LIMIT, 0, 0, True) for side in range(3)])
    for _ in range(5):
        playing.step()
    assert made == [3, 3]  # to read the source, and to speak
    playing.leave({1})
    playing.join([(1, 1, LIMIT, 1, 0, True)])
    playing.step()
    playing.step()
    assert made == [3, 3, 1, 3]
    playing.finish()


def test_who_leaves_frees_a_row_and_nothing_is_told_of_him(house):
    running = RunningTexts(house.backbone)
    texts = [text_of(house.stacked[1]) for _ in range(3)] + [text_of(house.stacked[1], HOWS[6])]
    given = run_backbone(house.backbone, INPUTS)
    running.join(texts, given, range(4))
    assert len(running) == 6
    running.step()
    running.leave([texts[0], texts[3]])
    assert len(running) == 2
    running.leave([texts[0]])
    late = text_of(house.stacked[1])
    running.join([late], given, [0])
    running.leave([late])
    assert len(running) == 2
    endings = {}
    while not running.is_idle:
        endings |= {text: ending for text, _, ending in running.step() if ending is not None}
    assert set(endings) == set(texts[1:3])


def test_rows_that_come_and_go_for_long_hold_little_memory(house):
    running = RunningTexts(house.backbone)
    given = run_backbone(house.backbone, INPUTS)
    most = 0
    for turn in range(60):
        running.join([text_of(house.stacked[turn % 3], HOWS[1], 3 + turn % 7, 0)], given, [turn % len(INPUTS)])
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
def test_a_broken_side_network_fails_alone(house, monkeypatch, is_stacked, how):
    broken = decoding_kit.make_side(house.backbone, 1)
    if how == "nan":
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    bad = house.bank.add(broken) if is_stacked else broken
    fault = Fault(bad, 0 if how == "raises" else 3)
    if how != "nan":
        fault.install(monkeypatch)
    playing = Play(house)
    playing.join([(side, 1, LIMIT, side, 0, is_stacked) for side in range(3)])
    playing.step()
    given = run_backbone(house.backbone, INPUTS)
    texts = [text_of(bad, HOWS[1]), text_of(bad, HOWS[1]), text_of(bad, HOWS[6])]
    playing.running.join(texts, given, range(3))
    failures = {}
    while not playing.running.is_idle:
        for text, tokens, ending in playing.running.step():
            if text in texts:
                failures |= {text: ending} if ending is not None else {}
                continue
            playing.heard[text] += tokens
            if ending is not None:
                assert ending == TextAnswer(text=str(playing.expected[text]), tokens=playing.expected[text])
                assert playing.heard.pop(text) == playing.expected[text]
    assert not playing.heard
    assert set(failures) == set(texts)
    assert {type(failure) for failure in failures.values()} == {NotFiniteError if how == "nan" else ArithmeticError}


@dataclass
class Fault:
    """Has a side network raise once it was asked some times."""

    side: Side
    calls: int

    def install(self, monkeypatch) -> None:
        for kind in (StackedBatch, SideNetwork):
            monkeypatch.setattr(kind, "decode", self.around(kind.decode))

    def around(self, decode):
        def decode_or_raise(network, *given):
            if any(side is self.side for side in getattr(network, "_sides", [network])):
                self.calls -= 1
                if self.calls < 0:
                    raise ArithmeticError("broken")
            return decode(network, *given)

        return decode_or_raise


def test_a_row_that_is_not_finite_fails_alone_and_its_place_is_clean(house):
    given = run_backbone(house.backbone, INPUTS[:3])
    given.taps.blocks[0][1] = float("nan")
    playing = Play(house)
    broken = text_of(house.stacked[0], HOWS[1])
    playing.join([(1, 1, LIMIT, 0, 0, True), (2, 1, LIMIT, 3, 0, True)])
    playing.step()
    playing.running.join([broken], given, [1])
    steps = {text: (tokens, ending) for text, tokens, ending in playing.running.step()}
    assert isinstance(steps.pop(broken)[1], NotFiniteError)
    for text, (tokens, _) in steps.items():
        playing.heard[text] += tokens
    playing.join([(0, 1, LIMIT, 1, 0, True)])
    playing.finish()


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


def test_what_finds_no_memory_at_any_operation_is_done_again_and_changes_no_text(house, monkeypatch):
    """Steps, rows that join or leave, samples and faults: no token is lost, said twice or different."""
    dice, playing, failed = random.Random(0), Play(house), 0
    bad = house.bank.add(decoding_kit.make_side(house.backbone, 1))
    Fault(bad, 0).install(monkeypatch)
    backbone_pass = run_backbone(house.backbone, INPUTS)
    for turn in range(18):
        if turn % 6 == 0:
            playing.join([(dice.choice([0, 1, 2, 4]), how, 12, index, index, dice.random() < 0.7) for index, how in
                          enumerate((0, 1, 4, 5))])  # fmt: skip
            playing.break_text(text_of(bad, HOWS[1]), backbone_pass, turn % 3)
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


def test_a_row_that_fails_before_its_lane_finds_no_memory_is_reported_by_the_next_step(house, monkeypatch):
    playing, bad = Play(house), house.bank.add(decoding_kit.make_side(house.backbone, 1))
    broken, whole, tried = text_of(bad, HOWS[1]), StackedBatch.decode, []
    playing.running.join([broken], run_backbone(house.backbone, INPUTS), [1])
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
            playing.heard[text] += tokens
    playing.finish()


def test_a_seeded_text_is_the_same_after_a_step_that_found_no_memory(house, monkeypatch):
    playing, calls = Play(house), [0]
    whole = running_rows.adjust

    def cramped(*given):
        calls[0] += 1
        if calls[0] in (4, 7):  # a neighbour has drawn already
            raise torch.OutOfMemoryError("none left")
        return whole(*given)

    playing.join([(side, 5, LIMIT, side, seed, True) for side in range(2) for seed in range(2)])
    monkeypatch.setattr(running_rows, "adjust", cramped)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            playing.running.step()
    playing.finish()


def test_rows_that_found_no_memory_to_leave_leave_later(house, monkeypatch):
    playing, whole = Play(house), kv_cache._extent
    playing.join([(side, 1, LIMIT, side, 0, True) for side in (0, 1, 4)])
    gone = [text_of(house.stacked[side], HOWS[1]) for side in (1, 4)]
    playing.running.join(gone, run_backbone(house.backbone, INPUTS), [0, 1])
    for text, tokens, _ in playing.running.step():
        if text not in gone:
            playing.heard[text] += tokens
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


def test_a_row_that_ended_and_found_no_memory_to_go_ends_once(house, monkeypatch):
    playing, whole = Play(house), kv_cache._extent
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
def test_a_row_that_found_no_memory_to_join_joins_later_or_leaves(house, monkeypatch, leaves):
    """Its side network had room for it already, the backbone did not."""
    playing, whole = Play(house), Backbone.cross_kv
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


def test_to_leave_a_beam_search_needs_no_room(house, monkeypatch):
    running = RunningTexts(house.backbone)
    texts = [text_of(house.sides[1], HOWS[7]), text_of(house.sides[1], HOWS[7]), text_of(house.sides[1])]
    running.join(texts, run_backbone(house.backbone, INPUTS), [0, 1, 2])
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


def test_beams_that_ended_before_there_was_no_room_keep_their_texts(house, monkeypatch):
    running = RunningTexts(house.backbone)
    texts = [text_of(house.sides[1], HOWS[7], limit) for limit in (2, 9)]
    running.join(texts, run_backbone(house.backbone, INPUTS), [0, 0])

    def cramped(self: Search, places: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(Search, "keep", cramped)
    told = {text: ending for _ in range(9) for text, _, ending in running.step()}
    assert isinstance(told[texts[0]], TextAnswer)
    assert isinstance(told[texts[1]], torch.OutOfMemoryError)
    assert running.is_idle


def test_beams_that_found_no_room_end_with_it(house, monkeypatch):
    running = RunningTexts(house.backbone)
    texts = [text_of(house.sides[1], HOWS[6]), text_of(house.sides[1])]
    running.join(texts, run_backbone(house.backbone, INPUTS), [0, 1])
    running.step()

    def step(self: BeamSearch) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(BeamSearch, "_advance", step)
    told = {text: ending for text, _, ending in running.step()}
    assert isinstance(told[texts[0]], torch.OutOfMemoryError)
    assert told[texts[1]] is None
    assert len(running) == 1


def test_a_text_that_cannot_be_read_fails_alone(house):
    def fail(tokens):
        raise UnicodeError("no such token")

    running = RunningTexts(house.backbone)
    wrong = Text(house.stacked[0], Generation(), 2, Generate(max_new_tokens=2, decode=fail).finish, None, None)
    right = text_of(house.stacked[0], limit=2)
    running.join([wrong, right], run_backbone(house.backbone, INPUTS), [0, 0])
    unreadable, readable = finish(running)
    assert isinstance(unreadable, UnicodeError)
    assert isinstance(readable, TextAnswer)


def test_texts_without_a_seed_are_new_every_time(house):
    running, how = RunningTexts(house.backbone), Generation(do_sample=True, temperature=5.0, min_new_tokens=9)
    texts = [text_of(house.stacked[0], how, 9, None) for _ in range(6)]
    running.join(texts, run_backbone(house.backbone, INPUTS), [0] * 6)
    assert len({ending.tokens for ending in finish(running)}) > 3
