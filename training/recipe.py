"""How a side network is trained: every setting, documented, with the default that measured best."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ladder import SideConfig
from ladder.config import Gate, GateForm
from ladder.structural import Order
from side_registry.task import TaskSpec
from training.batches import least_rows
from training.errors import RecipeError
from training.initialization import SAMPLES, Init
from training.optimizers import OptimizerName

Start = Literal["fresh", "pretrained"]

MERGE_LOGIT = -2.0
"""Of the merge gate over its temperature where the start is pretrained: the backbone's own logits times 0.88, which
moves no probability of two labels by 0.03. Nearer to 1, a backbone that is wrong is unlearnt slowly."""
SOFTER = 2.0
"""Temperature of distillation, unless told."""

HEADS = {
    "classification": ("linear", "text", "mlp"),
    "regression": ("linear", "mlp"),
    "text": ("text",),
    "embedding": ("linear", "mlp"),
}
"""What can answer a kind of task; the first is `auto`."""


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
    optimizer: OptimizerName = "adamw"
    """adamw: torch's. reference: the LST authors' AdamW and warmup, for results that equal theirs to the last digit."""
    clip: float = 1.0
    """Longest gradient, in its 2-norm."""
    seed: int = 0
    """Of the start, the order of rows and dropout."""
    init: Init = "random"
    """How rungs start: random, or cut out of the backbone's own weights: the largest (magnitude), or those that matter
    most to the training rows (fisher, which needs a backbone with a decoder)."""
    init_order: Order = "consistent"
    """Which weights go together in such a cut. reference: the LST authors'. See `ladder.structural`."""
    init_samples: int = SAMPLES
    """Training rows that fisher looks at."""
    head: Literal["auto", "text", "linear", "mlp"] = "auto"
    """auto: text for text, linear for all else (no decoder at all). text for classification scores the labels as words
    of the backbone's own LM head. mlp: two layers on the last token, for what linear can answer (BART's head)."""
    reduction: int = 8
    encoder_layers: tuple[int, ...] | Literal["auto", "all"] = "auto"
    """Blocks with a rung, from 0. auto: all for a text head; every second for other heads, which lose nothing by it."""
    decoder_layers: tuple[int, ...] | None = None
    """As encoder_layers, for a text head; None: all."""
    gate: Gate = "learnable"
    """How a rung mixes its tap in: learnable; fixed at its start; one (ignore the taps); none (add them)."""
    gate_form: GateForm = "scalar"
    """One gate a rung, or one for each of its channels."""
    gate_temperature: float = 0.1
    """Of every gate: smaller moves it faster."""
    gate_start: float = 0.0
    """Logit of a rung's gate before the first step; 0 mixes half and half, above 0 more of the side network."""
    mix_after: bool = False
    """Mix a tap in after the side block, not before it."""
    merge_last: bool = False
    """Mix the backbone's own last state into the answer (text head only)."""
    bias: bool = True
    """Biases in the down- and upsample projections."""
    start: Start = "fresh"
    """pretrained: answer as the backbone itself does before the first step, and learn from there (text head only; turns
    merge_last on). For templates that the backbone understands as they are."""
    distill: float = 0.0
    """Share of the loss that is agreement with the teacher; the rest is the task's own. 0: no teacher."""
    distill_temperature: float = SOFTER
    """Softens both distributions before they are compared; regression has none."""
    teacher: str = "backbone"
    """Who teaches where `distill` is above 0. backbone: its own LM head (classification and text). Or a finished run's
    folder: its side network, of the same task and backbone. Or another T5 with the same tokenizer: its LM head."""
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
        _check("optimizer", self.optimizer, self.optimizer in get_args(OptimizerName), "adamw or reference")
        _check("clip", self.clip, self.clip > 0, "> 0")
        _check("seed", self.seed, 0 <= self.seed < 2**32, "within 0 and 2**32 - 1")
        named = isinstance(self.encoder_layers, tuple) or self.encoder_layers in ("auto", "all")
        _check("encoder_layers", self.encoder_layers, named, "block numbers, auto or all")
        _check("head", self.head, self.head in ("auto", "text", "linear", "mlp"), "auto, text, linear or mlp")
        _check("init", self.init, self.init in get_args(Init), "random, magnitude or fisher")
        orders = get_args(Order)
        _check("init_order", self.init_order, self.init_order in orders, " or ".join(orders))
        _check("init_samples", self.init_samples, self.init_samples >= 1, ">= 1")
        self._check_init_is_used()
        _check("distill", self.distill, 0 <= self.distill <= 1, "within 0 and 1")
        taught = self.distill > 0 or self.teacher == "backbone"
        _check("distill", self.distill, taught, f"above 0 where there is a teacher, {self.teacher}")
        softens = 0 < self.distill_temperature < math.inf
        _check("distill_temperature", self.distill_temperature, softens, "> 0")
        softened = self.distill > 0 or self.distill_temperature == SOFTER
        _check("distill", self.distill, softened, "above 0 where there is a distill_temperature")
        _check("start", self.start, self.start in get_args(Start), "fresh or pretrained")
        _check("cache_gb", self.cache_gb, 0 <= self.cache_gb < math.inf, ">= 0")

    def side_config(self, spec: TaskSpec) -> SideConfig:
        """The shape of a side network for `spec`.

        Raises:
            RecipeError: a head, start or teacher that this kind of task cannot have, decoder layers for a head that has
                no decoder, or batches too small to teach it.
            SideConfigError: settings that make no side network.
        """
        allowed = HEADS[spec.kind]
        head = allowed[0] if self.head == "auto" else self.head
        if head not in allowed:
            raise RecipeError("head", head, f"{' or '.join(allowed)} for {spec.kind}")
        if self.batch_rows < least_rows(spec):
            raise RecipeError("batch_rows", self.batch_rows, f">= {least_rows(spec)} for {spec.kind}")
        if self.decoder_layers and head != "text":
            rule = f"left out for a {head} head, which has no decoder"
            raise RecipeError("decoder_layers", list(self.decoder_layers), rule)
        self._check_teacher(spec)
        keeps_answer = self.start == "pretrained"
        if keeps_answer and head != "text":
            raise RecipeError("start", self.start, f"fresh for a {head} head, which the backbone has no answer for")
        return SideConfig(
            reduction=self.reduction,
            encoder_layers=self._rungs(head),
            decoder_layers=self.decoder_layers if head == "text" else (),
            head=head,
            outputs=spec.outputs if head != "text" else 0,
            gate=self.gate,
            gate_form=self.gate_form,
            gate_temperature=self.gate_temperature,
            gate_start=self.gate_start,
            words=spec.kind == "embedding" and head == "linear",
            mix_after=self.mix_after,
            merge_last=self.merge_last or keeps_answer,
            merge_start=self._merge_start(keeps_answer),
            bias=self.bias,
            dropout=self.dropout,
        )

    def _rungs(self, head: str) -> tuple[int, ...] | Literal["half"] | None:
        if isinstance(self.encoder_layers, tuple):
            return self.encoder_layers
        return "half" if self.encoder_layers == "auto" and head != "text" else None

    def _merge_start(self, keeps_answer: bool) -> float:
        """The authors start the last gate as all others."""
        if keeps_answer:
            return self.gate_temperature * MERGE_LOGIT
        return self.gate_start if self.merge_last else 0.0

    def _check_init_is_used(self) -> None:
        cuts = self.init != "random" or self.init_order == "consistent"
        _check("init", self.init, cuts, f"magnitude or fisher where init_order is {self.init_order}")
        counts = self.init == "fisher" or self.init_samples == SAMPLES
        _check("init", self.init, counts, f"fisher where init_samples is {self.init_samples}")

    def _check_teacher(self, spec: TaskSpec) -> None:
        if spec.kind == "embedding" and self.distill:
            raise RecipeError("distill", self.distill, "0 for embedding, which no teacher answers")
        if spec.kind == "regression" and self.distill and self.teacher == "backbone":
            rule = "a finished run's folder for regression: the backbone itself says words, not values"
            raise RecipeError("teacher", self.teacher, rule)

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
