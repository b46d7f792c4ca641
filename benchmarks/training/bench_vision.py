"""Which frozen vision encoder, and which of its layers, is the better one to answer questions from?

    python -m benchmarks.training.bench_vision --data FOLDER

FOLDER has easy_vqa/, daquar/ and flickr8k/, each with images.parquet (image_id, image) and train.jsonl and
validation.jsonl. Linear probes on frozen features, pooled to 6 x 6 tokens as CLIP-T5 takes them and averaged: ridge
regression, its strength chosen by leave-one-out on the training images.

- easy_vqa: the shape and the colour that its questions ask for; accuracy.
- daquar: which of the 20 most common answers an image's questions have; mean average precision. Images of the
  validation part are left out of the training part, where they occur too.
- flickr8k: which of the 30 most common words at least two of an image's captions have; mean average precision.

Measured are the two encoders of the demo and, to compare with, each image's 6 x 6 colours. NLVR's labels are of
sentences, so it has no such probe. The last line is one JSON object.
"""

import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as parquet
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.harness.machine import look
from benchmarks.harness.samples import plain_errors
from demo.downloads import cache_folder
from demo.encoders import get_dinov2, get_lite2
from vision import VisionEncoder, decode_image, load_encoder, pool_grid

BATCH = 8
ALPHAS = np.logspace(0, 5, 11)
DAQUAR_ANSWERS = 20
CAPTION_WORDS = 30
NOT_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "by", "for", "from", "her", "his", "in", "into", "is", "it", "its",
    "of", "on", "one", "other", "out", "over", "that", "the", "their", "there", "through", "to", "two", "three",
    "up", "while", "with", "wearing", "standing", "sitting", "looking",
))  # fmt: skip
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question about images, with its answers as targets."""

    name: str
    measure: str
    train: Mapping[str, Sequence[float]]
    """Targets by image id: one number a class, 1 or 0."""
    test: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of a data set's probes."""

    name: str
    probes: Sequence[Probe]
    files: Mapping[str, bytes]


Encode = Callable[[Sequence[bytes]], dict[str, Tensor]]
"""(images, features) by name of the features."""


def encoding(name: str, encoder: VisionEncoder) -> Encode:
    """Return a function that encodes images, pools them to 36 tokens in both ways, and averages these."""

    def encode(files: Sequence[bytes]) -> dict[str, Tensor]:
        grid = encoder(encoder.preprocess([decode_image(file, edge=encoder.edge) for file in files]))
        return {
            f"{name}, max": pool_grid(grid, encoder.grid, kind="max").mean(1),
            f"{name}, average": pool_grid(grid, encoder.grid, kind="average").mean(1),
        }

    return encode


def colours(files: Sequence[bytes]) -> dict[str, Tensor]:
    """Return the mean colours of an image's 6 x 6 parts: the least that an encoder must beat."""
    images = [torch.from_numpy(decode_image(file)).permute(2, 0, 1).float() for file in files]
    return {"6 x 6 colours": torch.stack([torch.nn.functional.adaptive_avg_pool2d(i, 6).flatten() for i in images])}


def read_easy_vqa(folder: Path, count: tuple[int, int]) -> Images:
    """Shape and colour, from the answers to questions that are not yes or no."""
    splits: list[dict[str, dict[str, str]]] = []
    for part in ("train", "validation"):
        answers: dict[str, dict[str, str]] = defaultdict(dict)
        for row in _rows(folder / f"{part}.jsonl"):
            if row["answer"] in SHAPES:
                answers[row["image_id"]]["shape"] = row["answer"]
            elif row["answer"] not in ("yes", "no"):
                answers[row["image_id"]]["colour"] = row["answer"]
        splits.append({image: found for image, found in answers.items() if len(found) == 2})
    chosen = [_some(split, number) for split, number in zip(splits, count, strict=True)]
    probes: list[Probe] = []
    for asked in ("shape", "colour"):
        classes = sorted({found[asked] for found in splits[0].values()})
        parts = [
            {image: [float(split[image][asked] == name) for name in classes] for image in ids}
            for split, ids in zip(splits, chosen, strict=True)
        ]
        probes.append(Probe(name=f"easy_vqa {asked}", measure="accuracy", train=parts[0], test=parts[1]))
    return Images(name="easy_vqa", probes=probes, files=_files(folder, [*chosen[0], *chosen[1]]))


def read_daquar(folder: Path, count: tuple[int, int]) -> Images:
    """Which of the most common answers an image has."""
    splits: list[dict[str, set[str]]] = []
    for part in ("train", "validation"):
        answers: dict[str, set[str]] = defaultdict(set)
        for row in _rows(folder / f"{part}.jsonl"):
            answers[row["image_id"]].update(answer for answer in row["answer"].split(", ") if not answer.isdigit())
        splits.append(answers)
    splits[0] = {image: found for image, found in splits[0].items() if image not in splits[1]}
    return _presence("daquar answers", folder, splits, count, DAQUAR_ANSWERS)


def read_flickr8k(folder: Path, count: tuple[int, int]) -> Images:
    """Which of the most common words at least two captions of an image have."""
    splits: list[dict[str, set[str]]] = []
    for part in ("train", "validation"):
        words: dict[str, set[str]] = {}
        for row in _rows(folder / f"{part}.jsonl"):
            captions = [set(re.findall("[a-z]+", caption.lower())) - NOT_WORDS for caption in row["captions"]]
            counts = Counter(word for caption in captions for word in caption)
            words[row["image_id"]] = {word for word, times in counts.items() if times > 1}
        splits.append(words)
    return _presence("flickr8k words", folder, splits, count, CAPTION_WORDS)


def score(probe: Probe, features: Mapping[str, Tensor]) -> float:
    """Fit the probe on the features of its training images, and measure it on its test images."""
    inputs = [torch.stack([features[image] for image in part]).double().numpy() for part in (probe.train, probe.test)]
    targets = [np.array(list(part.values())) for part in (probe.train, probe.test)]
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(inputs[0], targets[0])
    guessed = model.predict(inputs[1])
    if probe.measure == "accuracy":
        return float((guessed.argmax(1) == targets[1].argmax(1)).mean())
    present = [column for column in range(targets[1].shape[1]) if targets[1][:, column].any()]
    return float(np.mean([average_precision_score(targets[1][:, column], guessed[:, column]) for column in present]))


def measure(images: Images, encode: Encode, quiet: bool) -> tuple[dict[str, dict[str, float]], float]:
    """Return each probe's score by name of the features, and the CPU seconds that an image took."""
    ids = list(images.files)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    before = time.process_time()
    for start in range(0, len(ids), BATCH):
        for name, features in encode([images.files[image] for image in ids[start : start + BATCH]]).items():
            parts[name].append(features)
        if not quiet and start % (16 * BATCH) == 0:
            click.echo(f"  {images.name}: {start} of {len(ids)} images", err=True)
    seconds = (time.process_time() - before) / len(ids)
    by_name = {name: dict(zip(ids, torch.cat(found), strict=True)) for name, found in parts.items()}
    return {
        name: {probe.name: score(probe, found) for probe in images.probes} for name, found in by_name.items()
    }, seconds


def _presence(
    name: str, folder: Path, splits: Sequence[Mapping[str, set[str]]], count: tuple[int, int], classes: int
) -> Images:
    ids = [_some(split, number) for split, number in zip(splits, count, strict=True)]
    common = [word for word, _ in Counter(word for i in ids[0] for word in sorted(splits[0][i])).most_common(classes)]
    parts = [
        {image: [float(word in split[image]) for word in common] for image in chosen}
        for split, chosen in zip(splits, ids, strict=True)
    ]
    probe = Probe(name=name, measure="mean average precision", train=parts[0], test=parts[1])
    return Images(name=folder.name, probes=[probe], files=_files(folder, [*ids[0], *ids[1]]))


def _some(images: Mapping[str, Any], number: int) -> list[str]:
    return random.Random(0).sample(sorted(images), min(number, len(images)))


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _files(folder: Path, ids: Sequence[str]) -> dict[str, bytes]:
    table = parquet.read_table(folder / "images.parquet", columns=["image_id", "image"])
    files = dict(zip(table["image_id"].to_pylist(), table["image"], strict=True))
    return {image: files[image].as_py() for image in ids}


SETS = {"easy_vqa": read_easy_vqa, "daquar": read_daquar, "flickr8k": read_flickr8k}


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--train", "train_images", type=click.IntRange(10), default=240, show_default=True, help="Of each set.")
@click.option("--test", "test_images", type=click.IntRange(10), default=160, show_default=True, help="Of each set.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress.")
def main(data: Path, train_images: int, test_images: int, threads: int, quiet: bool) -> None:
    """Compare the demo's vision encoders by linear probes."""
    torch.set_num_threads(threads)
    machine = look()
    cache = cache_folder()
    with plain_errors():
        dinov2, lite2 = get_dinov2(cache), get_lite2(cache)
        encoders = {
            "DINOv2-small 224 px, layer 11": load_encoder(dinov2, layer=11),
            "DINOv2-small 224 px, last state": load_encoder(dinov2),
            "DINOv2-small 126 px, layer 11": load_encoder(dinov2, layer=11, size=126),
            "EfficientNet-Lite2 260 px, layer 7": load_encoder(lite2),
            "EfficientNet-Lite2 260 px, last state": load_encoder(lite2, layer=-1),
        }
        variants = [colours, *(encoding(name, encoder) for name, encoder in encoders.items())]
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for name, read in SETS.items():
            images = read(data / name, (train_images, test_images))
            for encode in variants:
                scores, seconds = measure(images, encode, quiet)
                for features, by_probe in scores.items():
                    found[features] |= by_probe | {f"{name} CPU ms an image": 1000 * seconds}
    for features, figures in found.items():
        click.echo(f"{features:45} " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    settings = {"train": train_images, "test": test_images, "threads": threads}
    click.echo(json.dumps({"name": "vision", "machine": machine.to_dict(), "settings": settings, "figures": found}))


if __name__ == "__main__":
    main()
