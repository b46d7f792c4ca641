"""How a text is chosen from a side network's scores: greedily, by sampling, or as the best of several beams.

Fields are named, and mean, what they do in Hugging Face's GenerationConfig. One default differs: `top_k` is off here,
where theirs keeps the 50 likeliest tokens. The most new tokens are no part of it: they are the task's.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ladder.errors import GenerationError

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Greedy unless told otherwise. Fields of sampling matter only with `do_sample`, those of beams only with beams."""

    num_beams: int = 1
    """Texts that are followed at a time; the best is the answer. 1: no beam search."""
    do_sample: bool = False
    """Draw each token by its probability."""
    temperature: float = 1.0
    """Sampling: scores are divided by it; below 1 the likely become likelier."""
    top_k: int = 0
    """Sampling: only so many of the likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sampling: only the likeliest tokens that have this probability together."""
    seed: int | None = None
    """Sampling: of each row's own random numbers, so that neighbours do not matter; None: new ones every time."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that were said already, the start token among them, become less likely."""
    no_repeat_ngram_size: int = 0
    """So many tokens in a row are never said twice; 0: they may be."""
    min_new_tokens: int = 0
    """The end token is not said before."""
    length_penalty: float = 1.0
    """Beams: a text's score is divided by its length to this power; above 0 favours long texts."""
    early_stopping: EarlyStopping = False
    """Beams: stop at as many finished texts as beams (True), when none is likely to get better (False), or only when
    none can ("never")."""
    legacy_beams: bool = False
    """Beams: end and score texts as transformers 4.6 did, with which the method's authors measured. There a text that
    the limit cuts off counts the start token in its length, and a search may stop for a text that just finished."""

    def __post_init__(self) -> None:
        _whole("num_beams", self.num_beams, 1, 16)
        _whole("top_k", self.top_k, 0, 1 << 24)
        _whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, 1 << 14)
        _whole("min_new_tokens", self.min_new_tokens, 0, 1 << 14)
        if self.seed is not None:
            _whole("seed", self.seed, 0, (1 << 63) - 1)
        _number("temperature", self.temperature, 0.001, 1000)
        _number("top_p", self.top_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _number("length_penalty", self.length_penalty, -10, 10)
        for name in ("do_sample", "legacy_beams"):
            if type(getattr(self, name)) is not bool:
                raise GenerationError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not (type(self.early_stopping) is bool or self.early_stopping == "never"):
            raise GenerationError(f"early_stopping must be true, false or 'never', got {self.early_stopping!r}")
        if self.legacy_beams and self.early_stopping == "never":
            raise GenerationError("early_stopping must be true or false with legacy_beams, got 'never'")
        if self.do_sample and self.num_beams > 1:
            raise GenerationError(f"num_beams must be 1 where do_sample is on, got {self.num_beams}; use one of them")

    @property
    def changes_scores(self) -> bool:
        """The next token is not simply the likeliest of the side network's, or of all but the end."""
        return self.do_sample or self.reads_earlier

    @property
    def is_random(self) -> bool:
        """The same input has another answer every time."""
        return self.do_sample and self.seed is None

    @property
    def reads_earlier(self) -> bool:
        """What was said decides what may be said."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0


def _whole(name: str, value: float, low: int, high: int) -> None:
    if not (type(value) is int and low <= value <= high):
        raise GenerationError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _number(name: str, value: float, low: float, high: float) -> None:
    if not (type(value) in (int, float) and math.isfinite(value) and low <= value <= high):
        raise GenerationError(f"{name} must be a number from {low} to {high}, got {value!r}")
