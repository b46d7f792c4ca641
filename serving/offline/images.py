"""The images of a table's rows: their bytes, from a column or by id from a source, and their features.

An image that cannot be used is the fault of its rows alone. Knows no answers and no Ray.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from serving.engine import EncodedImage
from serving.images import EncoderRunner, name_of
from serving.metrics import Metrics
from side_registry.errors import InvalidRow
from table_files import ImageSource, ImageSourceError, bytes_of
from vision import DEFAULT_LIMITS, ImageError, VisionEncoder

ENCODER_BATCH = 16
"""Most images of one encoder pass."""

EncodedOrFault = EncodedImage | Exception


class TableEncoder:
    """One vision encoder, for the images of tables and of golden examples. Blocks.

    Args:
        encoder: features are kept on its device, in its dtype.
        threads: that decode.
    """

    def __init__(self, encoder: VisionEncoder, metrics: Metrics, threads: int) -> None:
        self.name = encoder.name
        self.fingerprint = encoder.fingerprint
        self.width = encoder.width
        """Features of one token."""
        self._runner = EncoderRunner(encoder, DEFAULT_LIMITS, metrics)
        self._decoders = ThreadPoolExecutor(threads, "image-decoder", initializer=_begin_on_one_core)

    def encode(self, files: Mapping[str, bytes]) -> dict[str, EncodedOrFault]:
        """Encode images by name. An image that cannot be decoded or encoded has its error."""
        outcomes: dict[str, EncodedOrFault] = {}
        decoded: dict[str, Tensor] = {}
        for name, pixels in zip(files, self._decoders.map(self._runner.prepare, files.values()), strict=True):
            if isinstance(pixels, Exception):
                outcomes[name] = pixels
                continue
            decoded[name] = pixels
            if len(decoded) == ENCODER_BATCH:
                outcomes |= self._encode(decoded)
                decoded = {}
        return outcomes | self._encode(decoded)

    def encode_now(self, images: Sequence[bytes]) -> list[EncodedImage]:
        """Encode the images of golden examples. Raises ImageError, OutOfMemory, ImageFailed: one cannot be used."""
        outcomes = self.encode({name_of(data): data for data in images})
        encoded: list[EncodedImage] = []
        for data in images:
            outcome = outcomes[name_of(data)]
            if isinstance(outcome, Exception):
                raise outcome
            encoded.append(outcome)
        return encoded

    def _encode(self, decoded: Mapping[str, Tensor]) -> dict[str, EncodedOrFault]:
        if not decoded:
            return {}
        features = self._runner.encode(list(decoded.values()))
        return {
            name: EncodedImage(name, outcome) if isinstance(outcome, Tensor) else outcome
            for name, outcome in zip(decoded, features, strict=True)
        }


def read_column(field: str, values: Sequence[Any], source: ImageSource | None) -> list[bytes | InvalidRow]:
    """The bytes of each row's image, or why it has none.

    Args:
        field: of the task, for messages.
        values: a column: the images themselves, or with a source their ids.
    """
    if source is None:
        return [_bytes(field, value) for value in values]
    ids = [_id(field, value) for value in values]
    found = dict(source.read_each(one for one in ids if isinstance(one, str)))
    images: list[bytes | InvalidRow] = []
    for one in ids:
        data = found[one] if isinstance(one, str) else one
        is_unread = isinstance(data, ImageSourceError)
        images.append(InvalidRow(field, f"cannot be read: {data}") if is_unread else data)
    return images


def name_images(images: Sequence[bytes | InvalidRow], files: dict[str, bytes]) -> list[str | InvalidRow]:
    """The name of each image; its bytes are added to `files`. Rows that share their bytes are digested once."""
    names: dict[int, str] = {}
    named: list[str | InvalidRow] = []
    for data in images:
        if isinstance(data, InvalidRow):
            named.append(data)
            continue
        if id(data) not in names:
            names[id(data)] = name_of(data)
        name = names[id(data)]
        named.append(name)
        files[name] = data
    return named


def row_images(
    fields: Sequence[str], names: Sequence[str], encoded: Mapping[str, EncodedOrFault]
) -> tuple[EncodedImage, ...] | Exception:
    """A row's images as the engine takes them, or the fault of the first that has no features."""
    images: list[EncodedImage] = []
    for field, name in zip(fields, names, strict=True):
        outcome = encoded[name]
        if isinstance(outcome, ImageError):
            return InvalidRow(field, f"is {outcome}")
        if isinstance(outcome, Exception):
            return outcome
        images.append(outcome)
    return tuple(images)


def _begin_on_one_core() -> None:
    """Runs on each decoding thread."""
    torch.get_num_threads()  # a thread takes the number that was set last when it first asks, and then keeps its own
    torch.set_num_threads(1)


def _bytes(field: str, value: Any) -> bytes | InvalidRow:
    if value is None:
        return InvalidRow(field, "is null; give the bytes of an image file")
    data = bytes_of(value)
    if data is None:
        return InvalidRow(field, "has no bytes; write the image files themselves into the column")
    return data or InvalidRow(field, "is empty; give the bytes of an image file")


def _id(field: str, value: Any) -> str | InvalidRow:
    if value is None or value == "":
        return InvalidRow(field, "names no image; give its id")
    if isinstance(value, UnicodeDecodeError):
        return InvalidRow(field, f"is not UTF-8 ({value.reason} at byte {value.start})")
    return str(value)
