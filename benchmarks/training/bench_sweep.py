"""What do nine runs (three learning rates, three seeds) trained at once cost, by one of them alone?

    python -m benchmarks.training.bench_sweep --backbone B --data DIR

`DIR/train.jsonl` and `DIR/validation.jsonl` are of the built-in task sst2. Each measurement is a whole training from an
empty folder, with the code of `sidecast train`: backbone pass, epochs, validation, golden examples. "one by one" is the
same nine recipes, each with a backbone pass of its own.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import torch

from benchmarks.harness.machine import look
from benchmarks.harness.samples import (
    Column,
    Figures,
    Report,
    Variant,
    options,
    plain_errors,
    steps,
    take_turns,
)
from ladder import load_backbone, load_tokenizer
from sidecast.cli.options import pick_device
from training import Job, Recipe, load_task, read_labelled, sweep_jobs, train, train_many

RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)
COLUMNS = (Column(figure="s", heading="seconds"), Column(figure="cpu_s", heading="CPU seconds"))


@dataclass(frozen=True)
class Trainings:
    """Trains the runs of a sweep into folders that are deleted afterwards."""

    jobs: Sequence[Job]

    def one(self) -> Figures:
        """One run, of the middle learning rate."""
        job = next(job for job in self.jobs if job.recipe.learning_rate == Recipe().learning_rate)
        return _timed(lambda folder: train(job, folder / "run"))

    def together(self) -> Figures:
        """All runs at once."""
        return _timed(lambda folder: train_many(self.jobs, folder / "sweep"))

    def one_by_one(self) -> Figures:
        """All runs, each alone."""
        return _timed(lambda folder: [train(job, folder / str(number)) for number, job in enumerate(self.jobs)])


def _timed(call: Callable[[Path], object]) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        started, cpu_started = time.perf_counter(), time.process_time()
        call(Path(folder))
        return {"s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_started}


@click.command()
@click.option("--backbone", required=True, metavar="B", help="A Hugging Face folder, or a hub id.")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="sst2's files.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of torch; 0: torch chooses.")
@click.option("--rows", type=click.IntRange(1), default=6000, show_default=True, help="To train on.")
@click.option("--epochs", type=click.IntRange(1), default=Recipe().epochs, show_default=True)
@click.option("--alone/--no-alone", default=True, show_default=True, help="Train the nine runs one by one too.")
@partial(options, rounds=1)
def main(
    backbone: str,
    data: Path,
    device: str,
    dtype: str,
    threads: int,
    rows: int,
    epochs: int,
    alone: bool,
    rounds: int,
    seed: int,
    save: bool,
    as_json: bool,
) -> None:
    """Compare nine runs at once with one, and with nine one by one."""
    if threads:
        torch.set_num_threads(threads)
    with plain_errors():
        loaded = load_backbone(backbone, device=pick_device(device), dtype=dtype)
        spec = load_task("sst2")
        training = read_labelled(data / "train.jsonl", spec)
        job = Job(
            spec=spec,
            backbone=loaded,
            backbone_source=backbone,
            tokenizer=load_tokenizer(backbone),
            training=replace(training, examples=training.examples[:rows]),
            validation=read_labelled(data / "validation.jsonl", spec),
            recipe=Recipe(epochs=epochs),
        )
        trainings = Trainings(sweep_jobs(job, learning_rate=RATES, seed=SEEDS))
        measured = {"one run": trainings.one, "nine at once": trainings.together}
        if alone:
            measured["nine one by one"] = trainings.one_by_one
        variants = [Variant(name=name, measure=call, warm_up=lambda: None) for name, call in measured.items()]
        machine = look(str(loaded.device), str(loaded.dtype).removeprefix("torch."))
        with steps(len(variants) * (rounds + 1), as_json) as step:
            samples = take_turns(variants, rounds, seed, step)
        report = Report(
            name="sweep",
            title=f"Nine runs at once ({loaded.name})",
            machine=machine,
            settings={
                "backbone": loaded.name,
                "rows": len(job.training.examples),
                "validation_rows": len(job.validation.examples),
                "epochs": epochs,
                "learning_rates": RATES,
                "seeds": SEEDS,
            },
            samples=samples,
            ratios={
                f"{name} / one run, {figure}": samples.ratio(figure, name, "one run")
                for name in measured
                if name != "one run"
                for figure in ("s", "cpu_s")
            },
        )
        if save:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
