"""One request: resolve, render, tokenize, schedule, answer. Knows no batches, no torch and no gRPC."""

from serving.pipeline.observation import Observation, tells
from serving.pipeline.preprocessing import Encoded, Encoder, encode
from serving.pipeline.request import (
    DecodingOverrides,
    Generated,
    Ids,
    InputRow,
    Prediction,
    PredictRequest,
    Prompt,
    Refused,
    RequestOptions,
    Target,
)
from serving.pipeline.service import PredictService

__all__ = [
    "DecodingOverrides",
    "Encoded",
    "Encoder",
    "Generated",
    "Ids",
    "InputRow",
    "Observation",
    "PredictRequest",
    "PredictService",
    "Prediction",
    "Prompt",
    "Refused",
    "RequestOptions",
    "Target",
    "encode",
    "tells",
]
