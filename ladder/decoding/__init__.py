"""Texts: settings, logits, beams, and the loop that rows join and leave between two tokens."""

from ladder.decoding.continuous import RunningTexts, Text
from ladder.decoding.settings import Generation

__all__ = [
    "Generation",
    "RunningTexts",
    "Text",
]
