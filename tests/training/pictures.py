"""A toy task whose rows have images: which colour a picture has, or whether it has the colour that the text names."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from side_registry.specs.task import TaskSpec
from tests.training import toy
from tests.vision import folders
from training.data import read_labelled
from training.images import EncoderSource, ImageInputs, open_images
from training.job import Job
from training.recipes.recipe import Recipe

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
TASK = TaskSpec(
    name="colours", kind="classification", template="{question}", images=("image",), labels=("red", "blue", "yes", "no")
)
PAIR = TaskSpec(name="equal", kind="classification", template="equal?", images=("left", "right"), labels=("yes", "no"))
SAYS = TaskSpec(name="says", kind="text", template="{question}", images=("image",), max_new_tokens=5)


def png(colour: str, seed: int) -> bytes:
    """A small picture of about this colour."""
    noise = np.random.default_rng(seed).integers(-25, 25, (16, 16, 3))
    file = io.BytesIO()
    Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def pictures(count: int) -> dict[str, bytes]:
    """Pictures by id; their colours alternate."""
    return {f"p/{number}": png(colour_of(f"p/{number}"), number) for number in range(count)}


def colour_of(image_id: str) -> str:
    return list(COLOURS)[int(image_id.rpartition("/")[2]) % 2]


def rows(spec: TaskSpec, ids: Sequence[str], count: int, seed: int = 0) -> list[dict[str, object]]:
    pick = random.Random(seed)
    made: list[dict[str, object]] = []
    for _ in range(count):
        one, other = pick.choice(ids), pick.choice(ids)
        if spec is PAIR:
            made.append({"left": one, "right": other, "label": "yes" if colour_of(one) == colour_of(other) else "no"})
            continue
        asked = pick.choice(["what", *COLOURS])
        is_so = "yes" if colour_of(one) == asked else "no"
        made.append({"image_id": one, "question": asked, spec.target: colour_of(one) if asked == "what" else is_so})
    return made


def folder_of(path: Path, images: dict[str, bytes]) -> Path:
    for image_id, data in images.items():
        file = path / f"{image_id}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def parquet_of(path: Path, images: dict[str, bytes], *, as_struct: bool = False, group_rows: int = 5) -> Path:
    values = [{"bytes": data, "path": None} for data in images.values()] if as_struct else list(images.values())
    table = pa.table({"image_id": list(images), "image": values})
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def encoder_folder(path: Path) -> Path:
    """A tiny random ViT: 4 x 4 tokens of 16 features."""
    return folders.save(path, "vit", folders.make_model("vit"))


def job(folder: Path, encoder: Path, backbone, tokenizer, spec: TaskSpec = TASK, count: int = 64, **recipe) -> Job:
    """A run on 16 pictures; 8 others validate. The folder has them in `images`, and a cache of features."""
    source = folder / "images"
    if not source.exists():
        folder_of(source, pictures(24))
    ids = [f"p/{number}" for number in range(24)]
    made = EncoderSource.of(encoder)
    settings = {"epochs": 2, "batch_rows": 8, "reduction": 4, "cache_gb": 0.1, "image_tokens": 4} | recipe
    return Job(
        spec=spec,
        backbone=backbone,
        backbone_source=backbone.name,
        tokenizer=tokenizer,
        training=read_labelled(toy.write(folder / "train.jsonl", rows(spec, ids[:16], count)), spec),
        validation=read_labelled(toy.write(folder / "validation.jsonl", rows(spec, ids[16:], 40, seed=1)), spec),
        recipe=Recipe(**settings),
        images=ImageInputs(
            source=open_images(source), encoder=made.load(), encoder_source=made, cache_dir=folder / "cache"
        ),
    )
