"""Rows of stacked side networks in one batch: their answers, and faults that stay where they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import (
    Answer,
    Backbone,
    ChooseLabels,
    ClassAnswer,
    Classify,
    Embed,
    Generate,
    LabelsAnswer,
    LabelTrie,
    NotFiniteError,
    Regress,
    Row,
    SpansAnswer,
    ValueAnswer,
    VectorAnswer,
    answer,
    load_backbone,
    run_backbone,
)
from ladder.answering import TagWords, Words
from ladder.answering.answerers import Scoring
from ladder.answering.batch_plan import Plan, plan
from ladder.answering.mixed_batch import score
from ladder.stacked.bank import SideBank
from ladder.stacked.network import StackedBatch, StackedSide
from tests.ladder.stacks import make_sides, stacked

WORDS = LabelTrie(((7, 1), (9, 4, 1), (9, 5, 1)))
"""Two of the labels part after their first token."""
SAME_START = LabelTrie(((9, 4, 1), (9, 5, 1)))
IDS = [(5, 8, 13, 1), (40, 1), (5, 8, 13, 22, 17, 1), (90, 12, 1)]
WORDS_OF = [
    Words("abcdefgh", tuple((token, token + 1) for token in range(len(ids) - 1)), tuple(range(len(ids) - 1)))
    for ids in IDS
]
"""Each token but the last is a word of one letter."""


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def asked(backbone: Backbone):
    """Tasks of every kind, each as a stacked side network and as a module, with the answerer of both."""
    bank, kinds = SideBank(backbone), []
    ways: list[tuple[str, Scoring, dict[str, Any]]] = [
        ("text", Classify(labels=("a", "b", "c"), trie=WORDS), {}),
        ("text", Classify(labels=("b", "c"), trie=SAME_START, temperature=0.4), {}),
        ("text", Classify(labels=("a", "b", "c"), trie=WORDS), {"gate": "none"}),
        ("linear", Classify(labels=("a", "b", "c")), {}),
        ("linear", Regress(), {"outputs": 1}),
        ("linear", Embed(), {"words": True, "outputs": 5}),
        ("mlp", Classify(labels=("a", "b")), {"gate_form": "channel"}),
        ("linear", Classify(labels=("a", "b", "c"), temperature=2.5), {"encoder_layers": (1,)}),
        ("linear", TagWords(labels=("PER", "LOC")), {"outputs": 5}),
        ("linear", TagWords(labels=("EMAIL",)), {"outputs": 3, "reduction": 8}),
        ("linear", ChooseLabels(labels=("a", "b", "c"), thresholds=(0.2, 0.5, 0.9)), {}),
        ("attention", Classify(labels=("a", "b", "c")), {}),
        ("attention", Regress(), {"outputs": 1}),
    ]
    for seed, (head, how, shape) in enumerate(ways):
        [module] = make_sides(backbone, 1, seed=seed, head=head, **shape)
        kinds.append((stacked(bank, [module])[0], module, how))
    return kinds


def close(ours: Answer | Exception, theirs: Answer | Exception) -> bool:
    match ours, theirs:
        case ClassAnswer(), ClassAnswer():
            return ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        case LabelsAnswer(), LabelsAnswer():
            return ours.labels == theirs.labels and ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        case VectorAnswer(), VectorAnswer():
            return ours.values == pytest.approx(theirs.values, abs=1e-4)
        case ValueAnswer(), ValueAnswer():
            return ours.value == pytest.approx(theirs.value, abs=1e-4, rel=1e-4)
        case SpansAnswer(), SpansAnswer():
            edges = [[(span.start, span.end, span.label) for span in answer.spans] for answer in (ours, theirs)]
            return edges[0] == edges[1] and ours.outside == pytest.approx(theirs.outside, abs=1e-4)
        case _:
            return False


def rows_of(asked, picks: Sequence[tuple[int, int]], which: int) -> list[Row]:
    """`which`: 0 the stacked ones, 1 the modules, 2 in turns."""
    kinds = [asked[kind] for kind, _ in picks]
    return [
        Row(ids=IDS[read], side=each[place % 2 if which == 2 else which], answerer=each[2], words=WORDS_OF[read])
        for place, (each, (_, read)) in enumerate(zip(kinds, picks, strict=True))
    ]


ALL = [(kind, read) for read in range(4) for kind in range(11)]
ALONE: dict[tuple[int, int], Answer | Exception] = {}


def alone_answers(backbone: Backbone, asked) -> dict[tuple[int, int], Answer | Exception]:
    """Each task's answer to each input, by its module alone."""
    if not ALONE:
        ALONE.update({pick: answer(backbone, rows_of(asked, [pick], 1))[0] for pick in ALL})
    return ALONE


@settings(max_examples=12, deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3)), min_size=1, max_size=14))
def test_any_batch_is_answered_as_each_row_by_its_module_alone(backbone: Backbone, asked, picks) -> None:
    alone = [alone_answers(backbone, asked)[pick] for pick in picks]
    for which in (0, 2):
        together = answer(backbone, rows_of(asked, picks, which))
        assert all(close(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", [0, 3])
def test_a_temperature_divides_the_logits_and_keeps_the_label(backbone: Backbone, asked, kind: int, which: int) -> None:
    plain = rows_of(asked, [(kind, read) for read in range(4)], which)
    how = plain[0].answerer
    assert isinstance(how, Classify)
    before = answer(backbone, plain)
    for temperature in (0.1, 0.5, 3.0, 1e6):
        tempered = [replace(row, answerer=replace(how, temperature=temperature)) for row in plain]
        for ours, theirs in zip(answer(backbone, tempered), before, strict=True):
            assert isinstance(ours, ClassAnswer)
            assert isinstance(theirs, ClassAnswer)
            expected = torch.softmax(torch.tensor(theirs.scores).log() / temperature, -1).tolist()
            assert ours.scores == pytest.approx(expected, abs=1e-5)
            assert ours.label == theirs.label
            assert ours.score == max(ours.scores)


def test_every_row_is_delivered_once_modules_last(backbone: Backbone, asked) -> None:
    rows, told = rows_of(asked, ALL, 2), []
    planned = plan(rows)
    with torch.inference_mode():
        score(run_backbone(backbone, [ids for _, ids in planned.inputs]), planned.groups, told.extend)
    places = [place for place, _ in told]
    assert sorted(places) == list(range(len(rows)))
    kinds = [isinstance(rows[place].side, StackedSide) for place in places]
    assert kinds == sorted(kinds, reverse=True)


def test_a_plan_has_each_input_once_and_each_salts_own(asked) -> None:
    rows = rows_of(asked, [(0, 0), (3, 0), (3, 1)], 0)
    planned = plan([*rows, replace(rows[0], salt="tenant")])
    assert sorted(planned.inputs) == sorted([("", IDS[0]), ("", IDS[1]), ("tenant", IDS[0])])
    assert [planned.inputs[read][1] for read in reads(planned)] == [IDS[0], IDS[0], IDS[1], IDS[0]]
    assert planned.depth is None
    assert plan(rows[1:]).depth == 3
    assert plan(rows_of(asked, [(7, 0)], 0)).depth == 2


def test_a_plans_inputs_stand_as_side_networks_are_computed(backbone: Backbone) -> None:
    """Then none of the taps is copied."""
    held, how = stacked(SideBank(backbone), make_sides(backbone, 3, head="linear")), Regress()
    rows = [Row(ids=(30 + place, 1), side=held[pick], answerer=how) for place, pick in enumerate([2, 0, 1, 0, 2, 1])]
    assert reads(plan(rows)) == [4, 0, 2, 1, 5, 3]


def reads(planned: Plan) -> list[int]:
    """Each row's input, in the rows' order."""
    pairs = [pair for group in planned.groups for pair in zip(group.indices, group.inputs, strict=True)]
    return [read for _, read in sorted(pairs)]


def test_rows_of_some_inputs_are_grouped_anew_and_answered_the_same(backbone: Backbone, asked) -> None:
    """A pass over some of a plan's inputs, in any order, as where the engine divides a batch by lengths."""
    rows = rows_of(asked, [*ALL, (0, 0), (3, 1), (3, 1)], 2)
    expected, planned = answer(backbone, rows), plan(rows)
    found: dict[int, Answer | Exception] = {}
    for some in ([2, 0], [3, 1]):
        backbone_pass = run_backbone(backbone, [planned.inputs[index][1] for index in some])
        groups = planned.select(some)
        for group in groups:
            assert [planned.inputs[some[read]][1] for read in group.inputs] == [row.ids for row in group.rows]
        with torch.inference_mode():
            score(backbone_pass, groups, found.update)
    assert all(close(found[index], outcome) for index, outcome in enumerate(expected))
    assert planned.select(range(len(planned.inputs))) is planned.groups


def test_the_decoder_runs_for_the_inputs_and_prefixes_that_need_it(backbone: Backbone, asked, monkeypatch) -> None:
    decoded, decode = [], backbone.decode

    def watched(ids: torch.Tensor, *rest: Any) -> Any:
        decoded.append((len(ids), tuple(ids[0, 1:].tolist())))
        return decode(ids, *rest)

    monkeypatch.setattr(backbone, "decode", watched)
    answer(backbone, rows_of(asked, [(0, 0), (2, 1), (1, 2), (3, 3)], 0))
    assert sorted(decoded) == [(2, ()), (3, (9,))]
    decoded.clear()
    answer(backbone, rows_of(asked, [(3, 0), (4, 1)], 0))
    assert decoded == []


def broken(held: StackedSide, value: float) -> Callable[[], None]:
    """Breaks it in its slot; returns what mends it."""
    row = held.chunk.rows[held.slot]
    before = row.clone()
    row.fill_(value)
    return lambda: row.copy_(before)  # type: ignore[return-value]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", range(8))
def test_neighbours_of_a_broken_side_network_are_bit_identical(backbone: Backbone, asked, kind: int, value) -> None:
    rows = rows_of(asked, ALL, 0)
    expected = answer(backbone, rows)
    mend = broken(asked[kind][0], value)
    try:
        found = answer(backbone, rows)
    finally:
        mend()
    for row, ours, before in zip(rows, found, expected, strict=True):
        if row.side is asked[kind][0]:
            assert isinstance(ours, NotFiniteError)
        else:
            assert ours == before


def raising(error: Exception, culprit: StackedSide, method: str) -> Callable[..., Any]:
    """What `StackedBatch` does, unless the culprit is in it."""
    usual = getattr(StackedBatch, method)

    def compute(self: StackedBatch, *given: Any, **named: Any) -> Any:
        if culprit in self._sides:
            raise error
        return usual(self, *given, **named)

    return compute


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_what_raises_fails_alone(backbone: Backbone, asked, monkeypatch, method: str) -> None:
    rows, culprit = rows_of(asked, ALL, 0), asked[2][0]
    expected = answer(backbone, rows)
    error = IndexError("a rung is missing")
    monkeypatch.setattr(StackedBatch, method, raising(error, culprit, method))
    for row, ours, before in zip(rows, answer(backbone, rows), expected, strict=True):
        assert ours is error if row.side is culprit else close(ours, before)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_out_of_memory_is_no_side_networks_fault(backbone: Backbone, asked, monkeypatch, error, method: str) -> None:
    monkeypatch.setattr(StackedBatch, method, raising(error, asked[0][0], method))
    with pytest.raises(type(error)):
        answer(backbone, rows_of(asked, ALL, 0))


def test_an_answerer_that_raises_fails_alone(backbone: Backbone, asked) -> None:
    rows = rows_of(asked, [(3, 0), (4, 0), (3, 1)], 0)
    rows[0] = replace(rows[0], answerer=Classify(labels=()))
    found = answer(backbone, rows)
    assert isinstance(found[0], Exception)
    assert isinstance(found[1], ValueAnswer)
    assert isinstance(found[2], ClassAnswer)


def test_texts_are_made_by_stacked_side_networks_too(backbone: Backbone) -> None:
    sides = make_sides(backbone, 3)
    held, how = stacked(SideBank(backbone), sides), Generate(max_new_tokens=6, decode=str)
    for picks in ([0], [2, 0, 1, 1]):
        made = [
            answer(backbone, [Row(ids=IDS[pick], side=some[pick], answerer=how) for pick in picks])
            for some in (held, sides)
        ]
        assert made[0] == made[1]
