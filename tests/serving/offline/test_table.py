"""A table's answers: what the server's engine gives, one backbone pass for each distinct prompt, faults row by row."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from ladder import (
    Backbone,
    ClassAnswer,
    LabelsAnswer,
    SpansAnswer,
    TextAnswer,
    Tokenizer,
    ValueAnswer,
    VectorAnswer,
)
from serving.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Resident
from serving.errors import OutOfMemory
from serving.metrics import Metrics
from serving.offline.errors import OutOfRoom
from serving.offline.table import Counts, OfflineTask, PassLimits, TableAnswerer, answer_inputs
from tests.serving.kit import ids_of, make_resident, make_spec
from training.evaluation import Model, predict_rows

TEXTS = ["a gripping film", "dull", "a gripping film", "neither good nor bad, and far too long", "dull?"]


class Table:
    """Answers tables, and says what the backbone had to do."""

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer) -> None:
        self.metrics, self.turns = Metrics(), list[int]()
        self.engine = Engine(backbone, self.metrics, EngineConfig(cache_bytes=0))
        self._tokenizer, turn = tokenizer, self.engine.step

        def counted(rows: Sequence[EngineRow], *others: Any) -> bool:
            self.turns.append(len({row.ids for row in rows}))
            return turn(rows, *others)

        self.engine.step = counted  # type: ignore[method-assign]

    def answered(
        self, table: pa.Table, residents: Sequence[Resident], limits: PassLimits | None = None
    ) -> tuple[list[dict[str, Any]], Counts]:
        tasks = [
            OfflineTask(name=each.task, task=each.task, version=1, columns={name: name for name in each.spec.fields})
            for each in residents
        ]
        answerers = TableAnswerer(self.engine, self._tokenizer, tasks, residents, limits or PassLimits())
        tokenized = answerers.tokenize(table)
        answered, counts = answerers.to_table(tokenized, answerers.answer(tokenized))
        counts.passes = int(self.metrics.registry.get_sample_value("sidecast_batch_rows_sum") or 0)
        return answered.to_pylist(), counts


@pytest.fixture
def table(backbone: Backbone, tokenizer: Tokenizer) -> Table:
    return Table(backbone, tokenizer)


@pytest.fixture(scope="module")
def make(backbone: Backbone, tokenizer: Tokenizer) -> Callable[..., Resident]:
    def resident(name: str, kind: str = "classification", **spec: Any) -> Resident:
        return make_resident(backbone, tokenizer, make_spec(name, kind, **spec), seed=len(name))

    return resident


@pytest.fixture(scope="module")
def residents(make: Callable[..., Resident]) -> list[Resident]:
    return [
        make("sst2"),
        make("stars", "regression"),
        make("title", "text", max_new_tokens=5),
        make("vector", "embedding", dimensions=4),
        make("tagged", "multilabel"),
        make("names", "token_classification", max_source_tokens=24),
    ]


def texts(*given: Any) -> pa.Table:
    return pa.table({"id": list(range(len(given))), "sentence": list(given)})


def test_each_answer_is_what_the_engine_says_of_the_row_alone(
    table: Table, residents: list[Resident], tokenizer: Tokenizer, backbone: Backbone
):
    rows, _ = table.answered(texts(*TEXTS), residents, PassLimits(rows=2))
    alone = Engine(backbone)
    for row, text in zip(rows, TEXTS, strict=True):
        assert row["sentence"] == text
        for resident in residents:
            name = resident.task
            if name == "names":
                continue
            [wanted] = alone.predict([EngineRow(ids_of(tokenizer, text), resident)])
            assert (row[f"{name}.version"], row[f"{name}.error"]) == (1, None)
            if isinstance(wanted, ClassAnswer):
                assert row[f"{name}.label"] == wanted.label
                assert row[f"{name}.score"] == pytest.approx(wanted.score, abs=1e-4)
                assert row[f"{name}.scores"] == pytest.approx(wanted.scores, abs=1e-4)
            elif isinstance(wanted, ValueAnswer):
                assert row[f"{name}.value"] == pytest.approx(wanted.value, abs=1e-4)
            elif isinstance(wanted, TextAnswer):
                assert row[f"{name}.text"] == wanted.text
            elif isinstance(wanted, LabelsAnswer):
                assert row[f"{name}.labels"] == list(wanted.labels)
                assert row[f"{name}.scores"] == pytest.approx(wanted.scores, abs=1e-4)
            else:
                assert isinstance(wanted, VectorAnswer)
                assert row[f"{name}.embedding"] == pytest.approx(wanted.values, abs=1e-4)


def test_spans_are_those_of_the_text_whatever_its_windows(
    table: Table, residents: list[Resident], tokenizer: Tokenizer, backbone: Backbone
):
    names = residents[-1]
    rows, counts = table.answered(texts(*TEXTS), [names], PassLimits(rows=2))
    model = Model(spec=names.spec, side=names.side, answerer=names.answerer)  # type: ignore[arg-type]
    wanted, _ = predict_rows(model, backbone, tokenizer, [{"sentence": text} for text in TEXTS])
    for row, text, answer in zip(rows, TEXTS, wanted, strict=True):
        assert isinstance(answer, SpansAnswer)
        assert [(span["start"], span["end"], span["label"], span["text"]) for span in row["names.spans"]] == [
            (span.start, span.end, span.label, text[span.start : span.end]) for span in answer.spans
        ]
        assert [span["score"] for span in row["names.spans"]] == pytest.approx(
            [span.score for span in answer.spans], abs=1e-4
        )
    assert any(row["names.spans"] for row in rows)
    assert counts.truncated == {"names": 0}


def test_tasks_of_one_prompt_share_its_pass(table: Table, residents: list[Resident]):
    _, counts = table.answered(texts(*TEXTS), residents)
    assert (counts.rows, counts.prompts, counts.passes) == (5, 6, 6)  # a text is two more prompts in windows
    assert counts.failures == {"sst2": 0, "stars": 0, "title": 0, "vector": 0, "tagged": 0, "names": 0}


def test_prompts_that_differ_cost_a_pass_each(table: Table, make: Callable[..., Resident]):
    _, counts = table.answered(texts(*TEXTS), [make("sst2"), make("other", template="review: {sentence}")])
    assert (counts.prompts, counts.passes) == (8, 8)


def test_rows_that_are_cut_are_counted(table: Table, make: Callable[..., Resident]):
    tasks = [make("sst2"), make("short", max_source_tokens=3)]
    _, counts = table.answered(texts("a", "a long text of many words", "a long text of many words", ""), tasks)
    assert counts.truncated == {"sst2": 0, "short": 2}


def test_a_bad_row_fails_alone(table: Table, residents: list[Resident], make: Callable[..., Resident]):
    short = make("short", max_chars=10)
    rows, counts = table.answered(texts("good", "", None, "far too long for it"), [*residents, short])
    assert [row["sst2.error"] for row in rows] == [
        None,
        "field 'sentence' is empty; give it some text",
        "field 'sentence' is null; give a text",
        None,
    ]
    for column in ("sst2.label", "sst2.scores", "stars.value", "title.text", "vector.embedding", "names.spans"):
        assert [row[column] is None for row in rows] == [False, True, True, False]
    assert [bool(row["short.error"]) for row in rows] == [False, True, True, True]
    assert [row["short.version"] for row in rows] == [1, 1, 1, 1]
    assert counts.failures == {"sst2": 2, "stars": 2, "title": 2, "vector": 2, "tagged": 2, "names": 2, "short": 3}


def test_a_side_network_that_fails_leaves_the_others(table: Table, make: Callable[..., Resident]):
    sick, sound = make("sick"), make("sound")
    for parameter in sick.side.parameters():  # type: ignore[union-attr]
        parameter.fill_(float("nan"))
    rows, counts = table.answered(texts("good", "bad"), [sick, sound])
    assert all("roll it back" in row["sick.error"] and row["sick.label"] is None for row in rows)
    assert all(row["sound.error"] is None and row["sound.label"] for row in rows)
    assert counts.failures == {"sick": 2, "sound": 0}


@pytest.mark.parametrize(
    ("given", "text"), [(7, "7"), (2.5, "2.5"), (True, "must be text, got bool"), ([1], "must be text, got list")]
)
def test_numbers_are_taken_as_their_text(table: Table, make: Callable[..., Resident], given: Any, text: str):
    resident = make("sst2")
    [row], _ = table.answered(texts(given), [resident])
    if row["sst2.error"]:
        assert text in row["sst2.error"]
    else:
        [wanted], _ = table.answered(texts(text), [resident])
        assert row["sst2.scores"] == wanted["sst2.scores"]


def test_a_table_of_faults_asks_for_no_pass(table: Table, residents: list[Resident]):
    rows, counts = table.answered(texts("", " "), residents)
    assert (len(rows), counts.prompts, counts.passes, table.turns) == (2, 0, 0, [])


def test_passes_keep_to_their_limits(table: Table, make: Callable[..., Resident]):
    given = ["x" * length for length in range(1, 31)]
    _, counts = table.answered(
        texts(*given), [make("sst2"), make("stars", "regression")], PassLimits(rows=4, tokens=60)
    )
    assert sum(table.turns) == counts.passes == 30
    assert max(table.turns) == 4
    assert table.turns[0] == 1  # 31 tokens, and the next 30: too many together


def test_one_prompt_goes_however_long(table: Table, make: Callable[..., Resident]):
    _, counts = table.answered(texts("a long text", "b"), [make("sst2")], PassLimits(rows=4, tokens=1))
    assert (counts.passes, table.turns) == (2, [1, 1])


def test_memory_that_does_not_suffice_halves_the_passes(table: Table, make: Callable[..., Resident]):
    turn = table.engine.step

    def small(rows: Sequence[EngineRow], gone: Any, deliver: Any) -> bool:
        if len(rows) <= 2:
            return turn(rows, gone, deliver)
        table.turns.append(len(rows))
        deliver([(row, OutOfMemory(len(rows))) for row in rows])
        return False

    table.engine.step = small  # type: ignore[method-assign]
    given = texts(*"abcd")
    rows, counts = table.answered(given, [make("sst2")], PassLimits(rows=4))
    assert all(row["sst2.label"] and row["sst2.error"] is None for row in rows)
    assert (table.turns, counts.failures) == ([4, 2, 2], {"sst2": 0})
    with pytest.raises(OutOfRoom, match=r"passes of 3 prompts .* --batch-tokens or --batch-rows"):
        table.answered(given, [make("sst2")], PassLimits(rows=6))


def test_texts_join_as_others_end(backbone: Backbone, tokenizer: Tokenizer, make: Callable[..., Resident]):
    title, engine = make("title", "text", max_new_tokens=5), Engine(backbone)
    running = watch(engine)
    rows = [EngineRow(ids_of(tokenizer, f"text {number}"), title) for number in range(9)]
    found = answer_inputs(engine, [[row] for row in rows], PassLimits(rows=3))
    assert max(running) <= 3
    wanted = Engine(backbone).predict([EngineRow(row.ids, title) for row in rows])
    assert [found[row] for row in rows] == wanted


def watch(engine: Engine) -> list[int]:
    """The texts that are being made after each turn."""
    turn, running = engine.step, list[int]()

    def watched(*given: Any) -> bool:
        more = turn(*given)
        running.append(engine.running)
        return more

    engine.step = watched  # type: ignore[method-assign]
    return running


def test_equal_prompts_of_drawn_texts_keep_to_the_limit(
    backbone: Backbone, tokenizer: Tokenizer, make: Callable[..., Resident]
):
    drawn = make("drawn", "text", max_new_tokens=5, generation={"do_sample": True})
    engine = Engine(backbone)
    running = watch(engine)
    rows = [EngineRow(ids_of(tokenizer, "the same"), drawn) for _ in range(8)]
    found = answer_inputs(engine, [rows], PassLimits(rows=3))
    assert max(running) <= 3
    assert all(isinstance(found[row], TextAnswer) for row in rows)


def test_texts_that_are_drawn_are_drawn_for_each_row(table: Table, make: Callable[..., Resident]):
    drawn = make("drawn", "text", max_new_tokens=8, generation={"do_sample": True, "temperature": 5.0})
    rows, counts = table.answered(texts(*["the same"] * 4), [drawn])
    assert len({row["drawn.text"] for row in rows}) > 1
    assert counts.passes == 1


def test_a_pair_that_is_parted_elsewhere_is_another_row(table: Table, backbone: Backbone, tokenizer: Tokenizer):
    spec = make_spec("mrpc", template="{one} {two}")
    resident = make_resident(backbone, tokenizer, spec, head="linear", pair=True)
    given = [("a gripping", "film"), ("a", "gripping film"), ("a gripping", "film"), ("", "film")]
    rows, counts = table.answered(
        pa.table({"one": [one for one, _ in given], "two": [two for _, two in given]}), [resident]
    )
    scores = [row["mrpc.scores"] for row in rows]
    assert scores[0] == scores[2]
    assert scores[0] != scores[1]
    assert rows[3]["mrpc.error"]
    assert counts.prompts == 1
