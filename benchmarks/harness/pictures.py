"""Image files for the benchmarks, none of which comes twice, and the vision encoder that reads them."""

import io
import random
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from demo.downloads import cache_folder
from demo.encoders import LITE2_CONFIG, LITE2_PREPROCESSING, get_lite2
from demo.folders import DemoError
from demo.rebuild import write_json
from vision.efficientnet import EfficientNetLite

SIZE = (320, 240)
"""Width and height, in pixels."""
SCENES = 16
"""Different pictures."""
QUALITY = 85
_START = b"\xff\xd8"
_COMMENT = b"\xff\xfe"


class Pictures:
    """JPEG files of smooth random pictures. Each has a number as its comment: a file that a server has not seen."""

    def __init__(self, seed: int = 0) -> None:
        source = random.Random(seed)
        self._scenes = [_scene(source) for _ in range(SCENES)]
        self._numbers = count()

    @property
    def file_bytes(self) -> int:
        """Bytes of an average file."""
        return sum(map(len, self._scenes)) // SCENES

    def new(self) -> bytes:
        """Return the next file."""
        number = next(self._numbers)
        comment = f"{number:010d}".encode()
        segment = _COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment
        return _START + segment + self._scenes[number % SCENES].removeprefix(_START)


def _scene(source: random.Random) -> bytes:
    """A coarse random grid, enlarged, and a finer one on top: about as many bytes as a photograph has."""
    coarse, fine = (
        Image.frombytes("RGB", (width, height), source.randbytes(3 * width * height)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        for width, height in ((8, 6), (80, 60))
    )
    file = io.BytesIO()
    Image.blend(coarse, fine, 0.25).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def find_encoder(named: Path | None, scratch: Path) -> tuple[Path, str]:
    """Return the folder of a vision encoder, and where its weights are from.

    Args:
        named: a folder; None: the demo's encoder, which is downloaded once.
        scratch: where the demo's encoder cannot be had, one of its shape with random weights is made here: it costs the
            same.
    """
    if named is not None:
        return named, "given"
    try:
        return get_lite2(cache_folder()), "the demo's"
    except DemoError:
        return make_random_lite2(scratch / "random-efficientnet-lite2"), "random"


def make_random_lite2(folder: Path) -> Path:
    """Write a folder with an EfficientNet-Lite2 of the demo's shape, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {name: float(LITE2_CONFIG[name]) for name in ("width", "depth")}
        tower = EfficientNetLite(**shape, layer=int(LITE2_CONFIG["layer"]))
    folder.mkdir(parents=True)
    save_file(tower.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", LITE2_CONFIG)
    write_json(folder / "preprocessor_config.json", LITE2_PREPROCESSING)
    return folder


def make_random_clip(folder: Path, layers: int = 12) -> Path:
    """Write a folder with the vision tower of a CLIP ViT-B/16 at 224 pixels, with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            num_hidden_layers=layers,
            image_size=224,
            patch_size=16,
        )
        CLIPVisionModel(config).save_pretrained(folder)
    return folder
