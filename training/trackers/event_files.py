"""TensorBoard's event files of one run: a scalar for each number of each epoch.

Written by the tensorboard package's own writer. A run that goes on adds the epochs that the folder lacks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import RunError
from training.trackers.numbers import numbers_of

REMEDY = "choose another folder for TensorBoard"


class EventFiles:
    """Event files in one folder. A file is made when there is something to write."""

    def __init__(self, folder: str | Path, lines: Sequence[Mapping[str, Any]]) -> None:
        """Read which epochs the folder has.

        Args:
            folder: made if it is not there.
            lines: of the epochs that are done, as the run's `metrics.jsonl` has them.

        Raises:
            ModuleNotFoundError: tensorboard is not installed.
            RunError: the folder has the events of another run, or cannot be written.
        """
        import tensorboard.summary  # noqa: F401 - a missing extra is told before the run begins

        self.folder = Path(folder).expanduser()
        self._writer: Any = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            losses = _losses(self.folder)
        except OSError as error:
            raise RunError(self.folder, f"cannot be written ({error.strerror}); {REMEDY}") from None
        known = {line["epoch"]: float(np.float32(line["loss"])) for line in lines}
        if not losses.items() <= known.items():
            raise RunError(self.folder, f"has the events of another run; {REMEDY}, or delete it")
        self._written = set(losses)

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the epochs that are not there yet. A running TensorBoard shows them.

        Raises:
            RunError: the folder cannot be written.
        """
        new = [line for line in lines if line["epoch"] not in self._written]
        if not new:
            return
        try:
            if self._writer is None:
                from tensorboard.summary import Writer

                self._writer = Writer(str(self.folder))
            for line in new:
                for name, value in numbers_of(line):
                    self._writer.add_scalar(name, value, line["epoch"])
            self._writer.flush()
        except OSError as error:
            raise RunError(self.folder, f"cannot be written ({error.strerror}); {REMEDY}") from None
        self._written |= {line["epoch"] for line in new}

    def close(self) -> None:
        """End the file. Nothing happens where none was begun."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _losses(folder: Path) -> dict[int, float]:
    """The loss of each epoch that the folder's events have, by the epoch's number."""
    if not any(folder.glob("*tfevents*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0})  # 0: all of them
    events.Reload()
    if "loss" not in events.Tags()[TENSORS]:
        return {}
    return {event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")}
