"""Pictures of training, evaluation and comparisons as PNG files, and event files for TensorBoard.

matplotlib and tensorboard are extras. Each is imported when something is drawn or written.
"""

from training.plots.curves import draw_curves
from training.plots.evaluation import PLOTTED_KINDS, draw_evaluation
from training.plots.event_files import EventFiles
from training.plots.figures import draw_figures
from training.plots.picture import can_draw, check_can_draw

__all__ = [
    "PLOTTED_KINDS",
    "EventFiles",
    "can_draw",
    "check_can_draw",
    "draw_curves",
    "draw_evaluation",
    "draw_figures",
]
