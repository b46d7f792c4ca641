"""A server without a model: everything is real except the batcher, which answers by a rule.

The rule: the longer a text, the higher the score of "positive". `slow` delays answers, and every piece of a stream;
`trouble` makes a task fail, a stream after its first piece.
"""

import asyncio
import contextlib
import hashlib
import re
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ladder.answering import Words
from ladder.answering.answerers import Generate
from ladder.answers import (
    Answer,
    ClassAnswer,
    LabelsAnswer,
    RelevanceAnswer,
    Span,
    SpansAnswer,
    TextAnswer,
    ValueAnswer,
    VectorAnswer,
)
from ladder.config import SideConfig
from ladder.decoding.settings import Generation
from serving.components import Components
from serving.config import LoadConfig, RequestConfig, ServeConfig
from serving.engine import EncodedImage, EngineRow, Piece, Resident
from serving.errors import IncompatibleSide
from serving.metrics import Metrics
from serving.pipeline import Generated, InputRow, PredictRequest, PredictService, RequestOptions, Target
from serving.server import Assemble, Server
from serving.versions.pool import SidePool
from serving.versions.reconciler import Progress, Reconciler
from side_registry import (
    SIDE_NETWORK,
    BackboneRef,
    Manifest,
    Registry,
    TaskRef,
    TaskSpec,
    write_manifest,
)
from tests.side_registry.runs import weights

SST2 = TaskSpec(name="sst2", kind="classification", template="{sentence}", labels=("negative", "positive"))
RTE = TaskSpec(
    name="rte", kind="classification", template="{sentence1} / {sentence2}", labels=("yes", "no", "maybe"), max_rows=5
)
TWEETS = TaskSpec(name="tweets", kind="regression", template="rate: {text}", low=-4, high=4)
TITLES = TaskSpec(name="titles", kind="text", template="title: {body}", max_chars=300)
MEANING = TaskSpec(name="meaning", kind="embedding", template="{sentence}", dimensions=3)
NAMES = TaskSpec(name="names", kind="token_classification", template="find: {text}", labels=("PER", "LOC"))
TOPICS = TaskSpec(name="topics", kind="multilabel", template="{sentence}", labels=("art", "war", "law"))
PASSAGES = TaskSpec(name="passages", kind="ranking", template="{query} | {passage}", max_rows=5)
SPECS = (SST2, RTE, TWEETS, TITLES)
VQA = TaskSpec(
    name="vqa", kind="classification", template="question: {question}", images=("image",), labels=("no", "yes")
)
NLVR = TaskSpec(
    name="nlvr", kind="classification", template="{sentence}", images=("left", "right"), labels=("false", "true")
)
CAPTIONS = TaskSpec(name="captions", kind="text", template="caption:", images=("image",))
VISUAL_SPECS = (VQA, NLVR, CAPTIONS)
"""Tasks that read images. The rule ignores them; `RuleService.rows` has them as they came."""


def rule(spec: TaskSpec, prompt: str) -> Answer:
    """Return the answer to a prompt; it depends on its length alone."""
    score = min(len(prompt), 100) / 100
    if spec.kind == "regression":
        return ValueAnswer(value=score * 8 - 4)
    if spec.kind == "ranking":
        return RelevanceAnswer(relevance=score)
    if spec.kind == "text":
        return TextAnswer(text=prompt.upper(), tokens=(1, 2))
    if spec.kind == "embedding":
        return VectorAnswer(values=(float(np.float32(score)), 0.0, float(np.float32((1 - score**2) ** 0.5))))
    scores = ((1 - score), score, *[0.0] * (len(spec.labels) - 2))
    if spec.kind == "multilabel":
        return LabelsAnswer(labels=tuple(n for n, s in zip(spec.labels, scores, strict=True) if s > 0.4), scores=scores)
    best = max(range(len(scores)), key=scores.__getitem__)
    return ClassAnswer(label=spec.labels[best], score=scores[best], scores=scores)


def capitals(words: Words) -> SpansAnswer:
    """The rule of tasks that tag words: those that begin with a capital are persons."""
    spans = [
        Span(start=start, end=end, label="PER", score=0.75, text=words.text[start:end])
        for start, end in words.bounds
        if words.text[start].isupper()
    ]
    return SpansAnswer(spans=tuple(spans), outside=(0.25,) * len(words.bounds))


class Bytes:
    """A tokenizer whose tokens are the bytes of the text."""

    start_tokens = 0

    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        ids = [list(text.encode()) for text in texts]
        return ids, [max_tokens is not None and len(tokens) > max_tokens for tokens in ids]

    def encode_offsets(self, texts: Sequence[str]) -> list[Any]:
        return [(list(t.encode()), [(n, n + 1) for n, char in enumerate(t) for _ in char.encode()]) for t in texts]

    def room(self, max_tokens: int | None = None) -> int | None:
        return max_tokens

    def complete(self, ids: Sequence[int], max_tokens: int | None = None) -> tuple[int, ...]:
        return tuple(ids[:max_tokens])


class RuleBatcher:
    """A batcher, as far as the service uses it; answers every row by the rule."""

    def __init__(self) -> None:
        self.slow = 0.0
        self.trouble: dict[str, Exception] = {}

    def admit(self, rows: int, deadline: float | None, coming: int) -> None:
        pass

    async def submit(self, rows: Sequence[EngineRow], **_: Any) -> list[Answer | Exception]:
        await self.take_time()
        return [self.trouble.get(row.task) or self._answer(row) for row in rows]

    async def stream(self, row: EngineRow, **_: Any) -> AsyncGenerator[Piece | Answer, None]:
        answer = self._answer(row)
        assert isinstance(answer, TextAnswer)
        for number, word in enumerate(re.findall(r"\s*\S+", answer.text)):
            await self.take_time()
            yield Piece((number,), word)
            if row.task in self.trouble:
                raise self.trouble[row.task]
        yield answer

    async def close(self) -> None:
        pass

    async def take_time(self) -> None:
        end = time.monotonic() + self.slow
        while time.monotonic() < end and self.slow:  # noqa: ASYNC110 - a test sets it to 0 from its own thread
            await asyncio.sleep(0.01)

    def _answer(self, row: EngineRow) -> Answer:
        if row.words is not None:
            return capitals(row.words)
        return rule(row.resident.spec, bytes(row.ids).decode())


class NoEyes:
    """An image pool, as far as the service uses it; features are None."""

    async def encode(self, images: Sequence[bytes], tenant: str, deadline: float | None) -> list[EncodedImage]:
        return [EncodedImage(hashlib.sha256(data).hexdigest(), cast(Any, None)) for data in images]

    def close(self) -> None:
        pass


class RuleService(PredictService):
    """The real service with a batcher that answers by the rule. Records the options of every request, for each task."""

    def __init__(self, pool: SidePool, config: RequestConfig | None = None) -> None:
        self.batcher = RuleBatcher()
        super().__init__(pool, cast(Any, self.batcher), Bytes(), config, images=cast(Any, NoEyes()))
        self.cancelled = threading.Event()
        """Set when a request was cancelled."""
        self.answerers: list[Any] = []
        """The answerer of every target that was resolved."""
        self.deadlines: list[float | None] = []
        self.priorities: list[int] = []
        self.tenants: list[str] = []
        self.route_keys: list[str] = []
        self.rows: list[Sequence[InputRow]] = []
        """The rows of every request."""

    @property
    def slow(self) -> float:
        """Seconds of a request; of a stream, seconds of a piece."""
        return self.batcher.slow

    @slow.setter
    def slow(self, seconds: float) -> None:
        self.batcher.slow = seconds

    @property
    def trouble(self) -> dict[str, Exception]:
        """Errors by task; a stream fails after its first piece."""
        return self.batcher.trouble

    async def predict_tasks(self, request: PredictRequest) -> list[Any]:
        self.rows.append(request.rows)
        try:
            return await super().predict_tasks(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def stream(self, request: PredictRequest) -> AsyncGenerator[Piece | Generated, None]:
        self.rows.append(request.rows)
        try:
            async with contextlib.aclosing(super().stream(request)) as events:
                async for event in events:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    def resolve(self, ref: TaskRef, options: RequestOptions) -> Target:
        self._remember(options)
        target = super().resolve(ref, options)
        self.answerers.append(target.answerer)
        return target

    def resolve_tasks(self, refs: Sequence[TaskRef], options: RequestOptions) -> list[Any]:
        for _ in refs:
            self._remember(options)
        targets = super().resolve_tasks(refs, options)
        self.answerers += [target.answerer for target in targets if isinstance(target, Target)]
        return targets

    def _remember(self, options: RequestOptions) -> None:
        self.deadlines.append(options.deadline)
        self.priorities.append(options.priority)
        self.tenants.append(options.tenant)
        self.route_keys.append(options.route_key)


def make_run(
    folder: Path, spec: TaskSpec, seed: int = 0, backbone: str = "tiny", thresholds: Mapping[str, float] | None = None
) -> Path:
    """Write a run folder, ready to publish, whose side network is a few bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIDE_NETWORK).write_bytes(weights(f"side network of {spec.name}, seed {seed}".encode() * 100))
    manifest = Manifest(
        task=spec.name,
        spec=spec,
        backbone=BackboneRef(name=backbone, fingerprint=f"sha256:{backbone}"),
        tokenizer_fingerprint="sha256:bytes",
        side={},
        provenance={"run_id": f"run-{seed}"},
        thresholds=dict(thresholds or {}),
    )
    write_manifest(folder, manifest)
    return folder


class Parlour:
    """A registry with the tasks of SPECS, and a server in a thread of its own that answers by the rule."""

    def __init__(self, folder: Path, specs: Sequence[TaskSpec] = SPECS, **config: Any) -> None:
        self.folder, self.pool = folder, SidePool()
        self.registry = Registry.open(folder / "registry", create=True)
        self.service = RuleService(self.pool)
        for spec in specs:
            self.publish(spec)
        values = {
            "backbone": "none",
            "registry": str(folder / "registry"),
            "port": 0,
            "metrics_port": 0,
            "http_port": 0,
        }
        self.config = ServeConfig(**values | config, load=LoadConfig(poll_s=0.05, max_side_bytes=100_000))
        self.server = cast(Server, None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def run(self, spec: TaskSpec, seed: int = 0, **changes: Any) -> Path:
        return make_run(self.folder / f"{spec.name}-{seed}", spec, seed, **changes)

    def publish(self, spec: TaskSpec, seed: int = 0, **changes: Any) -> int:
        return self.registry.publish(self.run(spec, seed, **changes)).version

    def assemble(self, config: ServeConfig, metrics: Metrics, progress: Progress | None = None) -> Components:
        reconciler = Reconciler(self.registry, self.pool, self._load, config.load, metrics)
        reconciler.start(progress)
        return Components(
            service=self.service,
            pool=self.pool,
            registry=self.registry,
            wake=reconciler.wake,
            stop=reconciler.stop,
        )

    @contextlib.contextmanager
    def open(self) -> Iterator["Parlour"]:
        """Serve until the block ends."""
        with serving(self.config, self.assemble) as (self.server, self._loop):
            yield self

    def stop(self, grace_s: float) -> "Future[bool]":
        """Begin to drain; the future is the result of `Server.stop`."""
        return asyncio.run_coroutine_threadsafe(self.server.stop(grace_s), self._loop)

    def _load(self, task: str, version: int) -> Resident:
        manifest = self.registry.manifest(task, version)
        if manifest.backbone.name != "tiny":
            raise IncompatibleSide(task, manifest.backbone.fingerprint, "sha256:tiny")
        nothing, spec = cast(Any, None), manifest.spec
        generation = Generation(**spec.generation.settings)
        answerer = Generate(max_new_tokens=spec.max_new_tokens, decode=str, generation=generation)
        return Resident(
            task=task,
            version=version,
            spec=spec,
            side=cast(Any, SimpleNamespace(config=SideConfig())),
            answerer=answerer if spec.kind == "text" else nothing,
            manifest=manifest,
            bytes=1,
        )


@contextlib.contextmanager
def serving(config: ServeConfig, assemble: Assemble) -> Iterator[tuple[Server, asyncio.AbstractEventLoop]]:
    """Run a server on an event loop in a thread of its own until the block ends."""

    async def start() -> Server:
        server = Server(config, assemble)
        await server.start()
        return server

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        try:
            yield server, loop
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0.1), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
