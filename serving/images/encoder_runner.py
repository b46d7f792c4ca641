"""An image's bytes to pixels, and pixels to features. Blocks; knows no callers and no queue."""

import logging
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ladder.errors import is_out_of_memory
from serving.errors import ImageFailed, OutOfMemory, ServingError, detached
from serving.metrics import Metrics
from vision import ImageError, ImageLimits, VisionEncoder, decode_image

log = logging.getLogger(__name__)

Fault = TypeVar("Fault", bound=Exception)


class EncoderRunner:
    """Decodes and encodes images; the fault of one image stands in its place, and the others are not affected.

    Args:
        limits: of a file, checked before it is decoded.
    """

    def __init__(self, encoder: VisionEncoder, limits: ImageLimits, metrics: Metrics) -> None:
        example = next(encoder.parameters())
        self._encoder = encoder
        self._dtype = example.dtype
        self._device = example.device
        self._limits = limits
        self._metrics = metrics

    def prepare(self, data: bytes) -> Tensor | ServingError | ImageError:
        """Decode one image, and make it the encoder's input: (3, height, width) float32 on the CPU."""
        try:
            with self._metrics.timed("decode_image"):
                pixels = decode_image(data, self._limits, edge=self._encoder.edge)
                return self._encoder.preprocess([pixels])[0]
        except ImageError as error:
            return self._counted(error.fault, error)
        except MemoryError:
            return self._counted("memory", OutOfMemory(1, what="image"))
        except Exception as error:
            log.exception("an image of %d bytes could not be prepared", len(data))
            return self._counted("encoder", ImageFailed(_first_line(error)))

    def encode(self, pixels: Sequence[Tensor]) -> list[Tensor | ServingError]:
        """Encode prepared images in one pass. After a failure each half is tried alone, down to single images.

        Returns:
            For each image (tokens, width) in the encoder's own dtype, on its device, or its fault.
        """
        with self._metrics.timed("vision"):
            outcomes = self._encode_or_halve(pixels)
        self._metrics.images_encoded.inc(sum(isinstance(outcome, Tensor) for outcome in outcomes))
        return outcomes

    def warm_up(self, images: int) -> None:
        """Encode so many blank images."""
        height, width = self._encoder.preprocessing.size
        self._pass([torch.zeros(3, height, width)] * images)

    def _encode_or_halve(self, pixels: Sequence[Tensor]) -> list[Tensor | ServingError]:
        try:
            return self._pass(pixels)
        except Exception as error:
            out_of_memory = is_out_of_memory(error)
            log.warning("the vision encoder failed with %d images", len(pixels), exc_info=not out_of_memory)
            why = _first_line(error)
        if self._device.type == "cuda":  # after the except block: only then the failed pass's tensors are free
            torch.cuda.empty_cache()
        if len(pixels) > 1:
            middle = (len(pixels) + 1) // 2
            return [*self._encode_or_halve(pixels[:middle]), *self._encode_or_halve(pixels[middle:])]
        if out_of_memory:
            return [self._counted("memory", OutOfMemory(1, what="image"))]
        return [self._counted("encoder", ImageFailed(why))]

    def _pass(self, pixels: Sequence[Tensor]) -> list[Tensor | ServingError]:
        features = self._encoder(torch.stack(list(pixels))).to(self._dtype)
        finite = features.isfinite().flatten(1).all(1).tolist()  # waits for the device
        return [
            image.clone()  # a view would keep the whole pass in memory
            if is_finite
            else self._counted("encoder", ImageFailed("its features are not finite numbers"))
            for image, is_finite in zip(features, finite, strict=True)
        ]

    def _counted(self, kind: str, error: Fault) -> Fault:
        self._metrics.image_faults.labels(kind).inc()
        return detached(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
