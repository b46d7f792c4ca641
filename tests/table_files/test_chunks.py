"""Chunks of a file: every row once and in order, found again by bytes or index, or one clear error."""

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pyarrow import fs

from table_files import Chunk, TableFileError, cut, format_of, read_chunk
from tests.table_files.files import SUFFIXES, write

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)

FIELDS = st.one_of(
    st.text('"\na', max_size=4),
    st.text('"\n,a', max_size=4).map(lambda text: '"' + text.replace('"', '""') + '"'),
    st.sampled_from(['"', '"a"b', '"a"b"', 'a"b,"', '"""', '" ,"']),
)
"""Quoted rightly, and not."""


def chunks_of(path: Path, chunk_rows: int) -> tuple[list[Chunk], pa.Schema]:
    with path.open("rb") as file:
        pairs = list(cut(file, format_of(path), chunk_rows))
    schema = pa.unify_schemas([schema for _, schema in pairs], promote_options="permissive")
    return [chunk for chunk, _ in pairs], schema


def rows_of(path: Path, chunk_rows: int) -> list[dict[str, Any]]:
    """All rows, each chunk read by itself, the last one first."""
    chunks, schema = chunks_of(path, chunk_rows)
    tables = []
    for chunk in reversed(chunks):
        with path.open("rb") as file:
            tables.append(read_chunk(file, format_of(path), chunk, schema))
    assert [chunk.start for chunk in chunks] == list(range(0, sum(chunk.rows for chunk in chunks), chunk_rows))
    assert all(0 < chunk.rows <= chunk_rows for chunk in chunks)
    return [row for table in reversed(tables) for row in table.to_pylist()]


def refused(path: Path, chunk_rows: int = 2) -> TableFileError:
    with pytest.raises(TableFileError) as caught:
        chunks_of(path, chunk_rows)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=12), chunk_rows=st.integers(1, 9), group=st.integers(1, 4))
@example(texts=["a\nb", "", ' "c",\n'], chunk_rows=1, group=1)
def test_every_row_comes_once_and_in_order(tmp_path, suffix, texts, chunk_rows, group):
    assume(suffix != ".tsv" or not any("\t" in text and "\n" in text for text in texts))
    rows = [{"id": f"row {index}", "text": text} for index, text in enumerate(texts)]
    path = write(tmp_path / f"rows{suffix}", rows, group, csv.QUOTE_ALL)
    assert rows_of(path, chunk_rows) == rows
    assert chunks_of(path, chunk_rows) == chunks_of(path, chunk_rows)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(FIELDS, FIELDS), max_size=5), chunk_rows=st.integers(1, 3))
def test_cut_anywhere_a_file_holds_the_rows_that_it_holds_as_a_whole(tmp_path, rows, chunk_rows):
    path = tmp_path / "rows.csv"
    text = "\n".join(["a,b", *map(",".join, rows), ""])
    path.write_text(text, newline="")
    _, *body, last = [record for record in csv.reader(io.StringIO(text + "end,end\n", newline="")) if record]
    is_closed = last == ["end", "end"]  # else it is within a quoted value
    if not is_closed or not all(len(record) == 2 for record in body):
        refused(path, chunk_rows)
    elif body:
        assert rows_of(path, chunk_rows) == [{"a": a, "b": b} for a, b in body]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_chunks_know_their_lines_and_bytes(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    header, one, two = ("", '{"a": "x"}\n', '{"a": "y"}\n') if suffix == ".jsonl" else ("a\n", '"x\nx"\n', "y\n")
    path.write_text("\ufeff" + header + one + "\n" + two, encoding="utf-8", newline="")
    whole = path.read_bytes()
    (first, second), _ = chunks_of(path, 1)
    assert [whole[chunk.offset : chunk.offset + chunk.bytes].decode() for chunk in (first, second)] == [one, two]
    assert (first.line, second.line) == ((1, 3) if suffix == ".jsonl" else (2, 5))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_any_file_system_are_read(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"a": f"{n}"} for n in range(5)])
    files = fs.LocalFileSystem()
    with files.open_input_file(str(path)) as file:
        pairs = list(cut(file, format_of(path), 2))
    assert [chunk.rows for chunk, _ in pairs] == [2, 2, 1]
    with files.open_input_file(str(path)) as file:
        table = read_chunk(file, format_of(path), pairs[1][0], pairs[0][1])
    assert table.to_pylist() == [{"a": "2"}, {"a": "3"}]


def test_values_of_csv_stay_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffid,when,note\n007,2026-01-01,\n\n8,NULL,x\n", encoding="utf-8")
    wanted = [{"id": "007", "when": "2026-01-01", "note": ""}, {"id": "8", "when": "NULL", "note": "x"}]
    assert rows_of(path, 1) == rows_of(path, 9) == wanted


def test_chunks_of_a_csv_file_with_semicolons(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id;text\n1;1,5\n2;b\n3;c\n")
    assert rows_of(path, 2) == [{"id": "1", "text": "1,5"}, {"id": "2", "text": "b"}, {"id": "3", "text": "c"}]


def test_times_of_json_stay_text_and_those_of_parquet_stay_times(tmp_path):
    rows = [{"when": "2026-01-01", "all": [{"at": "2026-01-01 10:00:00"}]}, {"when": "now", "all": []}]
    assert rows_of(write(tmp_path / "rows.jsonl", rows), 1) == rows
    path = tmp_path / "rows.parquet"
    table = pa.table({"at": pa.array([1, 2, 3], pa.timestamp("ns", "UTC"))})
    pa.parquet.write_table(table, path)
    chunks, schema = chunks_of(path, 2)
    with path.open("rb") as file:
        assert read_chunk(file, format_of(path), chunks[1], schema) == table.slice(2)


def test_columns_that_some_rows_lack_are_null_and_types_widen(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"a": 1}, {"b": "x"}, {"a": 1.5, "b": None}])
    wanted = [{"a": 1.0, "b": None}, {"a": None, "b": "x"}, {"a": 1.5, "b": None}]
    assert rows_of(path, 1) == rows_of(path, 2) == wanted


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_that_only_other_files_have_is_null(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"a": "x"}])
    [chunk], _ = chunks_of(path, 5)
    wide = pa.schema([("b", pa.int64()), ("a", pa.string())])
    with path.open("rb") as file:
        assert read_chunk(file, format_of(path), chunk, wide).to_pylist() == [{"b": None, "a": "x"}]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.csv", ""), ("a.csv", "text\n"), ("a.jsonl", "\n ")])
def test_a_file_without_rows_has_no_chunk(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with (tmp_path / name).open("rb") as file:
        assert list(cut(file, format_of(name), 2)) == []


@pytest.mark.parametrize(
    ("name", "text", "line", "why"),
    [
        ("bad.jsonl", '{"text": "x"}\n\n{"text"\n', 3, "bad JSON: Expecting ':' delimiter at column 8"),
        ("two.jsonl", '{"a": 1} {"a": 2}\n', 1, "bad JSON: Extra data"),
        ("deep.jsonl", '{"a": 1}\n{"a": ' + "[" * 20_000 + "]" * 20_000 + "}\n", 2, "more than 100 objects and arrays"),
        ("open.jsonl", '{"a": [\n' + "[[\n" * 15_000, 1, "bad JSON: Expecting value"),
        ("key.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', 2, "the key 'a' is given twice"),
        (
            "apart.jsonl",
            '{"a": 1}\n\n{"a": 1}\n\n{"a": "x"}\n{"a": 1}',
            5,
            "in the 2 rows from here on: JSON parse error",
        ),
        ("bad.parquet", "no parquet", None, "bad Parquet: Parquet magic bytes not found"),
        ("short.csv", 'a,b\n"1\n",2\n3\n', 4, "1 values, but the header names 2 columns"),
        ("open.csv", 'a,b\n1,2\n3,"4\n5,6\n', 3, "a quote that opens here is never closed"),
        ("twice.csv", "a,a\n1,2\n", None, "two columns have the same name"),
    ],
)
def test_damage_is_told_by_the_cut(tmp_path, name, text, line, why):
    (tmp_path / name).write_text(text)
    error = refused(tmp_path / name)
    assert error.line == line
    assert error.why.startswith(why)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_changed_since_it_was_cut_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"text": "x"}] * 4)
    [chunk], schema = chunks_of(path, 4)
    write(path, [{"text": "x"}] * 3)
    with path.open("rb") as file, pytest.raises(TableFileError, match="changed while"):
        read_chunk(file, format_of(path), chunk, schema)
    if suffix != ".parquet":
        path.write_bytes(b"")
        with path.open("rb") as file, pytest.raises(TableFileError):
            read_chunk(file, format_of(path), chunk, schema)


def test_the_error_pickles(tmp_path):
    error = TableFileError(3, "bad")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.line, copy.why, str(copy)) == (3, "bad", "line 3: bad")
    assert json.dumps(str(TableFileError(None, "bad"))) == '"bad"'
