"""The end of a run: the manifest of its best epoch, with answers for a server to replay."""

import hashlib
import importlib.metadata
import json
from datetime import UTC, datetime
from typing import Any

import torch

from ladder import Answer, ClassAnswer, VectorAnswer, load_side
from side_registry.manifest import Artifact, BackboneRef, GoldenExample, Manifest, read_artifact, write_manifest
from training.evaluate import Model, answer_value, make_answerer, predict
from training.job import Job
from training.run import RunFolder

GOLDEN_EXAMPLES = 4
"""Validation rows whose answers go into the manifest, for a server to replay."""


def complete(job: Job, run: RunFolder, settings: dict[str, Any], epochs: list[dict[str, Any]]) -> Artifact:
    """Write the manifest of the best epoch: scores, provenance, golden examples."""
    best = max(epochs, key=lambda line: line[job.spec.metric])
    run_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    draft = Manifest(
        task=job.spec.name,
        spec=job.spec,
        backbone=BackboneRef(
            name=job.backbone.name, fingerprint=job.backbone.fingerprint, quantization=job.backbone.quantization
        ),
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        side=job.recipe.side_config(job.spec).resolve(job.backbone.config).to_dict(),
        metrics={name: float(value) for name, value in best.items() if name not in ("epoch", "seconds")},
        provenance={
            "run_id": run_id,
            "data_sha256": settings["data"],
            "seed": job.recipe.seed,
            "recipe": settings["recipe"],
            **({"teacher": settings["teacher"]} if "teacher" in settings else {}),
            "epoch": best["epoch"],
            "code_version": importlib.metadata.version("sidecast"),
            "torch_version": torch.__version__,
            "dtype": settings["dtype"],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        examples=_golden_examples(job, run),
    )
    write_manifest(run.path, draft)
    run.finish()
    return read_artifact(run.path)


def _golden_examples(job: Job, run: RunFolder) -> tuple[GoldenExample, ...]:
    """The first few validation rows with the answers of the weights as they stand in the file."""
    side = load_side(run.side_network, job.backbone.config, device=job.backbone.device, dtype=job.backbone.dtype)
    model = Model(spec=job.spec, side=side, answerer=make_answerer(job.spec, side, job.tokenizer))
    fields = [example.fields for example in job.validation.examples[:GOLDEN_EXAMPLES]]
    answers = predict(model, job.backbone, job.tokenizer, fields)
    return tuple(
        GoldenExample(fields=row, expected=expected(given)) for row, given in zip(fields, answers, strict=True)
    )


def expected(given: Answer) -> dict[str, Any]:
    """An answer as a golden example stores it."""
    if isinstance(given, ClassAnswer):
        return {"label": given.label, "scores": list(given.scores)}
    if isinstance(given, VectorAnswer):
        return {"embedding": list(given.values)}
    value = answer_value(given)
    return {"value": value} if isinstance(value, float) else {"text": value}
