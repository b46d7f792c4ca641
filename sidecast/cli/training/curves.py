"""What `train` leaves behind to look at: a picture of each run, and TensorBoard's event files of its epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from sidecast.cli.training.bars import Bars

if TYPE_CHECKING:
    from side_registry import TaskSpec

LEAST_EPOCHS = 2
"""Of a picture: one epoch is no curve."""


class Curves:
    """The curves of one run, whose log is read after each epoch. A run that went on has all its epochs."""

    def __init__(
        self,
        output: str | Path,
        specs: Sequence["TaskSpec"],
        event_folders: Mapping[str, Path],
        *,
        shared: bool = False,
    ) -> None:
        """Check that event files can be written.

        Args:
            output: the run folder.
            specs: of the tasks that it trains.
            event_folders: where the event files of each task go, by its name; empty: nowhere.
            shared: whether the folder holds a run of several tasks, each in a folder of its own within.

        Raises:
            ModuleNotFoundError: tensorboard is not installed.
            RunError: a folder of event files has another run's, or cannot be written.
        """
        from training.plots import EventFiles
        from training.run_folder import RunFolder

        self._run = RunFolder(output)
        self._specs = specs
        self._shared = shared
        self._events = {task: EventFiles(folder, self._lines(task)) for task, folder in event_folders.items()}

    def follow(self) -> None:
        """Write the events of new epochs. Raises RunError."""
        for task, events in self._events.items():
            events.add(self._lines(task))

    def finish(self) -> None:
        """Write the events that are missing, and the picture where matplotlib is installed. Raises RunError."""
        from training.plots import can_draw, draw_curves
        from training.run_folder import CURVES, METRICS, RunFolder

        self.follow()
        for events in self._events.values():
            events.close()
        for spec in self._specs if can_draw() else ():
            lines = self._lines(spec.name)
            folder = RunFolder(self._run.path / spec.name) if self._shared else self._run
            if len(lines) >= LEAST_EPOCHS and _is_older(folder.path / CURVES, self._run.path / METRICS):
                folder.write_bytes(CURVES, draw_curves(lines, spec.name, spec.metric))

    def _lines(self, task: str) -> list[dict[str, Any]]:
        """A line for each whole epoch, of this task; none where the folder holds another run, which `train` reports."""
        from training.multitask.shared import part_lines

        lines = self._run.read_metrics()
        if not self._shared:
            return lines if all("loss" in line for line in lines) else []
        return part_lines(lines, task) if all(task in line.get("tasks", ()) for line in lines) else []


def _is_older(picture: Path, log: Path) -> bool:
    """Whether the log has epochs that the picture lacks. A finished run that is asked for again is left as it is."""
    return not picture.exists() or picture.stat().st_mtime_ns < log.stat().st_mtime_ns


class FollowedBars(Bars):
    """As `Bars`; after each epoch, its events are written."""

    def __init__(self, bars: Progress, task: str, curves: Curves) -> None:
        super().__init__(bars, task)
        self.curves = curves

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        """The metric's score on the epoch's bar, and the epoch's events."""
        super().validated(epoch, scores, best)
        self.curves.follow()
