"""Models for the benchmarks: a real backbone, and side networks of random weights, published as real artifacts.

The cost of an answer does not depend on the values of weights, so nothing is trained. Side networks have r 8, all rungs
and both kinds of heads; and golden examples, which a server replays.
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
from ladder.backbone import (
    BackbonePass,
    CompiledEncoder,
    CudaGraphs,
    Limits,
    RecordedBackbone,
    Rehearsal,
    pack_backbone,
    padded,
)
from ladder.side import as_served, load_side
from ladder.stacked import RecordedSides, SideBank
from serving.config import BatchConfig, LoadConfig
from serving.engine import Engine, Resident, pick_precision
from serving.versions import Loader
from side_registry import SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, Registry, TaskSpec, write_manifest
from side_registry.manifest import VisionRef, read_artifact
from sidecast.cli.options import pick_device
from training.artifact import golden_expectation
from training.evaluation import Model, make_answerer, predict
from training.recipes.recipe import Recipe
from vision import VisionEncoder

Head = Literal["linear", "text", "generate"]
HEADS: dict[str, tuple[Head, ...]] = {"linear": ("linear",), "text": ("text",), "mixed": ("linear", "text")}
"""Heads of the tasks, in turn, by the option --heads. linear: a linear head on the side encoder. text: labels as words
of the LM head, on the decoder's first step. generate, without an option: a text task."""

Rungs = Literal["all", "auto"]
"""all: a rung on every block. auto: as `sidecast train` chooses, on every second block for a linear head."""

REDUCTION = 8
LONGEST = 256
"""Most tokens of a text, in the spec of a text task."""
OWN_TEXTS = 4
"""Golden examples of a task that has texts of its own: as many as `sidecast train` writes."""
GOLDEN = ("a gripping film", "it is neither good nor bad, and far too long for what it has to say")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A backbone, loaded as a server with the same options does it."""

    folder: str
    """Folder or hub id."""
    backbone: Backbone
    tokenizer: Tokenizer
    encoder: CompiledEncoder | RecordedBackbone | None = None
    """The compiled or recorded encoder, if there is one; engines can share it."""
    sides: RecordedSides | None = None
    """Records the side networks' passes, if they are recorded."""

    @property
    def compiles(self) -> bool:
        """Whether the encoder is compiled."""
        return isinstance(self.encoder, CompiledEncoder)

    def engine(self) -> Engine:
        """Return a new engine with a server's defaults."""
        return Engine(self.backbone, encode=self.encoder)

    def run(self, rows: Sequence[Sequence[int]]) -> BackbonePass:
        """Run the backbone alone, as the engine does: the whole encoder, and the decoder on demand."""
        encode = self.encoder or self.backbone.encode
        return BackbonePass(self.backbone, encode(*padded(self.backbone, rows), None))

    def settings(self, threads: int = 0) -> dict[str, Any]:
        """Return a server's settings for the same backbone, for `served.serve`."""
        kind = {"device": self.device, "dtype": self.dtype, "quantize": self.backbone.quantization}
        return {"backbone": self.folder, "threads": threads, "compile": self.compiles, **kind}

    def quantised(self, quantize: str) -> "Loaded":
        """Return the same backbone with quantised matrices, in the precision that a server would choose."""
        if self.backbone.quantization == quantize:
            return self
        dtype = pick_precision("auto", self.device, quantize)
        backbone = load_backbone(self.folder, device=self.device, dtype=dtype, quantize=quantize)
        encoder = _ready(backbone, compiles=self.compiles)
        return replace(self, backbone=backbone, encoder=encoder, sides=None)

    def recorded(self, shapes: Sequence[tuple[int, int]]) -> "Loaded":
        """Return the same backbone with passes of these rows and tokens recorded: CUDA graphs, on a CPU a rehearsal."""
        on_gpu = self.hardware == "cuda"
        recorder = CudaGraphs(self.backbone.device) if on_gpu else Rehearsal()
        encoder = RecordedBackbone(self.backbone, shapes, recorder)
        encoder.warm_up()
        return replace(self, encoder=encoder, sides=RecordedSides(recorder, shapes))

    @property
    def hardware(self) -> str:
        """cpu or cuda."""
        return self.backbone.device.type

    @property
    def kind(self) -> str:
        """Number format of its matrix products: float32, bfloat16, w8a8 ..."""
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
    """Load the backbone of a folder or hub id; None: the demo's, which is downloaded once.

    Args:
        threads: of torch in this process; 0: torch chooses.
        quantize: of the backbone's matrices, as `sidecast serve --quantize` takes it.
        compiles: have the engine compile the encoder.

    Raises:
        BackboneError, DemoError: the backbone cannot be loaded.
        UserError: there is no such device.
    """
    if threads:
        torch.set_num_threads(threads)
    device = pick_device(device)
    folder = source or str(get_backbone(cache_folder()))
    if Path(folder).exists():
        folder = str(Path(folder).resolve())
    backbone = load_backbone(folder, device=device, dtype=pick_precision(dtype, device, quantize), quantize=quantize)
    encoder = _ready(backbone, compiles=compiles)
    return Loaded(folder=folder, backbone=backbone, tokenizer=load_tokenizer(folder), encoder=encoder)


def _ready(backbone: Backbone, *, compiles: bool) -> CompiledEncoder | None:
    """Pack the backbone's weights or compile its encoder, as a server does; return the compiled encoder."""
    if not compiles:
        pack_backbone(backbone)
        return None
    batch = BatchConfig()
    encoder = CompiledEncoder(backbone, Limits(rows=batch.max_batch_rows, tokens=batch.max_batch_tokens))
    with torch.inference_mode():
        encoder.warm_up()
    return encoder


def make_spec(number: int, head: Head) -> TaskSpec:
    """Return the spec of a task: text, or sentence classification; every third linear head is a regression."""
    name = f"task-{number:05d}"
    if head == "generate":
        return TaskSpec(name=name, kind="text", template="{sentence}", max_new_tokens=LONGEST)
    if head == "linear" and number % 3 == 2:
        return TaskSpec(name=name, kind="regression", template="{sentence}", low=0.0, high=5.0)
    return TaskSpec(name=name, kind="classification", template="{sentence}", labels=("negative", "positive"))


def make_run(
    folder: Path,
    loaded: Loaded,
    spec: TaskSpec,
    head: Head,
    seed: int,
    rungs: Rungs = "all",
    encoder: VisionEncoder | None = None,
) -> Path:
    """Write a complete run folder with an untrained side network.

    Args:
        encoder: whose features a task with images reads. Such a task has no golden examples, nor has a text task.
    """
    recipe_head = "text" if head == "generate" else head
    recipe = Recipe(head=recipe_head, reduction=REDUCTION, encoder_layers=rungs)
    if encoder is not None:
        recipe = replace(recipe, image_tokens=min(recipe.image_tokens, encoder.tokens))
    config = recipe.side_config(spec, encoder and encoder.width)
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
        vision=encoder and VisionRef(name=encoder.name, fingerprint=encoder.fingerprint),
        provenance={"run_id": f"random-{seed}", "seed": seed, "dtype": loaded.dtype},
        examples=() if head == "generate" or spec.images else _examples(loaded, spec, side),
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
    """Make a registry in `folder` with `count` tasks of one version; `Registry.state` has their names."""
    registry = Registry.open(folder / "registry", create=True)
    for number in range(count):
        head = heads[number % len(heads)]
        spec = make_spec(number, head)
        registry.publish(make_run(folder / spec.name, loaded, spec, head, seed + number, rungs), author="benchmark")
    return registry


def publish_copies(
    folder: Path,
    loaded: Loaded,
    count: int,
    head: Head = "linear",
    rungs: Rungs = "auto",
    different: int = 16,
    own_texts: bool = False,
) -> Registry:
    """Make a registry with `count` tasks, of which only `different` have different weights.

    The store keeps equal files once, which saves disk space. A server loads the weights of each task, and replays its
    golden examples.

    Args:
        own_texts: each task has four golden examples that no other task has, instead of two that all have. Their
            answers are computed here.
    """
    registry = Registry.open(folder / "registry", create=True)
    runs = []
    for number in range(min(count, different)):
        runs.append(make_run(folder / str(number), loaded, make_spec(3 * number, head), head, number, rungs))
    for number in range(count):
        run = runs[number % len(runs)]
        manifest = read_artifact(run).manifest
        spec = manifest.spec.model_copy(update={"name": f"task-{number:05d}"})
        changes: dict[str, Any] = {"task": spec.name, "spec": spec}
        if own_texts:
            side = load_side(run / SIDE_NETWORK, loaded.backbone.config)
            texts = [f"text {index} of task {number}: {GOLDEN[index % 2]}" for index in range(OWN_TEXTS)]
            changes["examples"] = _examples(loaded, spec, side, texts)
        write_manifest(run, manifest.model_copy(update=changes))
        registry.publish(run, author="benchmark")
    return registry


def make_residents(
    loaded: Loaded, count: int, heads: Sequence[Head], seed: int = 0, rungs: Rungs = "all"
) -> list[Resident]:
    """Return the side networks of `count` tasks on the device, from a temporary registry."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        return load_residents(publish_tasks(Path(folder), loaded, count, heads, seed, rungs), loaded)


def load_residents(registry: Registry, loaded: Loaded) -> list[Resident]:
    """Load every task's first version onto the device, with the server's loader."""
    bank = SideBank(loaded.backbone, loaded.sides)
    loader = Loader(registry, loaded.backbone, loaded.tokenizer, LoadConfig(), bank)
    return [loader.load(task, 1) for task in sorted(registry.state().tasks)]


def _examples(
    loaded: Loaded, spec: TaskSpec, side: SideNetwork, texts: Sequence[str] = GOLDEN
) -> tuple[GoldenExample, ...]:
    side = as_served(side, loaded.backbone.dtype).to(loaded.backbone.device)  # the linear head stays float32
    model = Model(spec=spec, side=side, answerer=make_answerer(spec, side, loaded.tokenizer))
    rows = [{"sentence": text} for text in texts]
    answers = predict(model, loaded.backbone, loaded.tokenizer, rows)
    return tuple(
        GoldenExample(fields=row, expected=golden_expectation(answer))
        for row, answer in zip(rows, answers, strict=True)
    )
