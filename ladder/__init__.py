"""The model: a frozen backbone with taps, side networks that read them, decoding, checkpoints."""

from ladder.answering.answerers import Answerer, ChooseLabels, Classify, Embed, Generate, Regress, build_answerer
from ladder.answering.batch_plan import Row
from ladder.answering.label_trie import LabelTrie
from ladder.answering.mixed_batch import answer
from ladder.answers import (
    Answer,
    ClassAnswer,
    LabelsAnswer,
    RelevanceAnswer,
    Span,
    SpansAnswer,
    TextAnswer,
    ValueAnswer,
    VectorAnswer,
)
from ladder.backbone.images import Images
from ladder.backbone.loading import load_backbone
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass, run_backbone
from ladder.backbone.tokenizer import Tokenizer, load_tokenizer
from ladder.config import BackboneConfig, SideConfig, VisualConfig
from ladder.decoding.settings import Generation
from ladder.errors import (
    BackboneError,
    CheckpointError,
    GenerationError,
    LabelError,
    LadderError,
    NotFiniteError,
    SideConfigError,
)
from ladder.side.checkpoint import load_side, save_side
from ladder.side.network import SideNetwork
from ladder.stacked.bank import SideBank

__all__ = [
    "Answer",
    "Answerer",
    "Backbone",
    "BackboneConfig",
    "BackboneError",
    "BackbonePass",
    "CheckpointError",
    "ChooseLabels",
    "ClassAnswer",
    "Classify",
    "Embed",
    "Generate",
    "Generation",
    "GenerationError",
    "Images",
    "LabelError",
    "LabelTrie",
    "LabelsAnswer",
    "LadderError",
    "NotFiniteError",
    "Regress",
    "RelevanceAnswer",
    "Row",
    "SideBank",
    "SideConfig",
    "SideConfigError",
    "SideNetwork",
    "Span",
    "SpansAnswer",
    "Taps",
    "TextAnswer",
    "Tokenizer",
    "ValueAnswer",
    "VectorAnswer",
    "VisualConfig",
    "answer",
    "build_answerer",
    "load_backbone",
    "load_side",
    "load_tokenizer",
    "run_backbone",
    "save_side",
]
