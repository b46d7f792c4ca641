"""How fast are the same rows with peers: LoRAs in PEFT's mixed batches, the bare T5 in CTranslate2?

    python -m benchmarks.engine.bench_peers

Same backbone, rows, threads and, with PEFT, dtype. All compute the decoder's first step over rows of random tokens,
none of which is used twice. The engine: side networks with a text head, r 8, all rungs. PEFT: LoRAs of rank 8 on
queries and values, unmerged as a mixed batch needs them (`adapter_names`), on Hugging Face's T5 in inference mode; also
one LoRA for all rows. CTranslate2, in a process of its own: the bare T5 without side network or LoRA, one greedy step.
It is also compared with the engine on a quantised backbone (w8a8; CTranslate2 has int8), on a CPU, and with a linear
head, which needs no decoder step. CTranslate2 runs in the environment (instruction set, MKL) in which it is fastest
here; all are tried before, and the file has their times.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.engine.bench_tasks import first_words, predict
from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.converted import Converted, fastest_environment
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Head, Loaded, make_residents
from benchmarks.harness.peers import Loras
from benchmarks.harness.samples import BenchmarkError, Column, Samples, Spread, Variant
from ladder import run_backbone
from serving.engine import Engine, Resident
from sidecast.loadtest.sentences import SENTENCES

TASKS, TOKENS = 16, 32
MIXED = (16, 32)
"""Rows of a batch in the comparison with PEFT."""
SHAPES = ((8, 32), (16, 64))
"""Rows and tokens in the comparison with CTranslate2."""
KINDS = {"cpu": ("int8", "float32"), "cuda": ("int8_bfloat16", "bfloat16")}
"""Precisions of CTranslate2 by hardware, the fastest first."""
WHOLE = "w8a8"
QUESTION = "Is this review positive or negative? {}"
PEERS = ("peft", "ctranslate2")
COLUMNS = (Column(figure="rows_per_s", heading="rows/s"), Column(figure="ms", heading="ms a call", digits=2))


class PeftComparison:
    """Batches of 16 tasks on the engine; of 16 LoRAs, and of one, on PEFT."""

    def __init__(self, loaded: Loaded, how: How) -> None:
        self.loaded, self.how, self.inputs = loaded, how, Inputs(loaded, how.seed)
        self.residents = make_residents(loaded, how.size(TASKS, 2), HEADS["text"], how.seed)
        self.engine = loaded.engine()
        self.loras = Loras(loaded, len(self.residents), first_words(self.residents[0]))

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        return [variant for rows in MIXED for variant in self._variants_of(rows)]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        spreads = {}
        for rows in MIXED:
            ours, theirs, one = (f"{name}, {rows} rows" for name in ("engine", "PEFT", "PEFT one LoRA"))
            spreads[f"engine / PEFT mixed, {rows} rows"] = samples.ratio("rows_per_s", ours, theirs)
            spreads[f"PEFT mixed / PEFT one LoRA, {rows} rows"] = samples.ratio("rows_per_s", theirs, one)
        return spreads

    def _variants_of(self, rows: int) -> list[Variant]:
        everyone, names = self.residents, self.loras.names
        mixed = [everyone[row % len(everyone)] for row in range(rows)]
        named = [names[row % len(names)] for row in range(rows)]
        device = self.loaded.device

        def make() -> list[tuple[int, ...]]:
            return self.inputs.rows(rows, TOKENS)

        ours = self.how.timed(
            f"engine, {rows} rows",
            lambda engine_rows: predict(self.engine, engine_rows),
            lambda: self.inputs.ask(mixed, TOKENS),
            rows,
            device,
        )
        theirs = self.how.timed(f"PEFT, {rows} rows", lambda ids: self.loras.answer(ids, named), make, rows, device)
        one = self.how.timed(f"PEFT one LoRA, {rows} rows", self.loras.answer, make, rows, device)
        return [ours, theirs, one]


class CTranslate2Comparison:
    """One task on the engine, with a head of either kind; the bare T5 on CTranslate2."""

    def __init__(self, loaded: Loaded, how: How, folder: Path) -> None:
        self.loaded, self.how, self.inputs = loaded, how, Inputs(loaded, how.seed)
        self.ours = {
            f"{name}{head}": _alone(kind, how, heads)
            for name, kind in kinds_of(loaded).items()
            for head, heads in (("", HEADS["text"]), (" linear head", HEADS["linear"]))
        }
        self.tried: dict[str, dict[str, float | None]] = {}
        self.converted = {kind: self._convert(folder, kind) for kind in KINDS[loaded.hardware]}
        self.agreement = {kind: agreement(loaded, converted) for kind, converted in self.converted.items()}

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        return [variant for rows, tokens in SHAPES for variant in self._variants_of(rows, tokens)]

    def _convert(self, folder: Path, kind: str) -> Converted:
        """Start CTranslate2 in the environment in which it is fastest here."""
        if self.how.quick:
            return Converted(self.loaded, folder, kind)
        rows, tokens = SHAPES[-1]
        name, self.tried[kind] = fastest_environment(self.loaded, folder, kind, self.inputs.rows(rows, tokens))
        return Converted(self.loaded, folder, kind, name)

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        shapes = [f"{rows}x{tokens}" for rows, tokens in SHAPES]
        theirs = [f"CTranslate2 {kind}" for kind in self.converted]
        return {
            f"{our} / {their}, {shape}": samples.ratio("rows_per_s", f"{our}, {shape}", f"{their}, {shape}")
            for shape in shapes
            for our in self.ours
            for their in theirs
        }

    def _variants_of(self, rows: int, tokens: int) -> list[Variant]:
        ours = [self._predict(name, rows, tokens) for name in self.ours]
        return [*ours, *(self._step(kind, converted, rows, tokens) for kind, converted in self.converted.items())]

    def _predict(self, name: str, rows: int, tokens: int) -> Variant:
        engine, resident = self.ours[name]
        return self.how.timed(
            f"{name}, {rows}x{tokens}",
            lambda engine_rows: predict(engine, engine_rows),
            lambda: self.inputs.ask([resident] * rows, tokens),
            rows,
            self.loaded.device,
        )

    def _step(self, kind: str, converted: Converted, rows: int, tokens: int) -> Variant:
        def make() -> list[list[str]]:
            return converted.words(self.inputs.rows(rows, tokens))

        name = f"CTranslate2 {kind}, {rows}x{tokens}"
        return self.how.timed(name, converted.step, make, rows, clock=converted.clock)


def kinds_of(loaded: Loaded) -> dict[str, Loaded]:
    """Return the backbone as loaded and, on a CPU, quantised to int8 as CTranslate2's, by name."""
    kinds = {f"engine {loaded.kind}": loaded}
    if loaded.hardware == "cpu":
        whole = loaded.quantised(WHOLE)
        kinds.setdefault(f"engine {whole.kind}", whole)
    return kinds


def _alone(loaded: Loaded, how: How, heads: Sequence[Head]) -> tuple[Engine, Resident]:
    [resident] = make_residents(loaded, 1, heads, how.seed)
    return loaded.engine(), resident


@torch.inference_mode()
def agreement(loaded: Loaded, converted: Converted) -> float:
    """Return the share of real sentences with the same first word from CTranslate2 and from our backbone.

    Raises:
        BenchmarkError: less than half, unquantised: the conversion is broken.
    """
    rows = [loaded.tokenizer.encode(QUESTION.format(sentence), TOKENS * 2) for sentence in SENTENCES]
    final = run_backbone(loaded.backbone, rows).decoder_taps().final
    assert final is not None
    best = loaded.backbone.logits(final[:, -1]).argmax(-1).tolist()
    ours = [word for [word] in converted.words([[token] for token in best])]
    share = sum(map(str.__eq__, ours, converted.step(converted.words(rows)))) / len(rows)
    if share < 0.5 and "float" in converted.kind and "int8" not in converted.kind:
        raise BenchmarkError(f"CTranslate2 has another first word than the backbone on {1 - share:.0%} of sentences")
    return round(share, 3)


def ask(loaded: Loaded, how: How, peers: Sequence[str] = PEERS) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        settings: dict[str, Any] = {"tasks": how.size(TASKS, 2), "rank": 8, "reduction": 8, "rungs": "all"}
        comparisons: list[PeftComparison | CTranslate2Comparison] = []
        if "peft" in peers:
            comparisons.append(PeftComparison(loaded, how))
        if "ctranslate2" in peers:
            converted = CTranslate2Comparison(loaded, how, Path(folder))
            comparisons.append(converted)
            settings["first_words_as_ours"] = converted.agreement
            settings["ctranslate2_ms"] = converted.tried
        samples = how.turns([variant for comparison in comparisons for variant in comparison.variants()])
    return (
        samples,
        {name: spread for comparison in comparisons for name, spread in comparison.ratios(samples).items()},
        settings,
    )


@click.command()
@click.option(
    "--peer", "peers", type=click.Choice(PEERS), multiple=True, default=PEERS, show_default=True, help="Of both."
)
@measuring(rounds=5, seconds=0.6)
def main(peers: tuple[str, ...], **arguments: Any) -> None:
    """Compare the engine with PEFT's mixed batches and CTranslate2's bare T5."""
    answer(
        lambda loaded, how: ask(loaded, how, peers),
        name="peers",
        title="The decoder's first step, here and elsewhere",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
