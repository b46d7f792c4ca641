"""Rows one at a time: what each format allows, and the line and the reason of what it does not."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from table_files import Row, TableFileError, class_names, format_of, read_rows
from tests.table_files.files import SUFFIXES, write

COLUMNS = ("sentence", "label")


def rows_of(path: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    with path.open("rb") as file:
        return list(read_rows(file, format_of(path), columns))


def refused(path: Path, columns: Sequence[str] = COLUMNS) -> TableFileError:
    with pytest.raises(TableFileError) as caught:
        rows_of(path, columns)
    return caught.value


def refused_bytes(folder: Path, name: str, content: bytes) -> TableFileError:
    path = folder / name
    path.write_bytes(content)
    return refused(path)


# What is read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_optional_columns_come_where_the_file_has_them(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"sentence": "a", "label": "b"}])
    with path.open("rb") as file:
        assert [row for _, row in read_rows(file, format_of(path), ["sentence"], ["label", "id"])] == [
            {"sentence": "a", "label": "b"}
        ]


def test_brackets_in_a_text_are_no_depth(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"sentence": '[{"' * 1000 + "\\", "label": "a"}])
    [(_, row)] = rows_of(path)
    assert row["sentence"] == '[{"' * 1000 + "\\"


def test_parquet_tells_the_class_names_that_datasets_stored(tmp_path):
    features = {
        "label": {"names": ["World", "Sports"], "_type": "ClassLabel"},
        "topics": {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "List"},
        "older": {"feature": {"names": ["c"], "_type": "ClassLabel"}, "length": -1, "_type": "Sequence"},
        "oldest": [{"names": ["d"], "_type": "ClassLabel"}],
        "text": {"dtype": "string", "_type": "Value"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"label": [1, 0], "text": ["a", "b"]})
    known = {"label": ["World", "Sports"], "topics": ["a", "b"], "older": ["c"], "oldest": ["d"]}
    for stored, names in ((metadata, known), ({b"huggingface": b"[1]"}, {}), (None, {})):
        pq.write_table(table.replace_schema_metadata(stored), tmp_path / "rows.parquet")
        with (tmp_path / "rows.parquet").open("rb") as file:
            assert class_names(file, format_of("rows.parquet")) == names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_come_in_order_with_their_lines_and_without_other_columns(tmp_path, suffix):
    rows = [{"id": str(n), "label": f"é {n}", "sentence": f'漢 "{n}",\t\x12'} for n in range(3)]
    first = 2 if suffix in (".csv", ".tsv") else 1
    wanted = [(first + n, {"sentence": row["sentence"], "label": row["label"]}) for n, row in enumerate(rows)]
    assert rows_of(write(tmp_path / f"rows{suffix}", rows)) == wanted


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_streams(tmp_path, suffix):
    """The last row is bad, yet the first comes out."""
    path = write(tmp_path / f"rows{suffix}", [{"sentence": "fine", "label": "x"}] * 3000)
    with path.open("r+b") as file:
        rows = read_rows(file, format_of(path), COLUMNS)
        assert isinstance(rows, Iterator)
        assert next(rows)[1] == {"sentence": "fine", "label": "x"}
        if suffix != ".parquet":
            file.seek(0, 2)
            file.write(b'"')
            file.seek(0)
            with pytest.raises(TableFileError):
                list(read_rows(file, format_of(path), COLUMNS))


@pytest.mark.parametrize("name", ["ROWS.JSONL", "rows.csv"])
def test_a_byte_order_mark_blank_lines_crlf_and_a_missing_last_line_end_are_fine(tmp_path, name):
    header = b"sentence,label\r\n" if name.endswith("csv") else b""
    row = b"fine,positive" if name.endswith("csv") else b'{"sentence": "fine", "label": "positive"}'
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + header + b"\r\n" + row + b"\r\n  \r\n\r\n" + row)
    start = 3 if header else 2
    values = {"sentence": "fine", "label": "positive"}
    assert rows_of(path) == [(start, values), (start + 3, values)]


@pytest.mark.parametrize("header", ["sentence;label", '\ufeff"label";"sentence"'])
def test_a_csv_file_whose_header_has_semicolons_alone_is_read_with_them(tmp_path, header):
    path = tmp_path / "rows.csv"
    values = {"sentence": "1,5 euros", "label": '"a;b"'}
    names = [name.strip('\ufeff"') for name in header.split(";")]
    path.write_text(f"{header}\r\n{';'.join(values[name] for name in names)}\r\n", "utf-8")
    assert rows_of(path) == [(2, {"sentence": "1,5 euros", "label": "a;b"})]


def test_lines_are_counted_through_quoted_line_ends(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'sentence,label\n"one\ntwo\r\n\nfour",positive\nfive,negative\n')
    assert [(line, row["sentence"]) for line, row in rows_of(path)] == [(2, "one\ntwo\r\n\nfour"), (6, "five")]


def test_a_stray_quote_within_a_value_is_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('sentence,label\n5",five inches\n6,a "b\n"7\n8","x"y"z\n')
    wanted = [('5"', "five inches"), ("6", 'a "b'), ("7\n8", 'xy"z')]
    assert [tuple(row.values()) for _, row in rows_of(path)] == wanted


def test_an_empty_value_in_quotes_is_a_row_of_a_single_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text\na\n""\n\nb\n')
    assert rows_of(path, ("text",)) == [(2, {"text": "a"}), (3, {"text": ""}), (5, {"text": "b"})]


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"sentence": "a\u2028b\x85c", "label": "positive"}\n', encoding="utf-8")
    assert rows_of(path) == [(1, {"sentence": "a\u2028b\x85c", "label": "positive"})]


def test_dictionary_columns_of_parquet_are_text(tmp_path):
    columns = {
        "sentence": pa.array(["a", "b", "a"]).dictionary_encode(),
        "label": pa.array(["positive"] * 3, pa.large_string()),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert [row["sentence"] for _, row in rows_of(tmp_path / "rows.parquet")] == ["a", "b", "a"]


def test_times_of_parquet_are_pythons_and_one_out_of_its_range_is_refused(tmp_path):
    when = datetime(2026, 1, 1, 10, 30)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"at": pa.array([when], pa.timestamp("us"))}), path)
    assert rows_of(path, ("at",)) == [(1, {"at": when})]
    pq.write_table(pa.table({"at": pa.array([0, 10**15], pa.timestamp("s"))}), path)
    error = refused(path, ("at",))
    assert error.line == 2
    assert error.why.startswith("column 'at' holds a value that does not read: ")


# Bad files


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("column", ["sentence2", "label"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, suffix, column):
    row = {"sentence1": "a", "sentence2": "b", "label": "entailment"}
    del row[column]
    error = refused(write(tmp_path / f"rows{suffix}", [row]), ("sentence1", "sentence2", "label"))
    assert error.line == (None if suffix == ".parquet" else 1)
    needs = "the task needs sentence1, sentence2, label"
    assert error.why == f"no column {column!r}; {needs}, the file has {', '.join(row)}"


def test_spaces_around_a_columns_name_are_told(tmp_path):
    error = refused_bytes(tmp_path, "rows.csv", b"sentence, label\na, positive\n")
    assert error.why.endswith("the file has sentence,  label; remove the spaces in its column ' label'")


def test_a_column_missing_in_one_json_row_is_told_with_its_line(tmp_path):
    content = b'{"sentence": "a", "label": "positive"}\n\n{"sentence": "a"}\n'
    error = refused_bytes(tmp_path, "rows.jsonl", content)
    assert error.line == 3
    assert error.why.startswith("no column 'label'")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    path = tmp_path / name
    if name == "rows.csv":
        path.write_text("sentence,label,sentence\na,positive,b\n", encoding="utf-8")
    else:
        arrays = [pa.array(["a"]), pa.array(["positive"]), pa.array(["b"])]
        pq.write_table(pa.Table.from_arrays(arrays, names=["sentence", "label", "sentence"]), path)
    assert refused(path).why == "2 columns are named 'sentence'; keep one"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"sentence": ', "bad JSON: Expecting value at column 13; each line is one JSON object"),
        (b'{"sentence": "a"} {}', "bad JSON: Extra data at column 19; each line is one JSON object"),
        (b"[1]", "not a JSON object; each line is one, with a name and a value for each column"),
        (b'"a"', "not a JSON object"),
        (b"[" * 100_000, "more than 100 objects and arrays inside each other"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "more than 100 objects and arrays inside each other"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice; keep one"),
        (b'{"a": "x", "b": {"c": [{"d": 1, "d": 1}]}}', "the key 'd' is given twice; keep one"),
        (b'{"sentence": ' + b"1" * 5000 + b"}", "bad JSON: a number has more than 4,300 digits; write it as a text"),
    ],
    ids=["cut off", "two objects", "array", "string", "open", "deep", "key twice", "inner key twice", "long number"],
)
def test_bad_json_is_told_with_line_and_column(tmp_path, line, why):
    error = refused_bytes(tmp_path, "rows.jsonl", b'\n{"sentence": "a", "label": "positive"}\n' + line + b"\n")
    assert error.line == 3
    assert error.why.startswith(why)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv"])
def test_a_line_that_is_not_utf8_is_told_with_its_byte(tmp_path, name):
    separator = {"rows.csv": b",", "rows.tsv": b"\t"}.get(name)
    if separator:
        cells = ((b"sentence", b"label"), (b'"two\nlines"', b"positive"), (b"caf\xe9", b"x"))
        lines = [separator.join(row) for row in cells]
        line, byte = 4, 4
    else:
        lines = [b'{"sentence": "a", "label": "positive"}', b'{"sentence": "caf\xe9"}']
        line, byte = 2, 18
    error = refused_bytes(tmp_path, name, b"\n".join(lines))
    assert error.line == line
    assert error.why == f"not UTF-8: byte {byte} of the line is 0xe9; save the file as UTF-8"


def test_utf16_is_told_to_be_saved_as_utf8(tmp_path):
    error = refused_bytes(tmp_path, "rows.csv", "sentence,label\na,positive\n".encode("utf-16"))
    assert error.line == 1
    assert "save the file as UTF-8" in error.why


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"a, b,positive", "3 values, but the header names 2 columns; quote values with delimiters"),
        (b"a", "1 values, but the header names 2 columns"),
        (b'"a,positive\nb,negative\n', "a quote that opens here is never closed; quote values"),
        (b"a\rb,positive", r"a lone carriage return; end lines with \n or \r\n"),
    ],
    ids=["too many", "too few", "open quote", "carriage return"],
)
def test_bad_csv_is_told_with_the_line_where_the_row_starts(tmp_path, row, why):
    error = refused_bytes(tmp_path, "rows.csv", b'sentence,label\n"two\nlines",positive\n' + row + b"\n")
    assert error.line == 4
    assert error.why.startswith(why)


def test_a_long_document_is_a_value_up_to_the_limit(tmp_path, monkeypatch):
    text = "a word " * 40_000
    path = write(tmp_path / "rows.csv", [{"sentence": text, "label": "x"}])
    assert rows_of(path)[0][1]["sentence"] == text
    monkeypatch.setattr("table_files.delimited.MAX_CHARACTERS", len(text) - 1)
    error = refused(path)
    assert (error.line, error.why.partition(";")[0]) == (2, "bad CSV: field larger than field limit (279999)")


def test_a_stray_quote_in_tsv_does_not_swallow_rows(tmp_path):
    error = refused_bytes(tmp_path, "rows.tsv", b'sentence\tlabel\n"a\tpositive\nb"\tnegative\nc\tpositive\n')
    assert error.line == 2
    assert error.why.startswith("a quote that opens here closes in a later row; quote values")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.csv", b"", "empty; the first line names the columns: sentence, label"),
        ("rows.tsv", b"\n\n", "empty; the first line names the columns: sentence, label"),
        ("rows.parquet", b"", "bad Parquet: Parquet file size is 0 bytes"),
    ],
)
def test_a_file_that_names_no_columns_is_refused(tmp_path, name, content, why):
    error = refused_bytes(tmp_path, name, content)
    assert (error.line, error.why) == (None, why)


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", b""), ("rows.jsonl", b"\xef\xbb\xbf\n \n"), ("rows.csv", b"sentence,label\n")],
)
def test_a_file_without_rows_has_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert rows_of(tmp_path / name) == []


def test_text_in_parquet_that_is_not_utf8_is_told_with_its_row(tmp_path):
    binary = pa.array([b"a", b"\xff"])
    sentences = pa.StringArray.from_buffers(2, binary.buffers()[1], binary.buffers()[2])
    pq.write_table(pa.table({"sentence": sentences, "label": ["positive"] * 2}), tmp_path / "rows.parquet")
    error = refused(tmp_path / "rows.parquet")
    assert (error.line, error.why) == (2, "column 'sentence' is not UTF-8")


def test_damaged_parquet_is_refused(tmp_path):
    rows = [{"sentence": f"text {n}", "label": "positive"} for n in range(500)]
    whole = write(tmp_path / "rows.parquet", rows, group=500).read_bytes()
    assert refused_bytes(tmp_path, "rows.parquet", whole[:-20]).why.startswith("bad Parquet: ")
    assert refused_bytes(tmp_path, "rows.parquet", whole[:4] + b"\xff" * 200 + whole[204:]).line is None
    renamed = whole.replace(b"sentence", b"\xff\xfeence##")
    assert refused_bytes(tmp_path, "rows.parquet", renamed).why.startswith("bad Parquet: ")


@pytest.mark.parametrize("name", ["rows.txt", "rows.json", "rows"])
def test_another_suffix_lists_those_that_are_read(name):
    with pytest.raises(TableFileError) as caught:
        format_of(name)
    assert caught.value.why.endswith("use .jsonl, .csv, .tsv or .parquet")
