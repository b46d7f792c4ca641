"""The bank: slots are taken lowest first, freed when nothing holds them, and never grow in number without need."""

import gc
import mmap
import sys
import threading
from pathlib import Path

import pytest
import torch

from ladder import Backbone, load_backbone
from ladder.stacked.bank import FEWEST_SLOTS, SideBank
from ladder.stacked.heads import StackedLinear
from ladder.stacked.layout import fold, layout_of, shape_of
from ladder.stacked.network import StackedBatch, StackedSide
from tests.ladder.stacks import make_inputs, make_sides, stacked


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


@pytest.fixture
def bank(backbone: Backbone) -> SideBank:
    return SideBank(backbone)


def test_slots_are_taken_lowest_first_and_again_once_free(backbone: Backbone, bank: SideBank) -> None:
    sides = make_sides(backbone, 5)
    held = stacked(bank, sides)
    assert [(each.chunk.number, each.slot) for each in held] == [(0, slot) for slot in range(5)]
    del held[3], held[1]
    assert bank.slots == 3
    assert [(each.chunk.number, each.slot) for each in stacked(bank, sides[:3])] == [(0, 1), (0, 3), (0, 5)]


def test_a_full_chunk_is_followed_by_another_and_nothing_moves(backbone: Backbone, bank: SideBank) -> None:
    [side] = make_sides(backbone, 1)
    held = stacked(bank, [side] * FEWEST_SLOTS)
    before = held[0].chunk.rows.data_ptr()
    more = stacked(bank, [side] * (FEWEST_SLOTS + 1))
    assert {each.chunk.number for each in held} == {0}
    assert [each.chunk.number for each in more] == [1] * FEWEST_SLOTS + [2]
    assert held[0].chunk.rows.data_ptr() == before
    assert len(more[-1].chunk.rows) == 2 * FEWEST_SLOTS  # as many as there were


def test_versions_come_and_go_without_growth(backbone: Backbone, bank: SideBank) -> None:
    [side] = make_sides(backbone, 1, head="linear", encoder_layers=(0,))
    current = bank.add(side)
    slots = set()
    for _ in range(100):
        current = bank.add(side)
        slots.add((current.chunk.number, current.slot))
    assert bank.slots == 1
    assert slots == {(0, 0), (0, 1)}
    del current
    assert (bank.slots, bank.bytes) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux alone")
def test_free_slots_give_back_their_memory_and_the_others_keep_theirs(backbone: Backbone, bank: SideBank) -> None:
    sides = make_sides(backbone, 4)
    held = stacked(bank, sides)
    rows, kept = held[0].chunk.rows, [held[pick].chunk.rows[pick].clone() for pick in (0, 3)]
    assert bank.trim() == 0
    del held[1:3]
    again = bank.add(sides[2])
    assert isinstance(again, StackedSide)
    assert again.slot == 1
    row_bytes = rows[1].nbytes
    assert row_bytes - 2 * mmap.PAGESIZE <= bank.trim() <= row_bytes  # of the one that was not taken again
    assert bank.trim() == 0
    assert not rows[2, len(rows[2]) // 2]
    assert torch.equal(rows[0], kept[0])
    assert torch.equal(rows[1], fold(sides[2], again.chunk.shape))
    assert torch.equal(rows[3], kept[1])
    last = bank.add(sides[1])
    assert isinstance(last, StackedSide)
    assert last.slot == 2
    assert torch.equal(rows[2], fold(sides[1], again.chunk.shape))
    assert bank.trim() == 0


def test_a_batch_in_flight_keeps_its_slots(backbone: Backbone, bank: SideBank) -> None:
    [old] = stacked(bank, make_sides(backbone, 1, seed=1))
    line, taps = StackedBatch([old]), backbone.encode(*make_inputs(1))
    expected = line.encode(taps)
    del old
    newer = stacked(bank, make_sides(backbone, 3, seed=2))
    assert (0, 0) not in [(each.chunk.number, each.slot) for each in newer]
    assert torch.equal(line.encode(taps), expected)
    del line
    assert bank.slots == 3


def test_a_slot_holds_the_folded_weights_and_is_counted(backbone: Backbone, bank: SideBank) -> None:
    [side] = make_sides(backbone, 1, head="linear")
    shape = shape_of(side, backbone.config)
    assert shape is not None
    [held] = stacked(bank, [side])
    assert torch.equal(held.chunk.rows[held.slot], fold(side, shape))
    assert bank.bytes == 4 * layout_of(shape).size
    assert held.head is not None
    assert held.bytes == bank.bytes + held.head.bytes
    kept = sum(parameter.numel() for parameter in side.parameters())
    assert held.bytes < 4 * kept * 1.2  # no second copy, little alignment


def test_weights_are_a_copy(backbone: Backbone, bank: SideBank) -> None:
    [side] = make_sides(backbone, 1, head="linear")
    [held], taps = stacked(bank, [side]), backbone.encode(*make_inputs(1))
    before = held.read(held.encode(taps), taps.mask)
    for parameter in side.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(held.read(held.encode(taps), taps.mask), before)


def test_added_under_inference_mode_too(backbone: Backbone, bank: SideBank) -> None:
    """So that a later one, added outside of it, may write into the same chunk."""
    with torch.inference_mode():
        first = bank.add(make_sides(backbone, 1)[0])
    second = bank.add(make_sides(backbone, 1)[0])
    assert (first is not second, bank.slots) == (True, 2)


def test_many_threads_never_share_a_slot(backbone: Backbone, bank: SideBank) -> None:
    [side], kept = make_sides(backbone, 1, head="linear", encoder_layers=(0,)), []

    def work() -> None:
        for turn in range(60):
            held = bank.add(side)
            if turn % 3 == 0:
                kept.append(held)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert len({(each.chunk.number, each.slot) for each in kept}) == len(kept) == 80 == bank.slots


@pytest.mark.parametrize("part", ["head", "weights"])
def test_what_could_not_be_added_leaves_no_slot_taken(
    backbone: Backbone, bank: SideBank, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    [side] = make_sides(backbone, 1, head="linear")

    def cramped(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    owner, name = (StackedLinear, "to") if part == "head" else (SideBank, "_write")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, cramped)
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError):
                bank.add(side)
    assert bank.slots == 0
    assert [(each.chunk.number, each.slot) for each in stacked(bank, [side, side])] == [(0, 0), (0, 1)]
