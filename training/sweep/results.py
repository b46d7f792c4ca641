"""What a sweep found: each run's score, mean and deviation by setting, and the best run."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from side_registry.manifest import Artifact
from training.errors import RunError
from training.job import Job
from training.run_folder import SWEEP, RunFolder

BEST = "best"
"""In the sweep's folder: a link to the best run's folder."""


@dataclass(kw_only=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Of its folder in the sweep's."""
    job: Job
    settings: dict[str, Any]
    """Those in which runs differ, by their name in the recipe."""
    artifact: Artifact | None = None
    """None until the run is complete, and where it failed."""
    error: RunError | None = None
    """Why it failed."""

    @property
    def score(self) -> float | None:
        """The task's metric on the validation rows, of the best epoch."""
        return None if self.artifact is None else self.artifact.manifest.metrics[self.job.spec.metric]


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]
    scores: tuple[float, ...]
    """Of those that did not fail."""

    @property
    def mean(self) -> float | None:
        """None where all failed."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None with fewer than two scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A finished sweep."""

    folder: Path
    runs: Sequence[SweepRun]
    by_setting: Sequence[SettingScore] = field(init=False)
    """In the order of the first run of each."""

    def __post_init__(self) -> None:
        scores: dict[str, tuple[dict[str, Any], list[float]]] = {}
        for run in self.runs:
            settings = {name: value for name, value in run.settings.items() if name != "seed"}
            _, found = scores.setdefault(json.dumps(settings), (settings, []))
            if run.score is not None:
                found.append(run.score)
        made = [SettingScore(settings=settings, scores=tuple(found)) for settings, found in scores.values()]
        object.__setattr__(self, "by_setting", made)

    @property
    def best(self) -> SweepRun:
        """The run with the highest score; of several, the first."""
        return max((run for run in self.runs if run.score is not None), key=lambda run: run.score or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        spec = self.runs[0].job.spec
        return {
            "task": spec.name,
            "metric": spec.metric,
            "best": self.best.name,
            "settings": [
                {"settings": one.settings, "runs": len(one.scores), "mean": one.mean, "deviation": one.deviation}
                for one in self.by_setting
            ],
            "runs": [
                {
                    "run": run.name,
                    "settings": run.settings,
                    "score": run.score,
                    "epoch": None if run.artifact is None else run.artifact.manifest.provenance["epoch"],
                    "error": None if run.error is None else str(run.error),
                }
                for run in self.runs
            ],
        }

    def write(self) -> None:
        """Write `sweep.json`, and link `best` to the best run's folder. Raises RunError."""
        folder = RunFolder(self.folder)
        folder.write_bytes(SWEEP, (json.dumps(self.to_dict(), indent=2) + "\n").encode())
        with folder.writing(BEST):
            link = self.folder / (BEST + ".part")
            link.unlink(missing_ok=True)
            link.symlink_to(self.best.name, target_is_directory=True)
            link.replace(self.folder / BEST)
