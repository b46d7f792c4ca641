"""Where the epochs of a run are also written, for people who watch many runs: TensorBoard, Weights & Biases.

tensorboard and wandb are extras. Each is imported where it was asked for.
"""

from training.trackers.event_files import EventFiles
from training.trackers.wandb_run import WandbRun

__all__ = ["EventFiles", "WandbRun"]
