"""A fresh encoder of Hugging Face's, from a backbone's folder, and what a method's head needs to know."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ladder import Backbone
from side_registry.specs.task import TaskSpec
from training.methods.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Source:
    """A fresh encoder of Hugging Face's, and what its head needs to know."""

    model: Any
    """The whole model; the decoder is only there to measure forgetting."""
    encoder: Any
    spec: TaskSpec
    mean: float
    unit: float

    @property
    def width(self) -> int:
        """Of the encoder's states."""
        return self.encoder.config.hidden_size

    @property
    def layers(self) -> int:
        """States that the encoder can return: the embeddings and one of each block."""
        return self.encoder.config.num_hidden_layers + 1

    def scorer(self, kind: type[Scorer] = Scorer, encoder: nn.Module | None = None, **more: Any) -> Scorer:
        """A model of this kind on the encoder, or on one that wraps it."""
        return kind(encoder or self.encoder, self.width, self.spec, self.mean, self.unit, **more)


def load_source(folder: str, backbone: Backbone, spec: TaskSpec, mean: float = 0.0, unit: float = 1.0) -> Source:
    """Load the encoder of a backbone, as Hugging Face's class of it, in float32, on the backbone's device.

    Args:
        folder: the folder or hub id that the backbone was loaded from; its words are the backbone's.
        mean, unit: of a regression's training targets: their mean and their standard deviation.
    """
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    kind: Any = AutoModelForSeq2SeqLM if backbone.has_decoder else AutoModel
    model: Any = kind.from_pretrained(folder, dtype=torch.float32).to(backbone.device)
    return Source(model, model.get_encoder(), spec, mean, unit)
