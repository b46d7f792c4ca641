"""Everything that runs on the device thread. No registry, no queue."""

from serving.engine.circuit_breaker import CircuitBreaker
from serving.engine.detokenizer import FinishReason, Piece, TextProgress
from serving.engine.device import (
    check_fits,
    free_bytes,
    has_bfloat16,
    pick_device,
    pick_precision,
    run_apart,
    run_aside,
    run_steps_aside,
    running_aside,
)
from serving.engine.engine import Engine
from serving.engine.request_times import RequestTimes
from serving.engine.rows import EncodedImage, EngineRow, Event, Key, Resident
from serving.engine.spare_cores import SpareCores, YieldingSteps
from serving.engine.warmup import warm_up

__all__ = [
    "CircuitBreaker",
    "EncodedImage",
    "Engine",
    "EngineRow",
    "Event",
    "FinishReason",
    "Key",
    "Piece",
    "RequestTimes",
    "Resident",
    "SpareCores",
    "TextProgress",
    "YieldingSteps",
    "check_fits",
    "free_bytes",
    "has_bfloat16",
    "pick_device",
    "pick_precision",
    "run_apart",
    "run_aside",
    "run_steps_aside",
    "running_aside",
    "warm_up",
]
