"""Files of rows in each format, as other programs would write them."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


def write(path: Path, rows: Sequence[Mapping[str, object]], group: int = 3, quoting: int = csv.QUOTE_MINIMAL) -> Path:
    """Rows in the format of the path's suffix; `group` rows in each row group of a Parquet file."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=group)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
            writer.writeheader()
            writer.writerows(rows)
    return path
