"""How datasets are listed, cut in shards and read: every row once, as it was written, or one clear error."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from serving.offline.errors import UnreadableInput
from serving.offline.inputs import Inputs, list_files, read, scan, would_list

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)

FIELDS = st.one_of(
    st.text('"\na', max_size=4),
    st.text('"\n,a', max_size=4).map(lambda text: '"' + text.replace('"', '""') + '"'),
    st.sampled_from(['"', '"a"b', '"a"b"', 'a"b,"', '"""', '" ,"']),
)
"""Quoted rightly, and not."""


def cut(where: Path | str, shard_rows: int) -> Inputs:
    return scan(str(where), list_files(str(where)), shard_rows)


def rows_of(where: Path | str, shard_rows: int) -> list[dict[str, Any]]:
    """All rows, read shard by shard."""
    inputs = cut(where, shard_rows)
    tables = [read(str(where), shard, inputs.schema) for shard in inputs.shards]
    assert [table.num_rows for table in tables] == [shard.rows for shard in inputs.shards]
    assert all(0 < table.num_rows <= shard_rows for table in tables)
    assert [shard.index for shard in inputs.shards] == list(range(len(inputs.shards)))
    return [row for table in tables for row in table.to_pylist()]


def write(path: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    path.parent.mkdir(exist_ok=True)
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case _:
            with path.open("w", encoding="utf-8", newline="") as file:
                delimiter = "\t" if path.suffix == ".tsv" else ","
                writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(TEXTS, min_size=1, max_size=8), min_size=1, max_size=3),
    shard_rows=st.integers(1, 9),
    group=st.integers(1, 4),
)
def test_every_row_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, texts: list[list[str]], shard_rows: int, group: int
):
    folder, wanted = tmp_path_factory.mktemp("rows"), []
    for number, own in enumerate(texts):
        rows = [{"id": f"{number}-{place}", "text": text} for place, text in enumerate(own)]
        write(folder / f"{number}.{suffix}", rows, group)
        wanted += rows
    assert rows_of(folder, shard_rows) == wanted


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(FIELDS, FIELDS), max_size=5))
def test_quotes_mean_what_arrow_takes_them_for(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]):
    """Cut row by row, a file holds the rows that Arrow finds in it as a whole; or both refuse it."""
    path = tmp_path_factory.mktemp("quotes") / "rows.csv"
    path.write_bytes("\n".join(["a,b", *map(",".join, rows), ""]).encode())
    parsing, converting = pc.ParseOptions(newlines_in_values=True), {"a": pa.string(), "b": pa.string()}
    try:
        options = pc.ConvertOptions(column_types=converting, strings_can_be_null=False)
        wanted = pc.read_csv(path, parse_options=parsing, convert_options=options).to_pylist()
    except pa.ArrowInvalid:
        wanted = []
    try:
        found = rows_of(path, 1)
    except UnreadableInput as error:
        assume("never closed" not in str(error))  # which Arrow takes for closed
        found = []
    assert found == wanted


def test_the_cut_is_the_same_each_time(tmp_path: Path):
    write(tmp_path / "rows.csv", [{"text": f"{n}\nline"} for n in range(10)])
    assert cut(tmp_path, 3) == cut(tmp_path, 3)
    assert [shard.rows for shard in cut(tmp_path, 3).shards] == [3, 3, 3, 1]


class TestFiles:
    def test_a_folder_with_what_is_below_by_name(self, tmp_path: Path):
        for name in ("b.jsonl", "a/c.jsonl", "_unfinished/x.jsonl", ".hidden.jsonl", "README.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text('{"text": "x"}\n')
        found = list_files(str(tmp_path))
        assert [Path(each.path).relative_to(tmp_path).as_posix() for each in found] == ["a/c.jsonl", "b.jsonl"]
        assert {each.bytes for each in found} == {14}

    def test_a_pattern_stays_in_its_folder(self, tmp_path: Path):
        for name in ("1.jsonl", "2.jsonl", "3.csv", "below/4.jsonl"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("{}\n")
        assert [Path(each.path).name for each in list_files(f"{tmp_path}/*.jsonl")] == ["1.jsonl", "2.jsonl"]
        assert [Path(each.path).name for each in list_files(f"{tmp_path}/*/?.jsonl")] == ["4.jsonl"]

    @pytest.mark.parametrize(
        ("where", "path", "found"),
        [
            ("", "out/part-0.parquet", True),
            ("", "_out/part-0.parquet", False),
            ("*.parquet", "part-0.parquet", True),
            ("*.parquet", "out/part-0.parquet", False),
            ("*/*.parquet", "out/part-0.parquet", True),
            ("in.parquet", "out/part-0.parquet", False),
        ],
    )
    def test_what_would_be_found(self, tmp_path: Path, where: str, path: str, found: bool):
        assert would_list(str(tmp_path / where), str(tmp_path / path)) is found
        (tmp_path / path).parent.mkdir(exist_ok=True)
        for name in ("in.parquet", path):
            (tmp_path / name).touch()
        assert (str(tmp_path / path) in {each.path for each in list_files(str(tmp_path / where))}) is found

    def test_a_url(self, tmp_path: Path):
        path = write(tmp_path / "rows.parquet", [{"text": "x"}])
        assert rows_of(f"file://{path}", 5) == [{"text": "x"}]

    @pytest.mark.parametrize(
        ("names", "where", "why"),
        [
            ((), "nowhere", "there is no such file or folder"),
            ((), "*.csv", "holds no .parquet, .jsonl, .csv, .tsv files"),
            ((), "", "holds no .parquet, .jsonl, .csv, .tsv files"),
            (("a.csv", "b.jsonl"), "", "holds .csv and .jsonl files; choose one kind by a pattern"),
            (("a.txt",), "a.txt", "is of no kind that can be read"),
        ],
    )
    def test_what_is_no_dataset(self, tmp_path: Path, names: tuple[str, ...], where: str, why: str):
        for name in names:
            (tmp_path / name).write_text("text\nx\n")
        with pytest.raises(UnreadableInput) as caught:
            list_files(str(tmp_path / where))
        assert why in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_no_such_file_system(self):
        with pytest.raises(UnreadableInput, match="carrier"):
            list_files("carrier://pigeon")


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "text", "why"),
        [
            ("empty.jsonl", "", "holds no rows"),
            ("empty.csv", "", "holds no rows"),
            ("header.csv", "text\n", "holds no rows"),
            ("blank.jsonl", "\n  \n", "holds no rows"),
            ("bad.jsonl", '{"text": "x"}\n{"text"\n', "JSON parse error"),
            ("bad.parquet", "no parquet", "Parquet magic bytes not found"),
            ("short.csv", "a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
            ("open.csv", 'a,b\n1,2\n3,"4\n5,6\n', "a quote is never closed; it opens in the line '3,\"4\\n'"),
            ("twice.csv", "a,a\n1,2\n", "two columns have the same name"),
            ("mixed.jsonl", '{"a": "x"}\n{"a": 1}\n', "changed from string to number"),
            ("apart.jsonl", '{"a": "x"}\n{"a": "y"}\n{"a": 1}\n', "incompatible types: string vs int64"),
        ],
    )
    def test_damage_is_told_before_any_work(self, tmp_path: Path, name: str, text: str, why: str):
        (tmp_path / name).write_text(text)
        with pytest.raises(UnreadableInput) as caught:
            cut(tmp_path / name, 2)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_latin_1_is_no_utf_8(self, tmp_path: Path):
        (tmp_path / "rows.csv").write_bytes("text\nsch\xf6n\n".encode("latin-1"))
        with pytest.raises(UnreadableInput, match="UTF8"):
            cut(tmp_path, 2)

    def test_values_of_csv_stay_text(self, tmp_path: Path):
        (tmp_path / "rows.csv").write_text("\ufeffid,when,note\n007,2026-01-01,\n\n8,NULL,x\n", encoding="utf-8")
        wanted = [{"id": "007", "when": "2026-01-01", "note": ""}, {"id": "8", "when": "NULL", "note": "x"}]
        assert rows_of(tmp_path, 1) == rows_of(tmp_path, 9) == wanted

    def test_stray_quotes_are_text(self, tmp_path: Path):
        (tmp_path / "rows.csv").write_text('size,note\n5",five inches\n6,a "b\n"7\n8","x"y"z\n')
        wanted = [('5"', "five inches"), ("6", 'a "b'), ("7\n8", 'xy"z')]
        assert rows_of(tmp_path, 1) == [{"size": size, "note": note} for size, note in wanted]
        assert [shard.rows for shard in cut(tmp_path, 1).shards] == [1, 1, 1]

    def test_times_of_json_stay_text(self, tmp_path: Path):
        rows = [{"when": "2026-01-01", "all": [{"at": "2026-01-01 10:00:00"}]}, {"when": "now", "all": []}]
        assert rows_of(write(tmp_path / "rows.jsonl", rows), 1) == rows

    def test_columns_that_some_rows_lack_are_null(self, tmp_path: Path):
        write(tmp_path / "rows.jsonl", [{"a": 1}, {"b": "x"}, {"a": 1.5, "b": None}])
        wanted = [{"a": 1.0, "b": None}, {"a": None, "b": "x"}, {"a": 1.5, "b": None}]
        assert rows_of(tmp_path, 1) == rows_of(tmp_path, 2) == wanted

    def test_parquet_files_of_different_columns(self, tmp_path: Path):
        write(tmp_path / "1.parquet", [{"a": 1}])
        write(tmp_path / "2.parquet", [{"a": 2.5, "b": "x"}])
        assert rows_of(tmp_path, 5) == [{"a": 1.0, "b": None}, {"a": 2.5, "b": "x"}]

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_a_file_that_changed_meanwhile(self, tmp_path: Path, suffix: str):
        path = write(tmp_path / f"rows.{suffix}", [{"text": "x"}] * 4)
        inputs = cut(path, 4)
        write(path, [{"text": "x"}] * 3)
        with pytest.raises(UnreadableInput, match="changed while"):
            read(str(path), inputs.shards[0], inputs.schema)
