"""Recorded passes say what eager ones say, whatever is padded, and whatever was in their memory before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ladder import Backbone, LabelTrie, answer, load_backbone
from ladder.answering import Classify, Row
from ladder.backbone import RecordedBackbone, Rehearsal
from ladder.backbone.recordings import Recording
from ladder.stacked import RecordedSides, SideBank
from ladder.stacked.network import StackedBatch
from tests.ladder.stacks import make_inputs, make_sides, stacked

SHAPES = [(2, 8), (4, 16), (8, 16)]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class Counted(Rehearsal):
    """Counts what is recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, compute):
        self.recorded += 1
        replay, results = super().record(compute)

        def counted() -> None:
            self.replayed += 1
            replay()

        return counted, results


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5, dtype="float32")


@pytest.fixture(scope="module")
def recorded(backbone: Backbone) -> RecordedBackbone:
    made = RecordedBackbone(backbone, SHAPES, Rehearsal())
    made.warm_up()
    return made


@pytest.mark.parametrize(("rows", "tokens", "depth"), [(2, 8, None), (3, 5, None), (1, 16, 3), (2, 9, 1), (9, 3, None)])
@torch.inference_mode()
def test_a_pass_of_any_shape_is_the_backbones(backbone, recorded, rows, tokens, depth):
    ids, mask = make_inputs(rows, tokens)
    ours, theirs = recorded(ids, mask, depth), backbone.encode(ids, mask, depth)
    assert len(ours.blocks) >= len(theirs.blocks)
    for one, other in zip((ours.embeddings, *ours.blocks), (theirs.embeddings, *theirs.blocks), strict=False):
        assert_close(one[mask], other[mask], **CLOSE)
    if theirs.final is None:
        return
    start = torch.zeros(rows, 1, dtype=torch.long)
    step, expected = recorded.first_step(theirs.final, mask), backbone.decode(start, theirs.final, mask)
    assert step.mask.shape == (rows, 1)
    for one, other in zip((*step.blocks, step.final), (*expected.blocks, expected.final), strict=True):
        assert_close(one, other, **CLOSE)


@torch.inference_mode()
def test_a_pass_is_not_overwritten_by_the_next(recorded):
    first = recorded(*make_inputs(2, 8, seed=1))
    copies = [block.clone() for block in first.blocks]
    recorded(*make_inputs(2, 8, seed=2))
    assert all(torch.equal(block, copy) for block, copy in zip(first.blocks, copies, strict=True))


PICKS = [[0, 0, 0], [2, 0, 1, 1, 3, 2], [3], [1, 0], [0, 1, 2, 3, 0, 1, 2, 3]]


@pytest.mark.parametrize("head", ["text", "linear"])
@torch.inference_mode()
def test_side_networks_say_what_they_say_eagerly(backbone, head):
    recorder = Counted()
    sides = make_sides(backbone, 4, head=head)
    eager = stacked(SideBank(backbone), sides)
    held = stacked(SideBank(backbone, RecordedSides(recorder, SHAPES)), sides)
    for _ in range(2):  # the second time nothing is new
        for picks in PICKS:
            check_batch(backbone, [held[pick] for pick in picks], [eager[pick] for pick in picks], head)
        seen, recorder.recorded = recorder.recorded, 0
    assert seen == 0
    assert recorder.replayed == 2 * len(PICKS) * (3 if head == "text" else 2)
    check_batch(backbone, [held[0]] * 9, [eager[0]] * 9, head)
    assert recorder.replayed == 2 * len(PICKS) * (3 if head == "text" else 2), "a larger batch runs eagerly"


def check_batch(backbone, ours, theirs, head):
    ids, mask = make_inputs(len(ours), 7)
    taps = backbone.encode(ids, mask)
    one, other = StackedBatch(ours), StackedBatch(theirs)
    memory = one.encode(taps)
    assert_close(memory[mask], other.encode(taps)[mask], **CLOSE)
    shared = [0] * len(ours)
    assert_close(one.encode(taps, shared)[:, :1], other.encode(taps, shared)[:, :1], **CLOSE)
    if head == "text":
        step = backbone.decode(ids.new_zeros(len(ours), 1), taps.final, mask)
        assert_close(one.decode(step, memory, mask), other.decode(step, memory, mask), **CLOSE)


@torch.inference_mode()
def test_a_broken_side_network_leaves_no_trace_in_the_rows_after_it(backbone):
    good, bad = make_sides(backbone, 2)
    bad.encoder.first_downsample.weight.data.fill_(torch.inf)
    held = stacked(SideBank(backbone, RecordedSides(Rehearsal(), SHAPES)), [good, bad])
    ids, mask = make_inputs(3, 7)
    taps = backbone.encode(ids, mask)
    expected = StackedBatch([replace(held[0], recorded=None)] * 3).encode(taps)
    broken = StackedBatch([held[1], held[0], held[1]])
    memory = broken.encode(taps)
    assert not memory[0].isfinite().any()
    assert_close(memory[1][mask[1]], expected[1][mask[1]], **CLOSE)
    broken.decode(backbone.decode(ids.new_zeros(3, 1), taps.final, mask), memory, mask)
    for rows in (1, 2, 3):
        few = make_inputs(rows, 4)
        line = StackedBatch([held[0]] * rows)
        memory = line.encode(backbone.encode(*few))
        step = backbone.decode(few[0].new_zeros(rows, 1), backbone.encode(*few).final, few[1])
        assert line.decode(step, memory, few[1]).isfinite().all()


@torch.inference_mode()
def test_smaller_arguments_have_zeros_around_them():
    recording = Recording.of(Rehearsal(), lambda values: (values.sum(0),), (torch.ones(3, 4),))
    [full] = recording.run([torch.full((3, 4), 2.0)])
    assert full.tolist() == [6.0] * 4
    [part] = recording.run([torch.ones(2, 1)])
    assert part.tolist() == [2.0, 0.0, 0.0, 0.0]


def test_a_mixed_batch_of_recorded_tasks_is_answered_as_eagerly(backbone):
    sides = make_sides(backbone, 3)
    how = Classify(labels=("a", "b"), trie=LabelTrie(((5, 1), (9, 1))))
    inputs = [(7, 8, 1), (9, 1), (7, 8, 1), (4, 5, 6, 1)]

    def ask(bank: SideBank):
        held = stacked(bank, sides)
        rows = [Row(ids=ids, side=held[index % 3], answerer=how) for index, ids in enumerate(inputs)]
        return [outcome.scores for outcome in answer(backbone, rows)]

    assert_close(ask(SideBank(backbone, RecordedSides(Rehearsal(), SHAPES))), ask(SideBank(backbone)), **CLOSE)
