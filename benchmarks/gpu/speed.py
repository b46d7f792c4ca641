"""The benchmarks of the engine at the shapes of T5-base, eagerly and recorded, and side networks on a second stream."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.engine import bench_generation, bench_peers, bench_tasks
from benchmarks.gpu import streams
from benchmarks.gpu.run import Run
from benchmarks.harness.cli import How
from benchmarks.harness.models import Loaded
from benchmarks.harness.samples import Samples, Spread

SHAPES = ((1, 32), (4, 32), (16, 32), (32, 32), (16, 64))
"""Rows and tokens that are recorded: those of the benchmarks."""
STREAMS = (32, 128)
"""Rows and tokens of the comparison of streams."""


def measure(run: Run, loaded: Loaded, how: How) -> None:
    """Measure what `benchmarks.engine.bench_tasks`, `bench_peers` and `bench_generation` do, and streams."""
    kinds = {"eager": loaded}
    run.measure("recording", lambda: _recorded(kinds))
    if how.quick:
        kinds = {"recorded": kinds["recorded"]}
    for kind, each in kinds.items():
        run.measure(f"{kind}, tasks", lambda each=each: figures(*bench_tasks.ask(each, how)))
    rows, tokens = (how.size(size, small) for size, small in zip(STREAMS, (3, 8), strict=True))
    run.measure("streams", lambda: figures(*streams.ask(loaded, how, rows, tokens)))
    for kind, each in kinds.items():
        run.measure(f"{kind}, PEFT", lambda each=each: figures(*bench_peers.ask(each, how, ("peft",))))
    once = replace(how, rounds=1)
    for kind, each in reversed(kinds.items()):
        peers = ("huggingface",) if kind == "eager" else ()  # the peers are the same beside both
        run.measure(
            f"{kind}, generation",
            lambda each=each, peers=peers: figures(*bench_generation.ask(each, once, peers)),
        )


def _recorded(kinds: dict[str, Loaded]) -> dict[str, Any]:
    """Record the shapes, so that they are measured too."""
    kinds["recorded"] = kinds["eager"].recorded(SHAPES)
    return {"shapes": SHAPES}


def figures(samples: Samples, ratios: Mapping[str, Spread], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return medians and rounds as a results file has them."""
    return {
        "settings": dict(settings),
        "ratios": {name: spread.to_dict() for name, spread in ratios.items()},
        "variants": {
            variant: {figure: samples.spread(variant, figure).to_dict() for figure in samples.figures(variant)}
            for variant in samples.variants
        },
    }
