"""`sidecast doctor --speed`: how fast a backbone is in each precision here, and what a server gains by it."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sidecast.cli import options

if TYPE_CHECKING:
    from ladder import Backbone

ROWS, TOKENS = 8, 32
"""Of the batch that is measured."""
ROUNDS = 7
"""Timed calls of each precision, by turns; their median counts."""
FASTER = 1.05
"""A precision that is at least so much faster than float32 is worth naming."""


def compare(source: str, device: str) -> str:
    """Return a line that names each precision's time, and what to do about it."""
    name = options.pick_device(device)
    backbones = {precision: _load(source, name, precision) for precision in precisions(name)}
    times = measure({precision: _pass_of(backbone) for precision, backbone in backbones.items()})
    found = ", ".join(f"{precision} {1e3 * seconds:.1f} ms" for precision, seconds in times.items())
    return f"{ROWS} rows of {TOKENS} tokens: {found}; {advice(times, name)}"


def precisions(device: str) -> list[str]:
    """List the precisions that a server can use on a device, float32 first."""
    from serving.engine import has_bfloat16

    if device.startswith("cuda"):
        return ["float32", "bfloat16"]
    return ["float32", *(["bfloat16"] if has_bfloat16() else []), "w8a8"]


def advice(times: Mapping[str, float], device: str) -> str:
    """Say what `serve` takes by itself, and what w8a8 gains.

    Args:
        times: seconds by precision.
    """
    import torch

    from ladder.backbone import pick_dtype
    from serving.engine import pick_precision

    usual = str(pick_dtype(pick_precision("auto", device), torch.device(device))).removeprefix("torch.")
    words = f"serve takes {usual}"
    if usual != "float32":
        words += f", {_gain(times, usual, 'float32')}"
    if "w8a8" in times and times["w8a8"] * FASTER < times[usual]:
        words += f"; --quantize w8a8 would be {_gain(times, 'w8a8', usual)}, for side networks that are trained with it"
    if times["float32"] * FASTER < times[usual]:
        words += "; --dtype float32 would be faster here"
    return words


def _gain(times: Mapping[str, float], fast: str, slow: str) -> str:
    return f"{times[slow] / times[fast]:.2f} times as fast as {slow}"


def measure(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each call; they take turns, so that other load affects all alike."""
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def _load(source: str, device: str, precision: str) -> "Backbone":
    from ladder.backbone import pack_backbone

    quantize, dtype = (precision, "float32") if precision == "w8a8" else ("none", precision)
    backbone = options.load_backbone(source, device, dtype, quantize)[0]
    pack_backbone(backbone)  # as a server does
    return backbone


def _pass_of(backbone: "Backbone") -> Callable[[], object]:
    """A pass over new inputs' numbers: encoder and, where there is a decoder, its first step."""
    import torch

    from ladder import run_backbone

    rows = [[(row + 7 * column) % backbone.config.vocab_size for column in range(TOKENS)] for row in range(ROWS)]

    @torch.inference_mode()
    def run() -> None:
        done = run_backbone(backbone, rows)
        if backbone.has_decoder:
            done.decoder_taps()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)

    return run
