"""What images cost a server: questions on new and on known images, and text beside image traffic.

    python -m benchmarks.server.bench_images

`PredictService` in this process, with all components of a server of text and image tasks and its defaults, but no gRPC.
What vision costs text is measured over gRPC, on two real `sidecast serve` with processes of their own: one of the same
tasks with the vision encoder, one of the text tasks alone. A "new" image or question has never been sent; a "known" one
has just been answered for another question, image or task. Images are JPEG files of 320 x 240 pixels, questions have
about 16 tokens, other texts about 32. One call at a time, except for "beside images". The figures of a call also say
how many inputs the backbone computed and how many images the encoder did.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Head, Loaded, make_run
from benchmarks.harness.pictures import SIZE, Pictures, find_encoder
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Samples, Spread, Variant, pace, speed
from benchmarks.harness.served import serve
from serving.client import Client
from serving.components import assemble
from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.pipeline.request import PredictRequest, RequestOptions
from side_registry import Registry, TaskRef, TaskSpec
from vision import VisionEncoder, load_encoder

HEADS: tuple[Head, ...] = ("text", "linear")
TASKS, QUESTIONS, ROWS = 16, 8, 32
LONG = 8
"""How many times as long as others a measurement of text is: it compares close figures, or rare ones."""
IMAGE_CALLERS = 2
"""Callers who send new images, one after the other, in "beside images"."""
WORDS = (
    "the film that my daughter and I saw on Sunday was neither good nor bad, and far too long for what it has to say"
)
COUNTED = {"backbone_inputs": "sidecast_cache_misses_total", "images_encoded": "sidecast_images_encoded_total"}
"""Figure: the server's counter."""
COLUMNS = (
    Column(figure="ms", heading="ms a call", digits=2),
    Column(figure="backbone_inputs", heading="T5 inputs", digits=0),
    Column(figure="images_encoded", heading="images", digits=0),
    Column(figure="with_ms", heading="with vision ms", digits=2),
    Column(figure="without_ms", heading="without ms", digits=2),
    Column(figure="p50_ms", heading="p50 ms"),
    Column(figure="p99_ms", heading="p99 ms"),
    Column(figure="images_per_s", heading="images/s"),
)

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
        targets = service.resolve_tasks([TaskRef(task) for task in tasks], options)
        for outcome in await service.predict_tasks(PredictRequest(targets=targets, rows=rows, options=options)):
            if isinstance(outcome, Exception):
                raise BenchmarkError(f"a call failed: {outcome}")

    def counts(self) -> dict[str, float]:
        """Return the counters of COUNTED, by figure."""
        return {figure: self._metrics.registry.get_sample_value(name) or 0.0 for figure, name in COUNTED.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """Rows for tasks."""

    tasks: Sequence[str]
    rows: Sequence[Row]


class ImageCalls:
    """Variants of the image tasks of one kind of head, one call at a time."""

    def __init__(self, head: Head, host: Host, tasks: Sequence[str], how: How, texts: "Texts") -> None:
        self.head: Head = head
        self._host, self._tasks, self._how, self._texts = host, tasks, how, texts

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
            f"{self.head} {over} / {under}": samples.ratio("ms", f"{self.head} {over}", f"{self.head} {under}")
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
        timed = self._how.timed(f"{self.head} {name}", self._call, prepare, 1, unit="calls")

        def measure() -> Figures:
            figures = timed.measure()
            call = prepare()
            before = self._host.counts()
            self._call(call)
            counted = {figure: value - before[figure] for figure, value in self._host.counts().items()}
            return {**figures, **counted}

        return Variant(name=timed.name, measure=measure)


class TextCalls:
    """Variants of the text task of one kind of head: on a server with a vision encoder, and on one without."""

    def __init__(self, head: Head, host: Host, servers: "Servers", how: How, texts: "Texts") -> None:
        self.head: Head = head
        self._host, self._servers, self._how, self._texts = host, servers, how, texts
        self._rows = how.size(ROWS, 4)

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        return [
            *(Variant(name=self._name(rows), measure=partial(self._in_turn, rows)) for rows in (1, self._rows)),
            Variant(name=f"{self.head} text, alone", measure=partial(self._beside, 0)),
            Variant(name=f"{self.head} text, beside images", measure=partial(self._beside, IMAGE_CALLERS)),
        ]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report; rows/s are the inverse of milliseconds."""
        found = {}
        for rows in (1, self._rows):
            name = self._name(rows)
            speeds = [figures[name]["without_ms"] / figures[name]["with_ms"] for figures in samples.rounds]
            kind = "single rows" if rows == 1 else "batches"
            found[f"{self.head} text, {kind}, vision loaded / not"] = Spread(tuple(speeds))
        alone, beside = f"{self.head} text, alone", f"{self.head} text, beside images"
        for figure in ("p50", "p99"):
            found[f"{figure}, {beside} / alone"] = samples.ratio(f"{figure}_ms", beside, alone)
        return found

    def _name(self, rows: int) -> str:
        return f"{self.head} text, {rows} row{'s' * (rows > 1)}"

    def _in_turn(self, rows: int) -> Figures:
        """Call both servers in turn, so that other work on the machine slows both alike."""
        durations: dict[str, list[float]] = {"with": [], "without": []}
        order = [("with", self._servers.vision), ("without", self._servers.text)]
        self._time_pair(order, rows)  # not counted: the variant before left other threads and caches
        ended = time.perf_counter() + LONG * self._how.seconds
        while time.perf_counter() < ended or not durations["with"]:
            for name, seconds in self._time_pair(order, rows).items():
                durations[name].append(seconds)
            order.reverse()
        return {f"{name}_ms": pace(seconds, rows)["ms"] for name, seconds in durations.items()}

    def _time_pair(self, order: Sequence[tuple[str, Client]], rows: int) -> dict[str, float]:
        """Return the seconds of one call of new rows on each server, by the server's name."""
        found = {}
        for name, client in order:
            new = [self._texts.text_row() for _ in range(rows)]
            began = time.perf_counter()
            client.predict(self._task, new)
            found[name] = time.perf_counter() - began
        return found

    def _beside(self, image_callers: int) -> Figures:
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
            await host.predict([self._task], [self._texts.text_row()])
            durations.append(time.perf_counter() - began)
        stopped.set()
        await asyncio.gather(*callers)
        return durations

    async def _send_images(self, host: Host, stopped: asyncio.Event) -> None:
        while not stopped.is_set():
            await host.predict([image_task(self.head, 0)], [self._texts.row()])

    @property
    def _task(self) -> str:
        return text_task(self.head)


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


@dataclass(frozen=True, slots=True)
class Servers:
    """Clients of the two servers with processes of their own."""

    vision: Client
    text: Client


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


def ask(loaded: Loaded, how: How, vision: Path | None) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    tasks = how.size(TASKS, 3)
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as name:
        folder = Path(name)
        encoder_folder, weights = find_encoder(vision, folder)
        encoder = load_encoder(encoder_folder, dtype=loaded.dtype)
        publish(folder, loaded, encoder, tasks, how.seed)
        common = {**loaded.settings(how.threads), **({"warmup_s": 0.0} if how.quick else {})}
        texts = Texts(how.seed)
        with_images = {**common, "registry": folder / "vision", "vision": str(encoder_folder)}
        host = Host(ServeConfig.from_values(with_images))
        try:
            with (
                serve(**with_images) as vision_server,
                serve(**common, registry=folder / "text") as text_server,
                Client(vision_server.address) as vision_client,
                Client(text_server.address) as text_client,
            ):
                names = {head: [image_task(head, number) for number in range(tasks)] for head in HEADS}
                images = [ImageCalls(head, host, names[head], how, texts) for head in HEADS]
                servers = Servers(vision_client, text_client)
                text = [TextCalls(head, host, servers, how, texts) for head in HEADS]
                samples = how.turns([variant for calls in (*images, *text) for variant in calls.variants()])
        finally:
            host.close()
    ratios = {name: spread for calls in (*images, *text) for name, spread in calls.ratios(samples).items()}
    settings = {
        "tasks": tasks,
        "rungs": "all",
        "encoder": encoder.name,
        "encoder_weights": weights,
        "encoder_fingerprint": encoder.fingerprint,
        "image_grid": list(encoder.grid),
        "image_features": encoder.width,
        "image_pixels": list(SIZE),
        "image_bytes": texts.pictures.file_bytes,
        "question_tokens": len(loaded.tokenizer.encode(f"vqa: {texts.row()['question']}", 100)),
        "text_tokens": len(loaded.tokenizer.encode(str(texts.text_row()["sentence"]), 100)),
    }
    return samples, ratios, settings


@click.command()
@click.option(
    "--vision",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a vision encoder.  [default: the demo's]",
)
@measuring(rounds=5, seconds=0.6)
def main(vision: Path | None, **arguments: Any) -> None:
    """What images cost a server: new and known ones, many questions and tasks, and text beside them."""
    title = "Images, on a server in this process"
    answer(partial(ask, vision=vision), name="images", title=title, columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
