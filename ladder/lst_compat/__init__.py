"""The LST authors' checkpoints, names and settings."""

from ladder.lst_compat.checkpoint import import_side, read_checkpoint
from ladder.lst_compat.inputs import read_inputs
from ladder.lst_compat.settings import Claims
from ladder.lst_compat.trace import trace

__all__ = [
    "Claims",
    "import_side",
    "read_checkpoint",
    "read_inputs",
    "trace",
]
