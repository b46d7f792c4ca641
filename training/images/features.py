"""Features of images, computed once: decoded, encoded, and pooled to the tokens that side networks read.

Kept in float16 (bfloat16 where a value is too large for it), so a feature is off by at most 0.05 %. Training,
validation and `sidecast evaluate` read the same numbers, from memory or disk. A server encodes an image's bytes itself,
as `encode_bytes` does.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from ladder.backbone import Images
from training.errors import DataError, RecipeError
from training.images.disk_cache import DiskCache
from training.images.inputs import ImageInputs, source_errors
from vision import FeatureFile, ImageError, VisionEncoder, decode_image, pool_grid

ENCODER_BATCH = 16
"""Images of one encoder pass. The last batch is filled up: an image's features then hardly depend on its neighbours."""

FORMAT = 1
"""Of what is kept on disk; a higher number after a change that makes other features."""

Step = Callable[[int, int], None]
"""Called with images done and images in all."""


def encode_bytes(encoder: VisionEncoder, images: Sequence[bytes]) -> Tensor:
    """Decode and encode image files, as a server does.

    Returns:
        (images, tokens, width) float32, not pooled, on the encoder's device.

    Raises:
        ImageError: bytes that are no image.
    """
    return encoder(encoder.preprocess([decode_image(data, edge=encoder.edge) for data in images]))


class ImageFeatures:
    """Features by image id. `prepare` computes them; after it every image of a run has features."""

    def __init__(self, inputs: ImageInputs, tokens: int, max_bytes: int) -> None:
        """Read nothing yet, but what a cache folder holds.

        Args:
            tokens: of each image, a square number.
            max_bytes: most memory for features. Images beyond it are read from the cache folder or the file of
                features each time, or encoded again.

        Raises:
            DataError: a file of features that the encoder which is named has not made.
            RecipeError: an encoder whose grid has fewer tokens or is not square.
        """
        self.inputs = inputs
        self.tokens = tokens
        self.width = inputs.width
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: dict[str, Tensor] = {}
        self._disk: DiskCache | None = None
        encoder = inputs.encoder
        if encoder is not None and encoder.width != self.width:
            why = f"has {self.width} features a token, and the encoder {encoder.name} makes {encoder.width}"
            raise DataError(inputs.source.path, None, f"{why}; name the encoder that made them")
        if encoder is None or isinstance(inputs.source, FeatureFile):
            return
        rows, columns = encoder.grid
        if rows != columns or rows * columns < tokens:
            rule = f"at most the tokens of a square grid; {encoder.name} has {rows} x {columns}"
            raise RecipeError("image_tokens", tokens, rule)
        if inputs.cache_dir is not None:
            self._disk = DiskCache(inputs.cache_dir, f"{FORMAT}|{encoder.fingerprint}|max {tokens}")

    @property
    def disk_fault(self) -> str | None:
        """Why features are not kept on disk for the next run; None where they are, or nobody asked for it."""
        return None if self._disk is None else self._disk.fault

    def prepare(self, image_ids: Iterable[str], step: Step) -> None:
        """Compute the features of images that have none yet, and fill the memory.

        Raises:
            DataError: an image that is missing or cannot be decoded, named by its id; or features of another shape.
        """
        wanted = list(dict.fromkeys(image_ids))
        if isinstance(self.inputs.source, FeatureFile):
            for done, image_id in enumerate(wanted, 1):
                self._keep(image_id, self._from_file(image_id))
                step(done, len(wanted))
            return
        ids = {digest: image_id for image_id, digest in self.inputs.digests(wanted).items()}
        missing: list[str] = []
        for digest, image_id in ids.items():
            stored = self._kept.get(digest) if self._disk is None else self._disk.read(digest)
            if stored is None:
                missing.append(image_id)
            else:
                self._keep(digest, stored)
        done = len(ids) - len(missing)
        for image_id, features in self._encoded(missing):
            digest = self.inputs.digests([image_id])[image_id]
            self._keep(digest, features)
            if self._disk is not None:
                self._disk.add(digest, features)
            done += 1
            step(done, len(ids))
        if self._disk is not None:
            self._disk.flush()
        step(len(ids), len(ids))

    def read(self, image_ids: Sequence[str]) -> Tensor:
        """Return the features of images, (images, tokens, width) float32.

        Raises:
            DataError: as `prepare`.
        """
        return torch.stack([self._one(image_id) for image_id in image_ids]).float()

    def images(self, rows: Sequence[tuple[str, ...]], device: torch.device | None = None) -> Images:
        """Return the images of rows, which name them by id; images that rows share are there once."""
        distinct = list(dict.fromkeys(image_id for row in rows for image_id in row))
        number = {image_id: index for index, image_id in enumerate(distinct)}
        reads = [tuple(number[image_id] for image_id in row) for row in rows]
        return Images(features=self.read(distinct).to(device), rows=reads)

    def _one(self, image_id: str) -> Tensor:
        if isinstance(self.inputs.source, FeatureFile):
            kept = self._kept.get(image_id)
            return self._from_file(image_id) if kept is None else kept
        digest = self.inputs.digests([image_id])[image_id]
        kept = self._kept.get(digest)
        if kept is None and self._disk is not None:
            kept = self._disk.read(digest)
        return next(self._encoded([image_id]))[1] if kept is None else kept

    def _keep(self, key: str, features: Tensor) -> None:
        if key not in self._kept and self._bytes + features.nbytes <= self._max_bytes:
            self._kept[key] = features
            self._bytes += features.nbytes

    def _encoded(self, image_ids: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each image with its features, in the order of the source."""
        encoder = self.inputs.encoder
        assert encoder is not None
        assert not isinstance(self.inputs.source, FeatureFile)
        side = isqrt(self.tokens)
        files = self.inputs.source.read_all(image_ids)
        while batch := _next(files):
            pictures = [self._decode(encoder, image_id, data) for image_id, data in batch]
            filled = pictures + pictures[-1:] * (ENCODER_BATCH - len(pictures))
            grids = encoder(encoder.preprocess(filled))
            pooled = pool_grid(grids, encoder.grid, (side, side)).cpu()
            for index, (image_id, _) in enumerate(batch):
                yield image_id, _halved(pooled[index])

    def _decode(self, encoder: VisionEncoder, image_id: str, data: bytes) -> np.ndarray:
        try:
            return decode_image(data, edge=encoder.edge)
        except ImageError as error:
            raise DataError(self.inputs.source.path, None, f"image {image_id!r}: {error}") from None

    def _from_file(self, image_id: str) -> Tensor:
        """An image's features in a file, pooled."""
        file = self.inputs.source
        assert isinstance(file, FeatureFile)
        try:
            features = file[image_id]
        except KeyError:
            raise DataError(file.path, None, f"has no image {image_id!r}") from None
        count = len(features)
        edge = isqrt(count)
        side = isqrt(self.tokens)
        if features.shape[1] != self.width:
            why = f"image {image_id!r} has {features.shape[1]} features a token, and others have {self.width}"
            raise DataError(file.path, None, why)
        if count != self.tokens:
            if edge**2 != count or count < self.tokens:
                why = f"image {image_id!r} has {count} tokens; a square grid of at least {self.tokens} is needed"
                raise DataError(file.path, None, why)
            features = pool_grid(features[None], (edge, edge), (side, side))[0]
        return _halved(features)


def _next(files: Iterator[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    with source_errors():
        return list(islice(files, ENCODER_BATCH))


def _halved(features: Tensor) -> Tensor:
    halved = features.half()
    return halved if torch.isfinite(halved).all() else features.bfloat16()
