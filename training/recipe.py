"""How a side network is trained: every setting, documented, with the default that measured best."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ladder import SideConfig
from side_registry.task import TaskSpec
from training.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of one training run. The same recipe, data and backbone give the same side network."""

    epochs: int = 3
    """Times through the training rows."""
    batch_rows: int = 32
    """Rows in a step; of like lengths."""
    learning_rate: float = 1e-3
    """AdamW's, at its peak: a linear rise over `warmup`, then a linear fall to 0."""
    warmup: float = 0.1
    """Share of all steps."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Longest gradient, in its 2-norm."""
    seed: int = 0
    """Of the start, the order of rows and dropout."""
    head: Literal["auto", "text", "linear"] = "auto"
    """auto: linear for classification and regression (no decoder at all), text for text. text for classification scores
    the labels as words of the backbone's own LM head."""
    reduction: int = 8
    encoder_layers: tuple[int, ...] | None = None
    decoder_layers: tuple[int, ...] | None = None
    """Blocks with a rung, from 0; None: all."""
    dropout: float = 0.1
    """Inside the side network."""
    cache_gb: float = 4.0
    """Most memory for backbone activations, computed once for all epochs (10^9 bytes); 0 keeps none."""

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.epochs >= 1, ">= 1")
        _check("batch_rows", self.batch_rows, self.batch_rows >= 1, ">= 1")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "> 0")
        _check("warmup", self.warmup, 0 <= self.warmup <= 1, "within 0 and 1")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, ">= 0")
        _check("clip", self.clip, self.clip > 0, "> 0")
        _check("seed", self.seed, 0 <= self.seed < 2**32, "within 0 and 2**32 - 1")
        _check("head", self.head, self.head in ("auto", "text", "linear"), "auto, text or linear")
        _check("cache_gb", self.cache_gb, self.cache_gb >= 0, ">= 0")

    def side_config(self, spec: TaskSpec) -> SideConfig:
        """The shape of a side network for `spec`.

        Raises:
            RecipeError: a head that cannot answer this kind of task.
            SideConfigError: settings that make no side network.
        """
        allowed = {"classification": ("linear", "text"), "regression": ("linear",), "text": ("text",)}[spec.kind]
        head = allowed[0] if self.head == "auto" else self.head
        if head not in allowed:
            raise RecipeError("head", head, f"{' or '.join(allowed)} for {spec.kind}")
        outputs = {"classification": len(spec.labels), "regression": 1, "text": 0}[spec.kind]
        return SideConfig(
            reduction=self.reduction,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers if head == "text" else (),
            head=head,
            outputs=outputs if head == "linear" else 0,
            dropout=self.dropout,
        )

    @property
    def cache_bytes(self) -> int:
        """0 for a single epoch, which would use nothing twice."""
        return int(self.cache_gb * 1e9) if self.epochs > 1 else 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise RecipeError(name, value, rule)
