"""The model: a frozen backbone with taps, side networks that read them, decoding, checkpoints."""

from ladder.answer import Row, answer
from ladder.answerers import Answerer, Classify, Embed, Generate, Regress, build_answerer
from ladder.answers import Answer, ClassAnswer, TextAnswer, ValueAnswer, VectorAnswer
from ladder.backbone import Backbone, Taps
from ladder.backbone_pass import BackbonePass, run_backbone
from ladder.bank import SideBank
from ladder.checkpoint import load_side, save_side
from ladder.config import BackboneConfig, SideConfig
from ladder.errors import (
    BackboneError,
    CheckpointError,
    GenerationError,
    LabelError,
    LadderError,
    NotFiniteError,
    SideConfigError,
)
from ladder.generation import Generation
from ladder.labels import LabelTrie
from ladder.loading import load_backbone
from ladder.side import SideNetwork
from ladder.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Answer",
    "Answerer",
    "Backbone",
    "BackboneConfig",
    "BackboneError",
    "BackbonePass",
    "CheckpointError",
    "ClassAnswer",
    "Classify",
    "Embed",
    "Generate",
    "Generation",
    "GenerationError",
    "LabelError",
    "LabelTrie",
    "LadderError",
    "NotFiniteError",
    "Regress",
    "Row",
    "SideBank",
    "SideConfig",
    "SideConfigError",
    "SideNetwork",
    "Taps",
    "TextAnswer",
    "Tokenizer",
    "ValueAnswer",
    "VectorAnswer",
    "answer",
    "build_answerer",
    "load_backbone",
    "load_side",
    "load_tokenizer",
    "run_backbone",
    "save_side",
]
