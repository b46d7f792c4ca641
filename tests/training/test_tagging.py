"""Token classification in training: data files, their mistakes, tags of tokens, and a run from data to scores."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladder import SpansAnswer, load_backbone, load_tokenizer
from ladder.answering import IGNORED
from side_registry.specs.task import TaskSpec
from tests.training import toy
from training.artifact import golden_expectation
from training.baseline import baseline_of
from training.batches import count_truncated, tokenize
from training.data import DataError, read_examples, read_to_evaluate
from training.errors import RecipeError
from training.loaded_run import load_run
from training.recipes.initialization import check_start
from training.tagging import windows_of
from training.trainer import train

SPEC = TaskSpec(name="ner", kind="token_classification", template="find: {text}", labels=("PER", "LOC"))


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Any]]:
    def read(*rows: dict[str, Any], **how: Any) -> list[Any]:
        return read_examples(toy.write(tmp_path / "rows.jsonl", list(rows)), SPEC, **how)

    return read


def span(start: int, end: int, label: str = "PER", **more: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, **more}


def test_rows_have_spans_or_a_tag_for_each_token(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    [example] = read(
        {"text": "Ann met Bob Lee in Rome", "spans": [span(19, 23, "LOC"), span(8, 15), span(0, 3, text="Ann")]}
    )
    assert example.fields == {"text": "Ann met Bob Lee in Rome"}
    assert example.target == [span(0, 3), span(8, 15), span(19, 23, "LOC")]
    tokens = {"tokens": example.fields["text"].split()}
    for tags in ("B-PER O B-PER I-PER O B-LOC", "I-PER O I-PER I-PER O I-LOC", "U-PER O B-PER L-PER O S-LOC"):
        [tagged] = read(tokens | {"tags": tags.split()})
        assert (tagged.fields, tagged.target) == (example.fields, example.target)
    [renamed] = read({"words": ["Ann"], "ner": ["B-PER"]}, renames={"tokens": "words", "tags": "ner"})
    assert renamed.target == [span(0, 3)]
    path = tmp_path / "rows.csv"
    path.write_text('text,spans\nAnn,"[{""start"": 0, ""end"": 3, ""label"": ""PER""}]"\n')
    assert read_examples(path, SPEC)[0].target == [span(0, 3)]


def test_datasets_of_the_hub_name_their_tags_in_the_files_metadata(tmp_path: Path) -> None:
    names = {"feature": {"names": ["O", "B-LOC", "I-LOC", "B-PER"], "_type": "ClassLabel"}, "_type": "Sequence"}
    for feature in (names, [names["feature"]]):
        table = pa.table({"tokens": [["Ann", "in", "New", "York"]], "ner_tags": [[3, 0, 1, 2]]})
        metadata = {"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}})}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "rows.parquet")
        [example] = read_to_evaluate(tmp_path / "rows.parquet", SPEC, {"tags": "ner_tags"})
        assert example.target == [span(0, 3), span(7, 15, "LOC")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"spans": [span(0, 3), span(2, 6)]}, "span 0 to 3 (PER) and span 2 to 6 (PER) overlap"),
        ({"spans": [span(4, 30)]}, "span 4 to 30 (PER) lies outside the text, which has 11 characters"),
        ({"spans": [span(3, 4)]}, "span 3 to 4 (PER) is only white space"),
        ({"spans": [span(3, 3)]}, "needs whole numbers 0 <= start < end, got 3 and 3"),
        ({"spans": [span(-1, 3)]}, "needs whole numbers 0 <= start < end, got -1 and 3"),
        ({"spans": [span(0, 3.0)]}, "needs whole numbers"),  # type: ignore[arg-type]
        ({"spans": [span(0, 3, "ORG")]}, "has the label 'ORG', not one of PER, LOC"),
        ({"spans": [{"start": 0, "end": 3}]}, "span 1, has no label"),
        ({"spans": [span(0, 3, text="Bob")]}, "says 'Bob', and these characters of the text are 'Ann'"),
        ({"spans": "Ann"}, "is text that is no JSON"),
        ({"spans": {"PER": 1}}, "is no list"),
        ({"spans": [3]}, "span 1, is no object"),
        ({"tokens": ["Ann", "met"], "tags": ["B-PER"]}, "has 2 tokens and 1 tags"),
        ({"tokens": ["Ann"], "tags": ["B-ORG"]}, "tag 1 is 'B-ORG', and its label is not one of PER, LOC"),
        ({"tokens": ["Ann"], "tags": ["PER"]}, "tag 1 is 'PER'; write O, B-PER or I-PER"),
        ({"tokens": ["Ann"], "tags": [1]}, "tag 1 is 1; tags are text, or integers whose names"),
        ({"tokens": ["Ann", " "], "tags": ["O", "O"]}, "token 2 is ' '"),
        ({"tokens": "Ann met", "tags": ["O", "O"]}, "tokens and tags must be lists"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error_with_its_line(
    read: Callable[..., list[Any]], row: dict[str, Any], says: str
) -> None:
    whole = row if "tokens" in row else {"text": "Ann met Bob", **row}
    with pytest.raises(DataError, match="line 1") as caught:
        read(whole)
    assert says in str(caught.value)


def test_conll_files_have_a_token_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.conll"
    path.write_text("-DOCSTART- -X- O O\n\nAnn NNP B-NP B-PER\nmet VBD B-VP O\r\n\n\nNew\tB-LOC\nYork\tI-LOC")
    first, second = read_examples(path, SPEC)
    assert (first.fields, first.target, first.line) == ({"text": "Ann met"}, [span(0, 3)], 3)
    assert (second.fields, second.target, second.line) == ({"text": "New York"}, [span(0, 8, "LOC")], 7)
    assert read_to_evaluate(path, SPEC) == [first, second]
    for text, says in (
        ("Ann B-PER\nmet\n", "line 2: has one column, 'met'"),
        ("Ann B-ORG\n", "line 1: tag 1 is 'B-ORG'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=says):
            read_examples(path, SPEC)
    path.write_bytes(b"Ann B-PER\n\xff O\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_examples(path, SPEC)


def test_each_words_first_token_is_taught_in_every_window(tiny_t5: Path) -> None:
    tokenizer = load_tokenizer(tiny_t5)
    text = "Ann Lee, " * 40 + unicodedata.normalize("NFD", "Z\u00fcrich!")
    spans = [span(9 * number, 9 * number + 7) for number in range(40)] + [span(360, 367, "LOC")]
    [example] = [toy_example(text, spans)]
    rows = tokenize(SPEC, tokenizer, [example])
    [windowed] = windows_of(SPEC, tokenizer, [example.fields])
    assert len(rows) == len(windowed.windows) > 2
    for row, window in zip(rows, windowed.windows, strict=True):
        assert row.inputs == (window.ids,)
        taught = {
            window.words.text[s:e]: row.target[first]
            for (s, e), first in zip(window.words.bounds, window.words.firsts, strict=True)
        }
        assert sum(tag != IGNORED for tag in row.target) == len(window.words.firsts)
        assert (
            taught.items()
            <= {"Ann": 1, "Lee": 3, ",": 0, unicodedata.normalize("NFD", "Z\u00fcrich"): 2, "!": 0}.items()
        )
    assert count_truncated(SPEC, tokenizer, [example]) == 0


def toy_example(text: str, spans: list[dict[str, Any]]) -> Any:
    from training.data import Example

    return Example(fields={"text": text}, target=spans, line=1)


def test_the_baseline_calls_each_word_the_commonest_label() -> None:
    examples = [toy_example("Ann met Bob Lee", [span(0, 3), span(8, 15)])]
    baseline = baseline_of(SPEC, examples)
    assert baseline is not None
    assert (baseline.answer, baseline.score) == ("PER", pytest.approx(2 * 1 / (4 + 2)))


def test_fisher_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(RecipeError, match="random or magnitude for token_classification"):
        check_start("fisher", "consistent", load_backbone(tiny_t5), SPEC)


@pytest.mark.slow
def test_a_run_learns_entities_and_answers_as_its_golden_examples(tmp_path: Path, tiny_t5: Path) -> None:
    backbone, tokenizer = load_backbone(tiny_t5), load_tokenizer(tiny_t5)
    job = toy.job(tmp_path, toy.NAMES, backbone, tokenizer, epochs=5, learning_rate=2e-2)
    artifact = train(job, tmp_path / "run")
    metrics = artifact.manifest.metrics
    baseline = baseline_of(toy.NAMES, job.validation.examples)
    assert baseline is not None
    assert metrics["entity_f1"] > 2 * baseline.score > 0
    assert {"precision", "recall", "f1_PER", "f1_LOC"} <= metrics.keys()
    run = load_run(tmp_path / "run", backbone, tokenizer)
    assert run.score(job.validation.examples)["entity_f1"] == pytest.approx(metrics["entity_f1"], abs=1e-6)
    for example in artifact.manifest.examples:
        [answer] = run.predict([example.fields])
        assert isinstance(answer, SpansAnswer)
        assert len(golden_expectation(answer)["outside"]) == len(example.expected["outside"])
        assert answer.outside == pytest.approx(example.expected["outside"], abs=1e-5)
        assert all(example.fields["text"][one.start : one.end] == one.text for one in answer.spans)
