"""The artifact of a run folder: its manifest, with provenance and answers for a server to replay.

Of a trained run (its best epoch), or of a side network that was not trained here: imported, or only initialized. Both
are complete run folders, so that `sidecast publish`, `evaluate --run` and `trace` take them; the second has no scores
and no golden examples, which need rows.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ladder import (
    Answer,
    Backbone,
    ClassAnswer,
    LabelsAnswer,
    RelevanceAnswer,
    SideConfig,
    SideNetwork,
    SpansAnswer,
    VectorAnswer,
    load_side,
)
from side_registry.golden import MAX_REPLAY_TOKENS, GoldenExample, replay_tokens
from side_registry.manifest import (
    MANIFEST,
    SIDE_NETWORK,
    Artifact,
    BackboneRef,
    Calibration,
    Manifest,
    read_artifact,
    write_manifest,
)
from side_registry.specs.task import TaskSpec
from training.errors import RunError
from training.evaluation import Model, answer_value, make_answerer, predict, span_records
from training.images import encode_bytes, with_bytes
from training.job import Job
from training.recipes.recipe import Recipe
from training.run_folder import RunFolder
from vision import FeatureFile

NOT_SCORES = ("epoch", "baseline", "calibration", "mean", "thresholds", "peak_rss_bytes", "peak_cuda_bytes", "seconds")
"""What an epoch's line has besides scores and the loss."""
GOLDEN_EXAMPLES = 4
"""Validation rows whose answers go into the manifest, for a server to replay."""
GOLDEN_CANDIDATES = 64
"""First validation rows among which those with small images are looked for."""
GOLDEN_IMAGE_BYTES = 256 << 10
GOLDEN_BYTES = 1 << 20
"""Largest image of a golden example, and of all together."""
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
"""Of the files that the decoder takes, by how they begin."""


def complete(
    job: Job, run: RunFolder, settings: dict[str, Any], side_config: SideConfig, best: Mapping[str, Any]
) -> Artifact:
    """Write the manifest of the best epoch: scores, provenance, golden examples. The run folder is complete then.

    Args:
        settings: those that the run folder was begun with.
        side_config: the side network's shape, resolved.
        best: the best epoch's line of scores, of this task.
    """
    if run.extended:
        settings = {**settings, "extended": run.extended}  # its weights are not those of a run given all epochs at once
    origin = {
        "data_sha256": settings["data"],
        "seed": job.recipe.seed,
        "recipe": settings["recipe"],
        **{name: settings[name] for name in ("teacher", "reading", "extended", "shared_with") if name in settings},
        "epoch": best["epoch"],
    }
    calibration = Calibration(**best["calibration"]) if "calibration" in best else None
    manifest = Manifest(
        task=job.spec.name,
        spec=job.spec,
        backbone=_backbone_ref(job.backbone),
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        side=side_config.to_dict(),
        vision=None if job.images is None or not job.spec.images else job.images.vision,
        metrics={name: float(value) for name, value in best.items() if name not in NOT_SCORES},
        calibration=calibration,
        provenance=_provenance(settings, origin, dtype=settings["dtype"]),
        thresholds=best.get("thresholds", {}),
    )
    temperature = 1.0 if calibration is None else calibration.temperature
    examples = _golden_examples(job, run, temperature, manifest.label_thresholds)
    manifest = manifest.model_copy(update={"examples": examples})
    images = [name for example in manifest.examples for name in example.images.values()]
    with run.writing(MANIFEST):
        write_manifest(run.path, manifest, files=dict.fromkeys([SIDE_NETWORK, *images]))
    return read_artifact(run.path)


def write_run(
    output: str | Path,
    side: SideNetwork,
    *,
    spec: TaskSpec,
    backbone: Backbone,
    backbone_source: str,
    tokenizer_fingerprint: str,
    provenance: Mapping[str, Any],
    untrained: bool,
) -> Artifact:
    """Make a run folder of a side network that was not trained here; one that holds just this is returned as it is.

    Args:
        side: of `backbone`'s shape, with a head that answers `spec`'s kind; its weights are stored in float32.
        backbone_source: the folder or hub id that the backbone was loaded from.
        tokenizer_fingerprint: NO_TOKENIZER where the backbone's folder has none: no server will take the run then.
        provenance: where the weights come from, JSON-ready, without times: it is part of what makes it this run.
        untrained: no training has changed the weights.

    Raises:
        RunError: the folder holds something else, or the head's outputs are not the task's.
        RecipeError: a head that cannot answer this kind of task.
    """
    _check_head(output, side, spec)
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
    manifest = Manifest(
        task=spec.name,
        spec=spec,
        backbone=_backbone_ref(backbone),
        tokenizer_fingerprint=tokenizer_fingerprint,
        side=side.config.to_dict(),
        provenance=_provenance(settings, provenance, dtype="float32"),
        untrained=untrained,
    )
    with run.writing(MANIFEST):
        write_manifest(run.path, manifest)
    return read_artifact(run.path)


def weights_sha256(side: SideNetwork) -> str:
    """Digest of every tensor by name, 64 hex digits: equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(side.state_dict().items()):
        stored = tensor.detach().float().contiguous().cpu()
        digest.update(f"{name}|{tuple(stored.shape)}|".encode())
        digest.update(stored.numpy().data)
    return digest.hexdigest()


def golden_expectation(answer: Answer) -> dict[str, Any]:
    """An answer as a golden example stores it, JSON-ready."""
    if isinstance(answer, ClassAnswer):
        return {"label": answer.label, "scores": list(answer.scores)}
    if isinstance(answer, VectorAnswer):
        return {"embedding": list(answer.values)}
    if isinstance(answer, LabelsAnswer):
        return {"labels": list(answer.labels), "scores": list(answer.scores)}
    if isinstance(answer, SpansAnswer):
        return {"spans": span_records(answer), "outside": list(answer.outside)}
    if isinstance(answer, RelevanceAnswer):
        return {"relevance": answer.relevance}
    value = answer_value(answer)
    return {"value": value} if isinstance(value, float) else {"text": value}


def _check_head(output: str | Path, side: SideNetwork, spec: TaskSpec) -> None:
    """Raises RecipeError or RunError where `side` cannot answer `spec`, as a server would refuse it."""
    width = side.config.visual.features if side.config.visual is not None else None
    needed = Recipe(head=side.config.head).side_config(spec, width).outputs  # type: ignore[arg-type]
    if side.config.outputs != needed:
        why = f"the head has {side.config.outputs} outputs, and task {spec.name} ({spec.kind}) needs {needed}"
        raise RunError(output, f"{why}; give another task")


def _backbone_ref(backbone: Backbone) -> BackboneRef:
    return BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint, quantization=backbone.quantization)


def _provenance(settings: Mapping[str, Any], origin: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
    """`origin` with the run's id, which is a digest of its settings, the versions of the code, and the time."""
    run_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return {
        **origin,
        "run_id": run_id,
        "code_version": importlib.metadata.version("sidecast"),
        "torch_version": torch.__version__,
        "dtype": dtype,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _golden_examples(
    job: Job, run: RunFolder, temperature: float, thresholds: Sequence[float]
) -> tuple[GoldenExample, ...]:
    """The first few validation rows with the answers of the weights as they stand in the file.

    Fewer where they are so long that together they would exceed what a server replays, or their images so large. With
    images they are answered as a server answers them: from the bytes, which are stored as files of the artifact.
    """
    examples, rows = _golden_rows(job, run)
    while replay_tokens(job.spec, examples) > MAX_REPLAY_TOKENS:
        examples.pop()
        rows.pop()
    if not rows:
        return ()
    side = load_side(run.side_network, job.backbone.config, device=job.backbone.device, dtype=job.backbone.dtype)
    answerer = make_answerer(job.spec, side, job.tokenizer, temperature=temperature, thresholds=thresholds)
    model = Model(spec=job.spec, side=side, answerer=answerer)
    encoder = None if job.images is None else job.images.encoder
    read_images = None if encoder is None else partial(encode_bytes, encoder)
    answers = predict(model, job.backbone, job.tokenizer, rows, read_images=read_images, most_windows=1)
    return tuple(
        example.model_copy(update={"expected": golden_expectation(answer)})
        for example, answer in zip(examples, answers, strict=True)
    )


def _golden_rows(job: Job, run: RunFolder) -> tuple[list[GoldenExample], list[dict[str, Any]]]:
    """The examples without their answers, and the same rows as a server gets them; writes the images' files."""
    fields = [example.fields for example in job.validation.examples]
    if not job.spec.images:
        return [GoldenExample(fields=row, expected={}) for row in fields[:GOLDEN_EXAMPLES]], fields[:GOLDEN_EXAMPLES]
    if job.images is None or isinstance(job.images.source, FeatureFile):
        return [], []  # there are no bytes that a server could read
    examples: list[GoldenExample] = []
    rows: list[dict[str, Any]] = []
    names: dict[bytes, str] = {}
    candidates = fields[:GOLDEN_CANDIDATES]
    for texts, row in zip(candidates, with_bytes(job.spec, candidates, job.images.source), strict=True):
        images = job.spec.images_of(row)
        if len(rows) == GOLDEN_EXAMPLES or max(map(len, images)) > GOLDEN_IMAGE_BYTES:
            continue
        if sum(map(len, {*names, *images})) > GOLDEN_BYTES:
            continue
        for data in images:
            if data not in names:
                names[data] = f"golden-{len(names)}{_suffix(data)}"
                run.write_bytes(names[data], data)
        files = {name: names[data] for name, data in zip(job.spec.images, images, strict=True)}
        only_text = {name: text for name, text in texts.items() if name not in files}
        examples.append(GoldenExample(fields=only_text, images=files, expected={}))
        rows.append(row)
    return examples, rows


def _suffix(data: bytes) -> str:
    return next((suffix for start, suffix in SUFFIXES.items() if data.startswith(start)), ".bin")
