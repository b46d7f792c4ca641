"""Files of rows: .jsonl, .csv, .tsv and .parquet, read row by row or in chunks as Arrow tables.

Knows formats and columns; no paths, tasks, tensors or servers.
"""

from table_files.errors import TableFileError
from table_files.format import Chunk, Format, Row
from table_files.reading import FORMATS, class_names, cut, format_of, read_chunk, read_rows

__all__ = [
    "FORMATS",
    "Chunk",
    "Format",
    "Row",
    "TableFileError",
    "class_names",
    "cut",
    "format_of",
    "read_chunk",
    "read_rows",
]
