"""Datasets as files: how they are listed, cut in shards across files, and read: every row once, or one clear error.

What each format holds is tested in tests/table_files.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.offline.errors import UnreadableInput
from serving.offline.inputs import Inputs, list_files, read, scan, would_list


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
@pytest.mark.parametrize("shard_rows", [1, 4, 9])
def test_every_row_of_all_files_comes_once_and_in_order(tmp_path: Path, suffix: str, shard_rows: int):
    wanted: list[dict[str, Any]] = []
    for number, count in enumerate([5, 1, 8]):
        rows = [{"id": f"{number}-{index}", "text": f'"{index}"\nline'} for index in range(count)]
        write(tmp_path / f"{number}.{suffix}", rows)
        wanted += rows
    assert rows_of(tmp_path, shard_rows) == wanted
    assert cut(tmp_path, shard_rows) == cut(tmp_path, shard_rows)


class TestFiles:
    def test_a_folder_with_what_is_below_by_name(self, tmp_path: Path):
        for name in ("b.jsonl", "a/c.jsonl", "_unfinished/x.jsonl", ".hidden.jsonl", "README.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text('{"text": "x"}\n')
        files = list_files(str(tmp_path))
        assert [Path(file.path).relative_to(tmp_path).as_posix() for file in files] == ["a/c.jsonl", "b.jsonl"]
        assert {file.bytes for file in files} == {14}

    def test_a_pattern_stays_in_its_folder(self, tmp_path: Path):
        for name in ("1.jsonl", "2.jsonl", "3.csv", "below/4.jsonl"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("{}\n")
        assert [Path(file.path).name for file in list_files(f"{tmp_path}/*.jsonl")] == ["1.jsonl", "2.jsonl"]
        assert [Path(file.path).name for file in list_files(f"{tmp_path}/*/?.jsonl")] == ["4.jsonl"]

    @pytest.mark.parametrize(
        ("where", "path", "is_listed"),
        [
            ("", "out/part-0.parquet", True),
            ("", "_out/part-0.parquet", False),
            ("*.parquet", "part-0.parquet", True),
            ("*.parquet", "out/part-0.parquet", False),
            ("*/*.parquet", "out/part-0.parquet", True),
            ("in.parquet", "out/part-0.parquet", False),
        ],
    )
    def test_what_would_be_found(self, tmp_path: Path, where: str, path: str, is_listed: bool):
        assert would_list(str(tmp_path / where), str(tmp_path / path)) is is_listed
        (tmp_path / path).parent.mkdir(exist_ok=True)
        for name in ("in.parquet", path):
            (tmp_path / name).touch()
        assert (str(tmp_path / path) in {file.path for file in list_files(str(tmp_path / where))}) is is_listed

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
            (("a.txt",), "a.txt", "cannot read .txt; use .jsonl, .csv, .tsv or .parquet"),
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


class TestRows:
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
    def test_a_file_without_rows_is_no_dataset(self, tmp_path: Path, name: str):
        (tmp_path / name).write_text("\n" if name == "rows.jsonl" else "text\n")
        with pytest.raises(UnreadableInput, match="holds no rows"):
            cut(tmp_path, 2)

    @pytest.mark.parametrize(
        ("name", "content", "why"),
        [
            ("bad.jsonl", b'{"text": "x"}\n{"text"\n', "bad.jsonl: line 2: bad JSON: Expecting ':' delimiter"),
            ("latin-1.jsonl", b'{"text": "x"}\n{"text": "sch\xf6n"}\n', "latin-1.jsonl: line 2: not UTF-8: byte 14"),
            ("latin-1.csv", b"text\nsch\xf6n\n", "latin-1.csv: line 2: not UTF-8: byte 4 of the line is 0xf6"),
            ("lone.csv", b"a,b\n1,2\r3,4\n", "lone.csv: line 2: a lone carriage return; end lines with"),
            ("both.tsv", b'a\tb\n1\t"2\t\n"\n', "both.tsv: line 2: a quote that opens here closes in a later row"),
            ("open.csv", b'a,b\n1,2\n3,"4\n5,6\n', "open.csv: line 3: a quote that opens here is never closed"),
            ("bad.parquet", b"no parquet", "bad.parquet: bad Parquet: Parquet magic bytes not found"),
            ("apart.jsonl", b'{"a": "x"}\n{"a": "y"}\n{"a": 1}\n', "apart.jsonl: Unable to merge: Field a has incom"),
        ],
    )
    def test_damage_is_told_by_file_and_line_before_any_work(self, tmp_path: Path, name: str, content: bytes, why: str):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableInput) as caught:
            cut(tmp_path / name, 2)
        assert f"{tmp_path}/{why}" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_files_of_different_columns(self, tmp_path: Path, suffix: str):
        write(tmp_path / f"1.{suffix}", [{"a": 1}])
        write(tmp_path / f"2.{suffix}", [{"a": 2.5, "b": "x"}])
        assert rows_of(tmp_path, 5) == [{"a": 1.0, "b": None}, {"a": 2.5, "b": "x"}]

    def test_a_file_that_changed_meanwhile(self, tmp_path: Path):
        path = write(tmp_path / "rows.jsonl", [{"text": "x"}] * 4)
        inputs = cut(path, 4)
        write(path, [{"text": "x"}] * 3)
        with pytest.raises(UnreadableInput, match=r"rows\.jsonl: it was changed while"):
            read(str(path), inputs.shards[0], inputs.schema)
