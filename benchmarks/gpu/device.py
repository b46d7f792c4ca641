"""How well the device is used: the encoder's share of its arithmetic, launches a decoder step, memory over swaps."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.engine.bench_tasks import predict
from benchmarks.harness.cli import How, synchronize
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Loaded, make_residents, publish_tasks
from benchmarks.harness.samples import time_calls
from ladder.answering import Generate
from ladder.backbone import padded
from ladder.side import Load, backbone_flops
from ladder.stacked import SideBank
from serving.config import LoadConfig
from serving.engine import EngineRow
from serving.versions import Loader

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 operations a second, by the vendor's data sheets; the name of a GPU holds the key."""
ENCODED = ((64, 128), (32, 32), (1, 32))
"""Rows and tokens."""
SQUARE = 8192
"""Rows and columns of the matrices whose product is measured."""
SWAPS = 200
RUNNING = 16
"""Texts that are made at once."""


def encoder(loaded: Loaded, how: How) -> dict[str, Any]:
    """Return the encoder's operations a second, eagerly and recorded, and their share of the peak and of a product."""
    square = how.size(SQUARE, 128)
    left, right = (torch.randn(square, square, device=loaded.device, dtype=loaded.backbone.dtype) for _ in range(2))
    best = 2 * square**3 / _fastest(lambda: left @ right, loaded, how)
    gpu = torch.cuda.get_device_name(loaded.device) if loaded.hardware == "cuda" else ""
    peak = next((rate for name, rate in PEAKS.items() if name in gpu), None)
    shapes = [(4, 8)] if how.quick else ENCODED
    recorded = loaded.recorded(shapes)
    found: dict[str, Any] = {"product_tflops": best / 1e12, "peak_tflops": peak and peak / 1e12}
    config = loaded.backbone.config
    for rows, tokens in shapes:
        ids, mask = padded(loaded.backbone, Inputs(loaded, how.seed).rows(rows, tokens))
        work = rows * backbone_flops(config.num_layers, config, Load(tokens=tokens, rows=rows))
        assert recorded.encoder is not None
        for kind, encode in (("eager", loaded.backbone.encode), ("recorded", recorded.encoder)):
            seconds = _fastest(lambda encode=encode, ids=ids, mask=mask: encode(ids, mask, None), loaded, how)
            rate = work / seconds
            found[f"{rows}x{tokens}, {kind}"] = {
                "ms": 1e3 * seconds,
                "tflops": rate / 1e12,
                "of_product": rate / best,
                "mfu": peak and rate / peak,
            }
    return found


def _fastest(call: Any, loaded: Loaded, how: How) -> float:
    with torch.inference_mode():
        wait = lambda: synchronize(loaded.device)  # noqa: E731
        return min(time_calls(lambda _: call(), seconds=how.seconds, lead_s=how.seconds, finish=wait))


class _Counter(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def decoder_step(loaded: Loaded, how: How) -> dict[str, Any]:
    """Count torch's operations, and a GPU's kernels, of one step of 16 running texts of 8 tasks."""
    residents = make_residents(loaded, how.size(8, 2), ("generate",), how.seed)
    engine, inputs = loaded.engine(), Inputs(loaded, how.seed)
    rows = []
    for index in range(how.size(RUNNING, 4)):
        resident = residents[index % len(residents)]
        assert isinstance(resident.answerer, Generate)
        exactly = replace(resident.answerer.generation, min_new_tokens=64)
        rows.append(EngineRow(inputs.row(24), resident, replace(resident.answerer, generation=exactly)))
    engine.step(rows, (), lambda _: None)
    for _ in range(3):
        engine.step((), (), lambda _: None)
    with _Counter() as counter:
        engine.step((), (), lambda _: None)
    found: dict[str, Any] = {"running": len(rows), "operations": counter.count}
    if loaded.hardware == "cuda":
        found["launches"] = _launches(engine.step)
    wait = lambda: synchronize(loaded.device)  # noqa: E731
    step = time_calls(lambda _: engine.step((), (), lambda _: None), seconds=how.seconds, finish=wait)
    return {**found, "ms": 1e3 * sorted(step)[len(step) // 2]}


def _launches(step: Any) -> int:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        step((), (), lambda _: None)
        torch.cuda.synchronize()
    return sum("LaunchKernel" in event.name for event in profiled.events() or ())


def swaps(loaded: Loaded, how: How) -> dict[str, Any]:
    """Swap one of a few versions so many times, with a batch after each; return memory before, after and at most.

    The loader is the server's: each version is read from a registry, checked, replayed and copied to the device.
    """
    count, sizes = how.size(SWAPS, 4), []
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, 4, HEADS["mixed"], how.seed)
        bank = SideBank(loaded.backbone)
        loader = Loader(registry, loaded.backbone, loaded.tokenizer, LoadConfig(), bank)
        tasks = sorted(registry.state().tasks)
        residents = [loader.load(task, 1) for task in tasks]
        engine, inputs = loaded.engine(), Inputs(loaded, how.seed)
        for number in range(count):
            index = number % len(tasks)
            residents[index] = loader.load(tasks[index], 1)
            predict(engine, inputs.ask([residents[row % len(residents)] for row in range(16)], 32))
            sizes.append(_held(loaded, bank))
    usual = sizes[len(sizes) // 4 :]  # the first fill the activation cache
    return {"swaps": count, "first_mb": sizes[0], "early_mb": usual[0], "last_mb": sizes[-1], "most_mb": max(sizes)}


def _held(loaded: Loaded, bank: SideBank) -> float:
    """Megabytes that torch has allocated on a GPU; on a CPU, the weights of side networks."""
    held = torch.cuda.memory_allocated(loaded.device) if loaded.hardware == "cuda" else bank.bytes
    return held / 1e6


def measure_all(loaded: Loaded, how: How) -> Sequence[tuple[str, Any]]:
    """Return all of them by name, to be called."""
    return [
        ("encoder", lambda: encoder(loaded, how)),
        ("decoder step", lambda: decoder_step(loaded, how)),
        ("swaps", lambda: swaps(loaded, how)),
    ]
