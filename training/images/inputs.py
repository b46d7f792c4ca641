"""What a run knows of its images: their source, the encoder, and where features are cached."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from side_registry.manifest import VisionRef
from side_registry.specs.task import TaskSpec
from table_files import ImageSource, ImageSourceError
from table_files import open_images as open_source
from training.data import Example, data_sha256
from training.errors import DataError
from vision import FeatureFile, VisionEncoder, load_encoder


@contextmanager
def source_errors() -> Iterator[None]:
    """Turn the errors of a source of images into DataError."""
    try:
        yield
    except ImageSourceError as error:
        raise DataError(error.path, None, error.why) from None


def open_images(path: str | Path) -> ImageSource:
    """Open a folder of images, or a Parquet file that has a row for each. Raises DataError: it is neither."""
    with source_errors():
        return open_source(path)


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where a vision encoder is loaded from, JSON-ready by `to_dict`."""

    folder: str
    layer: int | None = None
    size: int | None = None

    @classmethod
    def of(cls, folder: str | Path, layer: int | None = None, size: int | None = None) -> Self:
        """Make the source with an absolute path, so that it is found from any working folder."""
        return cls(str(Path(folder).expanduser().resolve()), layer, size)

    def load(self, device: Any = "cpu") -> VisionEncoder:
        """Load the encoder. Raises EncoderError."""
        return load_encoder(self.folder, layer=self.layer, size=self.size, device=device)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInputs:
    """The images that rows name by id. Either the images themselves and an encoder, or features made before."""

    source: ImageSource | FeatureFile
    encoder: VisionEncoder | None = None
    """Of a feature file: the encoder that made the features, where somebody names it."""
    encoder_source: EncoderSource | None = None
    """Where `encoder` was loaded from, so that the run can be evaluated without naming it again."""
    cache_dir: Path | None = None
    """Where features are kept for later runs; None: nowhere."""
    _digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.encoder is None and not isinstance(self.source, FeatureFile):
            raise ValueError("images need an encoder, or features that were extracted before")

    @property
    def width(self) -> int:
        """Features of one token of an image.

        Raises:
            DataError, FeaturesError: a feature file that is empty or does not read.
        """
        if isinstance(self.source, FeatureFile):
            first = next(iter(self.source), None)
            if first is None:
                raise DataError(self.source.path, None, "holds no features")
            return self.source[first].shape[1]
        assert self.encoder is not None
        return self.encoder.width

    @property
    def vision(self) -> VisionRef | None:
        """The encoder as a manifest names it; None of features whose encoder nobody named."""
        if self.encoder is None:
            return None
        return VisionRef(name=self.encoder.name, fingerprint=self.encoder.fingerprint)

    def digests(self, image_ids: Iterable[str]) -> dict[str, str]:
        """Digest the bytes of images: sha256 by id. Each is read once.

        Raises:
            DataError: an image is missing or does not read.
        """
        assert not isinstance(self.source, FeatureFile)
        wanted = list(dict.fromkeys(image_ids))
        with source_errors():
            for image_id, data in self.source.read_all(one for one in wanted if one not in self._digests):
                self._digests[image_id] = hashlib.sha256(data).hexdigest()
        return {image_id: self._digests[image_id] for image_id in wanted}

    def identity(self, image_ids: Iterable[str]) -> str:
        """Digest all that the images say: ids and bytes, or the whole file of features. Raises DataError."""
        if isinstance(self.source, FeatureFile):
            return data_sha256(self.source.path)
        digests = self.digests(image_ids)
        lines = "".join(f"{digest} {image_id}\n" for image_id, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def image_ids(spec: TaskSpec, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The ids of each row's images, in the order of the spec's."""
    return [tuple(row[name] for name in spec.images) for row in rows]


def check_images(
    spec: TaskSpec, path: str | Path, examples: Sequence[Example], source: ImageSource | FeatureFile
) -> None:
    """Check that every image that the rows of a file name is there.

    Args:
        path: the rows' file, for the message.

    Raises:
        DataError: an image is missing; names file, line and id.
    """
    found: set[str] = set()
    for example in examples:
        for name in spec.images:
            image_id = example.fields[name]
            if image_id in found:
                continue
            try:
                is_there = image_id in source
            except ImageSourceError as error:
                raise DataError(path, example.line, str(error)) from None
            if not is_there:
                raise DataError(path, example.line, f"{name} {image_id!r} is not in {source.path}")
            found.add(image_id)


def with_bytes(spec: TaskSpec, rows: Sequence[Mapping[str, str]], source: ImageSource) -> list[dict[str, str | bytes]]:
    """The rows as servers take them: the bytes of images instead of their ids. Raises DataError."""
    with source_errors():
        data = dict(source.read_all(one for ids in image_ids(spec, rows) for one in ids))
    return [{name: data[value] if name in spec.images else value for name, value in row.items()} for row in rows]


class RowsWithBytes(Sequence[Any]):
    """Rows as servers take them, made one at a time, so that not all images are in memory at once."""

    def __init__(self, spec: TaskSpec, rows: Sequence[Mapping[str, str]], source: ImageSource) -> None:
        self._spec = spec
        self._rows = rows
        self._source = source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, str | bytes]:  # type: ignore[override] - no slices
        return with_bytes(self._spec, [self._rows[index]], self._source)[0]
