"""Counts the values of a message in its bytes, and bounds its names, before it is decoded.

Decoding holds Python's lock: a few megabytes of tiny values stop every other call for seconds. Counting gives the lock
up again and again, and ends at the limit. Knows protobuf's wire format and the descriptors of messages; no task.
"""

import time
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from serving.errors import InvalidInput

MAX_VALUES = 2**19
"""Values of one message, those of messages in it included. Decoding so many takes about 30 ms."""
MAX_MAP = 4096
"""Entries of one map, such as the fields of a row: one large map takes far longer to decode than many small ones."""
MAX_NAME_BYTES = 2**18
"""Bytes of a string that is no text of a row. Names are compared, hashed and quoted, and each copies them."""
TEXTS = ("sidecast.v1.Row", "sidecast.v1.Row.FieldsEntry")
"""Messages whose strings are texts of rows: their task bounds them."""
PAUSE_VALUES = 1024
"""Other threads may run after so many values, about a millisecond."""
PAUSE_S = 0.0005
"""How long. Without a real pause this thread gets Python's lock back before one that waits for it wakes up."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT = 10
"""Bytes."""

WIDTHS = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
"""Bytes of a number, where it is not a varint, which has at least one."""


class _Fields:
    """What the counter needs of one kind of message, by field number."""

    def __init__(self, message: Descriptor) -> None:
        fields = message.fields
        self.is_map = bool(message.GetOptions().map_entry)
        """It is an entry of a map."""
        self.messages = {field.number: field.message_type for field in fields if field.message_type is not None}
        self.widths = {
            field.number: WIDTHS.get(field.type, 1)
            for field in fields
            if field.message_type is None
            and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        }
        """Bytes of one number at least. Repeated numbers come packed."""
        self.names = (
            {}
            if message.full_name in TEXTS
            else {field.number: field.name for field in fields if field.type == FieldDescriptor.TYPE_STRING}
        )
        """Strings that are no texts of rows."""


_fields = cache(_Fields)


def check_values(data: bytes, message: Any, most: int = MAX_VALUES) -> None:
    """Check that a message has not too many values, and no name that is too long. Bytes that do not decode may pass.

    Args:
        message: the descriptor of its kind, of any implementation of protobuf.

    Raises:
        InvalidInput: there are more than `most`, a map has more than MAX_MAP entries, or a string that is no text of a
            row has more than MAX_NAME_BYTES.
    """
    if not has_at_most(data, message, most):
        raise InvalidInput("request", f"holds more than {most:,} values; send it in parts")


def has_at_most(data: bytes, message: Any, most: int) -> bool:
    """Whether a message has at most so many values. Up to PAUSE_VALUES it does not pause, and takes a millisecond.

    Raises:
        InvalidInput: of what was counted, a map or a string is too large, as `check_values` says.
    """
    try:
        return not _exceeds(data, message, most)
    except IndexError:  # it ends too soon, which decoding says better
        return True


def _exceeds(data: bytes, message: Descriptor, most: int) -> bool:
    count = 0
    pause = PAUSE_VALUES
    fields = _fields(message)
    at = entries = 0
    end = len(data)
    outer: list[tuple[_Fields, int, int]] = []  # the messages around the one at hand: fields, end, entries of its maps
    while at < end or outer:
        if at >= end:
            fields, end, entries = outer.pop()
            continue
        count += 1
        if count > pause:
            if count > most:
                return True
            pause = count + PAUSE_VALUES
            time.sleep(PAUSE_S)
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == BYTES:
            size, at = _varint(data, at)
            inner = fields.messages.get(tag >> 3)
            if inner is not None:
                inner_fields = _fields(inner)
                entries += inner_fields.is_map
                if entries > MAX_MAP:
                    raise InvalidInput("request", f"has a map of more than {MAX_MAP:,} entries; send fewer")
                outer.append((fields, end, entries))
                fields, end, entries = inner_fields, min(at + size, end), 0
            else:
                if MAX_NAME_BYTES < size <= end - at and tag >> 3 in fields.names:
                    name = fields.names[tag >> 3]
                    raise InvalidInput(name, f"has {size:,} bytes, at most {MAX_NAME_BYTES:,} are allowed; shorten it")
                count += size // fields.widths.get(tag >> 3, size + 1)
                at += size
        elif wire_type == VARINT:
            _, at = _varint(data, at)
        elif wire_type == FIXED32:
            at += 4
        elif wire_type == FIXED64:
            at += 8
    return count > most


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends. Raises IndexError: it has no end."""
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value = 0
    for index in range(MAX_VARINT):
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, at + index + 1
    raise IndexError(at)
