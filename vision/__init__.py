"""Images: safe decoding, frozen encoders, pooling to few tokens, and features that were extracted before.

Bytes in, a grid of features out. Knows no tasks, text, registry or servers; needs no torchvision.
"""

from vision.decoding import DEFAULT_LIMITS, ImageLimits, decode_image
from vision.encoder import VisionEncoder
from vision.errors import EncoderError, FeaturesError, ImageError, VisionError
from vision.features import FeatureFile
from vision.headers import Header, read_header
from vision.loading import count_weights, load_encoder
from vision.pooling import PAPER_GRID, grid_boxes, pool_grid
from vision.preprocessing import Preprocessing

__all__ = [
    "DEFAULT_LIMITS",
    "PAPER_GRID",
    "EncoderError",
    "FeatureFile",
    "FeaturesError",
    "Header",
    "ImageError",
    "ImageLimits",
    "Preprocessing",
    "VisionEncoder",
    "VisionError",
    "count_weights",
    "decode_image",
    "grid_boxes",
    "load_encoder",
    "pool_grid",
    "read_header",
]
