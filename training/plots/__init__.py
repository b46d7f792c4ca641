"""Pictures of training, evaluation and comparisons as PNG files.

matplotlib is an extra. It is imported when something is drawn.
"""

from training.plots.curves import draw_curves
from training.plots.evaluation import PLOTTED_KINDS, draw_evaluation
from training.plots.figures import draw_figures
from training.plots.picture import can_draw, check_can_draw

__all__ = [
    "PLOTTED_KINDS",
    "can_draw",
    "check_can_draw",
    "draw_curves",
    "draw_evaluation",
    "draw_figures",
]
