"""What `train` leaves behind to look at: a picture of each run, and its epochs where people watch many runs."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress

from sidecast.cli.training.bars import Bars

if TYPE_CHECKING:
    from training.job import Job
    from training.run_folder import RunFolder
    from training.trackers import EventFiles, WandbRun

LEAST_EPOCHS = 2
"""Of a picture: one epoch is no curve."""


@dataclass(frozen=True)
class Tracking:
    """Where the epochs of runs are also written, as the options have it; None: nowhere."""

    tensorboard: str | None = None
    """A folder; event files are in FOLDER/TASK."""
    wandb: str | None = None
    """A project of Weights & Biases."""

    def check(self) -> None:
        """Find a missing extra before data are read. Raises ModuleNotFoundError."""
        if self.tensorboard is not None:
            importlib.import_module("tensorboard.summary")
        if self.wandb is not None:
            importlib.import_module("wandb")

    def open(
        self, job: "Job", run: "RunFolder", lines: Sequence[Mapping[str, Any]], name: str = ""
    ) -> list["EventFiles | WandbRun"]:
        """The trackers of one task.

        Args:
            run: the run folder.
            lines: of the epochs that are done.
            name: the run's among several of the task.

        Raises:
            RunError: one of them cannot be written, or has another run.
        """
        from training.trackers import EventFiles, WandbRun

        task, found = job.spec.name, list["EventFiles | WandbRun"]()
        if self.tensorboard is not None:
            found.append(EventFiles(Path(self.tensorboard) / task / name, lines))
        if self.wandb is not None:
            title = f"{task} {name or run.path.name}"
            tracked = WandbRun(self.wandb, title, run, task, job.settings())
            if tracked.url is not None:
                click.echo(f"{title}: {tracked.url}", err=True)
            found.append(tracked)
        return found


class Curves:
    """The curves of one run, whose log is read after each epoch. A run that went on has all its epochs."""

    def __init__(
        self, output: str | Path, jobs: Sequence["Job"], tracking: Tracking, *, name: str = "", shared: bool = False
    ) -> None:
        """Begin to track the run.

        Args:
            output: the run folder.
            jobs: of the tasks that it trains.
            name: the run's among several of the task.
            shared: whether the folder holds a run of several tasks, each in a folder of its own within.

        Raises:
            RunError: a tracker cannot be written, or has another run.
        """
        from training.run_folder import RunFolder

        self._run = RunFolder(output)
        self._specs = [job.spec for job in jobs]
        self._shared = shared
        tracked = jobs if tracking != Tracking() else ()  # else the folder is not read before the run begins
        self._trackers = {
            job.spec.name: tracking.open(job, self._run, self._lines(job.spec.name), name) for job in tracked
        }

    def follow(self) -> None:
        """Track new epochs. Raises RunError."""
        for task, trackers in self._trackers.items():
            for tracker in trackers:
                tracker.add(self._lines(task))

    def finish(self) -> None:
        """Track the epochs that are missing, and draw the picture where matplotlib is installed. Raises RunError."""
        from training.plots import can_draw, draw_curves
        from training.run_folder import CURVES, METRICS, RunFolder

        self.follow()
        for trackers in self._trackers.values():
            for tracker in trackers:
                tracker.close()
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
    """As `Bars`; each epoch is tracked."""

    def __init__(self, bars: Progress, task: str, curves: Curves) -> None:
        super().__init__(bars, task)
        self.curves = curves

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        """The metric's score on the epoch's bar; the epoch is tracked."""
        super().validated(epoch, scores, best)
        self.curves.follow()
