"""One request: resolve, render, tokenize, schedule, answer. Knows no batches, no torch and no gRPC."""

from serving.pipeline.observation import Observation, tells
from serving.pipeline.preprocessing import Encoded, Encoder, InputRow, Prompt, encode, resolve
from serving.pipeline.request import FIELDS, DecodingOverrides, Generated, Ids, Prediction, Target, check_priority
from serving.pipeline.service import PredictService

__all__ = [
    "FIELDS",
    "DecodingOverrides",
    "Encoded",
    "Encoder",
    "Generated",
    "Ids",
    "InputRow",
    "Observation",
    "PredictService",
    "Prediction",
    "Prompt",
    "Target",
    "check_priority",
    "encode",
    "resolve",
    "tells",
]
