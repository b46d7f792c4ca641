"""Stacked side networks say what their modules say, whatever mix of rows they are asked."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ladder import Backbone, load_backbone
from ladder.backbone.layers import relative_bucket
from ladder.side.checkpoint import as_served
from ladder.stacked import network
from ladder.stacked.bank import SideBank
from ladder.stacked.grouping import Gather, Grouping, Run, group_rows, progressions
from ladder.stacked.network import Side, StackedBatch, StackedSide
from ladder.stacked.products import Buckets
from tests import families, tiny
from tests.ladder import golden
from tests.ladder.stacks import make_inputs, make_sides, one_by_one, stacked, tokens_of
from tests.marks import slow

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SPEAKING = ("t5", "byt5", "mt5", "umt5", "relu")
PICKS = [2, 0, 1, 1, 3, 2, 2]
"""Each row's side network: out of order, and as many rows for none as for another."""


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "model"
        if kind == "relu":
            return tiny.make_t5(folder, feed_forward_proj="relu", tie_word_embeddings=True)
        return families.make(kind, folder)

    return {kind: load_backbone(made(kind)) for kind in (*SPEAKING, "bart")}


@pytest.fixture(scope="module")
def t5(backbones: dict[str, Backbone]) -> Backbone:
    return backbones["t5"]


def check(backbone: Backbone, picks: list[int], head: str, **shape: object) -> None:
    sides = make_sides(backbone, max(picks) + 1, head=head, **shape)
    held = stacked(SideBank(backbone), sides)
    ids, mask = make_inputs(len(picks))
    taps, line = backbone.encode(ids, mask), StackedBatch([held[pick] for pick in picks])
    memory, modules = line.encode(taps), [sides[pick] for pick in picks]
    if head != "text":
        said = [held[pick].read_all(memory[row : row + 1], taps_of(taps, row)) for row, pick in enumerate(picks)]
        return assert_close(torch.cat(said), one_by_one(modules, taps), **CLOSE)
    decoded = backbone.decode(make_inputs(len(picks), 4, seed=2)[0], taps.final, mask)
    expected = one_by_one(modules, taps, decoded)
    assert_close(line.decode(decoded, memory, mask), expected, **CLOSE)
    first = tokens_of(decoded, slice(0, 1))
    assert_close(line.decode(first, memory, mask), expected[:, :1], **CLOSE)
    cache, parts = line.decoder_cache(), (slice(0, 1), slice(1, 3), slice(3, 4))
    steps = [line.decode(tokens_of(decoded, part), memory, mask, cache) for part in parts]
    return assert_close(torch.cat(steps, 1), expected, **CLOSE)


def taps_of(taps, row: int):
    return taps.select(torch.tensor([row]))


GATES = list(itertools.product(("learnable", "fixed", "none", "one"), ("scalar", "channel"), (False, True)))


@pytest.mark.parametrize(("gate", "form", "mix_after"), GATES)
@pytest.mark.parametrize("head", ["text", slow("linear")])
def test_every_gate_equals_its_module(t5: Backbone, gate: str, form: str, mix_after: bool, head: str) -> None:
    check(t5, PICKS, head, gate=gate, gate_form=form, mix_after=mix_after, gate_start=0.04, bias=form == "scalar")


@pytest.mark.parametrize("kind", SPEAKING)
@pytest.mark.parametrize("head", ["text", "linear", "attention", "mlp"])
def test_every_family_equals_its_modules(backbones: dict[str, Backbone], kind: str, head: str) -> None:
    check(backbones[kind], PICKS, head)


@pytest.mark.parametrize("head", ["text", "linear"])
@pytest.mark.parametrize("gate", ["learnable", "none"])
def test_normalized_taps_equal_their_modules(t5: Backbone, head: str, gate: str) -> None:
    check(t5, PICKS, head, tap_norm="rms", gate=gate, mix_after=gate == "none", words=head == "linear")


@pytest.mark.parametrize("tasks", [1, 9])
def test_a_tap_is_normalized_once_for_all_tasks_that_read_it(
    t5: Backbone, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = StackedBatch(stacked(SideBank(t5), make_sides(t5, tasks, head="linear", tap_norm="rms")))
    taps = t5.encode(*make_inputs(2))
    shapes = []
    plain = network.rms_normalized
    monkeypatch.setattr(network, "rms_normalized", lambda tap, least: shapes.append(tap.shape) or plain(tap, least))
    batch.encode(taps, [1] * tasks)
    assert shapes == [taps.embeddings.shape] * (1 + len(taps.blocks))


@pytest.mark.parametrize("encoder", [(), (1,), (0, 2)])
@pytest.mark.parametrize("decoder", [(), (1,)])
def test_dropped_layers_equal_their_modules(t5: Backbone, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> None:
    check(t5, PICKS, "text", encoder_layers=encoder, decoder_layers=decoder)


@pytest.mark.parametrize("head", ["linear", "attention", "mlp"])
def test_heads_of_their_own_equal_their_modules_without_biases_and_with_words(t5: Backbone, head: str) -> None:
    check(t5, PICKS, head, bias=False, words=head == "linear", encoder_layers="half")


@pytest.mark.parametrize("picks", [[0], [0, 0, 0], [1, 0], [0, 1, 2, 3, 4, 5], [5, 3, 3, 0, 5, 5, 1]])
def test_any_number_of_rows(t5: Backbone, picks: list[int]) -> None:
    check(t5, picks, "text")


@settings(max_examples=25, deadline=None)
@given(picks=st.lists(st.integers(0, 39), min_size=1, max_size=12), sharing=st.integers(0, 2))
def test_any_mix_of_rows_and_inputs(t5_linears, picks: list[int], sharing: int) -> None:
    """Over two chunks, in any order, reading their own input, one for all, or any."""
    taps, held, expected = t5_linears
    inputs = [[place % 4, 2, (pick * 7 + place) % 4][sharing] for place, pick in enumerate(picks)]
    memory = StackedBatch([held[pick] for pick in picks]).encode(taps, inputs)
    for place, (pick, read) in enumerate(zip(picks, inputs, strict=True)):
        said = held[pick].read(memory[place : place + 1], taps.mask[read : read + 1])
        assert_close(said[0], expected[pick][read], **CLOSE)


@pytest.fixture(scope="module")
def t5_linears(t5: Backbone):
    sides = make_sides(t5, 40, head="linear")
    taps = t5.encode(*make_inputs(4))
    return taps, stacked(SideBank(t5), sides), [side.read(side.encode(taps), taps.mask) for side in sides]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=20))
def test_an_arrangement_computes_every_row_once_by_its_own_weights(places: list[tuple[int, int]]) -> None:
    grouping = group_rows(places)
    assert sorted(grouping.order) == list(range(len(places)))
    slots = [(run.chunk, slot) for run in grouping.runs for slot in range(40)[run.slots] for _ in range(run.rows)]
    assert slots == [places[row] for row in grouping.order]
    assert [run.start for run in grouping.runs] == [0, *(run.stop for run in grouping.runs)][:-1]


def test_evenly_spaced_slots_are_one_run() -> None:
    assert list(progressions([0, 1, 2, 7, 9, 11, 30])) == [(0, 1, 3), (7, 2, 3), (30, 1, 1)]
    assert group_rows([(0, 4), (0, 2), (0, 0), (0, 2), (0, 4), (0, 0)]) == Grouping(
        [2, 5, 1, 3, 0, 4], [Run(0, 0, 2, 3, 2, 0)]
    )


def test_shared_and_adjacent_inputs_are_not_copied() -> None:
    taps, runs = torch.randn(4, 5, 8), [Run(0, 0, 1, 3, 2, 0)]
    [shared_by_all] = Gather(runs, [1, 2] * 3, torch.device("cpu")).of_runs(taps)
    assert shared_by_all.data_ptr() == taps[1:].data_ptr()
    assert shared_by_all.shape == (3, 10, 8)
    whole = torch.randn(6, 5, 8)
    [own] = Gather(runs, range(6), torch.device("cpu")).of_runs(whole)
    assert own.data_ptr() == whole.data_ptr()


def test_what_changes_no_arithmetic_is_one_shape(t5: Backbone) -> None:
    """Then tasks trained with different settings are computed together."""
    bank, same = SideBank(t5), [{"gate": "none"}, {"gate": "one"}, {"gate_form": "channel"}, {"bias": False}]
    shapes = {stacked(bank, make_sides(t5, 1, **each))[0].shape for each in ({}, *same)}
    assert len(shapes) == 1
    heads = {stacked(bank, make_sides(t5, 1, head=head))[0].shape for head in ("linear", "attention", "mlp")}
    assert len(heads) == 1
    other = [{"mix_after": True}, {"encoder_layers": (0,)}, {"reduction": 8}, {"tap_norm": "rms"}]
    assert len({stacked(bank, make_sides(t5, 1, **each))[0].shape for each in other} | shapes | heads) == 6


def test_different_shapes_make_no_batch(t5: Backbone) -> None:
    bank = SideBank(t5)
    [one], [other] = (stacked(bank, make_sides(t5, 1, reduction=reduction)) for reduction in (4, 8))
    with pytest.raises(ValueError, match="batch of each"):
        StackedBatch([one, other])


def test_side_networks_of_two_banks_answer_as_each_alone(t5: Backbone) -> None:
    """Their chunks have the same numbers."""
    sides, first, second = make_sides(t5, 4), SideBank(t5), SideBank(t5)
    held = [first.add(sides[0]), second.add(sides[1]), second.add(sides[2]), first.add(sides[3])]
    assert [(each.chunk.number, each.slot) for each in stacked_only(held)] == [(0, 0), (0, 0), (0, 1), (0, 1)]
    taps = t5.encode(*make_inputs(4))
    together = StackedBatch(stacked_only(held)).encode(taps)
    for row, side in enumerate(stacked_only(held)):
        assert_close(together[row], StackedBatch([side]).encode(taps.select(torch.tensor([row])))[0], **CLOSE)


def stacked_only(sides: list[Side]) -> list[StackedSide]:
    return [side for side in sides if isinstance(side, StackedSide)]


def test_what_cannot_be_stacked_stays_a_module(backbones: dict[str, Backbone]) -> None:
    [merging] = make_sides(backbones["t5"], 1, merge_last=True)
    [bart] = make_sides(backbones["bart"], 1, head="linear")
    assert SideBank(backbones["t5"]).add(merging) is merging
    assert SideBank(backbones["bart"]).add(bart) is bart


def test_rows_that_joined_later_do_not_see_columns_before_them(t5: Backbone) -> None:
    sides = make_sides(t5, 2)
    line, (ids, mask) = StackedBatch(stacked(SideBank(t5), [sides[1], sides[0]])), make_inputs(2)
    taps = t5.encode(ids, mask)
    decoded, memory = t5.decode(make_inputs(2, 3)[0], taps.final, mask), line.encode(taps)
    cache = line.decoder_cache()
    line.decode(tokens_of(decoded, slice(0, 2)), memory, mask, cache)
    cache.valid = torch.tensor([[True, True, True], [False, False, True]])
    found = line.decode(tokens_of(decoded, slice(2, 3)), memory, mask, cache)
    alone = one_by_one([sides[1], sides[0]], taps, tokens_of(decoded, slice(2, 3)))
    assert_close(found[1], alone[1], **CLOSE)  # as if it were its first token
    assert_close(found[:1], one_by_one([sides[1]], taps, decoded)[:, 2:], **CLOSE)


@pytest.mark.parametrize(
    ("head", "tap_norm"),
    [("text", "none"), ("linear", "none"), ("attention", "none"), ("mlp", "none"), ("text", "rms"), ("linear", "rms")],
)
def test_bfloat16_is_as_near_to_float32_as_a_modules(tmp_path: Path, head: str, tap_norm: str) -> None:
    """At most twice as far off as the module in bfloat16, and within 5 % of the largest number."""
    folder = tiny.make_t5(tmp_path / "model")
    backbone = load_backbone(folder, dtype="bfloat16")
    sides = make_sides(backbone, 3, head=head, tap_norm=tap_norm)
    held, picks = stacked(SideBank(backbone), sides), [0, 2, 1, 2]
    ids, mask = make_inputs(4)
    taps = backbone.encode(ids, mask)
    decoded = backbone.decode(make_inputs(4, 2)[0], taps.final, mask) if head == "text" else None
    line, exact = (
        StackedBatch([held[pick] for pick in picks]),
        one_by_one([sides[pick] for pick in picks], taps, decoded),
    )
    memory = line.encode(taps)
    if decoded is not None:
        found = line.decode(decoded, memory, mask)
    else:
        found = torch.cat(
            [held[pick].read(memory[row : row + 1], mask[row : row + 1]) for row, pick in enumerate(picks)]
        )
    module = one_by_one([as_served(sides[pick], torch.bfloat16) for pick in picks], taps, decoded)
    error, usual = ((each.float() - exact).norm().item() for each in (found, module))
    assert error <= 2 * usual
    assert (found.float() - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("variant", sorted(golden.VARIANTS.keys() - {"e5"}))  # e5 merges: it is no stacked one
def test_stacked_logits_equal_the_authors(variant: str) -> None:
    backbone, stored, inputs = golden.load_backbone(), golden.load(variant), golden.inputs()
    mask = inputs["attention_mask"].bool()
    taps, rows = backbone.encode(inputs["input_ids"], mask), len(mask)
    decoded = backbone.decode(golden.teacher_forcing(inputs["labels"]), taps.final, mask)
    other = make_sides(backbone, 1, **_same_shape(stored.side.config))
    mine, theirs = stacked(SideBank(backbone), [stored.side, *other])
    line = StackedBatch([mine, theirs] * rows)  # every row twice, for another side network too
    both = [row for row in range(rows) for _ in range(2)]
    memory = line.encode(taps, both)
    state = line.decode(decoded, memory, mask[both], inputs=both)[::2]
    assert_close(backbone.logits(state), stored.tensors["out.logits"], atol=1e-4, rtol=0)


def _same_shape(config) -> dict[str, object]:
    names = ("reduction", "encoder_layers", "decoder_layers", "mix_after")
    return {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 2), (1, 256), (1, 300), (3, 7), (9, 9)])
def test_bucket_tables_equal_the_formula(queries: int, keys: int, both: bool) -> None:
    made, device = Buckets(), torch.device("cpu")
    for longer in range(70):  # more than are kept
        made.table(2, 2 + longer, 32, 128, both, device)
    positions = torch.arange(keys)
    expected = relative_bucket(positions - positions[keys - queries :, None], 32, 128, both)
    assert torch.equal(made.table(queries, keys, 32, 128, both, device), expected.flatten())


@pytest.mark.parametrize("head", ["text", "linear"])
@torch.inference_mode()
def test_few_tokens_of_one_side_network_in_bfloat16_are_computed_in_float32(tiny_t5: Path, head: str) -> None:
    backbone = load_backbone(tiny_t5, dtype="bfloat16")
    [side, other] = make_sides(backbone, 2, head=head)
    [held, second] = stacked(SideBank(backbone), [as_served(side, torch.bfloat16), as_served(other, torch.bfloat16)])
    ids, mask = make_inputs(3)
    taps = backbone.encode(ids, mask)
    assert taps.final is not None
    plain, few = StackedBatch([held] * 3), StackedBatch([held] * 3, tokens=network.FEW_TOKENS)
    memory = few.encode(taps)
    assert memory.dtype == torch.float32
    assert_close(memory[mask], plain.encode(taps)[mask].float(), atol=0.05, rtol=0.05)
    assert StackedBatch([held] * 3, tokens=network.FEW_TOKENS + 1).encode(taps).dtype == torch.bfloat16
    assert StackedBatch([held, second], tokens=1).encode(taps, [0, 1]).dtype == torch.bfloat16
    if head == "text":
        step = backbone.decode(ids.new_zeros(3, 1), taps.final, mask)
        states = plain.decode(step, plain.encode(taps), mask)
        assert_close(few.decode(step, memory, mask), states.float(), atol=0.1, rtol=0.1)
        assert_close(few.decode(step, plain.encode(taps), mask), states.float(), atol=0.1, rtol=0.1)
