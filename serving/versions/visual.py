"""Versions that read images: whether their vision encoder is the server's, and the images of their golden examples."""

from collections.abc import Generator, Sequence
from typing import Protocol

from ladder.config import SideConfig
from serving.engine import EncodedImage, Key
from serving.errors import CorruptSide, IncompatibleSide, LoadFailed, ServingError
from side_registry.blobs import StoredArtifact
from side_registry.golden import GoldenExample
from side_registry.manifest import Manifest, VisionRef
from vision import ImageError


class ImageEncoder(Protocol):
    """What the loader needs of a server's vision encoder."""

    @property
    def name(self) -> str:
        """Of the encoder, for people."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal features."""
        ...

    @property
    def width(self) -> int:
        """Features of one token."""
        ...

    def encode_now(self, images: Sequence[bytes]) -> list[EncodedImage]:
        """Encode images, and block meanwhile. Raises ImageError, ServingError."""
        ...


def check_visual(manifest: Manifest, version: int, side: SideConfig, encoder: ImageEncoder | None) -> None:
    """Check that a task with images has a side network that reads them, of this server's encoder.

    Raises:
        CorruptSide: its spec and its side network do not agree.
        IncompatibleSide: no encoder, or another one than it was trained with.
    """
    task, images, visual = manifest.task, manifest.spec.images, side.visual
    if visual is None:
        if images:
            raise CorruptSide(
                task, version, f"its task has the images {', '.join(images)}, its side network reads none"
            )
        return
    if not images:
        raise CorruptSide(task, version, "its side network reads images, its task has none")
    if len(images) > visual.images:
        why = f"its task has {len(images)} images, its side network reads at most {visual.images}"
        raise CorruptSide(task, version, why)
    trained = manifest.vision
    wants = "images of an encoder that its manifest does not name" if trained is None else _described(trained)
    if encoder is None:
        remedy = "serve with --vision FOLDER, the folder of that encoder"
        raise IncompatibleSide(task, wants, "no vision encoder", remedy)
    has = _described(encoder)
    if trained is None:
        raise IncompatibleSide(task, wants, has, "publish it again with its encoder's name and fingerprint")
    if trained.fingerprint != encoder.fingerprint:
        remedy = "serve with --vision FOLDER, the folder of that encoder, or retrain it with this one"
        raise IncompatibleSide(task, wants, has, remedy)
    if visual.features != encoder.width:
        wants = f"{wants} with {visual.features} features a token"
        raise IncompatibleSide(task, wants, f"{has} with {encoder.width}", "retrain it with this encoder")


def _described(encoder: VisionRef | ImageEncoder) -> str:
    return f"vision encoder {encoder.name} ({encoder.fingerprint})"


class GoldenImages:
    """The images of one version's golden examples. Holds no bytes: each batch reads its own from the store."""

    def __init__(self, stored: StoredArtifact, key: Key, encoder: ImageEncoder) -> None:
        self._stored = stored
        self._key = key
        self._encoder = encoder

    def encode(self, examples: Sequence[GoldenExample]) -> Generator[None, None, list[tuple[EncodedImage, ...]]]:
        """The images of each example, in the order of the task's; one that several examples have is encoded once.

        Yields after each image.

        Raises:
            CorruptSide: a file is not in the manifest, or is no image that can be decoded.
            CorruptBlob, StoreFailed: the store does not have it, or cannot be read.
            LoadFailed: they cannot be encoded now.
        """
        names = self._stored.manifest.spec.images
        encoded: dict[str, EncodedImage] = {}
        for file in dict.fromkeys(example.images[name] for example in examples for name in names):
            encoded[file] = self._encode(file)
            yield
        return [tuple(encoded[example.images[name]] for name in names) for example in examples]

    def _encode(self, file: str) -> EncodedImage:
        blob = self._stored.manifest.files.get(file)
        if blob is None:
            raise CorruptSide(*self._key, f"its golden examples have the image {file}, its files do not")
        data = self._stored.blobs.read(blob.sha256, blob.size)
        try:
            [image] = self._encoder.encode_now([data])
        except ImageError as error:
            raise CorruptSide(*self._key, f"its golden image {file} cannot be read: {error.what}") from error
        except ServingError as error:
            raise LoadFailed(*self._key, str(error), transient=True) from error
        return image
