"""The kinds of backbone that there are, by the model_type in their config.json. A new one is a file here and a line."""

from collections.abc import Mapping
from typing import Any

from ladder.backbone.families.bart import Bart
from ladder.backbone.families.family import Family
from ladder.backbone.families.t5 import MT5, T5, UMT5
from ladder.config import BackboneConfig
from ladder.errors import BackboneError

__all__ = ["FAMILIES", "Family", "family_of", "read_config"]

FAMILIES: dict[str, Family] = {"bart": Bart(), "mt5": MT5(), "t5": T5(), "umt5": UMT5()}


def read_config(config: Mapping[str, Any]) -> BackboneConfig:
    """Read a Hugging Face config.json.

    Raises:
        BackboneError: a kind of model that is not here, or a field is missing or of an unknown kind.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise BackboneError(f"config.json says model_type {kind!r}; a backbone is one of {', '.join(FAMILIES)}")
    return FAMILIES[kind].read_config(config)


def family_of(config: BackboneConfig) -> Family:
    """The family of a backbone of that shape."""
    return FAMILIES[config.model_type]
