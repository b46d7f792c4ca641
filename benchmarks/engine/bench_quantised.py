"""How do int8, int4 and w8a8 change a backbone's speed and memory, and the accuracy of side networks trained on it?

    python -m benchmarks.engine.bench_quantised --backbone B speed
    python -m benchmarks.engine.bench_quantised --backbone B memory
    python -m benchmarks.engine.bench_quantised --backbone B --rounds 2 accuracy --data DIR

`speed`: whole encoder passes, the decoder's first step after one, and a step with a full cache. `memory`: a process of
its own for each measurement. `accuracy`: `DIR/train.jsonl` and `DIR/validation.jsonl` are of the built-in task sst2; on
each backbone the code of `sidecast train` trains one side network for each round, with the seeds 0, 1 and so on, and
the answers of the bare backbone are scored too. int8, int4, w8a8: in float32 on a CPU, in bfloat16 on a GPU.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.harness.machine import ROOT, look
from benchmarks.harness.samples import (
    BenchmarkError,
    Column,
    Figures,
    Report,
    Samples,
    Variant,
    options,
    plain_errors,
    quantile,
    steps,
    take_turns,
    time_calls,
)
from benchmarks.training.bench_defaults import Remembering
from ladder import Backbone, load_backbone, load_tokenizer, run_backbone
from ladder.backbone import held_bytes
from sidecast.cli.options import pick_device
from training.builtin_tasks import load_task
from training.data import Example, read_examples, read_labelled
from training.evaluation import length_batches
from training.job import Job
from training.recipes.recipe import Recipe
from training.trainer import train

SHAPES = {"encode_8x32": (8, 32), "encode_32x32": (32, 32)}
STEPPED = (32, 32)
"""Rows and source tokens of the timed decoder steps."""
EARLIER = 7
"""Tokens decoded before the cached step."""
QUESTION = "Is this review positive or negative? {sentence}"
COLUMNS = {
    "speed": ("encode_8x32_ms", "encode_32x32_ms", "first_step_ms", "cached_step_ms"),
    "memory": ("weights_mb", "grown_mb", "peak_mb"),
    "accuracy": ("accuracy", "lowest", "highest", "bare_accuracy", "bare_agreement"),
}
LOADS = """
import json, resource, sys
import psutil, torch
from ladder import load_backbone
from ladder.backbone import held_bytes
source, dtype, quantize = sys.argv[1:]
before = psutil.Process().memory_info().rss
backbone = load_backbone(source, dtype=dtype, quantize=quantize)
ids = torch.randint(3, backbone.config.vocab_size, (8, 32))
backbone.encode(ids, torch.ones_like(ids, dtype=torch.bool))
grown = psutil.Process().memory_info().rss - before
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"weights_mb": held_bytes(backbone) / 1e6, "grown_mb": grown / 1e6, "peak_mb": peak / 1e6}))
"""


@dataclass(frozen=True)
class Kinds:
    """The backbone in every precision, each loaded at its first use."""

    source: str
    device: str
    _loaded: dict[str, Backbone] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, tuple[str, str]]:
        """(dtype, quantize) by name."""
        widened = "float32" if self.device == "cpu" else "bfloat16"
        plain = {"float32": ("float32", "none"), "bfloat16": ("bfloat16", "none")}
        return plain | {method: (widened, method) for method in ("int8", "int4", "w8a8")}

    def load(self, name: str) -> Backbone:
        """Return the backbone of this kind; loaded once."""
        if name not in self._loaded:
            dtype, quantize = self.names[name]
            self._loaded[name] = load_backbone(self.source, device=self.device, dtype=dtype, quantize=quantize)
        return self._loaded[name]

    def variants(self, measure: Callable[[str], Figures], warm_up: Callable[[], object] | None = None) -> list[Variant]:
        """Return one variant for each kind of backbone."""
        return [Variant(name=name, measure=partial(measure, name), warm_up=warm_up) for name in self.names]


class Speed:
    """Times passes over random tokens without padding: speed does not depend on their values."""

    def __init__(self, kinds: Kinds, seconds: float, seed: int, clock: Callable[[], float]) -> None:
        self.kinds, self.seconds, self.clock = kinds, seconds, clock
        self._random = torch.Generator().manual_seed(seed)

    def measure(self, name: str) -> Figures:
        """Return the figures of one kind of backbone."""
        backbone = self.kinds.load(name)
        figures = {}
        with torch.inference_mode():
            for figure, (rows, tokens) in SHAPES.items():
                ids, mask = self._inputs(backbone, rows, tokens)
                figures[f"{figure}_ms"] = self._time(lambda _, ids=ids, mask=mask: backbone.encode(ids, mask))
            ids, mask = self._inputs(backbone, *STEPPED)
            memory = backbone.encode(ids, mask).final
            assert memory is not None
            figures["first_step_ms"] = self._time(lambda _: backbone.decode(ids[:, :1], memory, mask))
            figures["cached_step_ms"] = self._time(
                lambda cache: backbone.decode(ids[:, :1], memory, mask, cache),
                lambda: self._filled_cache(backbone, ids, memory, mask),
            )
        return figures

    def _time(self, call: Callable[[Any], object], prepare: Callable[[], Any] = lambda: None) -> float:
        """Return the median milliseconds of a call."""
        finish = torch.cuda.synchronize if self.kinds.device != "cpu" else lambda: None
        how = {"seconds": self.seconds, "lead_s": min(0.3, self.seconds), "prepare": prepare, "finish": finish}
        return 1e3 * quantile(time_calls(call, clock=self.clock, **how), 0.5)

    def _filled_cache(self, backbone: Backbone, ids: Tensor, memory: Tensor, mask: Tensor) -> Any:
        cache = backbone.decoder_cache()
        backbone.decode(ids[:, :EARLIER], memory, mask, cache)
        return cache

    def _inputs(self, backbone: Backbone, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(3, backbone.config.vocab_size, (rows, tokens), generator=self._random)
        return ids.to(backbone.device), torch.ones(rows, tokens, dtype=torch.bool, device=backbone.device)


class Accuracy:
    """Trains and scores side networks; compares the bare backbones' answers with those of the float32 one."""

    def __init__(self, kinds: Kinds, data: Path, rows: int, seeds: int, recipe: Mapping[str, Any]) -> None:
        self.kinds, self.recipe = kinds, dict(recipe)
        self.spec, self.tokenizer = load_task("sst2"), load_tokenizer(kinds.source)
        self._data, self._rows, self._seeds = data, rows, seeds
        self._bare: dict[str, list[bool]] = {}

    def measure(self, name: str) -> Figures:
        """Return the figures of one kind of backbone."""
        memory, scores = Remembering(self.kinds.load(name)), []
        for seed in range(self._seeds):
            with tempfile.TemporaryDirectory(prefix="sidecast-quantised-") as folder:
                job = self._job(self.kinds.load(name), Path(folder), seed)
                scores.append(100 * train(job, Path(folder) / "run").manifest.metrics[self.spec.metric])
        memory.forget()
        examples = read_examples(self._data / "validation.jsonl", self.spec)
        positive = [example.target == "positive" for example in examples]
        bare, whole = (self._answers(kind, examples) for kind in (name, "float32"))
        return {
            "accuracy": statistics.fmean(scores),
            "lowest": min(scores),
            "highest": max(scores),
            "bare_accuracy": 100 * _share_equal(bare, positive),
            "bare_agreement": 100 * _share_equal(bare, whole),
        }

    def _job(self, backbone: Backbone, folder: Path, seed: int) -> Job:
        try:
            lines = (self._data / "train.jsonl").read_text(encoding="utf-8").splitlines()[: self._rows]
        except OSError as error:
            raise BenchmarkError(f"cannot read train.jsonl of sst2: {error.strerror or error}") from None
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Job(
            spec=self.spec,
            backbone=backbone,
            backbone_source=backbone.name,
            tokenizer=self.tokenizer,
            training=read_labelled(folder / "train.jsonl", self.spec),
            validation=read_labelled(self._data / "validation.jsonl", self.spec),
            recipe=Recipe(**self.recipe, seed=seed),
        )

    def _answers(self, name: str, examples: Sequence[Example]) -> list[bool]:
        """Return whether the bare backbone prefers positive to negative, by the words' first tokens."""
        if name not in self._bare:
            backbone = self.kinds.load(name)
            words = torch.tensor([self.tokenizer.encode(word)[0] for word in ("negative", "positive")])
            inputs = self.tokenizer.encode_batch([QUESTION.format(**example.fields) for example in examples], 128)
            prefers_positive: dict[int, bool] = {}
            with torch.inference_mode():
                for indices in length_batches([len(ids) for ids in inputs], 2048):
                    final = run_backbone(backbone, [inputs[index] for index in indices]).decoder_taps().final
                    assert final is not None
                    logits = backbone.logits(final[:, -1], words.to(backbone.device))
                    prefers_positive |= dict(zip(indices, (logits[:, 1] > logits[:, 0]).tolist(), strict=True))
            self._bare[name] = [prefers_positive[index] for index in range(len(examples))]
        return self._bare[name]


def measure_memory(kinds: Kinds, name: str) -> Figures:
    """Return megabytes on a CPU: of the weights, added by loading and one pass, and the peak of the process."""
    command = [sys.executable, "-W", "ignore", "-c", LOADS, kinds.source, *kinds.names[name]]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"the process that loads {name} failed: {last}")
    return json.loads(ran.stdout.splitlines()[-1])


def _share_equal(answers: Sequence[bool], expected: Sequence[bool]) -> float:
    return sum(a == b for a, b in zip(answers, expected, strict=True)) / len(expected)


def report(question: str, kinds: Kinds, samples: Samples, settings: Mapping[str, Any], machine: Any) -> Report:
    """Build the report of one question."""
    figures = COLUMNS[question]
    ratios = {
        f"{name} / float32, {figure.removesuffix('_ms').removesuffix('_mb')}": samples.ratio(figure, name, "float32")
        for name in kinds.names
        for figure in figures
        if name != "float32" and question != "accuracy"
    }
    return Report(
        name=f"quantised-{question}",
        title=f"{question} of {kinds.load('float32').name} by the precision of its matrices",
        machine=machine,
        settings={
            **settings,
            "backbone": kinds.load("float32").name,
            "weights_mb": {name: round(held_bytes(kinds.load(name)) / 1e6, 1) for name in kinds.names},
        },
        samples=samples,
        ratios=ratios,
    )


@click.command()
@click.argument("question", type=click.Choice(list(COLUMNS)))
@click.option("--backbone", required=True, metavar="B", help="A Hugging Face folder, or a hub id.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="sst2's train.jsonl and validation.jsonl.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of torch; 0: torch chooses.")
@click.option("--seconds", type=click.FloatRange(0.01, 600), default=2.0, show_default=True, help="Of one timing.")
@click.option("--cpu-time", is_flag=True, help="Time the process's CPU seconds; with --threads 1.")
@click.option("--rows", type=click.IntRange(1), default=2000, show_default=True, help="To train on.")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True)
@click.option("--encoder-layers", default="1,3,5,7", show_default=True, help="Blocks with a rung.")
@options
def main(
    question: str,
    backbone: str,
    data: Path | None,
    device: str,
    threads: int,
    seconds: float,
    cpu_time: bool,
    rows: int,
    epochs: int,
    encoder_layers: str,
    rounds: int,
    seed: int,
    save: bool,
    as_json: bool,
) -> None:
    """Compare a backbone in float32, bfloat16, int8, int4 and w8a8."""
    if threads:
        torch.set_num_threads(threads)
    with plain_errors():
        kinds = Kinds(backbone, pick_device(device))
        settings: dict[str, Any] = {"question": question, "rounds": rounds, "seed": seed}
        if question == "speed":
            clock = time.process_time if cpu_time else time.perf_counter
            variants = kinds.variants(Speed(kinds, seconds, seed, clock).measure)
            settings |= {"seconds": seconds, "clock": clock.__name__}
        elif question == "memory":
            variants = kinds.variants(partial(measure_memory, kinds), warm_up=lambda: None)
        else:
            if data is None:
                raise click.UsageError("accuracy needs --data")
            layers = tuple(int(layer) for layer in encoder_layers.split(","))
            recipe = {"head": "linear", "encoder_layers": layers, "epochs": epochs}
            variants = kinds.variants(Accuracy(kinds, data, rows, rounds, recipe).measure, warm_up=lambda: None)
            settings |= {"rows": rows, "seeds": list(range(rounds)), **recipe}
            rounds = 1
        machine = look(kinds.device, kinds.names["int8"][0])
        with steps(len(variants) * (rounds + 1), quiet=as_json) as step:
            samples = take_turns(variants, rounds, seed, step)
        outcome = report(question, kinds, samples, settings, machine)
        if save:
            click.echo(f"saved {outcome.save().name}", err=True)
        outcome.show([Column(figure=figure, heading=figure.replace("_", " ")) for figure in COLUMNS[question]], as_json)


if __name__ == "__main__":
    main()
