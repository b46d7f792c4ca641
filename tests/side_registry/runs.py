"""Small fake run folders: the registry looks at a side network's frame alone, so a few bytes in one are enough."""

import json
from pathlib import Path

from obstore.store import MemoryStore

from side_registry import (
    SIDE_NETWORK,
    BackboneRef,
    GoldenExample,
    Manifest,
    Registry,
    Store,
    TaskSpec,
    read_artifact,
    write_manifest,
)
from side_registry.blobs import Blobs

ROW = {"sentence": "a gripping film"}


def make_run(folder: Path, task: str = "sst2", payload: bytes = b"weights 1", run_id: str = "run-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIDE_NETWORK).write_bytes(weights(payload))
    write_manifest(folder, make_manifest(task, run_id))
    return folder


def make_regression_run(folder: Path, task: str = "sst2") -> Path:
    """One whose answers are numbers."""
    make_run(folder, task)
    spec = TaskSpec(name=task, kind="regression", template="{sentence}", low=0, high=5)
    examples = (GoldenExample(fields=ROW, expected={"value": 3.5}),)
    write_manifest(folder, make_manifest(task).model_copy(update={"spec": spec, "examples": examples}))
    return folder


def weights(payload: bytes) -> bytes:
    """A safetensors file with one tensor, these bytes."""
    entry = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    header = json.dumps({"payload": entry}).encode()
    return len(header).to_bytes(8, "little") + header + payload


def make_manifest(task: str = "sst2", run_id: str = "run-1") -> Manifest:
    return Manifest(
        task=task,
        spec=make_spec(task),
        backbone=BackboneRef(name="tiny-t5", fingerprint="sha256:" + "b" * 64),
        tokenizer_fingerprint="sha256:" + "c" * 64,
        side={"reduction": 8, "head": "linear"},
        metrics={"accuracy": 0.86},
        provenance={"seed": 1, "run_id": run_id},
        examples=(GoldenExample(fields=ROW, expected={"label": "positive", "scores": [0.1, 0.9]}),),
    )


def make_spec(name: str = "sst2") -> TaskSpec:
    return TaskSpec(name=name, kind="classification", template="sst2: {sentence}", labels=("negative", "positive"))


def upload(store: Store, folder: Path) -> str:
    """Store a run's files and manifest, as a publisher does before its commit. Returns the manifest's digest."""
    artifact, blobs = read_artifact(folder), Blobs(store)
    for name in artifact.manifest.files:
        blobs.add((folder / name).read_bytes())
    return blobs.add(artifact.manifest_bytes)


def move_aliases(registry: Registry, count: int) -> None:
    """Make `count` commits that move an alias of sst2, which has two versions."""
    for number in range(count):
        registry.set_alias("sst2", "canary", 1 + number % 2)


def memory_store() -> Store:
    return Store("memory://", MemoryStore())
