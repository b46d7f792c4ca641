"""What goes wrong on the device stays with whom it concerns: no memory, and side networks that are too slow."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from ladder import Answer, Backbone, Tokenizer
from ladder.decoding import loop
from ladder.decoding.beam_search import BeamSearch
from ladder.decoding.settings import Generation
from ladder.errors import is_out_of_memory
from ladder.stacked.bank import SideBank
from ladder.stacked.network import StackedBatch
from serving.config import EngineConfig
from serving.engine.detokenizer import Piece
from serving.engine.engine import USUAL_TOKENS, Engine
from serving.engine.rows import EngineRow, Event, Resident
from serving.errors import OutOfMemory, PassTooLarge, SideFailed
from tests.serving.kit import ids_of, make_resident, make_spec

ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4398046511104 bytes. Error code 12 (Cannot allocate memory)"
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(backbone: Backbone, clock: Clock) -> Engine:
    return Engine(backbone, config=EngineConfig(side_timeout_s=5, side_bench_s=30), clock=clock)


@pytest.fixture(scope="module")
def residents(backbone: Backbone, tokenizer: Tokenizer) -> list[Resident]:
    """Stacked ones of every kind."""
    bank = SideBank(backbone)
    specs = [
        make_spec("sst2"),
        make_spec("stars", "regression"),
        make_spec("titles", "text", max_new_tokens=5),
        make_spec("cola"),
    ]
    made = [make_resident(backbone, tokenizer, spec, seed=seed) for seed, spec in enumerate(specs)]
    return [replace(resident, side=bank.add(resident.side)) for resident in made]  # type: ignore[arg-type]


def make_rows(residents: Sequence[Resident], tokenizer: Tokenizer, count: int = 8) -> list[EngineRow]:
    return [EngineRow(ids_of(tokenizer, "x" * index), residents[index % len(residents)]) for index in range(count)]


def raising_where(inner: Callable[..., Any], error: Exception, when: Callable[..., bool]) -> Callable[..., Any]:
    def outer(*args: Any, **named: Any) -> Any:
        if when(*args):
            raise error
        return inner(*args, **named)

    return outer


def same(ours: Sequence[Answer | Exception], theirs: Sequence[Answer | Exception]) -> bool:
    """But for rounding: other batches."""
    kinds = [type(outcome) for outcome in ours] == [type(outcome) for outcome in theirs]
    return kinds and all(
        getattr(one, "scores", None) == pytest.approx(getattr(other, "scores", None), abs=1e-4)
        for one, other in zip(ours, theirs, strict=True)
    )


# --- no memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU, MemoryError("no more")], ids=["gpu", "cpu", "python"])
def test_out_of_memory_is_known_by_type_or_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU], ids=["gpu", "cpu"])
def test_a_batch_too_large_for_memory_is_split_and_tried_again(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = Engine(engine.backbone).predict(make_rows(residents, tokenizer))
    monkeypatch.setattr(
        engine._cached_backbone,
        "_encode",
        raising_where(engine._cached_backbone._encode, error, lambda ids, *_: len(ids) > 4),
    )
    assert same(engine.predict(make_rows(residents, tokenizer)), expected)


def test_a_half_that_fails_again_gets_an_error_and_the_other_half_is_answered(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(residents, tokenizer)
    expected = Engine(engine.backbone).predict(make_rows(residents, tokenizer))
    longest = max(row.tokens for row in rows)
    broken = raising_where(engine._cached_backbone._encode, ON_GPU, lambda ids, *_: ids.shape[1] >= longest)
    monkeypatch.setattr(engine._cached_backbone, "_encode", broken)
    found = engine.predict(rows)
    assert same(found[:4], expected[:4])
    assert all(isinstance(item, OutOfMemory) for item in found[4:])
    assert not engine.running


def test_a_row_alone_is_tried_again_after_the_cache_made_room(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.predict(make_rows(residents, tokenizer))
    assert len(engine.cache) > 0
    full = raising_where(engine._cached_backbone._encode, ON_GPU, lambda *_: len(engine.cache) > 0)
    monkeypatch.setattr(engine._cached_backbone, "_encode", full)
    found = engine.predict([EngineRow(ids_of(tokenizer, "new"), residents[0])])
    assert not isinstance(found[0], Exception)


def test_out_of_memory_within_a_side_network_is_no_fault_of_its_own(
    engine: Engine, backbone: Backbone, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = make_resident(backbone, tokenizer, make_spec("lone"), seed=9)
    rows = [*make_rows(residents, tokenizer, 4), EngineRow(ids_of(tokenizer, "one"), lone)]
    again = [replace(row) for row in rows]
    expected = engine.predict(rows)
    failed: list[int] = []

    def first_time(*_: object) -> bool:
        failed.append(1)
        return len(failed) == 1

    monkeypatch.setattr(lone.side, "encode", raising_where(lone.side.encode, ON_CPU, first_time))  # type: ignore
    answered: list[EngineRow] = []
    engine.step(again, (), lambda events: answered.extend(row for row, event in events if not isinstance(event, Piece)))
    while engine.running:
        engine.step((), (), lambda events: answered.extend(row for row, _ in events))
    assert len(answered) == len(again), "each once, though some were answered before the memory ended"
    assert set(map(id, answered)) == set(map(id, again))
    assert not any(isinstance(outcome, Exception) for outcome in expected)
    assert len(failed) == 2


def test_a_step_without_memory_fails_the_newest_half_of_texts_and_continues_the_others(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step had decoded, and some rows had drawn, before it found no memory."""
    hows = [Generation(min_new_tokens=4), Generation(do_sample=True, seed=7, min_new_tokens=4)]
    answerers = [replace(residents[2].answerer, generation=how) for how in hows]
    rows = [EngineRow(ids_of(tokenizer, "x" * index), residents[2], answerers[index % 2]) for index in range(6)]
    expected = Engine(engine.backbone).predict([replace(row) for row in rows])
    delivered: dict[EngineRow, Event] = {}
    drawn: list[object] = []

    def in_the_second_step(*args: object) -> bool:
        drawn.append(args)
        return len(drawn) == 5

    monkeypatch.setattr(loop, "draw", raising_where(loop.draw, ON_GPU, in_the_second_step))
    engine.step(rows, (), delivered.update)
    assert not delivered
    assert len(engine.cache) > 0
    engine.step((), (), delivered.update)
    assert list(delivered) == rows[3:]
    assert all(isinstance(event, OutOfMemory) for event in delivered.values())
    assert len(engine.cache) == 0
    assert len(drawn) == 5, "the step is not tried again in this turn"
    while engine.running:
        engine.step((), (), delivered.update)
    assert [delivered[row] for row in rows[:3]] == expected[:3]


def in_beams(resident: Resident) -> Resident:
    return replace(resident, answerer=replace(resident.answerer, generation=Generation(num_beams=2)))  # type: ignore


def test_a_cancellation_while_memory_is_short_happens_after_the_cache_is_emptied(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(residents[2:3], tokenizer, 2)
    expected = Engine(engine.backbone).predict([replace(row) for row in rows])
    delivered: dict[EngineRow, Event] = {}
    assert engine.step(rows, (), delivered.update)
    full = raising_where(engine._texts.leave, ON_GPU, lambda *_: len(engine.cache) > 0)
    monkeypatch.setattr(engine._texts, "leave", full)
    engine.step((), rows[:1], delivered.update)
    while engine.running:
        engine.step((), (), delivered.update)
    assert delivered == {rows[1]: expected[1]}


def test_cancelling_a_beam_search_leaves_the_other_texts_unchanged(
    engine: Engine, residents, tokenizer: Tokenizer
) -> None:
    beams = make_rows([in_beams(residents[2])], tokenizer, 3)
    expected = Engine(engine.backbone).predict([replace(row) for row in beams])
    delivered: dict[EngineRow, Event] = {}
    engine.step(beams, (), delivered.update)
    engine.step((), beams[1:2], delivered.update)
    while engine.running:
        engine.step((), (), delivered.update)
    assert delivered == {beams[0]: expected[0], beams[2]: expected[2]}
    engine.step(gone := [replace(row) for row in beams], (), delivered.update)
    assert not engine.step((), gone, delivered.update)
    assert len(engine._texts) == 0


def test_a_beam_search_without_memory_says_so_and_empties_the_cache(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*make_rows([in_beams(residents[2])], tokenizer, 1), *make_rows(residents[2:3], tokenizer, 1)]
    expected = Engine(engine.backbone).predict([replace(rows[1])])

    def cramped(self: BeamSearch) -> None:
        raise ON_CPU

    monkeypatch.setattr(BeamSearch, "_advance", cramped)
    delivered: dict[EngineRow, Event] = {}
    assert engine.step(rows, (), delivered.update)
    assert isinstance(delivered[rows[0]], OutOfMemory)
    assert len(engine.cache) == 0
    while engine.running:
        engine.step((), (), delivered.update)
    assert delivered[rows[1]] == expected[0]


# --- texts that cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 2])
def test_a_streamed_text_that_cannot_be_decoded_ends_alone(
    engine: Engine, residents, tokenizer: Tokenizer, tokens: int
) -> None:
    def decode(ids: Sequence[int]) -> str:
        if len(ids) > tokens:
            raise IndexError("piece id is out of range")
        return tokenizer.decode(ids)

    [sound] = make_rows(residents[2:3], tokenizer, 1)
    how = replace(residents[2].answerer, decode=decode, generation=Generation(min_new_tokens=5))
    broken = EngineRow(sound.ids, residents[2], how, streams=True)
    expected = Engine(engine.backbone).predict([replace(sound)])
    delivered: dict[EngineRow, list[Event]] = {broken: [], sound: []}
    engine.step([broken, sound], (), lambda events: [delivered[row].append(event) for row, event in events])  # type: ignore
    while engine.running:
        engine.step((), (), lambda events: [delivered[row].append(event) for row, event in events])  # type: ignore
    *pieces, ending = delivered[broken]
    assert isinstance(ending, SideFailed)
    assert "out of range" in str(ending)
    assert len(pieces) <= tokens
    assert delivered[sound] == expected
    assert len(engine._texts) == 0


# --- passes that would need too much memory ------------------------------------------------------------------------


def limited(engine: Engine, rows: int, tokens: int) -> Engine:
    """An engine whose passes may need as much memory as so many rows of so many tokens."""
    return Engine(engine.backbone, config=EngineConfig(max_pass_bytes=engine._estimate(rows, tokens)))


def test_a_batch_over_the_memory_of_a_pass_is_computed_in_parts(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(residents, tokenizer)
    sizes: list[int] = []
    small = limited(engine, 3, max(row.tokens for row in rows))
    encode = small._cached_backbone._encode

    def record(ids: Any, *rest: Any) -> Any:
        sizes.append(len(ids))
        return encode(ids, *rest)

    monkeypatch.setattr(small._cached_backbone, "_encode", record)
    assert same(small.predict(rows), engine.predict(make_rows(residents, tokenizer)))
    assert sum(sizes) == len(rows)
    assert max(sizes) < len(rows)
    assert sizes[-1] <= 3


def test_a_row_over_the_memory_of_a_pass_is_refused_alone_and_no_side_network_is_blamed(
    engine: Engine, residents, tokenizer: Tokenizer
) -> None:
    rows = [*make_rows(residents, tokenizer), EngineRow(ids_of(tokenizer, "x" * 99), residents[0])]
    small = limited(engine, 1, rows[-1].tokens - 1)
    *others, refused = small.predict(rows)
    assert isinstance(refused, PassTooLarge)
    assert (refused.tokens, refused.limit) == (rows[-1].tokens, engine._estimate(1, rows[-1].tokens - 1))
    assert same(others, engine.predict(make_rows(residents, tokenizer)))
    assert not isinstance(small.predict(make_rows(residents, tokenizer, 1))[0], Exception)


# --- slow side networks --------------------------------------------------------------------------------------------


def slowed(resident: Resident, clock: Clock, seconds: float) -> Resident:
    """A side network that takes this many seconds."""
    encode = resident.side.encode

    def slow(*inputs: Any) -> Any:
        clock.now += seconds
        return encode(*inputs)

    resident.side.encode = slow  # type: ignore[method-assign, assignment]
    return resident


class Delivered:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.events: list[tuple[EngineRow, Event, float]] = []

    def __call__(self, events: Sequence[tuple[EngineRow, Event]]) -> None:
        self.events += [(row, event, self._clock.now) for row, event in events]


def test_a_slow_side_network_fails_alone_after_the_other_rows_are_answered(
    engine: Engine, backbone: Backbone, residents, tokenizer: Tokenizer, clock: Clock
) -> None:
    scoring = [residents[0], residents[1], residents[3]]
    sound = make_resident(backbone, tokenizer, make_spec("slow"), version=3, seed=5)
    rows = [EngineRow(ids_of(tokenizer, "dull"), sound), *make_rows(scoring, tokenizer, 6)]
    expected = engine.predict([replace(row) for row in rows])
    slow = slowed(sound, clock, 6.0)
    delivered = Delivered(clock)
    engine.step([replace(row, resident=slow) if row.resident is sound else row for row in rows], (), delivered)
    *others, (row, fault, told_at) = delivered.events
    assert row.resident is slow
    assert isinstance(fault, SideFailed)
    assert "6.0 s" in str(fault)
    assert "5 s" in str(fault)
    assert told_at == 6
    assert {at for _, _, at in others} == {0.0}
    found = {id(row): event for row, event, _ in others}
    assert [found[id(row)] for row in rows[1:]] == expected[1:]


def test_a_slow_side_network_is_paused_and_tried_again_later(
    engine: Engine, backbone: Backbone, residents, tokenizer: Tokenizer, clock: Clock
) -> None:
    slow = slowed(make_resident(backbone, tokenizer, make_spec("slow"), seed=5), clock, 6.0)
    newer = make_resident(backbone, tokenizer, make_spec("slow"), version=2, seed=6)

    def ask(resident: Resident) -> Answer | Exception:
        [outcome, neighbour] = engine.predict(
            [EngineRow(ids_of(tokenizer, "dull"), asked) for asked in (resident, residents[0])]
        )
        assert not isinstance(neighbour, Exception)
        return outcome

    assert isinstance(ask(slow), SideFailed)
    at = clock.now
    assert "asked again in 30 s" in str(ask(slow))
    assert not isinstance(ask(newer), Exception)
    assert clock.now == at, "nobody waited for it"
    clock.now += 31
    assert isinstance(ask(slow), SideFailed)
    assert clock.now > at + 31


def test_a_long_row_gives_a_side_network_more_time(
    engine: Engine, backbone: Backbone, tokenizer: Tokenizer, clock: Clock
) -> None:
    slow = slowed(make_resident(backbone, tokenizer, make_spec("slow"), seed=5), clock, 9.0)
    long = tuple(ids_of(tokenizer, "x")) * USUAL_TOKENS
    [outcome] = engine.predict([EngineRow(long, slow)])
    assert not isinstance(outcome, Exception)
    [outcome] = engine.predict([EngineRow(ids_of(tokenizer, "dull"), slow)])
    assert isinstance(outcome, SideFailed)


def test_a_slow_stack_is_no_single_networks_fault_but_a_slow_network_alone_is(
    engine: Engine, residents, tokenizer: Tokenizer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = StackedBatch.encode

    def slow(*args: Any) -> Any:
        clock.now += 9.0
        return encode(*args)

    monkeypatch.setattr(StackedBatch, "encode", slow)
    pair = [EngineRow(ids_of(tokenizer, "dull"), residents[index]) for index in (0, 3)]
    assert not any(isinstance(outcome, Exception) for outcome in engine.predict(pair))
    [alone] = engine.predict([EngineRow(ids_of(tokenizer, "dull"), residents[0])])
    assert isinstance(alone, SideFailed)


def test_the_text_of_a_slow_side_network_ends_and_the_others_continue(
    engine: Engine, backbone: Backbone, residents, tokenizer: Tokenizer, clock: Clock
) -> None:
    lone = make_resident(backbone, tokenizer, make_spec("slow", "text", max_new_tokens=9), seed=5)
    lone = replace(lone, answerer=replace(lone.answerer, generation=Generation(min_new_tokens=9)))
    rows = [EngineRow(ids_of(tokenizer, "dull"), resident) for resident in (lone, residents[2])]
    expected = engine.predict([replace(row) for row in rows])
    found = engine.predict(
        [EngineRow(ids_of(tokenizer, "dull"), asked) for asked in (slowed(lone, clock, 7), residents[2])]
    )
    assert isinstance(found[0], SideFailed)
    assert found[1] == expected[1]
    assert "asked again" in str(engine.predict([EngineRow(ids_of(tokenizer, "dull"), lone)])[0])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_stacked_side_network_that_is_broken_leaves_its_neighbours_bit_identical(
    engine: Engine, backbone: Backbone, tokenizer: Tokenizer, number: float
) -> None:
    bank = SideBank(backbone)
    specs = [make_spec(name, kind) for name in "abc" for kind in ("classification", "regression", "text")]
    specs = [spec.model_copy(update={"name": f"{spec.name}-{spec.kind}"}) for spec in specs]
    made = [make_resident(backbone, tokenizer, spec, seed=seed) for seed, spec in enumerate(specs)]
    stacked = [replace(resident, side=bank.add(resident.side)) for resident in made]  # type: ignore[arg-type]
    rows = make_rows(stacked, tokenizer, 18)
    expected = engine.predict([replace(row) for row in rows])
    for index in (4, 5, 6):  # of each kind one
        side: Any = stacked[index].side
        side.chunk.rows[side.slot].fill_(number)
        if side.head is not None:
            side.head.weight.fill_(number)
    found = engine.predict(rows)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if index % 9 in (4, 5, 6):
            assert isinstance(one, SideFailed), index
        else:
            assert one == other
