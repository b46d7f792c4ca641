"""A run folder around a side network that was not trained here: imported, or only begun.

As complete as a trained run's, so that `sidecast publish`, `evaluate --run` and `trace` take it; without scores and
golden examples, which need rows.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ladder import Backbone, SideNetwork
from side_registry.manifest import Artifact, BackboneRef, Manifest, read_artifact, write_manifest
from side_registry.task import TaskSpec
from training.errors import RunError
from training.recipe import Recipe
from training.run import RunFolder


def write_run(
    output: str | Path,
    side: SideNetwork,
    *,
    spec: TaskSpec,
    backbone: Backbone,
    backbone_source: str,
    tokenizer_fingerprint: str,
    provenance: Mapping[str, Any],
) -> Artifact:
    """Write run.json, side_network.safetensors and manifest.json; a folder that holds just this is returned as it is.

    Args:
        side: of `backbone`'s shape, with a head that answers `spec`'s kind; its weights are stored in float32.
        backbone_source: the folder or hub id that the backbone was loaded from.
        tokenizer_fingerprint: NO_TOKENIZER where the backbone's folder has none: no server will take the run then.
        provenance: where the weights come from, JSON-ready, without times: it says which run this is.

    Raises:
        RunError: the folder holds something else, or the head's outputs are not the task's.
        RecipeError: a head that cannot answer this kind of task.
    """
    check_head(output, side, spec)
    settings = {
        "task": json.loads(spec.model_dump_json()),
        "backbone": backbone.fingerprint,
        "tokenizer": tokenizer_fingerprint,
        "side": side.config.to_dict(),
        "weights": weights_sha256(side),
        "made": dict(provenance),
    }
    run = RunFolder(output)
    run.begin(settings, backbone_source)
    if run.complete:
        return read_artifact(run.path)
    run.save_best(side)
    draft = Manifest(
        task=spec.name,
        spec=spec,
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint, quantization=backbone.quantization),
        tokenizer_fingerprint=tokenizer_fingerprint,
        side=side.config.to_dict(),
        provenance=_provenance(settings, provenance),
    )
    write_manifest(run.path, draft)
    return read_artifact(run.path)


def check_head(output: str | Path, side: SideNetwork, spec: TaskSpec) -> None:
    """Raises RecipeError or RunError where `side` cannot answer `spec`, as a server would refuse it."""
    needed = Recipe(head=side.config.head).side_config(spec).outputs  # type: ignore[arg-type]
    if side.config.outputs != needed:
        why = f"the head has {side.config.outputs} outputs, and task {spec.name} ({spec.kind}) needs {needed}"
        raise RunError(output, f"{why}; give another task")


def weights_sha256(side: SideNetwork) -> str:
    """Digest of every tensor by name, 64 hex digits: equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(side.state_dict().items()):
        stored = tensor.detach().float().contiguous().cpu()
        digest.update(f"{name}|{tuple(stored.shape)}|".encode())
        digest.update(stored.numpy().data)
    return digest.hexdigest()


def _provenance(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    run_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return {
        **given,
        "run_id": run_id,
        "code_version": importlib.metadata.version("sidecast"),
        "torch_version": torch.__version__,
        "dtype": "float32",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
