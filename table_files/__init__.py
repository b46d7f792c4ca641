"""Files of rows: .jsonl, .csv, .tsv and .parquet, read row by row or in chunks as Arrow tables; and images by id.

Knows formats and columns; no tasks, tensors or servers. Files of rows are opened by the caller; images have a path.
"""

from table_files.errors import ImageSourceError, TableFileError
from table_files.format import Chunk, Format, Row
from table_files.image_sources import ID_SUFFIX, ImageFolder, ImageSource, ImageTable, bytes_of, open_images
from table_files.reading import FORMATS, class_names, cut, format_of, read_chunk, read_rows

__all__ = [
    "FORMATS",
    "ID_SUFFIX",
    "Chunk",
    "Format",
    "ImageFolder",
    "ImageSource",
    "ImageSourceError",
    "ImageTable",
    "Row",
    "TableFileError",
    "bytes_of",
    "class_names",
    "cut",
    "format_of",
    "open_images",
    "read_chunk",
    "read_rows",
]
