"""Images of requests: decoded and encoded once, in batches of their own, and cached by their bytes' digest."""

from serving.images.encoder_runner import EncoderRunner
from serving.images.image_pool import ImageOutcome, ImagePool, name_of

__all__ = ["EncoderRunner", "ImageOutcome", "ImagePool", "name_of"]
