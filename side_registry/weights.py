"""Whether a safetensors file is what its header says: only the header is read, before memory is taken for the tensors.

Knows the frame: 8 bytes of length, a JSON header, the tensors' bytes. The loader checks which tensors a side network
needs, and their values.
"""

import json
import math
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 4 << 20
LENGTH_BYTES = 8

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def frame_fault(path: Path) -> str | None:
    """Why a file is no whole safetensors file; None when it is one. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
            return f"its header would have {length} bytes and the file has {size}"
        if length > MAX_HEADER_BYTES:
            return f"its header has {length} bytes, at most {MAX_HEADER_BYTES} are read"
        data = file.read(length)
    try:
        header = json.loads(data, object_pairs_hook=_distinct)
        return _layout_fault(header, size - LENGTH_BYTES - length)
    except (ValueError, RecursionError) as error:
        return f"its header is no JSON object of tensors ({str(error)[:200]})"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name comes twice")
    return table


def _layout_fault(header: Any, size: int) -> str | None:
    """The tensors must follow each other without gap or overlap and fill the file's `size` bytes of tensors."""
    if not isinstance(header, dict):
        raise ValueError("it is a list or a number")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        if fault := _tensor_fault(entry):
            return f"its tensor {name[:80]!r} {fault}"
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end:
            return f"its tensor {name[:80]!r} begins at byte {start}, the one before it ends at {end}"
        end = stop
    return None if end == size else f"its tensors end at byte {end} of {size}"


def _tensor_fault(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "lacks a dtype, a shape or its data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"has the unknown dtype {str(dtype)[:40]!r}"
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        return "has a shape or data_offsets that are no lists of whole numbers"
    needed = math.prod(shape) * BITS[dtype] // 8
    size = offsets[1] - offsets[0]
    return None if size == needed else f"has {size} bytes, its shape and dtype need {needed}"


def _are_counts(values: Any) -> bool:
    """Dimensions or byte offsets: at most 8 numbers, all below 2**48."""
    return isinstance(values, list) and len(values) <= 8 and all(_is_count(value) for value in values)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
