"""Decides when a row runs: admission, fairness, deadlines, batches. No torch, no gRPC."""

from serving.scheduler.batcher import Batcher
from serving.scheduler.estimates import Utilization
from serving.scheduler.fair_queue import PRIORITIES
from serving.scheduler.requests import Event, OnStarted, Outcome, ShadowRequest

__all__ = [
    "PRIORITIES",
    "Batcher",
    "Event",
    "OnStarted",
    "Outcome",
    "ShadowRequest",
    "Utilization",
]
