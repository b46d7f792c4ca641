"""The Python client: gRPC and protos alone, no torch, no registry, no server."""

from serving.client.aio import AsyncClient
from serving.client.client import Client
from serving.client.errors import BY_CODE, SidecastError
from serving.client.requests import AFFINITY
from serving.client.results import (
    Answer,
    Classification,
    Embedding,
    GeneratedText,
    Piece,
    Predictions,
    Prompt,
    Regression,
    Row,
    Text,
)
from serving.client.routes import Bounds, Comparison, Comparisons, RolledBack, Route
from serving.client.streams import AsyncTextStream, TextStream

__all__ = [
    "AFFINITY",
    "BY_CODE",
    "Answer",
    "AsyncClient",
    "AsyncTextStream",
    "Bounds",
    "Classification",
    "Client",
    "Comparison",
    "Comparisons",
    "Embedding",
    "GeneratedText",
    "Piece",
    "Predictions",
    "Prompt",
    "Regression",
    "RolledBack",
    "Route",
    "Row",
    "SidecastError",
    "Text",
    "TextStream",
]
