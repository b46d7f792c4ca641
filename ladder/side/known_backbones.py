"""Shapes of published backbones by name, to compute a side network's cost without a download."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder.backbone.families import read_config
from ladder.backbone.loading import read_json, resolve_folder
from ladder.config import BackboneConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneShape:
    """The name and shape of a backbone, without weights."""

    name: str
    config: BackboneConfig

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding. Transformers 5 always writes tie_word_embeddings true, so it cannot be
        used."""
        return self.config.scale_output


def backbone_shape(source: str) -> BackboneShape:
    """Return the shape of a Hugging Face folder or hub id, from its config.json; names in NAMED need no file.

    Raises:
        BackboneError: no such folder, name or id, or an unsupported model_type.
    """
    name = source.rsplit("/", 1)[-1]
    if name in NAMED and not Path(source).expanduser().is_dir():
        return NAMED[name]
    folder = resolve_folder(source, weights=False)
    return BackboneShape(name=name, config=read_config(read_json(folder / "config.json")))


def _shape(name: str, widths: tuple[int, int, int, int, int], **more: Any) -> BackboneShape:
    d_model, d_kv, d_ff, heads, blocks = widths
    config = BackboneConfig(
        d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_heads=heads, num_layers=blocks, num_decoder_layers=blocks, **more
    )
    return BackboneShape(name=name, config=config)


def _t5(name: str, *widths: int) -> BackboneShape:
    return _shape(name, widths, vocab_size=32128)  # type: ignore[arg-type]


def _t5_1_1(name: str, vocabulary: int = 32128, model_type: str = "t5") -> list[BackboneShape]:
    sizes = {
        "small": (512, 64, 1024, 6, 8),
        "base": (768, 64, 2048, 12, 12),
        "large": (1024, 64, 2816, 16, 24),
        "xl": (2048, 64, 5120, 32, 24),
        "xxl": (4096, 64, 10240, 64, 24),
    }
    more = {"feed_forward_proj": "gated-gelu", "scale_output": False, "model_type": model_type}
    return [_shape(f"{name}-{size}", widths, vocab_size=vocabulary, **more) for size, widths in sizes.items()]


NAMED: Mapping[str, BackboneShape] = {
    shape.name: shape
    for shape in (
        _t5("t5-small", 512, 64, 2048, 8, 6),
        _t5("t5-base", 768, 64, 3072, 12, 12),
        _t5("t5-large", 1024, 64, 4096, 16, 24),
        _t5("t5-3b", 1024, 128, 16384, 32, 24),
        _t5("t5-11b", 1024, 128, 65536, 128, 24),
        *_t5_1_1("flan-t5"),
        *_t5_1_1("t5-v1_1"),
        *_t5_1_1("mt5", vocabulary=250112, model_type="mt5"),
    )
}
"""Shapes by the last part of the hub id; widths are d_model, d_kv, d_ff, heads, and blocks of each stack."""
