"""What benchmarks measure: a real backbone, and side networks of random weights, published as real artifacts.

What an answer costs does not depend on the values of weights, so nothing is trained: r 8, all rungs, and heads of both
kinds. Each has golden examples, which a server replays as it would a trained one's.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from demo.backbone import get_backbone
from demo.downloads import cache_folder
from ladder import Backbone, SideNetwork, Tokenizer, load_backbone, load_tokenizer, save_side
from ladder.backbone import BackbonePass, CompiledEncoder, Limits, padded
from ladder.side import as_served
from serving.config import BatchConfig, LoadConfig
from serving.engine import Engine, Resident
from serving.versions import Loader
from side_registry import SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, Registry, TaskSpec, write_manifest
from side_registry.manifest import read_artifact
from sidecast.cli.options import pick_device
from training.artifact import golden_expectation
from training.evaluation import Model, make_answerer, predict
from training.recipe import Recipe

Head = Literal["linear", "text", "generate"]
HEADS: dict[str, tuple[Head, ...]] = {"linear": ("linear",), "text": ("text",), "mixed": ("linear", "text")}
"""By the option --heads: taken in turns. linear: a head of its own on the side encoder. text: labels as words of the LM
head, on the decoder's first step. generate, which no option names: a task that makes texts."""

Rungs = Literal["all", "auto"]
"""A rung on every block; or what `sidecast train` chooses: every second one for a linear head."""

REDUCTION = 8
LONGEST = 256
"""Tokens of a text, by the spec of a task that makes them."""
GOLDEN = ("a gripping film", "it is neither good nor bad, and far too long for what it has to say")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A backbone as a server of the same options would have it."""

    folder: str
    """Or hub id."""
    backbone: Backbone
    tokenizer: Tokenizer
    encoder: CompiledEncoder | None = None
    """Where the encoder is compiled: ready to be used, by any number of engines."""

    @property
    def compiles(self) -> bool:
        """Whether the encoder is compiled."""
        return self.encoder is not None

    def engine(self) -> Engine:
        """A new one, with a server's defaults."""
        return Engine(self.backbone, encode=self.encoder)

    def run(self, rows: Sequence[Sequence[int]]) -> BackbonePass:
        """The backbone alone, as the engine runs it: all of the encoder; the decoder where it is asked."""
        encode = self.encoder or self.backbone.encode
        return BackbonePass(self.backbone, encode(*padded(self.backbone, rows), None))

    def settings(self, threads: int = 0) -> dict[str, Any]:
        """Of a server of the same backbone: for `served.serve`."""
        kind = {"device": self.device, "dtype": self.dtype, "quantize": self.backbone.quantization}
        return {"backbone": self.folder, "threads": threads, "compile": self.compiles, **kind}

    def quantised(self, quantize: str) -> "Loaded":
        """The same backbone with other matrices."""
        if self.backbone.quantization == quantize:
            return self
        backbone = load_backbone(self.folder, device=self.device, dtype=self.dtype, quantize=quantize)
        return replace(self, backbone=backbone, encoder=_compiled(backbone) if self.compiles else None)

    @property
    def hardware(self) -> str:
        """cpu or cuda."""
        return self.backbone.device.type

    @property
    def kind(self) -> str:
        """What its matrices are multiplied in: float32, bfloat16, w8a8 ..."""
        return self.dtype if self.backbone.quantization == "none" else self.backbone.quantization

    @property
    def dtype(self) -> str:
        """Name of the backbone's dtype."""
        return str(self.backbone.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Name of the backbone's device."""
        return str(self.backbone.device)


def load(
    source: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    quantize: str = "none",
    compiles: bool = False,
) -> Loaded:
    """The backbone of a folder or hub id; None: the demo's real one, which is fetched once and kept.

    Args:
        threads: torch's in this process; 0 leaves its own choice.
        quantize: of the backbone's matrices, as `sidecast serve --quantize` takes it.
        compiles: have the engine compile the encoder.

    Raises:
        BackboneError, DemoError: it cannot be had; UserError: the device cannot.
    """
    if threads:
        torch.set_num_threads(threads)
    device = pick_device(device)
    folder = source or str(get_backbone(cache_folder()))
    if Path(folder).exists():
        folder = str(Path(folder).resolve())
    backbone = load_backbone(folder, device=device, dtype=dtype, quantize=quantize)
    encoder = _compiled(backbone) if compiles else None
    return Loaded(folder=folder, backbone=backbone, tokenizer=load_tokenizer(folder), encoder=encoder)


def _compiled(backbone: Backbone) -> CompiledEncoder:
    """As a server has it."""
    batch = BatchConfig()
    encoder = CompiledEncoder(backbone, Limits(rows=batch.max_batch_rows, tokens=batch.max_batch_tokens))
    with torch.inference_mode():
        encoder.warm_up()
    return encoder


def make_spec(number: int, head: Head) -> TaskSpec:
    """The spec of the task of that number: texts, or sentence classification, every third linear head a regression."""
    name = f"task-{number:05d}"
    if head == "generate":
        return TaskSpec(name=name, kind="text", template="{sentence}", max_new_tokens=LONGEST)
    if head == "linear" and number % 3 == 2:
        return TaskSpec(name=name, kind="regression", template="{sentence}", low=0.0, high=5.0)
    return TaskSpec(name=name, kind="classification", template="{sentence}", labels=("negative", "positive"))


def make_run(folder: Path, loaded: Loaded, spec: TaskSpec, head: Head, seed: int, rungs: Rungs = "all") -> Path:
    """A complete run folder, but for the training."""
    how = "text" if head == "generate" else head
    config = Recipe(head=how, reduction=REDUCTION, encoder_layers=rungs).side_config(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = SideNetwork(config, loaded.backbone.config)
    folder.mkdir(parents=True, exist_ok=True)
    save_side(folder / SIDE_NETWORK, side)
    manifest = Manifest(
        task=spec.name,
        spec=spec,
        backbone=BackboneRef(name=loaded.backbone.name, fingerprint=loaded.backbone.fingerprint),
        tokenizer_fingerprint=loaded.tokenizer.fingerprint,
        side=side.config.to_dict(),
        provenance={"run_id": f"random-{seed}", "seed": seed, "dtype": loaded.dtype},
        examples=() if head == "generate" else _examples(loaded, spec, side),
    )
    write_manifest(folder, manifest)
    return folder


def publish_tasks(
    folder: Path,
    loaded: Loaded,
    count: int,
    heads: Sequence[Head] = HEADS["mixed"],
    seed: int = 0,
    rungs: Rungs = "all",
) -> Registry:
    """A registry in `folder` with that many tasks of one version each; see `Registry.state` for their names."""
    registry = Registry.open(folder / "registry", create=True)
    for number in range(count):
        head = heads[number % len(heads)]
        spec = make_spec(number, head)
        registry.publish(make_run(folder / spec.name, loaded, spec, head, seed + number, rungs), author="benchmark")
    return registry


def publish_copies(
    folder: Path, loaded: Loaded, count: int, head: Head = "linear", rungs: Rungs = "auto", different: int = 16
) -> Registry:
    """A registry with that many tasks, of which only so many have different weights: the store keeps the files of equal
    ones once, which spares the disk. A server holds each task's own, and replays each task's golden examples."""
    registry = Registry.open(folder / "registry", create=True)
    runs = []
    for number in range(min(count, different)):
        runs.append(make_run(folder / str(number), loaded, make_spec(3 * number, head), head, number, rungs))
    for number in range(count):
        run = runs[number % len(runs)]
        manifest = read_artifact(run).manifest
        spec = manifest.spec.model_copy(update={"name": f"task-{number:05d}"})
        write_manifest(run, manifest.model_copy(update={"task": spec.name, "spec": spec}))
        registry.publish(run, author="benchmark")
    return registry


def make_residents(
    loaded: Loaded, count: int, heads: Sequence[Head], seed: int = 0, rungs: Rungs = "all"
) -> list[Resident]:
    """That many tasks' side networks on the device, from a registry that is gone again."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        return load_residents(publish_tasks(Path(folder), loaded, count, heads, seed, rungs), loaded)


def load_residents(registry: Registry, loaded: Loaded) -> list[Resident]:
    """Every task's first version on the device, through the server's own loader."""
    loader = Loader(registry, loaded.backbone, loaded.tokenizer, LoadConfig())
    return [loader.load(task, 1) for task in sorted(registry.state().tasks)]


def _examples(loaded: Loaded, spec: TaskSpec, side: SideNetwork) -> tuple[GoldenExample, ...]:
    side = as_served(side, loaded.backbone.dtype).to(loaded.backbone.device)  # a head of its own stays float32
    model = Model(spec=spec, side=side, answerer=make_answerer(spec, side, loaded.tokenizer))
    rows = [{"sentence": text} for text in GOLDEN]
    answers = predict(model, loaded.backbone, loaded.tokenizer, rows)
    return tuple(
        GoldenExample(fields=row, expected=golden_expectation(answer))
        for row, answer in zip(rows, answers, strict=True)
    )
