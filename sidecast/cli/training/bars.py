"""The trainer's progress as bars: one for each preparation, one per epoch."""

from typing import Any

from rich.progress import Progress

from sidecast.cli.output import scores_text


class Bars:
    """A `training.job.Progress` of one task, or of tasks that share a side network and are prepared in turn."""

    def __init__(self, bars: Progress, task: str) -> None:
        self.bars = bars
        self.task = task
        self.epochs = 0
        self.steps = 0
        self.looks: Any = None
        self.ranks: Any = None
        self.reads: Any = None
        self.asks: Any = None
        self.current: Any = None

    def images(self, images: int, total: int) -> None:
        """A bar of the images that have features."""
        if self.looks is None:
            self.looks = self.bars.add_task(f"{self.task}: images", total=total, note="")
        self.bars.update(self.looks, completed=images, total=total)

    def ranking(self, rows: int, total: int) -> None:
        """A bar of the rows that Fisher information has."""
        if self.ranks is None:
            self.ranks = self.bars.add_task(f"{self.task}: Fisher information", total=total, note="")
        self.bars.update(self.ranks, completed=rows, total=total)

    def reading(self, rows: int, total: int) -> None:
        """A bar of the rows that the backbone has read."""
        if self.reads is None:
            self.reads = self.bars.add_task(f"{self.task}: backbone pass", total=total, note="")
        self.bars.update(self.reads, completed=rows, total=total)

    def teaching(self, rows: int, total: int) -> None:
        """A bar of the rows that the teacher has answered."""
        if self.asks is None:
            self.asks = self.bars.add_task(f"{self.task}: teacher's answers", total=total, note="")
        self.bars.update(self.asks, completed=rows, total=total)

    def start(self, epochs: int, steps: int) -> None:
        """Take the numbers that epochs' bars show."""
        self.epochs = epochs
        self.steps = steps

    def step(self, epoch: int, step: int, loss: float) -> None:
        """The epoch's bar, with the loss."""
        if step == 0 or self.current is None:
            name = f"{self.task}: epoch {epoch + 1}/{self.epochs}"
            self.current = self.bars.add_task(name, total=self.steps, note="")
        self.bars.update(self.current, completed=step + 1, note=f"loss {loss:.4f}")

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        """The metric's score on the epoch's bar."""
        headline = dict([next(iter(scores.items()))])
        note = scores_text(headline) + (" (best)" if best else "")
        if self.current is not None:
            self.bars.update(self.current, note=note)


class SweepBars(Bars):
    """As `Bars`, with one bar for the steps of all runs."""

    def __init__(self, bars: Progress, task: str) -> None:
        super().__init__(bars, task)
        self.done = 0

    def step(self, epoch: int, step: int, loss: float) -> None:
        """One more step of one of the runs."""
        if self.current is None:
            self.current = self.bars.add_task(self.task, total=self.epochs * self.steps, note="")
        self.done += 1
        self.bars.update(self.current, completed=self.done, note=f"loss {loss:.4f}")
