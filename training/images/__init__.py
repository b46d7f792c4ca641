"""The images of training and evaluation rows: where their bytes are, and their features, computed once."""

from training.images.features import ImageFeatures, encode_bytes
from training.images.inputs import EncoderSource, ImageInputs, check_images, open_images, with_bytes

__all__ = [
    "EncoderSource",
    "ImageFeatures",
    "ImageInputs",
    "check_images",
    "encode_bytes",
    "open_images",
    "with_bytes",
]
