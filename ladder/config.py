"""Shapes of backbones and of the side networks on them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from ladder.errors import SideConfigError

Gate = Literal["learnable", "none", "one", "fixed"]
GateForm = Literal["scalar", "channel"]
TapNorm = Literal["none", "rms"]
Head = Literal["text", "linear", "attention", "mlp"]
LATER = frozenset({"model_type", "max_positions", "embedding_scale"})
"""Fields of BackboneConfig that were added after the first fingerprints were made."""
READS_PAIRS: tuple[Head, ...] = ("linear", "attention")
"""Heads that can read the two texts of a pair apart."""
SHARED_BIAS = ("t5", "mt5")
"""Types of backbones whose blocks share one relative bias, which visual tokens are left out of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """A backbone's shape; fields are named as in Hugging Face's T5."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    """0: no decoder, so no text head."""
    vocab_size: int
    feed_forward_proj: Literal["relu", "gelu", "gated-gelu"] = "relu"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    scale_output: bool = True
    """Multiply the decoder's output by d_model ** -0.5 before the head (T5 1.0: its head is the shared embedding)."""
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    model_type: str = "t5"
    """The family's name; see `ladder.backbone.families`."""
    max_positions: int | None = None
    """Most tokens in an input; None: any number."""
    embedding_scale: float = 1.0
    """Factor of the token embeddings."""

    def identity(self) -> str:
        """Return the shape as text, for fingerprints.

        A field of `LATER` is left out at its default, so that earlier fingerprints stay the same.
        """
        values = {field: getattr(self, field.name) for field in fields(self)}
        counted = {f.name: value for f, value in values.items() if f.name not in LATER or value != f.default}
        return f"BackboneConfig({', '.join(f'{name}={value!r}' for name, value in counted.items())})"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualConfig:
    """The images that a side network reads besides the text, as CLIP-T5's do. The backbone reads the text alone."""

    features: int
    """Width of the features of an image's tokens, from a frozen vision encoder."""
    images: int = 2
    """Most images of one input; each has a learned embedding of its number."""
    tokens: int = 36
    """Tokens of one image: its square grid of features is max-pooled to as many. 0: the grid as it is."""
    positions: int = 100
    """Frozen embeddings of a token's position in its image; most tokens of one image."""
    vocabulary: int = 0
    """Rows of the vocabulary whose last rows these embeddings are: the LST authors' with added tokens. 0: of none."""
    damped: bool = True
    """True: gates multiply the state of visual tokens too, which have no tap, as in the LST authors' code. False: gates
    leave visual tokens as they are."""

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("images", 1), ("tokens", 0), ("positions", 1), ("vocabulary", 0)):
            if getattr(self, name) < least:
                raise SideConfigError(f"visual {name} must be >= {least}, got {getattr(self, name)}")
        if math.isqrt(self.tokens) ** 2 != self.tokens:
            raise SideConfigError(f"visual tokens must be a square number, got {self.tokens}")
        if self.tokens > self.positions:
            raise SideConfigError(f"visual tokens must be at most positions {self.positions}, got {self.tokens}")
        if 0 < self.vocabulary < self.positions:
            raise SideConfigError(
                f"visual vocabulary must be 0 or >= positions {self.positions}, got {self.vocabulary}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read its part of `SideConfig.to_dict`'s result.

        Raises:
            SideConfigError: as `SideConfig.from_dict`.
        """
        kinds = {"features": 0} | {field.name: field.default for field in fields(cls) if field.name != "features"}
        _check_fields("visual", values, kinds)
        if "features" not in values:
            raise SideConfigError("visual features are missing: the width of an image's features")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideConfig:
    """The shape of one side network on a given backbone. LST, arXiv:2206.06522."""

    reduction: int = 8
    """r: side widths are the backbone's divided by r, rounded down; the number of heads stays."""
    encoder_layers: tuple[int, ...] | Literal["half"] | None = None
    """Backbone blocks with a rung, ascending, numbered from 0. None: all; half: every second, including the last."""
    decoder_layers: tuple[int, ...] | None = None
    """As encoder_layers, for the decoder. Only for the text head: other side networks have no decoder."""
    gate: Gate = "learnable"
    """g in g * side + (1 - g) * tap: learnable, fixed at its start, one (ignore the taps); or none: side + tap."""
    gate_temperature: float = 0.1
    gate_start: float = 0.0
    """Initial gate logit; 0 mixes half and half."""
    gate_form: GateForm = "scalar"
    """One gate per rung (scalar), or one per channel (channel)."""
    mix_after: bool = False
    """Mix the tap in after the side block, not before it (the authors' add_residual_after)."""
    merge_last: bool = False
    """Mix the upsampled output with the backbone's own last state by one more learned gate (text head only)."""
    merge_start: float = 0.0
    """Initial logit of that gate; far below 0 starts at the backbone's own answers."""
    words: bool = False
    """The linear head also reads the mean of the backbone's token embeddings, at its full width: the words of a text
    are more than a narrow side state can hold, and most of what an embedding needs."""
    pair: bool = False
    """The head reads the two texts of a pair apart: the mean of each one's tokens (attention: what its queries find in
    each), how far these differ, and their product. With images, it so reads the text and the images. Otherwise it reads
    all tokens as one text. For linear and attention heads."""
    bias: bool = True
    """Biases in the down- and upsample projections."""
    tap_norm: TapNorm = "none"
    """What happens to each token's vector before its downsample, in the taps and in the token embeddings that the side
    state starts from: nothing (none, as in the paper), or division by its root mean square, without weights (rms)."""
    head: Head = "text"
    """text: upsample into the backbone's frozen LM head. linear: a trained head on the mean of the side encoder.
    attention: a trained head on the tokens of the side encoder that learned queries attend to. mlp: a trained head of
    two layers, on the upsampled last token of the side encoder (BART's classification head)."""
    outputs: int = 0
    """Outputs of a linear, attention or mlp head: the number of labels, 1 for regression, an embedding's dimensions."""
    dropout: float = 0.1
    """Dropout inside the side network in training."""
    visual: VisualConfig | None = None
    """What it reads of images; None: it reads text alone."""

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise SideConfigError(f"reduction must be >= 1, got {self.reduction}")
        if self.gate not in ("learnable", "none", "one", "fixed"):
            raise SideConfigError(f"gate must be learnable, none, one or fixed, got {self.gate!r}")
        if self.gate_form not in ("scalar", "channel"):
            raise SideConfigError(f"gate_form must be scalar or channel, got {self.gate_form!r}")
        if self.tap_norm not in ("none", "rms"):
            raise SideConfigError(f"tap_norm must be none or rms, got {self.tap_norm!r}")
        if self.head not in get_args(Head):
            raise SideConfigError(f"head must be text, linear, attention or mlp, got {self.head!r}")
        for name in ("gate_start", "merge_start"):
            if not math.isfinite(getattr(self, name)):
                raise SideConfigError(f"{name} must be a finite number, got {getattr(self, name)}")
        if not (self.gate_temperature > 0 and math.isfinite(self.gate_temperature)):
            raise SideConfigError(f"gate_temperature must be > 0, got {self.gate_temperature}")
        if not 0 <= self.dropout < 1:
            raise SideConfigError(f"dropout must be in [0, 1), got {self.dropout}")
        if (self.head == "text") != (self.outputs == 0) or self.outputs < 0:
            raise SideConfigError(f"a {self.head} head needs outputs {self._outputs_rule}, got {self.outputs}")
        if self.words and self.head != "linear":
            raise SideConfigError(f"words needs the linear head, got a {self.head} head")
        if self.pair and (self.head not in READS_PAIRS or self.words):
            raise SideConfigError("pair needs the linear head, without words, or the attention head")
        if self.merge_last and self.head != "text":
            raise SideConfigError(
                f"merge_last needs the text head: a {self.head} head has no backbone state to merge with"
            )
        if self.visual is not None and self.head == "mlp":
            raise SideConfigError("an mlp head reads the last token of a text: use a text or a linear head for images")
        for name in ("encoder_layers", "decoder_layers"):
            layers = getattr(self, name)
            if layers in (None, "half"):
                continue
            if any(type(layer) is not int for layer in layers):  # 1.0 and True equal 1, and are no layer's number
                raise SideConfigError(f"{name} must be whole numbers, got {list(layers)}")
            if list(layers) != sorted(set(layers)):
                raise SideConfigError(f"{name} must be ascending without repeats, got {list(layers)}")

    def resolve(self, backbone: BackboneConfig) -> "SideConfig":
        """Return the same shape with every layer listed, checked against `backbone`.

        Raises:
            SideConfigError: a width less than r, or a layer or a decoder that the backbone lacks.
        """
        if self.has_decoder and not backbone.num_decoder_layers:
            raise SideConfigError("this backbone has no decoder here, and a text head needs one: use another head")
        if self.visual is not None and backbone.model_type not in SHARED_BIAS:
            raise SideConfigError(
                f"a side network reads images beside a backbone of type {' or '.join(SHARED_BIAS)}, got "
                f"{backbone.model_type}"
            )
        for name in ("d_model", "d_kv", "d_ff"):
            width = getattr(backbone, name)
            if width < self.reduction:
                raise SideConfigError(f"reduction must be at most {name} {width}, got {self.reduction}")
        encoder = _layers("encoder_layers", self.encoder_layers, backbone.num_layers)
        decoder = _layers("decoder_layers", self.decoder_layers, backbone.num_decoder_layers)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return SideConfig(**values | {"encoder_layers": encoder, "decoder_layers": decoder if self.has_decoder else ()})

    @property
    def reads_two_texts(self) -> bool:
        """Whether the head must be told where two texts lie among the tokens. A text and its images need no telling."""
        return self.pair and self.visual is None

    @property
    def has_decoder(self) -> bool:
        """Whether the side network has a decoder: only with a text head."""
        return self.head == "text"

    @property
    def _outputs_rule(self) -> str:
        return "0" if self.head == "text" else ">= 1"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` reads it."""
        values = asdict(self)
        if self.visual is None:
            del values["visual"]  # as files were written before side networks read images
        if self.tap_norm == "none":
            del values["tap_norm"]  # as files were written before there was a choice
        if not self.pair:
            del values["pair"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read `to_dict`'s result.

        Raises:
            SideConfigError: an unknown field (a newer format), or a value of the wrong type.
        """
        _check_fields("", values, {field.name: field.default for field in fields(cls)})
        read = dict(values)
        if read.get("visual") is not None:
            if not isinstance(read["visual"], Mapping):
                raise SideConfigError(f"visual must be an object, got {read['visual']!r}")
            read["visual"] = VisualConfig.from_dict(read["visual"])
        for name in ("encoder_layers", "decoder_layers"):
            if isinstance(read.get(name), list):
                read[name] = tuple(read[name])
        try:
            return cls(**read)
        except TypeError as error:
            raise SideConfigError(f"side network settings do not read: {error}") from None


def _check_fields(what: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Check names, and types against the values in `kinds`; None there is of any type."""
    prefix = what and f"{what} "
    unknown = set(values) - set(kinds)
    if unknown:
        raise SideConfigError(f"unknown side network settings {prefix}{sorted(unknown)}: made by a newer Sidecast?")
    for name, value in values.items():  # Python takes 8.0 and True for numbers that equal them
        kind = type(kinds[name])
        if kinds[name] is not None and type(value) not in ((int, float) if kind is float else (kind,)):
            raise SideConfigError(f"{prefix}{name} must be of type {kind.__name__}, got {value!r}")


def every_second(count: int) -> tuple[int, ...]:
    """Return every second of `count` blocks, including the last."""
    return tuple(range((count + 1) % 2, count, 2))


def _layers(name: str, layers: tuple[int, ...] | Literal["half"] | None, count: int) -> tuple[int, ...]:
    if layers == "half":
        return every_second(count)
    kept = tuple(range(count)) if layers is None else layers
    wrong = [layer for layer in kept if not 0 <= layer < count]
    if wrong:
        rule = f"within 0..{count - 1}" if count else "left out: there are no such blocks"
        raise SideConfigError(f"{name} must be {rule} on this backbone, got {wrong}")
    return kept
