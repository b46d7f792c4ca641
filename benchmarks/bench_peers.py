"""How fast are the same rows elsewhere: LoRAs in PEFT's mixed batches, the bare T5 in CTranslate2?

    python -m benchmarks.bench_peers

Same backbone, rows, threads and, with PEFT, dtype; each answers the decoder's first step over rows of random tokens
that never come twice. Ours: side networks with a text head, r 8, all rungs, through the engine. PEFT: LoRAs of rank 8
on queries and values, unmerged as a mixed batch needs them (`adapter_names`), on Hugging Face's T5 in inference mode;
one LoRA for all rows beside it. CTranslate2, in a process of its own: the bare T5, no side network and no LoRA, one
greedy step. Beside it stand ours with the backbone quantised too (w8a8), on a CPU, as its int8 is, and with a linear
head, which needs no decoder step.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bench_tasks import first_words, predict
from benchmarks.cli import How, answer, measuring
from benchmarks.converted import Converted
from benchmarks.harness import BenchmarkError, Column, Samples, Spread, Variant
from benchmarks.inputs import Inputs
from benchmarks.models import HEADS, Head, Loaded, make_residents
from benchmarks.peers import Loras
from ladder import run_backbone
from serving.engine import Engine, Resident
from sidecast.loadtest.sentences import SENTENCES

TASKS, TOKENS = 16, 32
MIXED = (16, 32)
"""Rows of a batch beside PEFT's."""
SHAPES = ((8, 32), (16, 64))
"""Rows and tokens beside CTranslate2's."""
KINDS = {"cpu": ("int8", "float32"), "cuda": ("int8_bfloat16", "bfloat16")}
"""CTranslate2's, its fastest first."""
WHOLE = "w8a8"
QUESTION = "Is this review positive or negative? {}"
PEERS = ("peft", "ctranslate2")
COLUMNS = (Column(figure="rows_per_s", heading="rows/s"), Column(figure="ms", heading="ms a call", digits=2))


class BesidePeft:
    """Batches of 16 tasks here and of 16 LoRAs there, and of one there."""

    def __init__(self, loaded: Loaded, how: How) -> None:
        self.loaded, self.how, self.inputs = loaded, how, Inputs(loaded, how.seed)
        self.residents = make_residents(loaded, how.size(TASKS, 2), HEADS["text"], how.seed)
        self.engine = loaded.engine()
        self.loras = Loras(loaded, len(self.residents), first_words(self.residents[0]))

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        return [variant for rows in MIXED for variant in self._of(rows)]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        found = {}
        for rows in MIXED:
            ours, theirs, one = (f"{name}, {rows} rows" for name in ("engine", "PEFT", "PEFT one LoRA"))
            found[f"engine / PEFT mixed, {rows} rows"] = samples.ratio("rows_per_s", ours, theirs)
            found[f"PEFT mixed / PEFT one LoRA, {rows} rows"] = samples.ratio("rows_per_s", theirs, one)
        return found

    def _of(self, rows: int) -> list[Variant]:
        everyone, names = self.residents, self.loras.names
        mixed = [everyone[row % len(everyone)] for row in range(rows)]
        named = [names[row % len(names)] for row in range(rows)]
        device = self.loaded.device

        def make() -> list[tuple[int, ...]]:
            return self.inputs.rows(rows, TOKENS)

        ours = self.how.timed(
            f"engine, {rows} rows",
            lambda asked: predict(self.engine, asked),
            lambda: self.inputs.ask(mixed, TOKENS),
            rows,
            device,
        )
        theirs = self.how.timed(f"PEFT, {rows} rows", lambda ids: self.loras.answer(ids, named), make, rows, device)
        one = self.how.timed(f"PEFT one LoRA, {rows} rows", self.loras.answer, make, rows, device)
        return [ours, theirs, one]


class BesideConverted:
    """One task here, with a head of either kind, the bare T5 there."""

    def __init__(self, loaded: Loaded, how: How, folder: Path) -> None:
        self.loaded, self.how, self.inputs = loaded, how, Inputs(loaded, how.seed)
        self.ours = {
            f"{name}{head}": _alone(each, how, heads)
            for name, each in kinds_of(loaded).items()
            for head, heads in (("", HEADS["text"]), (" linear head", HEADS["linear"]))
        }
        self.converted = {kind: Converted(loaded, folder, kind) for kind in KINDS[loaded.hardware]}
        self.agreement = {kind: agreement(loaded, each) for kind, each in self.converted.items()}

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        return [variant for rows, tokens in SHAPES for variant in self._of(rows, tokens)]

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

    def _of(self, rows: int, tokens: int) -> list[Variant]:
        ours = [self._predict(name, rows, tokens) for name in self.ours]
        return [*ours, *(self._step(kind, each, rows, tokens) for kind, each in self.converted.items())]

    def _predict(self, name: str, rows: int, tokens: int) -> Variant:
        engine, resident = self.ours[name]
        return self.how.timed(
            f"{name}, {rows}x{tokens}",
            lambda asked: predict(engine, asked),
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
    """The backbone as it was asked for and, on a CPU, in the whole numbers that CTranslate2's int8 is too."""
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
    """The share of real sentences whose first word CTranslate2 says as our backbone does.

    Raises:
        BenchmarkError: less than half, unquantised: the conversion is broken, and its speed means nothing.
    """
    rows = [loaded.tokenizer.encode(QUESTION.format(sentence), TOKENS * 2) for sentence in SENTENCES]
    final = run_backbone(loaded.backbone, rows).decoder_taps().final
    assert final is not None
    best = loaded.backbone.logits(final[:, -1]).argmax(-1).tolist()
    ours = [word for [word] in converted.words([[token] for token in best])]
    share = sum(map(str.__eq__, ours, converted.step(converted.words(rows)))) / len(rows)
    if share < 0.5 and "float" in converted.kind and "int8" not in converted.kind:
        raise BenchmarkError(f"CTranslate2 says another first word than the backbone on {1 - share:.0%} of sentences")
    return round(share, 3)


def ask(loaded: Loaded, how: How, peers: Sequence[str] = PEERS) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        settings: dict[str, Any] = {"tasks": how.size(TASKS, 2), "rank": 8, "reduction": 8, "rungs": "all"}
        beside: list[BesidePeft | BesideConverted] = []
        if "peft" in peers:
            beside.append(BesidePeft(loaded, how))
        if "ctranslate2" in peers:
            converted = BesideConverted(loaded, how, Path(folder))
            beside.append(converted)
            settings["first_words_as_ours"] = converted.agreement
        samples = how.turns([variant for each in beside for variant in each.variants()])
    return samples, {name: spread for each in beside for name, spread in each.ratios(samples).items()}, settings


@click.command()
@click.option(
    "--peer", "peers", type=click.Choice(PEERS), multiple=True, default=PEERS, show_default=True, help="Of both."
)
@measuring(rounds=5, seconds=0.6)
def main(peers: tuple[str, ...], **given: Any) -> None:
    """The engine beside PEFT's mixed batches and CTranslate2's bare T5."""
    answer(
        lambda loaded, how: ask(loaded, how, peers),
        name="peers",
        title="The decoder's first step, here and elsewhere",
        columns=COLUMNS,
        given=given,
    )


if __name__ == "__main__":
    main()
