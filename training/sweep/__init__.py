"""Many runs of one task at once: learning rates, seeds and other settings, on one backbone pass."""

from training.sweep.grid import sweep_jobs
from training.sweep.results import Sweep, SweepRun
from training.sweep.train_many import train_many

__all__ = ["Sweep", "SweepRun", "sweep_jobs", "train_many"]
