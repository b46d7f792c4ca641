"""The frozen network with taps; it never learns."""

from ladder.backbone.compiled import CompiledEncoder, Limits
from ladder.backbone.images import Images
from ladder.backbone.loading import pick_dtype, read_json, resolve_folder
from ladder.backbone.memory import pass_bytes
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.packed import pack_backbone
from ladder.backbone.packing import Division, Part
from ladder.backbone.passes import BackbonePass, padded, run_backbone
from ladder.backbone.quantize import (
    LINEARS,
    check_method,
    count_weights,
    full_precision,
    full_weight,
    held_bytes,
    quantize_backbone,
)
from ladder.backbone.recorded import RecordedBackbone
from ladder.backbone.recordings import CudaGraphs, Recorder, Rehearsal
from ladder.backbone.tokenizer import Tokenizer

__all__ = [
    "LINEARS",
    "Backbone",
    "BackbonePass",
    "CompiledEncoder",
    "CudaGraphs",
    "Division",
    "Images",
    "Limits",
    "Part",
    "RecordedBackbone",
    "Recorder",
    "Rehearsal",
    "Taps",
    "Tokenizer",
    "check_method",
    "count_weights",
    "full_precision",
    "full_weight",
    "held_bytes",
    "pack_backbone",
    "padded",
    "pass_bytes",
    "pick_dtype",
    "quantize_backbone",
    "read_json",
    "resolve_folder",
    "run_backbone",
]
