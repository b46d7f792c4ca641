"""How a side network is trained: every setting, documented, with the default that measured best.

The first sentence under a field is the help of its option in `sidecast train`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from training.errors import RecipeError

if TYPE_CHECKING:  # torch takes seconds to import, and `sidecast train --help` needs the settings alone
    from ladder import SideConfig
    from ladder.config import VisualConfig
    from side_registry.specs.task import TaskSpec
    from side_registry.specs.task_kinds import TaskKind

Init = Literal["random", "magnitude", "fisher"]
Order = Literal["consistent", "reference"]
OptimizerName = Literal["adamw", "reference"]
ImageGate = Literal["damped", "free"]
Schedule = Literal["linear", "cosine", "constant"]

SAMPLES = 128
"""Default number of rows that Fisher importances are summed over."""

MERGE_LOGIT = -2.0
"""Of the merge gate over its temperature where the start is pretrained: the backbone's own logits times 0.88, which
moves no probability of two labels by 0.03. Nearer to 1, training unlearns a wrong backbone slowly."""
POSITIONS = 100
"""Frozen embeddings of an image token's position, as many as the LST authors have; more where an image has more."""
LATER = {"tap_norm": "none", "pair": "together", "schedule": "linear", "patience": 0, "accumulate": 1}
"""What runs did from before a setting was there, by its name."""
HEADS = ("auto", "text", "linear", "attention", "mlp")
SWEPT = ("learning_rate", "seed", "reduction", "dropout", "head")
"""Settings that take several values in `sidecast train` and `sidecast.train`: a run for each combination."""
SOFTER = 2.0
"""Default temperature of distillation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of one training run. The same recipe, data and backbone give the same side network."""

    epochs: int = 3
    """Passes over the training rows."""
    batch_rows: int = 32
    """Rows in one training step. Rows of similar length go together."""
    accumulate: int = 1
    """Parts in which a step's rows are computed, one after another, for want of memory. Their gradients add up to those
    of the whole step; dropout draws others."""
    learning_rate: float = 1e-3
    """Peak learning rate; the default recipe has 0.003 for a task with images and for token classification. It rises
    linearly over `warmup`, then falls as `schedule` says."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises, 0 to 1."""
    schedule: Schedule = "linear"
    """What the learning rate does after its rise: it falls to 0 linearly (linear) or along a cosine (cosine), or stays
    (constant)."""
    patience: int = 0
    """Epochs in a row without a better score after which training ends; 0: all epochs are trained."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    optimizer: OptimizerName = "adamw"
    """The optimizer: torch's AdamW (adamw), or the LST authors' AdamW and warmup (reference). reference gives results
    that equal the authors' to the last digit."""
    clip: float = 1.0
    """Largest gradient norm (2-norm) of a step; a longer gradient is scaled down."""
    seed: int = 0
    """Seed of the initialization, the order of rows and dropout."""
    init: Init = "random"
    """How rungs start: at random (random), or as the backbone's largest weights (magnitude) or those that matter most
    to the training rows (fisher). fisher needs a backbone with a decoder."""
    init_order: Order = "consistent"
    """How magnitude and fisher select weights: once for the whole side network (consistent), or layer by layer as the
    LST authors do (reference). See `ladder.side.structural_init`."""
    init_samples: int = SAMPLES
    """Training rows that fisher reads."""
    head: Literal["auto", "text", "linear", "attention", "mlp"] = "auto"
    """What gives the answer: the backbone's LM head (text), or trained layers (linear, attention, mlp). auto: text for
    text tasks, linear for all others, which then need no decoder. text for classification scores the labels as words.
    attention: a layer on the tokens that learned queries attend to, where linear reads a mean. mlp: two layers on the
    last token, for the tasks that linear can answer (BART's head)."""
    reduction: int = 8
    """r: side widths are the backbone's divided by r."""
    encoder_layers: tuple[int, ...] | Literal["auto", "all"] = "auto"
    """Encoder blocks with a rung, numbered from 0, or all. auto: all for a text head; every second for the other heads,
    which lose no quality by it."""
    decoder_layers: tuple[int, ...] | None = None
    """Decoder blocks with a rung, for a text head; all if not given."""
    gate: Literal["learnable", "fixed", "none", "one"] = "learnable"
    """How a rung mixes in its tap: by a learnable gate, by one fixed at its start, not at all (one), or as a sum
    (none)."""
    gate_form: Literal["scalar", "channel"] = "scalar"
    """Gates of a rung: one (scalar), or one per channel (channel)."""
    gate_temperature: float = 0.1
    """Temperature of every gate; a smaller one moves gates faster."""
    gate_start: float = 0.0
    """Logit of a rung's gate before the first step; 0: half tap, half side state. Above 0: more of the side state."""
    mix_after: bool = False
    """Mix a tap in after the side block, not before it."""
    merge_last: bool = False
    """Mix the backbone's last state into the answer (text head only)."""
    pair: Literal["auto", "apart", "together"] = "auto"
    """How a linear or an attention head reads two texts, or a text and its images: apart (what it finds in each, their
    difference and product) or together (all tokens as one text). auto: apart, but together for embeddings."""
    bias: bool = True
    """Biases in the down- and upsample projections."""
    tap_norm: Literal["none", "rms"] = "rms"
    """What happens to each token's vector before a rung downsamples it: division by its root mean square (rms), or
    nothing (none, as in the paper). The same for the token embeddings that the side state starts from."""
    start: str = "fresh"
    """What training starts from: nothing (fresh), the backbone's own answers (pretrained, text head only), or the side
    network of a finished run, by its folder. pretrained turns merge_last on. It suits templates that the backbone
    understands without training. A run: of the same backbone and of a side network of the same shape; the head is
    copied too where both tasks have the same kind of answers."""
    distill: float = 0.0
    """Share of the loss that is agreement with a teacher, 0 to 1; 0: no teacher. The rest is the task's own loss."""
    distill_temperature: float = SOFTER
    """Temperature that softens the teacher's and the student's distributions. Regression has none."""
    teacher: str = "backbone"
    """The teacher: backbone (its LM head), the folder of a finished run, a file of `sidecast compare`, or another T5.
    It teaches where `distill` is above 0. backbone: for classification and text. A run: its side network, of the same
    task and backbone; the folder of many runs at once: the mean of their answers. A file of `sidecast compare`, such as
    runs/full-seed-0.safetensors: the model that it trained on the same task and backbone. Another T5: its LM head; it
    must have the same tokenizer."""
    image_tokens: int = 36
    """Tokens of each image: the encoder's square grid is max-pooled to as many, a square number."""
    image_gate: ImageGate = "free"
    """What gates do to the state of image tokens, which have no tap: leave it as it is (free), or multiply it as the
    LST authors do (damped)."""
    dropout: float = 0.1
    """Dropout inside the side network; the default recipe has 0 for a task with images."""
    cache_gb: float = 4.0
    """Most memory for backbone activations kept between epochs, in 10^9 bytes; 0: keep none. Training rows come first,
    then validation rows. Features of images may have as much again."""

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.epochs >= 1, ">= 1")
        _check("batch_rows", self.batch_rows, self.batch_rows >= 1, ">= 1")
        parts = 1 <= self.accumulate <= self.batch_rows
        _check("accumulate", self.accumulate, parts, f"within 1 and batch_rows, {self.batch_rows}")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "> 0")
        _check("warmup", self.warmup, 0 <= self.warmup <= 1, "within 0 and 1")
        _check("schedule", self.schedule, self.schedule in get_args(Schedule), "linear, cosine or constant")
        falls = self.schedule == "linear" or self.optimizer == "adamw"
        _check("schedule", self.schedule, falls, "linear where the optimizer is reference")
        _check("patience", self.patience, self.patience >= 0, ">= 0")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, ">= 0")
        _check("optimizer", self.optimizer, self.optimizer in get_args(OptimizerName), "adamw or reference")
        _check("clip", self.clip, self.clip > 0, "> 0")
        _check("seed", self.seed, 0 <= self.seed < 2**32, "within 0 and 2**32 - 1")
        named = isinstance(self.encoder_layers, tuple) or self.encoder_layers in ("auto", "all")
        _check("encoder_layers", self.encoder_layers, named, "block numbers, auto or all")
        _check("head", self.head, self.head in HEADS, "auto, text, linear, attention or mlp")
        _check("tap_norm", self.tap_norm, self.tap_norm in ("none", "rms"), "none or rms")
        _check("pair", self.pair, self.pair in ("auto", "apart", "together"), "auto, apart or together")
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
        _check("start", self.start, bool(self.start), "fresh, pretrained or the folder of a finished run")
        copies = not self.starts_from_run or self.init == "random"
        _check("init", self.init, copies, f"random where training starts from {self.start}")
        square = 1 <= self.image_tokens == math.isqrt(abs(self.image_tokens)) ** 2
        _check("image_tokens", self.image_tokens, square, "a square number >= 1")
        _check("image_gate", self.image_gate, self.image_gate in get_args(ImageGate), "damped or free")
        _check("cache_gb", self.cache_gb, 0 <= self.cache_gb < math.inf, ">= 0")

    def side_config(self, spec: "TaskSpec", image_width: int | None = None) -> "SideConfig":
        """The shape of a side network for `spec`.

        Args:
            image_width: features of one token of an image, for a task with images.

        Raises:
            RecipeError: a head, start or teacher that this kind of task cannot have, decoder layers for a head that has
                no decoder, batches too small to teach it, or a task with images and no width of them.
            SideConfigError: settings that make no side network.
        """
        from ladder import SideConfig
        from side_registry.specs.task_kinds import KINDS
        from training.batches import least_rows

        kind = KINDS[spec.kind]
        allowed = kind.heads
        head = allowed[0] if self.head == "auto" else self.head
        if head not in allowed:
            raise RecipeError("head", head, f"{_either(allowed)} for {spec.kind}")
        if self.batch_rows < least_rows(spec):
            raise RecipeError("batch_rows", self.batch_rows, f">= {least_rows(spec)} for {spec.kind}")
        self._check_parts(spec, kind)
        if self.decoder_layers and head != "text":
            rule = f"left out for a {head} head, which has no decoder"
            raise RecipeError("decoder_layers", list(self.decoder_layers), rule)
        if spec.images and image_width is None:
            raise RecipeError("image_width", None, f"that of a vision encoder for {spec.name}, which reads images")
        self._check_teacher(kind)
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
            words=kind.has_dimensions and head == "linear",
            pair=self._reads_apart(spec, kind, head),
            mix_after=self.mix_after,
            merge_last=self.merge_last or keeps_answer,
            merge_start=self._merge_start(keeps_answer),
            bias=self.bias,
            tap_norm=self.tap_norm,
            dropout=self.dropout,
            visual=None if image_width is None or not spec.images else self._visual(len(spec.images), image_width),
        )

    def _visual(self, images: int, width: int) -> "VisualConfig":
        from ladder.config import VisualConfig

        tokens = self.image_tokens
        positions = max(tokens, POSITIONS)
        damped = self.image_gate == "damped"
        return VisualConfig(features=width, images=images, tokens=tokens, positions=positions, damped=damped)

    def _reads_apart(self, spec: "TaskSpec", kind: "TaskKind", head: str) -> bool:
        can = head in ("linear", "attention") and (spec.has_pair or bool(spec.images)) and not kind.has_dimensions
        if self.pair == "apart" and not can:
            rule = (
                f"together or auto for {spec.name}: apart needs a linear or an attention head, and two texts or images"
            )
            raise RecipeError("pair", self.pair, rule)
        return can and self.pair != "together"

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

    def _check_parts(self, spec: "TaskSpec", kind: "TaskKind") -> None:
        if self.accumulate > 1 and kind.target_is_input:
            raise RecipeError("accumulate", self.accumulate, f"1 for {kind.name}, which compares all rows of a step")
        if self.accumulate > 1 and self.distill and spec.open_labels:
            raise RecipeError("accumulate", self.accumulate, f"1 for {spec.name}, which has open labels and a teacher")

    def _check_teacher(self, kind: "TaskKind") -> None:
        if self.distill and not kind.can_distill:
            raise RecipeError("distill", self.distill, f"0 for {kind.name}, which no teacher answers")
        if self.distill and self.teacher == "backbone" and not kind.lm_head_teaches:
            rule = f"a finished run's folder for {kind.name}: the backbone itself says words, not values"
            raise RecipeError("teacher", self.teacher, rule)

    @property
    def starts_from_run(self) -> bool:
        """Whether `start` names a run's folder."""
        return self.start not in ("fresh", "pretrained")

    @property
    def cache_bytes(self) -> int:
        """Size of the activation cache; 0 for a single epoch, which would use no entry twice."""
        return self.max_cache_bytes if self.epochs > 1 else 0

    @property
    def max_cache_bytes(self) -> int:
        """Size of the activation cache that several runs share, whose entries are used more than once in any case."""
        return int(self.cache_gb * 1e9)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in fields(cls))


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise RecipeError(name, value, rule)


def _either(names: Sequence[str]) -> str:
    """`a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
