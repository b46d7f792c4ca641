"""Reading examples: fields and targets as the spec wants them, and each kind of bad input with its line."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from side_registry.specs.task import TaskSpec
from tests.paths import glue_file
from tests.table_files.files import SUFFIXES, write
from training.builtin_tasks import load_task
from training.data import (
    Example,
    check_renames,
    data_sha256,
    iter_examples,
    read_examples,
    read_labelled,
    read_to_evaluate,
    split,
)
from training.errors import DataError, RecipeError

SST2 = load_task("sst2")
RTE = load_task("rte")
STSB = load_task("stsb")
TITLE = TaskSpec(name="title", kind="text", template="title: {body}")
PARAPHRASE = TaskSpec(name="paraphrase", kind="embedding", template="{text}", max_chars=30)


def refused(path: Path, spec: TaskSpec) -> DataError:
    with pytest.raises(DataError) as caught:
        read_examples(path, spec)
    assert str(caught.value).startswith(str(path))
    return caught.value


def refused_bytes(folder: Path, name: str, content: bytes, spec: TaskSpec = SST2) -> DataError:
    path = folder / name
    path.write_bytes(content)
    return refused(path, spec)


def plain(examples: list[Example]) -> list[tuple[dict[str, str], str | float]]:
    return [(example.fields, example.target) for example in examples]


# What is read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fields_target_and_line_come_from_the_file_and_other_columns_do_not(tmp_path, suffix):
    rows = [
        {"id": "7", "label": "entailment", "sentence2": "It is.", "sentence1": "It is so."},
        {"id": "8", "label": "not_entailment", "sentence2": "é 漢 \x12", "sentence1": 'a "b", c'},
        {"id": "8", "label": "not_entailment", "sentence2": "é 漢 \x12", "sentence1": 'a "b", c'},
    ]
    first = 2 if suffix in (".csv", ".tsv") else 1
    assert read_examples(write(tmp_path / f"rows{suffix}", rows), RTE) == [
        Example(
            fields={"sentence1": str(row["sentence1"]), "sentence2": str(row["sentence2"])},
            target=str(row["label"]),
            line=first + position,
        )
        for position, row in enumerate(rows)
    ]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
values = st.floats(0, 5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(texts, texts, values), min_size=1, max_size=5))
def test_a_regression_file_reads_back_as_it_was_written(tmp_path, suffix, rows):
    assume(all(text.strip() for row in rows for text in row[:2]))
    assume(suffix != ".tsv" or not any("\t" in text and "\n" in text for row in rows for text in row[:2]))
    written = [{"sentence1": one, "sentence2": two, "score": value} for one, two, value in rows]
    expected = [({"sentence1": one, "sentence2": two}, value) for one, two, value in rows]
    assert plain(read_examples(write(tmp_path / f"rows{suffix}", written), STSB)) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_streams(tmp_path, suffix):
    """The last row is bad, yet the first comes out."""
    rows = [{"sentence": "fine", "label": "positive"}] * 3000 + [{"sentence": "fine", "label": "?"}]
    examples = iter_examples(write(tmp_path / f"rows{suffix}", rows), SST2)
    assert isinstance(examples, Iterator)
    assert next(examples).fields == {"sentence": "fine"}
    with pytest.raises(DataError) as caught:
        list(examples)
    assert caught.value.line == (3002 if suffix in (".csv", ".tsv") else 3001)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_in_a_field_become_their_text(tmp_path, suffix):
    rows = [{"sentence": 1984, "label": "positive"}, {"sentence": -3, "label": "negative"}]
    examples = read_examples(write(tmp_path / f"rows{suffix}", rows), SST2)
    assert [example.fields["sentence"] for example in examples] == ["1984", "-3"]


# Targets


MANY = TaskSpec(name="many", kind="multilabel", template="{sentence}", labels=("rude", "threat", "spam"))
MANY_BY_INDEX = MANY.model_copy(update={"label_index": True})


@pytest.mark.parametrize(
    ("spec", "value", "labels"),
    [
        (MANY, ["spam", "rude"], {"rude", "spam"}),
        (MANY, [], set()),
        (MANY, [1, 0, 1], {"rude", "spam"}),
        (MANY, [0.0, 1.0, 0.0], {"threat"}),
        (MANY, [False, False, False], set()),
        (MANY_BY_INDEX, [2, 0], {"rude", "spam"}),
        (MANY_BY_INDEX, [1.0, 0.0, 0.0], {"rude"}),
        (MANY_BY_INDEX, ["threat"], {"threat"}),
        (MANY, "spam", {"spam"}),
        (MANY, "", set()),
        (MANY, '["spam", "rude"]', {"rude", "spam"}),
    ],
)
def test_a_list_of_labels_is_texts_positions_or_flags(tmp_path, spec, value, labels):
    [example] = read_examples(write(tmp_path / "rows.jsonl", [{"sentence": "a", "labels": value}]), spec)
    assert example.target == labels


def test_a_cell_of_a_csv_file_is_a_json_list_of_labels(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('sentence,labels\na,"[""spam"", ""rude""]"\nb,\nc,threat\n')
    assert [example.target for example in read_examples(path, MANY)] == [{"spam", "rude"}, set(), {"threat"}]


def test_a_parquet_list_of_class_labels_has_the_names_of_its_metadata(tmp_path):
    feature = {"feature": {"names": ["spam", "rude"], "_type": "ClassLabel"}, "_type": "Sequence"}
    metadata = {b"huggingface": json.dumps({"info": {"features": {"labels": feature}}}).encode()}
    table = pa.table({"sentence": ["a", "b"], "labels": [[0, 1], []]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert [example.target for example in read_examples(tmp_path / "rows.parquet", MANY)] == [{"spam", "rude"}, set()]


@pytest.mark.parametrize(
    ("spec", "value", "why"),
    [
        (MANY, ["kind"], "target 'labels' has 'kind', not one of 'rude, threat, spam'"),
        (MANY, None, "target 'labels' is null; give a list of labels"),
        (MANY, {"rude": 1}, "target 'labels' is an object; give a list of labels"),
        (MANY, [0, 2], "target 'labels' has '2' in its list; give labels' texts; integers are the labels' positions"),
        (MANY, [1, 0], "is a list of 2 numbers for 3 labels; give a 0 or 1 for each"),
        (MANY, ["rude", 1], "target 'labels' has 'rude' in its list"),
        (MANY, "[spam]", "no JSON list"),
        (MANY, "rude;spam", "has 'rude;spam', not one of"),
        (MANY_BY_INDEX, [3], "target 'labels' has 3; positions are 0 to 2"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(tmp_path, spec, value, why):
    error = refused(write(tmp_path / "rows.jsonl", [{"sentence": "a", "labels": value}]), spec)
    assert error.line == 1
    assert why in str(error)


NUMBERS = TaskSpec(
    name="numbers", kind="classification", template="{sentence}", labels=("one", "two", "three", "four", "five")
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_integer_that_is_no_label_is_refused_where_the_spec_does_not_say_that_it_is_a_position(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"sentence": "a", "label": 3}])
    error = refused(path, NUMBERS)
    assert error.line == (2 if suffix in (".csv", ".tsv") else 1)
    assert error.why.startswith(
        "target 'label' is '3', not one of one, two, three, four, five; integers are the labels'"
    )
    assert "only with label_index = true" in error.why


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_may_be_positions_if_all_are(tmp_path, suffix):
    rows = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    examples = read_examples(write(tmp_path / f"rows{suffix}", rows), SST2)
    assert [example.target for example in examples] == ["positive", "negative"]


@pytest.mark.parametrize(("first", "second"), [(0, "positive"), ("positive", 0)])
def test_positions_and_label_texts_do_not_mix(tmp_path, first, second):
    path = write(tmp_path / "rows.jsonl", [{"sentence": "a", "label": first}, {"sentence": "a", "label": second}])
    error = refused(path, SST2)
    assert error.line == 2
    assert f"'{second}', but a label's {'position' if first == 0 else 'text'} in the rows before" in error.why


def test_integers_are_texts_where_labels_are_integers(tmp_path):
    stars = TaskSpec(name="stars", kind="classification", template="{sentence}", labels=("3", "2", "1"))
    path = write(tmp_path / "rows.jsonl", [{"sentence": "a", "label": 1}, {"sentence": "a", "label": "2"}])
    assert [example.target for example in read_examples(path, stars)] == ["1", "2"]
    assert refused(write(path, [{"sentence": "a", "label": 0}]), stars).line == 1


def classes(path: Path, names: list[str], values: list[int]) -> Path:
    """A file as `datasets` writes it: labels as positions, their names in the metadata."""
    features = {"sentence": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"sentence": ["a"] * len(values), "label": values})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


@pytest.mark.parametrize("label_index", [False, True])
def test_class_labels_of_parquet_are_read_by_their_names(tmp_path, label_index):
    spec = TaskSpec.model_validate(NUMBERS.model_dump() | {"label_index": label_index})
    path = classes(tmp_path / "rows.parquet", ["five", "four", "three", "two", "one"], [0, 4, 1])
    assert [example.target for example in read_examples(path, spec)] == ["five", "one", "four"]
    error = refused(classes(path, ["five", "six"], [0, 1]), spec)
    assert (error.line, error.why) == (2, "target 'label' is 'six', not one of one, two, three, four, five")
    assert refused(classes(path, ["five", "six"], [-1]), spec).why.startswith("target 'label' is '-1', not one of")


def test_open_labels_take_any_text(tmp_path):
    spec = TaskSpec(name="open", kind="classification", template="{sentence}", labels=("bed", "sofa"), open_labels=True)
    path = write(tmp_path / "rows.jsonl", [{"sentence": "a", "label": "sofa"}, {"sentence": "b", "label": "lamp"}])
    assert [example.target for example in read_examples(path, spec)] == ["sofa", "lamp"]
    path = write(tmp_path / "null.jsonl", [{"sentence": "a", "label": None}])
    assert refused(path, spec).why == "target 'label' is null; give a text"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("label", ["Positive", " positive", 2, -1, "neutral"])
def test_a_label_outside_the_spec_lists_the_labels(tmp_path, suffix, label):
    rows = [{"sentence": "a", "label": "positive" if isinstance(label, str) else 1}, {"sentence": "b", "label": label}]
    error = refused(write(tmp_path / f"rows{suffix}", rows), SST2)
    assert error.line == (3 if suffix in (".csv", ".tsv") else 2)
    assert error.why == f"target 'label' is '{label}', not one of negative, positive"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (5.1, "target 'score' is 5.1, outside 0 to 5"),
        (-0.5, "target 'score' is -0.5, outside 0 to 5"),
        (math.nan, "target 'score' is nan; give a finite number"),
        ("inf", "target 'score' is inf; give a finite number"),
        ("high", "target 'score' is 'high'; give a number"),
        ("", "target 'score' is ''; give a number"),
        ("3,5", "target 'score' is '3,5'; give a number"),
        ("1_0", "target 'score' is '1_0'; give a number"),
        (True, "target 'score' is a boolean; give a number"),
        (None, "target 'score' is null; give a number"),
        ([1], "target 'score' is an array; give a number"),
        (10**400, "target 'score' is '1000"),
    ],
)
def test_a_value_that_is_no_number_in_range_is_refused(tmp_path, value, why):
    good = {"sentence1": "a", "sentence2": "b", "score": 5}
    error = refused(write(tmp_path / "rows.jsonl", [good, good | {"score": value}]), STSB)
    assert error.line == 2
    assert error.why.startswith(why)


def test_numbers_may_be_text_and_a_spec_without_a_range_takes_all(tmp_path):
    free = TaskSpec(name="free", kind="regression", template="{sentence}")
    rows = [{"sentence": "a", "score": value} for value in ("1e6", -7, 2.5, " 3 ")]
    assert [example.target for example in read_examples(write(tmp_path / "rows.jsonl", rows), free)] == [
        1e6,
        -7,
        2.5,
        3,
    ]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (" ", "is empty"),
        ("a\0b", "holds a NUL"),
        ("\ud800", "half a surrogate pair"),
        (None, "is null"),
        (True, "is a boolean"),
    ],
)
def test_a_text_that_no_tokenizer_takes_is_refused_as_a_target(tmp_path, target, why):
    error = refused(write(tmp_path / "rows.jsonl", [{"body": "a", "target": target}]), TITLE)
    assert error.line == 1
    assert error.why.startswith("target 'target' ")
    assert why in error.why


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_texts_target_may_be_a_list_of_references(tmp_path, suffix):
    rows = [{"body": "a", "target": ["one", "two"]}, {"body": "b", "target": ["one"]}]
    path = write(tmp_path / f"rows{suffix}", rows)
    assert [example.target for example in read_examples(path, TITLE)] == [("one", "two"), ("one",)]


def test_a_text_and_a_list_may_stand_in_one_file(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"body": "a", "target": "one"}, {"body": "b", "target": ["one", 2]}])
    assert [example.target for example in read_examples(path, TITLE)] == ["one", ("one", "2")]


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ([], "target 'target' is an empty array; give it one text or more"),
        (["a", " "], "target 'target', text 2, is empty; give it some text"),
        (["a", None], "target 'target', text 2, is null; give a text"),
        ([["a"]], "target 'target', text 1, is an array; give a text"),
        (["a\0"], "target 'target', text 1, holds a NUL character or half a surrogate pair; remove it"),
    ],
)
def test_a_list_that_holds_no_text_is_refused(tmp_path, target, why):
    path = write(tmp_path / "rows.jsonl", [{"body": "a", "target": target}])
    assert refused(path, TITLE).why == why


def test_an_embeddings_target_is_a_text_that_a_server_would_embed(tmp_path):
    rows = [{"text": "a cat", "positive": " one cat", "score": 3}, {"text": 7, "positive": 8}]
    examples = read_examples(write(tmp_path / "rows.jsonl", rows), PARAPHRASE)
    assert plain(examples) == [({"text": "a cat"}, " one cat"), ({"text": "7"}, "8")]


@pytest.mark.parametrize(
    ("positive", "why"),
    [
        (" ", "target 'positive' is empty; give it some text"),
        ("a\0b", "target 'positive' holds a NUL character; remove it"),
        ("\ud800", "target 'positive' holds half a surrogate pair; remove it"),
        ("x" * 31, "target 'positive' has 31 characters, at most 30 are allowed; shorten it"),
        (None, "target 'positive' is null; give a text"),
        (["a"], "target 'positive' is an array; give a text"),
    ],
)
def test_an_embeddings_target_that_no_server_would_embed_is_refused(tmp_path, positive, why):
    rows = [{"text": "a", "positive": "b"}, {"text": "a", "positive": positive}]
    error = refused(write(tmp_path / "rows.jsonl", rows), PARAPHRASE)
    assert (error.line, error.why) == (2, why)


# Bad fields


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "field 'sentence' is null; give a text"),
        (True, "field 'sentence' is a boolean; give a text"),
        ({"a": 1}, "field 'sentence' is an object; give a text"),
        (["a"], "field 'sentence' is an array; give a text"),
        (math.nan, "field 'sentence' is nan; give a text"),
        ("", "field 'sentence' is empty; give it some text"),
        (" \n", "field 'sentence' is empty; give it some text"),
        ("a\0b", "field 'sentence' holds a NUL character; remove it"),
        ("\udfff", "field 'sentence' holds half a surrogate pair; remove it"),
        ("a" * 20_001, "field 'sentence' has 20001 characters, at most 20000 are allowed; shorten it"),
    ],
)
def test_a_field_that_a_server_would_refuse_is_refused_in_training(tmp_path, value, why):
    rows = [{"sentence": "fine", "label": "positive"}, {"sentence": value, "label": "positive"}]
    error = refused(write(tmp_path / "rows.jsonl", rows), SST2)
    assert (error.line, error.why) == (2, why)


def test_nulls_and_bytes_in_parquet_are_told_with_their_row(tmp_path):
    path = write(tmp_path / "rows.parquet", [{"sentence": text, "label": "positive"} for text in ("a", None)])
    assert str(refused(path, SST2)) == f"{path}, row 2: field 'sentence' is null; give a text"
    error = refused(write(path, [{"sentence": b"a", "label": "positive"}]), SST2)
    assert (error.line, error.why) == (1, "field 'sentence' is bytes; give a text")


# Renames, rows without targets, one file for training and validation


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_renamed_column_is_read_instead_of_the_one_with_the_fields_name(tmp_path, suffix):
    rows = [{"sentence": "no", "review": "a", "stars": "positive", "label": "?"}]
    path = write(tmp_path / f"rows{suffix}", rows)
    renames = {"sentence": "review", "label": "stars"}
    assert plain(read_examples(path, SST2, renames)) == [({"sentence": "a"}, "positive")]
    with pytest.raises(DataError, match="no column 'text'; the task needs text, label"):
        read_examples(path, SST2, {"sentence": "text"})
    with pytest.raises(DataError, match="sst2 has no field 'review'; there are sentence, label, id"):
        check_renames([SST2], {"review": "sentence"})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_without_targets_are_read_with_their_ids(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"sentence": "a", "id": "x7"}, {"sentence": "b", "id": "x8"}])
    examples = read_to_evaluate(path, SST2)
    assert [(example.fields, example.target, example.id) for example in examples] == [
        ({"sentence": "a"}, None, "x7"),
        ({"sentence": "b"}, None, "x8"),
    ]
    path = write(path, [{"sentence": "a", "label": "positive"}])
    assert [(example.target, example.id) for example in read_to_evaluate(path, SST2)] == [("positive", None)]
    with pytest.raises(DataError, match="No such file"):
        read_to_evaluate(tmp_path / "none.csv", SST2)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="empty; the first line names the columns: sentence"):
        read_to_evaluate(tmp_path / "empty.csv", SST2)


def test_targets_are_in_all_rows_or_in_none(tmp_path):
    rows: list[dict[str, object]] = [{"sentence": "a"}, {"sentence": "b", "label": "positive"}]
    for order, line, why in ((rows, 2, "give it to all or none"), (rows[::-1], 2, "no column 'label'")):
        with pytest.raises(DataError, match=why) as caught:
            read_to_evaluate(write(tmp_path / "rows.jsonl", order), SST2)
        assert caught.value.line == line


def test_a_split_is_the_seeds_and_no_row_is_on_both_sides(tmp_path):
    rows = [{"sentence": str(number // 2), "label": "positive"} for number in range(100)]
    whole = read_labelled(write(tmp_path / "rows.jsonl", rows), SST2)
    training, validation = split(whole, 0.1, seed=1)
    assert sorted([*training.examples, *validation.examples], key=lambda example: example.line) == whole.examples
    assert len(validation.examples) == 10
    texts = [{example.fields["sentence"] for example in part.examples} for part in (training, validation)]
    assert not texts[0] & texts[1]
    assert [example.line for example in validation.examples] == sorted(example.line for example in validation.examples)
    assert split(whole, 0.1, seed=1) == (training, validation) != split(whole, 0.1, seed=2)
    assert {training.sha256, validation.sha256} == {whole.sha256}


def test_a_split_takes_its_share_of_each_label_rare_ones_too(tmp_path):
    labels = ["positive"] * 180 + ["negative"] * 20
    rows = [{"sentence": str(number), "label": label} for number, label in enumerate(labels)]
    whole = read_labelled(write(tmp_path / "rows.jsonl", rows), SST2)
    drawn = set()
    for seed in range(20):
        _, validation = split(whole, 0.1, seed)
        assert [example.target for example in validation.examples].count("negative") == 2
        drawn |= {example.line for example in validation.examples}
    assert len(drawn) > 150  # not the same rows each time


def test_a_split_leaves_a_row_on_each_side_or_is_refused(tmp_path):
    whole = read_labelled(write(tmp_path / "two.jsonl", [{"sentence": t, "label": "positive"} for t in "ab"]), SST2)
    for share in (0.001, 0.999):
        assert [len(part.examples) for part in split(whole, share, seed=0)] == [1, 1]
    same = read_labelled(write(tmp_path / "same.jsonl", [{"sentence": "a", "label": "positive"}] * 9), SST2)
    with pytest.raises(RecipeError, match="fewer than two different rows"):
        split(same, 0.5, seed=0)


# Bad files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"sentence,label\na\n", ", line 2: 1 values, but the header names 2 columns"),
        ("rows.jsonl", b'{"sentence": "a"}', ", line 1: no column 'label'; the task needs sentence, label"),
        ("rows.txt", b"", ": cannot read .txt; use .jsonl, .csv, .tsv or .parquet"),
    ],
)
def test_what_is_wrong_with_the_file_is_told_with_path_and_line(tmp_path, name, content, message):
    assert str(refused_bytes(tmp_path, name, content)).startswith(f"{tmp_path / name}{message}")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "rows.jsonl",
            b'{"sentence": "%s", "label": "positive"}\n',
            "has 10000000 characters, at most 20000 are allowed",
        ),
        ("rows.csv", b"sentence,label\n%s,positive\n", "has 10000000 characters, at most 20000 are allowed"),
        ("rows.jsonl", b"%s\n", "bad JSON: Expecting value at column 1"),
    ],
)
def test_a_line_of_millions_of_characters_is_refused(tmp_path, name, content, why):
    assert why in str(refused_bytes(tmp_path, name, content % (b"a" * 10_000_000)))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.jsonl", b"", "holds no examples"),
        ("rows.csv", b"sentence,label\n", "holds no examples"),
        ("rows.csv", b"", "empty; the first line names the columns: sentence, label"),
    ],
)
def test_an_empty_file_is_refused(tmp_path, name, content, why):
    error = refused_bytes(tmp_path, name, content)
    assert (error.line, error.why) == (None, why)
    assert str(error) == f"{tmp_path / name}: {why}"


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    empty = pa.table({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "rows.parquet")
    assert refused(tmp_path / "rows.parquet", SST2).why == "holds no examples"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_and_a_folder_are_refused(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    assert refused(path, SST2).why == "No such file or directory"
    path.mkdir()
    assert refused(path, SST2).why == "Is a directory"


def test_the_hash_is_that_of_the_files_bytes(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"abc\n" * 100_000)
    assert data_sha256(path) == hashlib.sha256(b"abc\n" * 100_000).hexdigest()
    with pytest.raises(DataError, match="No such file"):
        data_sha256(tmp_path / "none")


# Real data


@pytest.mark.real_weights
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"])
def test_real_glue_reads_whole(task, split):
    path = glue_file(task, split)
    spec = load_task(task)
    examples = read_examples(path, spec)
    assert len(examples) == path.read_bytes().count(b"\n") > 100
    assert [example.line for example in examples] == list(range(1, len(examples) + 1))
    if spec.kind == "classification":
        assert {example.target for example in examples} == set(spec.labels)
