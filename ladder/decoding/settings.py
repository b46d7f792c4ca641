"""Decoding settings: how a text is chosen from a side network's logits, greedily, by sampling, or by beam search.

Fields have the names and meanings of Hugging Face's GenerationConfig. One default differs: `top_k` is off here, where
theirs keeps the 50 likeliest tokens. The limit of new tokens is not part of it; it belongs to the task.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ladder.errors import GenerationError

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Decoding settings; greedy by default. Fields of sampling need `do_sample`, those of beams `num_beams` > 1."""

    num_beams: int = 1
    """Texts that a beam search follows at a time; the best is the answer. 1: no beam search."""
    do_sample: bool = False
    """Draw each token by its probability."""
    temperature: float = 1.0
    """Sampling: logits are divided by it; below 1, likely tokens become likelier."""
    top_k: int = 0
    """Sampling: only this many of the likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sampling: only the likeliest tokens that have this probability in sum."""
    seed: int | None = None
    """Sampling: seed of each row's random numbers, so that neighbours do not matter; None: new ones every time."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that are in the text already, or the start token, become less likely."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens occurs twice; 0: it may."""
    min_new_tokens: int = 0
    """The text does not end before it has this many tokens."""
    length_penalty: float = 1.0
    """Beams: a text's score is divided by its length to this power; above 0 favours long texts."""
    early_stopping: EarlyStopping = False
    """Beams: stop when as many texts are finished as there are beams (True), when a better one is unlikely (False), or
    when a better one is impossible ("never")."""
    legacy_beams: bool = False
    """Beams: end and score texts as transformers 4.6 did, which the method's authors used. There a text that the limit
    cuts off counts the start token in its length, and a search may stop for a text that just finished."""

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
        """The next token is not always the one with the highest logit, or the highest but for the end token."""
        return self.do_sample or self.reads_earlier

    @property
    def is_random(self) -> bool:
        """The same input may have another answer every time."""
        return self.do_sample and self.seed is None

    @property
    def reads_earlier(self) -> bool:
        """The logits are changed depending on the tokens so far."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0


def _whole(name: str, value: float, low: int, high: int) -> None:
    if not (type(value) is int and low <= value <= high):
        raise GenerationError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _number(name: str, value: float, low: float, high: float) -> None:
    if not (type(value) in (int, float) and math.isfinite(value) and low <= value <= high):
        raise GenerationError(f"{name} must be a number from {low} to {high}, got {value!r}")
