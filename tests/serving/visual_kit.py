"""A vision encoder that makes features of any bytes, and tasks that read images, for serving's tests."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ladder import Backbone, Row, SideNetwork, Tokenizer, answer
from ladder.answering.batch_plan import Image
from ladder.answers import Answer, ClassAnswer, TextAnswer
from ladder.backbone import Images
from ladder.config import VisualConfig
from ladder.side.checkpoint import save_side
from serving.engine import EncodedImage
from side_registry import SIDE_NETWORK, GoldenExample, Manifest, TaskSpec, write_manifest
from side_registry.manifest import VisionRef
from tests.serving.kit import ids_of, make_resident, make_spec
from vision import ImageError

CELLS, WIDTH = 9, 6
VISUAL = VisualConfig(features=WIDTH, tokens=4, positions=CELLS)
BROKEN = b"not an image"


class FakeEncoder:
    """Makes features of an image's digest alone."""

    def __init__(self, name: str = "tiny-vit", fingerprint: str = "sha256:eyes", width: int = WIDTH) -> None:
        self.name, self.fingerprint, self.width = name, fingerprint, width
        self.encoded: list[bytes] = []

    def encode_now(self, images: Sequence[bytes]) -> list[EncodedImage]:
        self.encoded += images
        if BROKEN in images:
            raise ImageError("not_an_image", "bytes of no known format", "send a JPEG, PNG or WebP file")
        return [encoded(data, self.width) for data in images]

    @property
    def reference(self) -> VisionRef:
        return VisionRef(name=self.name, fingerprint=self.fingerprint)


def encoded(data: bytes, width: int = WIDTH, cells: int = CELLS) -> EncodedImage:
    """An image as `FakeEncoder` sees it."""
    name = hashlib.sha256(data).hexdigest()
    random = torch.Generator().manual_seed(int(name[:8], 16))
    return EncodedImage(name, torch.randn(cells, width, generator=random))


def visual_spec(name: str = "eyes", kind: str = "classification", **changes: Any) -> TaskSpec:
    """A task of one field, `sentence`, and one image, `image`."""
    return make_spec(name, kind, **{"images": ("image",)} | changes)


def ladder_images(images: Sequence[EncodedImage]) -> Callable[[Sequence[Image]], Images]:
    """`ladder.answer`'s `encode_images` of images that are encoded already."""
    features = {image.name: image.features for image in images}

    def make(wanted: Sequence[Image]) -> Images:
        stacked = torch.stack([features[name] for _, name in wanted])
        return Images(features=stacked, rows=[(index,) for index in range(len(wanted))])

    return make


def make_visual_run(
    folder: Path,
    backbone: Backbone,
    tokenizer: Tokenizer,
    spec: TaskSpec,
    files: Sequence[bytes] = (b"red", b"green", b"blue"),
    encoder: FakeEncoder | None = None,
    edit: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    **shape: Any,
) -> Path:
    """Write a run folder with a golden example for each of the files, ready to publish.

    Args:
        files: bytes of images; those of several images go round.
        edit: returns the manifest to write.
        shape: settings of the side network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = encoder or FakeEncoder()
    resident = make_resident(backbone, tokenizer, spec, **{"visual": VISUAL} | shape)
    assert isinstance(resident.side, SideNetwork)
    names = [f"golden-{index}.png" for index in range(len(files))]
    for name, data in zip(names, files, strict=True):
        (folder / name).write_bytes(data)
    examples = []
    for index in range(len(files)):
        own = {field: (index + number) % len(files) for number, field in enumerate(spec.images)}
        images = [encoded(files[number]) for number in own.values()]
        row = Row(
            ids=ids_of(tokenizer, "what is it"),
            side=resident.side,
            answerer=resident.answerer,
            images=tuple(image.name for image in images),
        )
        [outcome] = answer(backbone, [row], encode_images=ladder_images(images))
        fields = {"sentence": "what is it"}
        pictures = {field: names[number] for field, number in own.items()}
        examples.append(GoldenExample(fields=fields, images=pictures, expected=_expected(outcome)))
    save_side(folder / SIDE_NETWORK, resident.side)
    manifest = resident.manifest.model_copy(update={"examples": tuple(examples), "vision": encoder.reference})
    write_manifest(folder, edit(manifest), files=[SIDE_NETWORK, *names])
    return folder


def _expected(outcome: Answer | Exception) -> dict[str, Any]:
    match outcome:
        case ClassAnswer():
            return {"label": outcome.label, "scores": list(outcome.scores)}
        case TextAnswer():
            return {"text": outcome.text}
    raise AssertionError(outcome)
