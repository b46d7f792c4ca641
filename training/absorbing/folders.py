"""A teacher's folder: what is in it, and what is refused before any code reads its weights.

A folder is that of a whole model (`config.json`) or of a PEFT adapter (`adapter_config.json`, whose base model is
another folder). Weights are read from safetensors files alone: a pickle can run code.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from training.errors import TeacherError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Suffixes of files that hold weights as pickles."""
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEADS = ("classifier", "score", "classification_head")
"""Modules that give labels, as transformers names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFolder:
    """A folder that has been looked into."""

    path: Path
    model: Path
    """The whole model: `path`, or the base of an adapter."""
    config: dict[str, Any]
    """The whole model's configuration, with the labels of the adapter's folder where that has its own."""
    adapter_labels: int | None = None
    """Outputs of the head that an adapter brings; None where the folder is no adapter, or has no head of its own."""

    @property
    def is_adapter(self) -> bool:
        """Whether this is a PEFT folder."""
        return self.path != self.model

    @property
    def weight_files(self) -> list[Path]:
        """All files of weights: the model's, and the adapter's."""
        own = [self.path / ADAPTER_WEIGHTS] if self.is_adapter else []
        return sorted(self.model.glob("*.safetensors")) + own

    @property
    def identity(self) -> str:
        """Names weights and configuration: a run goes on with the same teacher only."""
        digest = hashlib.sha256()
        files = [*self.weight_files, self.model / CONFIG, *([self.path / ADAPTER] if self.is_adapter else [])]
        for file in files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"


def look_into(path: str | Path, base: str | Path | None = None) -> TeacherFolder:
    """The folder of a teacher.

    Args:
        base: the base model's folder of an adapter; None: the one that the adapter's configuration names.

    Raises:
        TeacherError: no such folder, neither a model nor an adapter, weights as pickles alone, an adapter whose base is
            not a local folder, or a configuration that cannot be read.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise TeacherError(path, "is no folder on this machine; download the model and give its folder")
    if (folder / ADAPTER).is_file():
        return _adapter(folder, base)
    if not (folder / CONFIG).is_file():
        raise TeacherError(path, f"has neither {CONFIG} nor {ADAPTER}; give the folder that save_pretrained wrote")
    _check_weights(folder)
    return TeacherFolder(path=folder, model=folder, config=_read_json(folder / CONFIG))


def _adapter(folder: Path, base: str | Path | None) -> TeacherFolder:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise TeacherError(folder, f"has no {ADAPTER_WEIGHTS}{_pickles_hint(folder)}")
    named = base or _read_json(folder / ADAPTER).get("base_model_name_or_path")
    model = _base_folder(folder, named)
    if model is None:
        why = f"its base model {named!r} is not a folder on this machine; download it and give its folder with --base"
        raise TeacherError(folder, why)
    _check_weights(model)
    config = _read_json(model / CONFIG)
    if (folder / CONFIG).is_file():
        own = _read_json(folder / CONFIG)
        config |= {name: own[name] for name in ("id2label", "label2id", "num_labels", "problem_type") if name in own}
    return TeacherFolder(path=folder, model=model, config=config, adapter_labels=_head_outputs(folder))


def _base_folder(folder: Path, named: object) -> Path | None:
    if not named:
        return None
    for candidate in (Path(str(named)).expanduser(), folder / str(named)):
        if (candidate / CONFIG).is_file():
            return candidate.resolve()
    return None


def _head_outputs(folder: Path) -> int | None:
    """Rows of the last matrix of the head among an adapter's tensors."""
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(".weight") and "lora_" not in name]  # noqa: SIM118
            heads = [name for name in names if any(part in HEADS for part in name.split("."))]
            if not heads:
                return None
            return min(file.get_slice(name).get_shape()[0] for name in heads)
    except (SafetensorError, OSError) as error:
        raise TeacherError(folder, f"its {ADAPTER_WEIGHTS} cannot be read ({error})") from None


def _check_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise TeacherError(folder, f"has no .safetensors file of weights{_pickles_hint(folder)}")


def _pickles_hint(folder: Path) -> str:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if not pickles:
        return ""
    return f", and {pickles[0]} is a pickle, which can run code; save the model again as safetensors (save_pretrained)"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeacherError(path, f"cannot be read ({error})") from None
    if not isinstance(document, dict):
        raise TeacherError(path, "is no JSON object")
    return document
