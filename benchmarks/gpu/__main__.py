"""What only a GPU can tell: parity, speed, training and use of the device, in at most eight minutes on one card.

    python -m benchmarks.gpu --out gpu.json
    python -m benchmarks.gpu --device cpu --quick     # see whether it works; the figures mean nothing

No network: backbones have random weights and a tokenizer of bytes. After each measurement the file is written anew, so
a run that is cut off keeps what it has. What there is no time for is noted as left out; so is a peer (PEFT) that is
not installed. Exits with 1 if a comparison failed or a measurement ended with an error.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.gpu import backbones, device, parity, smoke, speed, training
from benchmarks.gpu.run import Run
from benchmarks.harness.cli import QUICK_S, How
from benchmarks.harness.machine import look
from benchmarks.harness.models import Loaded
from benchmarks.harness.samples import RESULTS, plain_errors
from sidecast.cli.options import pick_device

LIMIT_S = 440.0
"""Seconds in which measurements begin; eight minutes have room for the last one."""
PARTS = {"parity": 0.14, "serving": 0.22, "speed": 0.6, "training": 0.88, "device": 1.0}
"""In their order; the share of the limit until which measurements of a part begin."""
DTYPES = ("float32", "bfloat16")
SHAPE = "t5-base"


class Bench:
    """The parts of a run."""

    def __init__(self, run: Run, folder: Path, where: str, quick: bool, seed: int) -> None:
        self.run, self.where, self.quick = run, where, quick
        self.how = How(
            rounds=1 if quick else 3, seconds=QUICK_S if quick else 0.3, seed=seed, threads=0, quick=quick, quiet=True
        )
        self._folder = backbones.write(backbones.shape_of(SHAPE, quick), folder / SHAPE, seed)

    def parity(self) -> None:
        """All ways to compute the same, in both dtypes."""
        for dtype in DTYPES:
            loaded = self._loaded(dtype)
            for name, comparison in parity.COMPARISONS.items():
                self.run.measure(f"{dtype}, {name}", lambda c=comparison, of=loaded: parity.compare(of, c))
            self.run.measure(f"{dtype}, texts", lambda of=loaded: parity.texts(of))

    def serving(self) -> None:
        """A server, in both dtypes."""
        for dtype in DTYPES:
            self.run.measure(dtype, lambda dtype=dtype: smoke.serve_some(self._loaded(dtype), self.how.seconds))

    def speed(self) -> None:
        """The engine, eagerly and recorded; peers."""
        speed.measure(self.run, self._loaded(self._usual), self.how)

    def training(self) -> None:
        """Steps of several methods."""
        training.measure(self.run, self.where, self.quick)

    def device(self) -> None:
        """Arithmetic, launches, memory."""
        for name, call in device.measure_all(self._loaded(self._usual), self.how):
            self.run.measure(name, call)

    @property
    def _usual(self) -> str:
        return "float32" if self.where == "cpu" else "bfloat16"

    def _loaded(self, dtype: str) -> Loaded:
        return backbones.loaded(self._folder, self.where, dtype)


def shares(only: Sequence[str]) -> dict[str, float]:
    """Return each part and the share of the limit until which its measurements begin; `only` some share it equally."""
    if not only:
        return PARTS
    return {part: (index + 1) / len(only) for index, part in enumerate(only)}


@click.command()
@click.option("--device", "where", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Some of the parts.  [default: all]")
@click.option("--quick", is_flag=True, help="See whether it works; the figures mean nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="The results file.  [default: in benchmarks/results]")
@click.option("--limit", type=click.FloatRange(10, LIMIT_S), default=LIMIT_S, show_default=True, help="Seconds.")
@click.option("--seed", default=0, show_default=True, help="Of weights, rows and the order of variants.")
def main(where: str, only: tuple[str, ...], quick: bool, out: Path | None, limit: float, seed: int) -> None:
    """Measure what only a GPU can tell."""
    with plain_errors(), tempfile.TemporaryDirectory(prefix="sidecast-gpu-") as folder:
        where = pick_device(where)
        machine = look(where, "bfloat16" if where != "cpu" else "float32")
        date = time.strftime("%Y-%m-%d", time.gmtime())
        path = out or RESULTS / f"{date}-{machine.slug}-gpu.json"
        settings = {"shape": SHAPE, "quick": quick, "seed": seed, "limit_s": limit, "torch_cuda": torch.version.cuda}
        run = Run(path, {"name": "gpu", "date": date, "machine": machine.to_dict(), "settings": settings}, limit)
        with run.watched():
            bench = Bench(run, Path(folder), where, quick, seed)
            for part, until in shares(only).items():
                with run.part(part, until):
                    getattr(bench, part)()
            run.finish()
    faults = run.faults()
    for fault in faults:
        click.echo(f"failed: {fault}", err=True)
    click.echo(json.dumps(run.document))
    click.get_current_context().exit(1 if faults else 0)


if __name__ == "__main__":
    main()
