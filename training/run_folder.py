"""A run folder: what one training run leaves behind, and what `sidecast publish` takes as it is.

    run.json                   the settings: task spec, backbone, data, recipe (a run goes on only with the same, or
                               with more epochs), and where the backbone and the vision encoder came from
    metrics.jsonl              one line an epoch: loss, scores, baseline, peak memory, seconds
    last.safetensors           weights, optimizer and scores after the last whole epoch, which more epochs go on from
    side_network.safetensors   the best epoch's weights
    curves.png                 the loss and the metric over epochs, where `sidecast train` drew them
    wandb-TASK.json            which run of Weights & Biases has the epochs, with `sidecast train --wandb`
    golden-0.png ...           images of the golden examples
    manifest.json              written last: a folder that has it is complete

Every file is replaced at once, so an interruption anywhere loses the current epoch at most.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladder import SideNetwork, save_side
from side_registry.manifest import MANIFEST, SIDE_NETWORK
from training.errors import RunError
from training.recipes.recipe import LATER

SETTINGS, METRICS, LAST = "run.json", "metrics.jsonl", "last.safetensors"
CURVES = "curves.png"
SWEEP = "sweep.json"
"""In a folder of several runs: their results."""
PART = ".part"
"""Ending of a file that is being written."""


class RunFolder:
    """One run's files. Nothing is made or read before a method is called."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    @property
    def side_network(self) -> Path:
        """The best epoch's weights."""
        return self.path / SIDE_NETWORK

    @property
    def complete(self) -> bool:
        """Whether the run has its manifest."""
        return (self.path / MANIFEST).is_file()

    def begin(
        self, settings: Mapping[str, Any], backbone_source: str, vision_source: Mapping[str, Any] | None = None
    ) -> None:
        """Make the folder, or go on with one that was begun with the same settings.

        Args:
            vision_source: where the vision encoder came from, JSON-ready; None: there is none.

        Raises:
            RunError: the folder holds another run or other files, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if all(path.suffix == PART for path in self.path.iterdir()):  # empty, or killed during the first write
                sources = {"backbone_source": backbone_source, "vision_source": vision_source}
                document = {"settings": settings, **{name: at for name, at in sources.items() if at is not None}}
                self._write(SETTINGS, json.dumps(document, indent=2, sort_keys=True))
                return
        except OSError as error:
            raise RunError(self.path, f"cannot be written ({error.strerror}); choose another --output") from None
        before = self._read("settings")
        if not isinstance(before, dict) or not isinstance(before.get("recipe", {}), dict):
            raise RunError(self.path, f"its {SETTINGS} was not written by this program; choose another --output")
        if "recipe" in before:
            before["recipe"] = LATER | before["recipe"]
        differing = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if differing == ["recipe"] and _wants_more_epochs(before["recipe"], settings["recipe"]):
            self._extend(before, settings)
        elif differing:
            what = ", ".join(_change(name, before.get(name), settings.get(name)) for name in differing)
            raise RunError(self.path, f"holds a run with another {what}; choose another --output or delete it")

    def begin_part(
        self,
        settings: Mapping[str, Any],
        backbone_source: str,
        vision_source: Mapping[str, Any] | None,
        whole: "RunFolder",
        scores: Sequence[Mapping[str, Any]],
    ) -> None:
        """Make the folder of one task of a shared run, complete but for its manifest; replaces what it held.

        Args:
            settings, backbone_source, vision_source: as of `begin`.
            whole: the shared run's folder: its best weights are copied.
            scores: each epoch's line, of this task.

        Raises:
            RunError: the folder cannot be written.
        """
        with self.writing(MANIFEST):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
        sources = {"backbone_source": backbone_source, "vision_source": vision_source}
        document = {"settings": settings, **{name: at for name, at in sources.items() if at is not None}}
        if whole.extended:
            document["extended"] = whole.extended
        self._write(SETTINGS, json.dumps(document, indent=2, sort_keys=True))
        self._write(METRICS, "".join(json.dumps(line) + "\n" for line in scores))
        with self._replacing(SIDE_NETWORK) as temporary:
            shutil.copyfile(whole.side_network, temporary)

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether the folder is complete, of a run with these settings. Raises RunError."""
        return self.complete and self._read("settings") == settings

    def _extend(self, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Make of a run that was finished or interrupted one of more epochs.

        The manifest goes first: whatever interrupts this, the folder is an unfinished run of the old or the new number.
        """
        last = self.read_last()
        if last is None and self.complete:
            raise RunError(self.path, f"has no {LAST}, which more epochs go on from; choose another --output")
        done = 0 if last is None else len(last[0])
        extended = [*self.extended, {"epochs": before["recipe"]["epochs"], "done": done}] if done else []
        document = {**self._document(), "settings": settings, "extended": extended}
        with self.writing(MANIFEST):
            (self.path / MANIFEST).unlink(missing_ok=True)
        self._write(SETTINGS, json.dumps(document, indent=2, sort_keys=True))

    @property
    def extended(self) -> list[dict[str, int]]:
        """Each time that the run was given more epochs: how many it had been given before, and how many were done."""
        return self._document().get("extended", [])

    def backbone_source(self) -> str:
        """The folder or hub id that the run's backbone was loaded from.

        Raises:
            RunError: the folder does not say.
        """
        return str(self._read("backbone_source"))

    def vision_source(self) -> Mapping[str, Any] | None:
        """Where the run's vision encoder was loaded from; None where the folder does not say. Raises RunError."""
        return self._document().get("vision_source")

    def _read(self, name: str) -> Any:
        try:
            return self._document()[name]
        except KeyError as error:
            raise RunError(self.path, f"its {SETTINGS} does not read ({error}); delete the folder") from None

    def _document(self) -> dict[str, Any]:
        try:
            document = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
            return {**document}
        except FileNotFoundError:
            raise RunError(self.path, "holds no run.json, so it is no run folder; choose an empty one") from None
        except (OSError, ValueError, TypeError) as error:
            raise RunError(self.path, f"its {SETTINGS} does not read ({error}); delete the folder") from None

    def finish_epoch(self, scores: list[dict[str, Any]], state: Mapping[str, Tensor]) -> None:
        """Store what a run goes on from: the scores of each whole epoch, and the state after the last.

        Args:
            state: as `optimizer_tensors` makes it.

        Raises:
            RunError: the files cannot be written.
        """
        with self._replacing(LAST) as temporary:
            save_file({name: t.contiguous() for name, t in state.items()}, temporary, {"scores": json.dumps(scores)})
        self._write(METRICS, "".join(json.dumps(line) + "\n" for line in scores))

    def read_last(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
        """The scores of each whole epoch, and the state after the last of them; None before the first.

        Raises:
            RunError: the file is damaged.
        """
        if not (self.path / LAST).is_file():
            return None
        try:
            with safe_open(self.path / LAST, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
                return json.loads((opened.metadata() or {})["scores"]), tensors
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(self.path, f"its {LAST} does not read ({error}); delete the folder") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Each whole epoch's line of the log; none before the first.

        Raises:
            RunError: the log is damaged.
        """
        try:
            text = (self.path / METRICS).read_text(encoding="utf-8")
            return [{**json.loads(line)} for line in text.splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise RunError(self.path, f"its {METRICS} does not read ({error}); delete the folder") from None

    def save_best(self, side: SideNetwork) -> None:
        """Store the weights of the best epoch so far, in float32. Raises RunError."""
        with self._replacing(SIDE_NETWORK) as temporary:
            save_side(temporary, side)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file, or replace it. Raises RunError."""
        with self._replacing(name) as temporary:
            temporary.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Turn what a full disk, or another fault of the file system, raises within into a RunError."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or str(error)
            remedy = "free some space or choose another --output, and run the command again"
            raise RunError(self.path, f"{name} cannot be written ({why}); {remedy}") from None

    def _write(self, name: str, text: str) -> None:
        with self._replacing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """A temporary file to write; it replaces `name` once it is on the disk."""
        temporary = self.path / (name + PART)
        try:
            with self.writing(name):
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(self.path / name)
        except RunError:
            with suppress(OSError):
                temporary.unlink()
            raise


def _wants_more_epochs(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two recipes differ in that alone."""
    return {**before, "epochs": 0} == {**now, "epochs": 0} and before["epochs"] < now["epochs"]


def _change(name: str, before: Any, now: Any) -> str:
    """How a setting of the run differs: `recipe (epochs 3, not 2)`, and `data` for those without names inside."""
    if name not in ("recipe", "reading"):
        return name
    before, now = before or {}, now or {}
    inner = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return f"{name} ({'; '.join(f'{key} {before.get(key)}, not {now.get(key)}' for key in inner)})"


def optimizer_tensors(side: SideNetwork, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and AdamW's moments by name, on the CPU, for `finish_epoch`."""
    tensors = {f"side.{name}": tensor for name, tensor in side.state_dict().items()}
    for name, parameter in side.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def restore(side: SideNetwork, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took, in place.

    Raises:
        ValueError: these are other tensors than this side network has.
    """
    try:
        side.load_state_dict({n.removeprefix("side."): t for n, t in tensors.items() if n.startswith("side.")})
    except RuntimeError as error:  # says what is missing or has another shape
        raise ValueError(" ".join(str(error).split())[:200]) from None
    for name, parameter in side.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            stored = tensors.get(f"optimizer.{key}.{name}")
            if stored is not None:
                optimizer.state[parameter][key] = stored.clone().to(parameter.device)
