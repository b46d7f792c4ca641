"""What images cost a server: questions on new and on known images, and text beside image traffic.

    python -m benchmarks.server.bench_images

`PredictService` in this process, with all components of a server of text and image tasks and its defaults, but no gRPC.
A "new" image or question has never been sent; a "known" one has just been answered for another question, image or
task. Images are JPEG files of 320 x 240 pixels, questions have about 16 tokens, other texts about 32. One call at a
time, except for "beside images". The figures of a call also say how many inputs the backbone computed and how many
images the encoder did.

First with the demo's encoder, an EfficientNet-Lite2, which is small; then, called "CLIP", with a CLIP ViT-B/16 at 224
pixels, whose weights are random, because the cost does not depend on them.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.image_tasks import HEADS, Host, Row, Texts, image_task, publish, text_task
from benchmarks.harness.models import Head, Loaded
from benchmarks.harness.pictures import SIZE, find_encoder, make_random_clip
from benchmarks.harness.samples import Column, Figures, Samples, Spread, Variant, speed
from serving.config import ServeConfig
from vision import load_encoder

TASKS, QUESTIONS = 16, 8
LONG = 8
"""How many times as long as others a measurement of text beside images is: its p99 needs many calls."""
IMAGE_CALLERS = 2
"""Callers who send new images, one after the other, in "beside images"."""
CLIP = "CLIP "
"""What variants with the CLIP begin with."""
COLUMNS = (
    Column(figure="ms", heading="ms a call", digits=2),
    Column(figure="backbone_inputs", heading="T5 inputs", digits=0),
    Column(figure="images_encoded", heading="images", digits=0),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="images_per_s", heading="images/s"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """Rows for tasks."""

    tasks: Sequence[str]
    rows: Sequence[Row]


class ImageCalls:
    """Variants of the image tasks of one kind of head, one call at a time.

    Args:
        name: what their names begin with.
    """

    def __init__(self, name: str, host: Host, tasks: Sequence[str], how: How, texts: Texts) -> None:
        self._name, self._host, self._tasks, self._how, self._texts = name, host, tasks, how, texts

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        one, everyone, texts = self._tasks[:1], self._tasks, self._texts
        return [
            self._variant("new", lambda: Call(one, [texts.row()])),
            self._variant("known image", lambda: Call(one, [texts.row(image=self._known()["image"])])),
            self._variant("known question", lambda: Call(one, [texts.row(question=self._known()["question"])])),
            self._variant("known", lambda: Call(one, [self._known()])),
            self._variant(f"new, {QUESTIONS} questions", lambda: Call(one, texts.rows_of_one_image(QUESTIONS))),
            self._variant(f"new, {len(everyone)} tasks", lambda: Call(everyone, [texts.row()])),
            self._variant(f"known, {len(everyone)} tasks", lambda: Call(everyone, [self._known()])),
        ]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        compared = [
            ("new", "known image"),
            ("known question", "new"),
            (f"new, {QUESTIONS} questions", "new"),
            (f"new, {len(self._tasks)} tasks", "new"),
            (f"known, {len(self._tasks)} tasks", "known"),
        ]
        return {
            f"{self._name} {over} / {under}": samples.ratio("ms", f"{self._name} {over}", f"{self._name} {under}")
            for over, under in compared
        }

    def _known(self) -> Row:
        """Return a row that another task has just answered."""
        row = self._texts.row()
        self._call(Call(self._tasks[-1:], [row]))
        return row

    def _call(self, call: Call) -> None:
        self._host.run(self._host.predict(call.tasks, call.rows))

    def _variant(self, name: str, prepare: Callable[[], Call]) -> Variant:
        timed = self._how.timed(f"{self._name} {name}", self._call, prepare, 1, unit="calls")

        def measure() -> Figures:
            figures = timed.measure()
            call = prepare()
            before = self._host.counts()
            self._call(call)
            counted = {figure: value - before[figure] for figure, value in self._host.counts().items()}
            return {**figures, **counted}

        return Variant(name=timed.name, measure=measure)


class TextCalls:
    """Variants of the text task of one kind of head: alone, and beside image traffic."""

    def __init__(self, head: Head, host: Host, how: How, texts: Texts) -> None:
        self._head: Head = head
        self._host, self._how, self._texts = host, how, texts
        self._alone, self._beside = f"{head} text, alone", f"{head} text, beside images"

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        return [
            Variant(name=self._alone, measure=partial(self._measure, 0)),
            Variant(name=self._beside, measure=partial(self._measure, IMAGE_CALLERS)),
        ]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        return {
            f"{figure}, {self._beside} / alone": samples.ratio(f"{figure}_ms", self._beside, self._alone)
            for figure in ("p50", "p99")
        }

    def _measure(self, image_callers: int) -> Figures:
        host = self._host
        before = host.counts()
        began = time.perf_counter()
        durations = host.run(self._call_beside(host, image_callers))
        spent = time.perf_counter() - began
        images = host.counts()["images_encoded"] - before["images_encoded"]
        figures = speed(durations, 1)
        return {**figures, "images_per_s": images / spent} if image_callers else figures

    async def _call_beside(self, host: Host, image_callers: int) -> list[float]:
        """Return the seconds of each text call, one at a time; image calls go on until the last of them has ended."""
        stopped = asyncio.Event()
        callers = [asyncio.create_task(self._send_images(host, stopped)) for _ in range(image_callers)]
        durations: list[float] = []
        ended = time.perf_counter() + max(LONG * self._how.seconds, 0.05)
        while time.perf_counter() < ended or not durations:
            began = time.perf_counter()
            await host.predict([text_task(self._head)], [self._texts.text_row()])
            durations.append(time.perf_counter() - began)
        stopped.set()
        await asyncio.gather(*callers)
        return durations

    async def _send_images(self, host: Host, stopped: asyncio.Event) -> None:
        while not stopped.is_set():
            await host.predict([image_task(self._head, 0)], [self._texts.row()])


def measure(
    folder: Path, name: str, loaded: Loaded, encoder_folder: Path, how: How, texts: Texts
) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure a server with one encoder; return samples, ratios and what the encoder is.

    Args:
        folder: for the registry.
        name: what the variants' names begin with; if empty, text beside images is measured, too.
    """
    tasks = how.size(TASKS, 3)
    encoder = load_encoder(encoder_folder, dtype=loaded.dtype)
    publish(folder, loaded, encoder, tasks, how.seed)
    settings = {**loaded.settings(how.threads), **({"warmup_s": 0.0} if how.quick else {})}
    host = Host(ServeConfig.from_values({**settings, "registry": folder / "vision", "vision": str(encoder_folder)}))
    try:
        calls: list[ImageCalls | TextCalls] = [
            ImageCalls(f"{name}{head}", host, [image_task(head, number) for number in range(tasks)], how, texts)
            for head in HEADS
        ]
        if not name:
            calls += [TextCalls(head, host, how, texts) for head in HEADS]
        samples = how.turns([variant for one in calls for variant in one.variants()])
    finally:
        host.close()
    ratios = {ratio: spread for one in calls for ratio, spread in one.ratios(samples).items()}
    about = {
        "name": encoder.name,
        "fingerprint": encoder.fingerprint,
        "grid": list(encoder.grid),
        "features": encoder.width,
    }
    return samples, ratios, about


def ask(loaded: Loaded, how: How, vision: Path | None) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure with both encoders, one after the other; return samples, ratios and settings."""
    texts = Texts(how.seed)
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as name:
        folder = Path(name)
        small, weights = find_encoder(vision, folder)
        samples, ratios, encoder = measure(folder / "small", "", loaded, small, how, texts)
        clip_folder = make_random_clip(folder / "random-clip-vit-b-16", layers=how.size(12, 1))
        clip_samples, clip_ratios, clip = measure(folder / "clip", CLIP, loaded, clip_folder, how, texts)
    settings = {
        "tasks": how.size(TASKS, 3),
        "rungs": "all",
        "encoder": {**encoder, "weights": weights},
        "clip": {**clip, "weights": "random"},
        "image_pixels": list(SIZE),
        "image_bytes": texts.pictures.file_bytes,
        "question_tokens": len(loaded.tokenizer.encode(f"vqa: {texts.row()['question']}", 100)),
        "text_tokens": len(loaded.tokenizer.encode(str(texts.text_row()["sentence"]), 100)),
    }
    rounds = [one | other for one, other in zip(samples.rounds, clip_samples.rounds, strict=True)]
    return Samples(rounds), ratios | clip_ratios, settings


@click.command()
@click.option(
    "--vision",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a vision encoder, instead of the demo's.",
)
@measuring(rounds=5, seconds=0.6)
def main(vision: Path | None, **arguments: Any) -> None:
    """What images cost a server: new and known ones, many questions and tasks, and text beside them."""
    title = "Images, on a server in this process"
    answer(partial(ask, vision=vision), name="images", title=title, columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
