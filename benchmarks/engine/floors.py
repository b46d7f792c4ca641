"""Computes lower bounds: the shortest time of a call by its arithmetic and memory traffic, and so the best ratios.

    python -m benchmarks.engine.floors

A part of a call (encoder, the decoder's first step, side networks) takes at least as long as its multiplications at the
machine's measured rate, and at least as long as reading its weights and taps at the measured bandwidth. Parts run one
after the other. Costs that a perfect program avoids are left out (launches, softmax, norms, Python, gRPC). So a ratio
of two of our calls can approach its bound, but not exceed it. Ratios to peers have no bound here: it depends on how
much time a peer wastes.
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

from benchmarks.harness.cli import backbone_options, load_from, synchronize
from benchmarks.harness.models import REDUCTION, Loaded
from benchmarks.harness.samples import plain_errors
from ladder import Backbone, SideNetwork
from ladder.backbone import LINEARS
from ladder.config import BackboneConfig, SideConfig
from ladder.side import Load, backbone_flops, count_parameters, side_flops

WHOLE = "w8a8"
PROBE_S = 0.3
"""Seconds of the measurement of a rate."""
PROBE = (1024, 512, 1024)
"""Rows, inputs and outputs of the measured product: sizes as in a small T5."""
PROBE_BYTES = 256 * 2**20
ROWS, TOKENS, TASKS = 32, 32, 16
WORDS = 2
"""Rows of the LM head that two labels need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Measured rates of a machine."""

    flops: float
    """Operations of matrix products a second; a multiplication and an addition are two."""
    bytes: float
    """Bytes read or written a second."""
    itemsize: int = 4
    """Bytes of a number."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a call that runs before or after the others."""

    flops: float
    numbers: float
    """Number of weights and taps that it must read or write once."""

    def seconds(self, rates: Rates) -> float:
        """Return the shortest possible time at these rates, in seconds."""
        return max(self.flops / rates.flops, self.numbers * rates.itemsize / rates.bytes)


def least(parts: tuple[Part, ...], rates: Rates) -> float:
    """Return the shortest seconds of all parts, one after the other."""
    return sum(part.seconds(rates) for part in parts)


@cache
def weights(config: BackboneConfig) -> Mapping[str, int]:
    """Return the number of parameters of the encoder and of the decoder."""
    with torch.device("meta"):
        backbone = Backbone(config)
    stacks = {"encoder": backbone.encoder, "decoder": backbone.decoder}
    return {name: sum(parameter.numel() for parameter in stack.parameters()) for name, stack in stacks.items()}


def encoder(config: BackboneConfig, rows: int, tokens: int) -> Part:
    """Return the encoder: all blocks; the output of every block is written for the side networks."""
    load = Load(tokens=tokens, rows=rows)
    taps = rows * tokens * config.d_model * (config.num_layers + 1)
    return Part(rows * backbone_flops(config.num_layers, config, load), weights(config)["encoder"] + taps)


def first_step(config: BackboneConfig, rows: int, tokens: int, words: int = WORDS) -> Part:
    """Return the decoder on the start token, cross-attention's keys and values, and `words` rows of the LM head."""
    load, head = Load(tokens=tokens, rows=rows), 2 * config.d_model
    whole = backbone_flops(None, config, load) - head * config.vocab_size
    flops = whole - backbone_flops(config.num_layers, config, load) + head * words
    return Part(rows * flops, weights(config)["decoder"] + rows * tokens * config.d_model)


def side(shape: SideConfig, config: BackboneConfig, rows: int, tokens: int, networks: int) -> Part:
    """Return `rows` rows of `networks` side networks: every network's weights and every row's taps are read once."""
    load = Load(tokens=tokens, rows=rows)
    taps = rows * tokens * config.d_model * (len(shape.encoder_layers or ()) + 1)
    return Part(rows * side_flops(shape, config, load), networks * _numbers(shape, config) + taps)


@cache
def _numbers(shape: SideConfig, config: BackboneConfig) -> int:
    with torch.device("meta"):
        return count_parameters(SideNetwork(shape, config))


def shape_of(head: str, config: BackboneConfig) -> SideConfig:
    """Return the side network of the benchmarks: r 8, all rungs, two classes."""
    outputs = 0 if head == "text" else WORDS
    return SideConfig(reduction=REDUCTION, head=head, outputs=outputs).resolve(config)  # type: ignore[arg-type]


def best_ratios(config: BackboneConfig, rates: Rates) -> dict[str, float]:
    """Return the best possible ratios of our calls, by the names in `benchmarks.harness.goals`."""
    ratios = {}
    for head in ("text", "linear"):
        shape = shape_of(head, config)

        def backbone(rows: int, head: str = head) -> tuple[Part, ...]:
            parts = (encoder(config, rows, TOKENS),)
            return (*parts, first_step(config, rows, TOKENS)) if head == "text" else parts

        def sides(rows: int, networks: int, shape: SideConfig = shape) -> tuple[Part, ...]:
            return (side(shape, config, rows, TOKENS, networks),)

        one, alone = least((*backbone(ROWS), *sides(ROWS, 1)), rates), least(backbone(ROWS), rates)
        ratios[f"F1 {head}"] = one / least((*backbone(ROWS), *sides(ROWS, TASKS)), rates)
        ratios[f"F2 {head}"] = alone / one
        ratios[f"F3 {head}"] = one / least((*backbone(ROWS), *sides(ROWS, ROWS)), rates)
        single = least((*backbone(1), *sides(1, 1)), rates)
        ratios[f"F4 {head}"] = least((*backbone(1), *sides(TASKS, TASKS)), rates) / single
        ratios[f"F7 {head}"] = one / least(sides(ROWS, 1), rates)
        ratios[f"F7 {head}, one input"] = single / least(sides(1, 1), rates)
    return ratios


def measure_rates(loaded: Loaded, quantize: str = "none", seconds: float = PROBE_S) -> Rates:
    """Measure products in the backbone's dtype, or quantised, and copies too large for a cache."""
    rows, inputs, outputs = PROBE
    where = {"device": loaded.backbone.device, "dtype": loaded.backbone.dtype}
    batch = torch.randn(rows, inputs, **where)
    layer = nn.Linear(inputs, outputs, bias=False, **where)
    itemsize = loaded.backbone.dtype.itemsize
    source, target = (torch.zeros(PROBE_BYTES // itemsize, **where) for _ in range(2))
    multiply = layer if quantize == "none" else LINEARS[quantize](layer).to(loaded.backbone.device)
    product = _fastest(lambda: multiply(batch), loaded.device, seconds)
    copy = _fastest(lambda: target.copy_(source), loaded.device, seconds)
    return Rates(
        flops=2 * rows * inputs * outputs / product,
        bytes=2 * PROBE_BYTES / copy,
        itemsize=itemsize if quantize == "none" else 1,
    )


@torch.inference_mode()
def _fastest(call: Callable[[], object], device: str, seconds: float) -> float:
    """Return the shortest of the calls within `seconds`: other load of the machine must not change a bound."""
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
    """Return the shortest milliseconds of the calls in the comparison with peers.

    Args:
        backbone: rates of the backbone, if it is quantised; side networks are not. None: `rates`.
    """
    text, backbone = shape_of("text", config), backbone or rates
    least_ms = {}
    for rows, tokens in ((8, 32), (16, 64), (16, 32), (32, 32)):
        parts = {
            "encoder": encoder(config, rows, tokens).seconds(backbone),
            "first step": first_step(config, rows, tokens).seconds(backbone),
            "one side network": side(text, config, rows, tokens, 1).seconds(rates),
        }
        parts["all"] = sum(parts.values())
        least_ms |= {f"{rows}x{tokens}, {name}": 1e3 * seconds for name, seconds in parts.items()}
    return least_ms


def document(loaded: Loaded) -> dict[str, Any]:
    """Return rates, shortest times and best ratios as JSON; on a CPU also for a quantised backbone."""
    config = loaded.backbone.config
    rates = {loaded.kind: measure_rates(loaded)}
    if loaded.hardware == "cpu":
        rates[WHOLE] = measure_rates(loaded, WHOLE)
    plain = rates[loaded.kind]
    return {
        "name": "floors",
        "gflops": {kind: round(rate.flops / 1e9, 1) for kind, rate in rates.items()},
        "gigabytes_per_s": round(plain.bytes / 1e9, 1),
        "least_ms": {
            f"{kind} {name}": round(value, 3)
            for kind, rate in rates.items()
            for name, value in calls(config, plain, rate).items()
        },
        "best_ratios": {name: round(value, 3) for name, value in best_ratios(config, plain).items()},
    }


@click.command()
@backbone_options
@click.option("--json", "as_json", is_flag=True, help="Print the JSON line alone.")
def main(as_json: bool, **arguments: Any) -> None:
    """Print the shortest times of calls on this machine, and the best ratios between them."""
    with plain_errors():
        bounds = document(load_from({**arguments, "compiles": False}))
    if not as_json:
        console = Console()
        rates = ", ".join(f"{kind} {rate} GFLOP/s" for kind, rate in bounds["gflops"].items())
        console.print(f"{rates}, {bounds['gigabytes_per_s']} GB/s", highlight=False)
        for heading in ("least_ms", "best_ratios"):
            table = Table(heading, "", box=None)
            for name, value in bounds[heading].items():
                table.add_row(name, f"{value:.3f}")
            console.print(table)
    click.echo(json.dumps(bounds))


if __name__ == "__main__":
    main()
