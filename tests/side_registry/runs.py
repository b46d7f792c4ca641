"""Small fake run folders: the registry never looks into a side network, so a few bytes are one."""

from pathlib import Path

from obstore.store import MemoryStore

from side_registry import SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, Store, TaskSpec, write_manifest


def make_run(folder: Path, task: str = "sst2", payload: bytes = b"weights 1", run_id: str = "run-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIDE_NETWORK).write_bytes(payload)
    write_manifest(folder, make_manifest(task, run_id))
    return folder


def make_manifest(task: str = "sst2", run_id: str = "run-1") -> Manifest:
    return Manifest(
        task=task,
        spec=make_spec(task),
        backbone=BackboneRef(name="tiny-t5", fingerprint="sha256:" + "b" * 64),
        tokenizer_fingerprint="sha256:" + "c" * 64,
        side={"reduction": 8, "head": "linear"},
        metrics={"accuracy": 0.86},
        provenance={"seed": 1, "run_id": run_id},
        examples=(GoldenExample(fields={"sentence": "a gripping film"}, expected={"label": "positive"}),),
    )


def make_spec(name: str = "sst2") -> TaskSpec:
    return TaskSpec(name=name, kind="classification", template="sst2: {sentence}", labels=("negative", "positive"))


def memory_store() -> Store:
    return Store("memory://", MemoryStore())
