"""A start from a finished run: the side network of another task, or of the same task on other rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ladder import Backbone, SideConfig, SideNetwork
from side_registry.manifest import MANIFEST, SIDE_NETWORK, read_artifact
from side_registry.specs.task import TaskSpec
from training.errors import RecipeError, RunError
from training.evaluation import load_side_of

FREE = ("outputs", "pair", "words", "dropout", "gate_start", "merge_start")
"""Settings of a side network that may differ: those of its head, and those that its weights do not depend on."""
ANSWER = ("kind", "labels", "low", "high", "dimensions")
"""What two tasks have in common whose heads give the same answers."""
HEAD = ("head.", "words.")
"""Begin the names of the head's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """The side network that another one starts from."""

    folder: Path
    identity: str
    """Names its weights."""
    spec: TaskSpec
    side: SideNetwork

    def check(self, config: SideConfig) -> None:
        """Raises RunError: a side network of this shape, resolved, cannot start from it."""
        theirs, ours = self.side.config.to_dict(), config.to_dict()
        names = [name for name in ours if name not in FREE and theirs[name] != ours[name]]
        if names:
            differ = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in names)
            raise RunError(self.folder, f"cannot start this run: its side network has {differ}")

    def copy_into(self, side: SideNetwork, spec: TaskSpec) -> None:
        """Copy the weights, those of the head only where both tasks have the same answers. Raises as `check`."""
        self.check(side.config)
        keeps_head = all(getattr(self.spec, name) == getattr(spec, name) for name in ANSWER)
        same_head = (self.side.config.pair, self.side.config.words) == (side.config.pair, side.config.words)
        left_out = () if keeps_head and same_head else HEAD
        theirs: dict[str, Any] = self.side.state_dict()
        copied = {name: tensor for name, tensor in theirs.items() if not name.startswith(left_out)}
        side.load_state_dict({**side.state_dict(), **copied})


def load_run_start(source: str, backbone: Backbone) -> RunStart:
    """The start that a recipe names by a folder: that of a finished run, or a downloaded version.

    Raises:
        RecipeError: no such folder.
        ArtifactError, CheckpointError: it is damaged.
        RunError: it was trained on another backbone.
    """
    folder = Path(source).expanduser()
    if not (folder / MANIFEST).is_file():
        raise RecipeError("start", source, "fresh, pretrained or the folder of a finished run")
    artifact = read_artifact(folder)
    side = load_side_of(artifact, backbone, torch.float32)
    identity = f"sha256:{artifact.manifest.files[SIDE_NETWORK].sha256}"
    return RunStart(folder=folder, identity=identity, spec=artifact.manifest.spec, side=side)
