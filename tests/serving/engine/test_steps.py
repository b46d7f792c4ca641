"""The engine's steps: scores in one step, texts over several in pieces, cancelled rows, errors of the engine."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ladder import Backbone, ClassAnswer, TextAnswer, Tokenizer
from ladder.decoding.settings import Generation
from ladder.stacked.bank import SideBank
from serving.config import EngineConfig
from serving.engine.detokenizer import Piece
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Event, Resident
from tests.marks import slow
from tests.serving.kit import ids_of, make_resident, make_spec


class Delivered:
    """What was delivered, turn by turn."""

    def __init__(self) -> None:
        self.events: list[tuple[EngineRow, Event]] = []

    def __call__(self, events: Sequence[tuple[EngineRow, Event]]) -> None:
        assert events
        self.events += events

    def of(self, row: EngineRow) -> list[Event]:
        return [event for about, event in self.events if about is row]


@pytest.fixture
def engine(backbone: Backbone) -> Engine:
    return Engine(backbone)


@pytest.fixture(scope="module", params=["stacked", "alone"])
def residents(backbone: Backbone, tokenizer: Tokenizer, request: pytest.FixtureRequest) -> list[Resident]:
    """Two tasks that score and two that make texts."""
    specs = [
        make_spec("sst2"),
        make_spec("stars", "regression"),
        make_spec("titles", "text", max_new_tokens=6),
        make_spec("poems", "text", max_new_tokens=9),
    ]
    made = [make_resident(backbone, tokenizer, spec, seed=seed) for seed, spec in enumerate(specs)]
    if request.param == "stacked":
        bank = SideBank(backbone)
        made = [replace(resident, side=bank.add(resident.side)) for resident in made]  # type: ignore[arg-type]
    return made


def run(engine: Engine, rows: Sequence[EngineRow], most: int = 60) -> Delivered:
    """Turns until nothing runs."""
    delivered = Delivered()
    running = engine.step(rows, (), delivered)
    for _ in range(most):
        if not running:
            return delivered
        running = engine.step((), (), delivered)
    raise AssertionError("it never ends")


def test_scores_are_delivered_in_their_step_and_texts_at_their_end(
    engine: Engine, residents, tokenizer: Tokenizer
) -> None:
    ids = ids_of(tokenizer, "a gripping film")
    scored, text = EngineRow(ids, residents[0]), EngineRow(ids, residents[2])
    delivered = Delivered()
    running = engine.step([text, scored], (), delivered)
    assert [type(event) for event in delivered.of(scored)] == [ClassAnswer]
    turns = 1
    while running:
        assert delivered.of(text) == []
        running = engine.step((), (), delivered)
        turns += 1
    [answer] = delivered.of(text)
    assert isinstance(answer, TextAnswer)
    assert turns >= len(answer.tokens)
    assert engine.step((), (), delivered) is False


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "temperature": 3.0, "seed": 1}, {"num_beams": 2}])
def test_pieces_make_the_whole_text_and_end_with_it(
    engine: Engine, residents, tokenizer: Tokenizer, how: dict[str, Any]
) -> None:
    rows = []
    for seed, resident in enumerate([*residents[2:]] * 4):
        settings = how | ({"seed": seed} if "seed" in how else {})
        answerer = replace(resident.answerer, generation=Generation(**settings), max_new_tokens=12)
        rows.append(EngineRow(ids_of(tokenizer, "x" * seed), resident, answerer, streams=True))
    delivered = run(engine, rows)
    for row in rows:
        *pieces, answer = delivered.of(row)
        assert isinstance(answer, TextAnswer)
        assert all(isinstance(piece, Piece) for piece in pieces)
        assert "".join(piece.text for piece in pieces) == answer.text  # type: ignore[union-attr]
        assert sum((piece.tokens for piece in pieces), ()) == answer.tokens  # type: ignore[union-attr]


def test_a_cancelled_row_gets_no_more_events_and_holds_no_memory(
    engine: Engine, residents, tokenizer: Tokenizer
) -> None:
    ids = ids_of(tokenizer, "a gripping film")
    answerer = replace(residents[3].answerer, generation=Generation(min_new_tokens=8))
    leaving, staying = EngineRow(ids, residents[3], answerer, streams=True), EngineRow(ids, residents[3], answerer)
    delivered = Delivered()
    assert engine.step([leaving, staying], (), delivered)
    count = len(delivered.of(leaving))
    running = engine.step((), [leaving], delivered)
    while running:
        running = engine.step((), (), delivered)
    assert len(delivered.of(leaving)) == count
    assert isinstance(delivered.of(staying)[-1], TextAnswer)
    assert engine.step((), [leaving, staying], delivered) is False
    assert not engine.running


def test_a_row_may_be_cancelled_before_it_starts(engine: Engine, residents, tokenizer: Tokenizer) -> None:
    rows = [EngineRow(ids_of(tokenizer, "a"), resident) for resident in residents]
    delivered = Delivered()
    assert engine.step(rows, rows, delivered) is False
    assert delivered.events == []


def test_an_error_of_the_engine_itself_is_raised_and_ends_all_rows(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, delivered = ids_of(tokenizer, "a gripping film"), Delivered()
    assert engine.step([EngineRow(ids, residents[3])], (), delivered)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(engine.backbone, "encode", broken)
        patched.setattr(engine._cached_backbone, "_encode", broken)
        with pytest.raises(ZeroDivisionError):
            engine.step([EngineRow(ids_of(tokenizer, "new"), residents[0])], (), delivered)
    assert not engine.running
    assert delivered.events == []
    assert engine.step((), (), delivered) is False
    assert isinstance(engine.predict([EngineRow(ids, residents[3])])[0], TextAnswer)


@pytest.mark.parametrize("seed", [0, slow(1), slow(2)])
def test_every_row_ends_once_and_as_if_alone_whatever_joins_and_leaves(
    engine: Engine, residents, tokenizer: Tokenizer, seed: int
) -> None:
    dice, delivered, alone = (
        random.Random(seed),
        Delivered(),
        Engine(engine.backbone, config=EngineConfig(cache_bytes=0)),
    )
    asked: list[EngineRow] = []
    gone: set[EngineRow] = set()
    for _ in range(15):
        texts = ["dull", "a gripping film", "x" * dice.randint(1, 30)]
        new = [
            EngineRow(ids_of(tokenizer, dice.choice(texts)), dice.choice(residents), streams=dice.random() < 0.5)
            for _ in range(dice.randint(0, 3))
        ]
        leaving = [row for row in asked if dice.random() < 0.05]
        before = {row: len(delivered.of(row)) for row in gone}
        running = engine.step(new, leaving, delivered)
        assert before == {row: len(delivered.of(row)) for row in gone}
        asked += new
        gone |= set(leaving)
    while running:
        running = engine.step((), (), delivered)
    for row in asked:
        endings = [event for event in delivered.of(row) if not isinstance(event, Piece)]
        assert len(endings) == 1 or (row in gone and not endings)
        if endings and isinstance(endings[0], TextAnswer):
            assert delivered.of(row)[-1] is endings[0]
            assert endings == alone.predict([replace(row)])


def test_the_same_row_cannot_be_submitted_twice(engine: Engine, residents, tokenizer: Tokenizer) -> None:
    row = EngineRow(ids_of(tokenizer, "a"), residents[0])
    with pytest.raises(ValueError, match="twice"):
        engine.predict([row, row])
