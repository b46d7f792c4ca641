"""Decoding settings of a text task: how tokens are chosen from its side network's logits. Part of its spec.

Fields have the names and the meaning that they have in Hugging Face's GenerationConfig, except that `top_k` is off by
default (there: 50). They have nothing to do with the registry's generation, its log position.
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from side_registry.documents import Document


class GenerationSpec(Document):
    """Greedy by default. Sampling fields matter only with `do_sample`, beam fields only with several beams."""

    num_beams: int = Field(default=1, ge=1, le=16)
    do_sample: bool = False
    temperature: float = Field(default=1.0, ge=0.001, le=1000)
    top_k: int = Field(default=0, ge=0, le=1 << 24)
    top_p: float = Field(default=1.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=(1 << 63) - 1)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    no_repeat_ngram_size: int = Field(default=0, ge=0, le=1 << 14)
    min_new_tokens: int = Field(default=0, ge=0, le=1 << 14)
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    early_stopping: bool | Literal["never"] = False

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _check_early_stopping(cls, value: Any) -> Any:
        known = {True: True, False: False, "true": True, "false": False, "never": "never"}
        if not isinstance(value, bool | str) or value not in known:
            raise ValueError(f"must be true, false or 'never', got {str(value)[:80]!r}")
        return known[value]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"num_beams must be 1 where do_sample is on, got {self.num_beams}; use one of them")
        return self

    @property
    def is_default(self) -> bool:
        """Whether all settings are the defaults."""
        return self == GenerationSpec()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name, without fields that this program does not know."""
        return {name: getattr(self, name) for name in type(self).model_fields}
