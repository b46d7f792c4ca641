"""What the benchmarks with images share: tasks with images and without, their rows, and a server in this process."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.harness.models import Head, Loaded, make_run
from benchmarks.harness.pictures import Pictures
from benchmarks.harness.samples import BenchmarkError
from serving.components import assemble
from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.pipeline.request import PredictRequest, RequestOptions
from side_registry import Registry, TaskRef, TaskSpec
from vision import VisionEncoder

HEADS: tuple[Head, ...] = ("text", "linear")
WORDS = (
    "the film that my daughter and I saw on Sunday was neither good nor bad, and far too long for what it has to say"
)
COUNTED = {"backbone_inputs": "sidecast_cache_misses_total", "images_encoded": "sidecast_images_encoded_total"}
"""Figure: the server's counter."""

Row = Mapping[str, str | bytes]


class Host:
    """A server's components in this process. Its event loop runs while a call is answered, and not between calls."""

    def __init__(self, config: ServeConfig) -> None:
        self._metrics = Metrics()
        self._loop = asyncio.new_event_loop()
        self._components = assemble(config, self._metrics)

    def close(self) -> None:
        """Stop it."""
        self._loop.run_until_complete(self._components.service.close())
        self._components.stop()
        self._loop.close()

    def run(self, call: Any) -> Any:
        """Run a coroutine on its event loop."""
        return self._loop.run_until_complete(call)

    async def predict(self, tasks: Sequence[str], rows: Sequence[Row]) -> None:
        """Answer rows for each task, as Predict and PredictTasks do.

        Raises:
            BenchmarkError: a task is not answered.
        """
        service, options = self._components.service, RequestOptions()
        targets = await service.find_tasks([TaskRef(task) for task in tasks], options)
        for outcome in await service.predict_tasks(PredictRequest(targets=targets, rows=rows, options=options)):
            if isinstance(outcome, Exception):
                raise BenchmarkError(f"a call failed: {outcome}")

    def counts(self) -> dict[str, float]:
        """Return the counters of COUNTED, by figure."""
        return {figure: self._metrics.registry.get_sample_value(name) or 0.0 for figure, name in COUNTED.items()}


class Texts:
    """Questions, texts and images, none of which comes twice."""

    def __init__(self, seed: int) -> None:
        self.pictures = Pictures(seed)
        self._numbers: Iterator[int] = count(10_000_000)

    def row(self, question: str | bytes = "", image: str | bytes = b"") -> Row:
        """Return a row of an image task, with a new question and a new image unless they are given."""
        return {"question": question or self._question(), "image": image or self.pictures.new()}

    def rows_of_one_image(self, rows: int) -> list[Row]:
        """Return rows with new questions on one new image; each row has a copy of its bytes, as a message has."""
        image = self.pictures.new()
        return [self.row(image=bytes(bytearray(image))) for _ in range(rows)]

    def text_row(self) -> Row:
        """Return a row of a text task."""
        return {"sentence": f"{next(self._numbers)} {WORDS}"}

    def _question(self) -> str:
        return f"what colour is the door of house {next(self._numbers)}?"


def text_task(head: Head) -> str:
    """Return the name of the text task with this head."""
    return f"text-{head}"


def image_task(head: Head, number: int) -> str:
    """Return the name of an image task."""
    return f"image-{head}-{number:02d}"


def publish(folder: Path, loaded: Loaded, encoder: VisionEncoder, tasks: int, seed: int) -> None:
    """Make the registries `vision`, of text and image tasks, and `text`, of the same text tasks."""
    with_images = Registry.open(folder / "vision", create=True)
    text_alone = Registry.open(folder / "text", create=True)
    yes_or_no = {"kind": "classification", "labels": ("no", "yes")}
    for head in HEADS:
        spec = TaskSpec(name=text_task(head), template="{sentence}", **yes_or_no)
        run = make_run(folder / spec.name, loaded, spec, head, seed)
        text_alone.publish(run, author="benchmark")
        with_images.publish(run, author="benchmark")
        for number in range(tasks):
            name = image_task(head, number)
            spec = TaskSpec(name=name, template="vqa: {question}", images=("image",), **yes_or_no)
            run = make_run(folder / name, loaded, spec, head, seed + number, encoder=encoder)
            with_images.publish(run, author="benchmark")
