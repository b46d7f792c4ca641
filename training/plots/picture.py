"""The style that all pictures share, and the bytes of a picture. Drawn by matplotlib, without a display."""

import importlib.util
import io
from collections.abc import Callable
from typing import Any

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "text.parse_math": False,  # labels and names of tasks may have a $
}
BLUE, ORANGE, GREEN, RED, GREY = "#2f6fb4", "#e08a1e", "#3a9a5b", "#c2453b", "#6b7280"
DOTS_PER_INCH = 150


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_can_draw() -> None:
    """
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib.figure  # noqa: F401


def png(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """A picture.

    Args:
        draw: draws on the figure.
        width, height: in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    return drawn.getvalue()
