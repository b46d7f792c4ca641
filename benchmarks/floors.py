"""How fast could it be? The least time of a call by its arithmetic and the bytes it must move, and so the best ratio.

    python -m benchmarks.floors

Each part of a call (encoder, the decoder's first step, side networks) takes at least as long as its multiplications at
the machine's measured rate, and as its weights and taps at the measured bandwidth; parts run one after the other. Left
out: everything that a perfect program would not notice (launches, softmax, norms, Python, gRPC). So a ratio between
two of our own calls may come near its floor and never passes it. A peer's floor is its own backbone's: what a peer
loses beyond is its own, and ours to win, which is why there are no such ratios here.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.cli import backbone_options, load_given, synchronize
from benchmarks.harness import plain_errors
from benchmarks.models import REDUCTION, Loaded
from ladder import Backbone, SideNetwork
from ladder.backbone import LINEARS
from ladder.config import BackboneConfig, SideConfig
from ladder.side import Load, backbone_flops, count_parameters, side_flops

WHOLE = "w8a8"
PROBE_S = 0.3
"""Seconds that a rate is measured for."""
PROBE = (1024, 512, 1024)
"""Rows, inputs and outputs of the product that is measured: of a size with a small T5's."""
PROBE_BYTES = 256 * 2**20
ROWS, TOKENS, TASKS = 32, 32, 16
WORDS = 2
"""Rows of the LM head that two labels need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a machine can do."""

    flops: float
    """Of matrix products, a second; a multiplication and an addition are two."""
    bytes: float
    """Read or written, a second."""
    itemsize: int = 4
    """Bytes of a number."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that runs on its own."""

    flops: float
    numbers: float
    """Weights and taps that it must read or write once."""

    def seconds(self, rates: Rates) -> float:
        """Return the shortest possible time at these rates, in seconds."""
        return max(self.flops / rates.flops, self.numbers * rates.itemsize / rates.bytes)


def least(parts: tuple[Part, ...], rates: Rates) -> float:
    """Seconds of all, one after the other."""
    return sum(part.seconds(rates) for part in parts)


@cache
def weights(config: BackboneConfig) -> Mapping[str, int]:
    """Numbers in the encoder and in the decoder."""
    with torch.device("meta"):
        backbone = Backbone(config)
    stacks = {"encoder": backbone.encoder, "decoder": backbone.decoder}
    return {name: sum(each.numel() for each in stack.parameters()) for name, stack in stacks.items()}


def encoder(config: BackboneConfig, rows: int, tokens: int) -> Part:
    """All blocks; every block's output is written for the side networks."""
    load = Load(tokens=tokens, rows=rows)
    taps = rows * tokens * config.d_model * (config.num_layers + 1)
    return Part(rows * backbone_flops(config.num_layers, config, load), weights(config)["encoder"] + taps)


def first_step(config: BackboneConfig, rows: int, tokens: int, words: int = WORDS) -> Part:
    """The decoder over the start token, cross-attention's keys and values among it, and some rows of the LM head."""
    load, head = Load(tokens=tokens, rows=rows), 2 * config.d_model
    whole = backbone_flops(None, config, load) - head * config.vocab_size
    flops = whole - backbone_flops(config.num_layers, config, load) + head * words
    return Part(rows * flops, weights(config)["decoder"] + rows * tokens * config.d_model)


def side(shape: SideConfig, config: BackboneConfig, rows: int, tokens: int, networks: int) -> Part:
    """`rows` rows of so many side networks: each network's weights, and each row's taps once."""
    load = Load(tokens=tokens, rows=rows)
    taps = rows * tokens * config.d_model * (len(shape.encoder_layers or ()) + 1)
    return Part(rows * side_flops(shape, config, load), networks * _numbers(shape, config) + taps)


@cache
def _numbers(shape: SideConfig, config: BackboneConfig) -> int:
    with torch.device("meta"):
        return count_parameters(SideNetwork(shape, config))


def shape_of(head: str, config: BackboneConfig) -> SideConfig:
    """As the benchmarks have it: r 8, all rungs, two classes."""
    outputs = 0 if head == "text" else WORDS
    return SideConfig(reduction=REDUCTION, head=head, outputs=outputs).resolve(config)  # type: ignore[arg-type]


def best_ratios(config: BackboneConfig, rates: Rates) -> dict[str, float]:
    """Of our own calls, at best; by the keys of `benchmarks.goals`."""
    found = {}
    for head in ("text", "linear"):
        shape = shape_of(head, config)

        def backbone(rows: int, head: str = head) -> tuple[Part, ...]:
            parts = (encoder(config, rows, TOKENS),)
            return (*parts, first_step(config, rows, TOKENS)) if head == "text" else parts

        def sides(rows: int, networks: int, shape: SideConfig = shape) -> tuple[Part, ...]:
            return (side(shape, config, rows, TOKENS, networks),)

        one, alone = least((*backbone(ROWS), *sides(ROWS, 1)), rates), least(backbone(ROWS), rates)
        found[f"F1 {head}"] = one / least((*backbone(ROWS), *sides(ROWS, TASKS)), rates)
        found[f"F2 {head}"] = alone / one
        found[f"F3 {head}"] = one / least((*backbone(ROWS), *sides(ROWS, ROWS)), rates)
        single = least((*backbone(1), *sides(1, 1)), rates)
        found[f"F4 {head}"] = least((*backbone(1), *sides(TASKS, TASKS)), rates) / single
        found[f"F7 {head}"] = one / least(sides(ROWS, 1), rates)
        found[f"F7 {head}, one input"] = single / least(sides(1, 1), rates)
    return found


def measure_rates(loaded: Loaded, quantize: str = "none", seconds: float = PROBE_S) -> Rates:
    """Of products in the backbone's dtype, or of quantised ones, and of copies too big for a cache."""
    rows, inputs, outputs = PROBE
    where = {"device": loaded.backbone.device, "dtype": loaded.backbone.dtype}
    given, layer = torch.randn(rows, inputs, **where), nn.Linear(inputs, outputs, bias=False, **where)
    itemsize = loaded.backbone.dtype.itemsize
    source, target = (torch.zeros(PROBE_BYTES // itemsize, **where) for _ in range(2))
    multiply = layer if quantize == "none" else LINEARS[quantize](layer).to(loaded.backbone.device)
    product = _fastest(lambda: multiply(given), loaded.device, seconds)
    copy = _fastest(lambda: target.copy_(source), loaded.device, seconds)
    return Rates(
        flops=2 * rows * inputs * outputs / product,
        bytes=2 * PROBE_BYTES / copy,
        itemsize=itemsize if quantize == "none" else 1,
    )


@torch.inference_mode()
def _fastest(call: Callable[[], object], device: str, seconds: float) -> float:
    """The shortest of as many calls as fit: a bound is a bound, whatever else the machine does."""
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        call()
        synchronize(device)
        now = time.perf_counter()
        best = min(best, now - started)
        if now >= until:
            return best


def calls(config: BackboneConfig, rates: Rates, backbone: Rates | None = None) -> dict[str, float]:
    """Least milliseconds of the calls that peers are compared on.

    Args:
        backbone: where it is quantised, which side networks never are.
    """
    text, backbone = shape_of("text", config), backbone or rates
    found = {}
    for rows, tokens in ((8, 32), (16, 64), (16, 32), (32, 32)):
        parts = {
            "encoder": encoder(config, rows, tokens).seconds(backbone),
            "first step": first_step(config, rows, tokens).seconds(backbone),
            "one side network": side(text, config, rows, tokens, 1).seconds(rates),
        }
        parts["all"] = sum(parts.values())
        found |= {f"{rows}x{tokens}, {name}": 1e3 * seconds for name, seconds in parts.items()}
    return found


def document(loaded: Loaded) -> dict[str, Any]:
    """JSON-ready: rates, least times, best ratios. On a CPU also of a backbone in whole numbers."""
    config = loaded.backbone.config
    rates = {loaded.kind: measure_rates(loaded)}
    if loaded.hardware == "cpu":
        rates[WHOLE] = measure_rates(loaded, WHOLE)
    plain = rates[loaded.kind]
    return {
        "name": "floors",
        "gflops": {kind: round(each.flops / 1e9, 1) for kind, each in rates.items()},
        "gigabytes_per_s": round(plain.bytes / 1e9, 1),
        "least_ms": {
            f"{kind} {name}": round(value, 3)
            for kind, each in rates.items()
            for name, value in calls(config, plain, each).items()
        },
        "best_ratios": {name: round(value, 3) for name, value in best_ratios(config, plain).items()},
    }


@click.command()
@backbone_options
@click.option("--json", "as_json", is_flag=True, help="Print the JSON line alone.")
def main(as_json: bool, **given: Any) -> None:
    """The least time of calls on this machine, and the best ratios between them."""
    with plain_errors():
        found = document(load_given({**given, "compiles": False}))
    if not as_json:
        console = Console()
        rates = ", ".join(f"{kind} {rate} GFLOP/s" for kind, rate in found["gflops"].items())
        console.print(f"{rates}, {found['gigabytes_per_s']} GB/s", highlight=False)
        for heading in ("least_ms", "best_ratios"):
            table = Table(heading, "", box=None)
            for name, value in found[heading].items():
                table.add_row(name, f"{value:.3f}")
            console.print(table)
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
