"""What benchmarks measure: a real backbone, and side networks of random weights, published as real artifacts.

What an answer costs does not depend on the values of weights, so nothing is trained: r 8, all rungs, and heads of both
kinds. Each has golden examples, which a server replays as it would a trained one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ladder import Backbone, SideNetwork, Tokenizer, load_backbone, load_tokenizer, save_side
from serving.config import LoadConfig
from serving.loader import Loader
from serving.pool import Resident
from side_registry import SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, Registry, TaskSpec, write_manifest
from sidecast.cli.options import pick_device
from sidecast.demo.backbone import get_backbone
from sidecast.demo.downloads import cache_folder
from training.evaluate import Model, make_answerer, predict
from training.finish import expected
from training.recipe import Recipe

Head = Literal["linear", "text"]
HEADS: dict[str, tuple[Head, ...]] = {"linear": ("linear",), "text": ("text",), "mixed": ("linear", "text")}
"""By the option --heads: taken in turns."""

REDUCTION = 8
GOLDEN = ("a gripping film", "it is neither good nor bad, and far too long for what it has to say")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A backbone as a server of the same options would have it."""

    folder: str
    """Or hub id."""
    backbone: Backbone
    tokenizer: Tokenizer

    @property
    def dtype(self) -> str:
        return str(self.backbone.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self.backbone.device)


def load(source: str | None = None, *, device: str = "auto", dtype: str = "auto", threads: int = 0) -> Loaded:
    """The backbone of a folder or hub id; None: the demo's real one, which is fetched once and kept.

    Args:
        threads: torch's in this process; 0 leaves its own choice.

    Raises:
        BackboneError, DemoError: it cannot be had; UserError: the device cannot.
    """
    if threads:
        torch.set_num_threads(threads)
    device = pick_device(device)
    folder = source or str(get_backbone(cache_folder()))
    if Path(folder).exists():
        folder = str(Path(folder).resolve())
    return Loaded(
        folder=folder, backbone=load_backbone(folder, device=device, dtype=dtype), tokenizer=load_tokenizer(folder)
    )


def make_spec(number: int, head: Head) -> TaskSpec:
    """The spec of the task of that number: sentence classification, every third linear head a regression."""
    name = f"task-{number:05d}"
    if head == "linear" and number % 3 == 2:
        return TaskSpec(name=name, kind="regression", template="{sentence}", low=0.0, high=5.0)
    return TaskSpec(name=name, kind="classification", template="{sentence}", labels=("negative", "positive"))


def make_run(folder: Path, loaded: Loaded, spec: TaskSpec, head: Head, seed: int) -> Path:
    """A complete run folder, but for the training."""
    config = Recipe(head=head, reduction=REDUCTION).side_config(spec)
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
        examples=_examples(loaded, spec, side),
    )
    write_manifest(folder, manifest)
    return folder


def publish_tasks(
    folder: Path, loaded: Loaded, count: int, heads: Sequence[Head] = HEADS["mixed"], seed: int = 0
) -> Registry:
    """A registry in `folder` with that many tasks of one version each; see `Registry.state` for their names."""
    registry = Registry.open(folder / "registry", create=True)
    for number in range(count):
        head = heads[number % len(heads)]
        spec = make_spec(number, head)
        registry.publish(make_run(folder / spec.name, loaded, spec, head, seed + number), author="benchmark")
    return registry


def load_residents(registry: Registry, loaded: Loaded) -> list[Resident]:
    """Every task's first version on the device, through the server's own loader."""
    loader = Loader(registry, loaded.backbone, loaded.tokenizer, LoadConfig())
    return [loader.load(task, 1) for task in sorted(registry.state().tasks)]


def _examples(loaded: Loaded, spec: TaskSpec, side: SideNetwork) -> tuple[GoldenExample, ...]:
    side = side.to(device=loaded.backbone.device, dtype=loaded.backbone.dtype).eval()
    model = Model(spec=spec, side=side, answerer=make_answerer(spec, side, loaded.tokenizer))
    rows = [{"sentence": text} for text in GOLDEN]
    answers = predict(model, loaded.backbone, loaded.tokenizer, rows)
    return tuple(GoldenExample(fields=row, expected=expected(each)) for row, each in zip(rows, answers, strict=True))
