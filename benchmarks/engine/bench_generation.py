"""How many tokens a second do the engine and its peers generate, for texts of several tasks and lengths?

    python -m benchmarks.engine.bench_generation

16 rows of 8 tasks, two of each, whose texts have different lengths: from 4 to 49 tokens, with the end token suppressed
before, the same for all. Only requested tokens count. The engine generates with the side network of a row's task, r 8,
all rungs. Wave: 16 rows start together on an idle engine, until the last has ended. Stream: 16 rows are always in
flight, a new one starts when one ends. The peers generate with the bare backbone, as a server with one merged model for
each task would: Hugging Face's `generate` and CTranslate2's greedy search, one batch for each task in turn; and all 16
rows as one batch, which they could not do for different tasks. A row of CTranslate2 leaves its batch at its length. On
a CPU, the engine with a quantised backbone (w8a8) is compared with CTranslate2's int8.
"""

import random
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.engine.bench_peers import KINDS, agreement, kinds_of
from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.converted import Converted, fastest_environment
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import LONGEST, Loaded, make_residents
from benchmarks.harness.peers import hugging_face, pad
from benchmarks.harness.samples import BenchmarkError, Column, Samples, Spread, Variant
from ladder.answering import Generate
from ladder.answers import TextAnswer
from serving.engine import EngineRow, Event, Piece

TASKS, ROWS = 8, 16
SHORTEST, STEP = 4, 3
"""Tokens of the shortest text, and the step to the next longer one."""
WAVES = 3
"""Rows of a stream, in waves."""
PEERS = ("huggingface", "ctranslate2")
COLUMNS = (Column(figure="tokens_per_s", heading="tokens/s"), Column(figure="ms", heading="ms a call", digits=0))


@dataclass(frozen=True, slots=True)
class Wanted:
    """One row: its task, its source tokens, and how many tokens to generate."""

    task: int
    ids: tuple[int, ...]
    tokens: int


class Wave:
    """16 rows for 8 tasks: always the same lengths, each time new tokens."""

    def __init__(self, loaded: Loaded, how: How) -> None:
        self.tasks, self.rows = how.size(TASKS, 2), how.size(ROWS, 4)
        step = how.size(STEP, 1)
        lengths = [SHORTEST + step * row for row in range(self.rows)]
        self._inputs, self._lengths = Inputs(loaded, how.seed), random.Random(how.seed).sample(lengths, self.rows)

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts."""
        return sum(self._lengths)

    def draw(self) -> list[Wanted]:
        """Draw rows with sources of different lengths, 12 tokens or more."""
        return [
            Wanted(row % self.tasks, self._inputs.row(12 + 2 * row), length) for row, length in enumerate(self._lengths)
        ]

    def by_task(self, rows: Sequence[Wanted]) -> list[list[Wanted]]:
        """Group rows by task."""
        return [[row for row in rows if row.task == task] for task in range(self.tasks)]


class Ours:
    """The engine, step by step."""

    def __init__(self, name: str, loaded: Loaded, how: How, wave: Wave) -> None:
        self.name, self.how, self.wave, self.device = name, how, wave, loaded.device
        self.residents = make_residents(loaded, wave.tasks, ("generate",), how.seed)
        self.engine = loaded.engine()

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        wave, timed = self.wave, partial(self.how.timed, device=self.device, unit="tokens", lead_s=0.0)
        waves = self.how.size(WAVES, 2)
        return [
            timed(f"{self.name}, wave", self._run, lambda: self._ask(1), wave.tokens),
            timed(f"{self.name}, stream", self._run, lambda: self._ask(waves), wave.tokens * waves),
        ]

    def _ask(self, waves: int) -> list[EngineRow]:
        return [self._row(wanted) for _ in range(waves) for wanted in self.wave.draw()]

    def _row(self, wanted: Wanted) -> EngineRow:
        resident = self.residents[wanted.task]
        how = resident.answerer
        assert isinstance(how, Generate)
        exactly = replace(how.generation, min_new_tokens=LONGEST)
        return EngineRow(wanted.ids, resident, replace(how, max_new_tokens=wanted.tokens, generation=exactly))

    def _run(self, rows: Sequence[EngineRow]) -> None:
        """Answer all rows; as many are in flight as a wave has."""
        waiting, ended = deque(rows), dict[EngineRow, Event]()

        def keep(events: Sequence[tuple[EngineRow, Event]]) -> None:
            ended.update({row: event for row, event in events if not isinstance(event, Piece)})

        started = 0
        while len(ended) < len(rows):
            joining = [waiting.popleft() for _ in range(min(len(waiting), self.wave.rows - (started - len(ended))))]
            started += len(joining)
            self.engine.step(joining, (), keep)
        for row, outcome in ended.items():
            check(row, outcome)


def check(row: EngineRow, outcome: object) -> None:
    """Raise BenchmarkError unless the text has the requested length."""
    if isinstance(outcome, Exception):
        raise BenchmarkError(f"the engine failed a row: {outcome}")
    assert isinstance(row.how, Generate)
    if not isinstance(outcome, TextAnswer) or len(outcome.tokens) != row.how.max_new_tokens:
        raise BenchmarkError("a text has another length than requested")


class HuggingFace:
    """`generate` on the bare backbone. A batch runs until its longest text ends."""

    def __init__(self, loaded: Loaded, how: How, wave: Wave) -> None:
        self.how, self.wave, self.loaded, self.model = how, wave, loaded, hugging_face(loaded)

    def variants(self) -> list[Variant]:
        """Return what is measured."""
        wave, device = self.wave, self.loaded.device
        timed = partial(self.how.timed, prepare=wave.draw, count=wave.tokens, device=device, unit="tokens", lead_s=0.0)
        return [
            timed("Hugging Face, batch a task", lambda rows: [self._generate(batch) for batch in wave.by_task(rows)]),
            timed("Hugging Face, one batch", self._generate),
        ]

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Wanted]) -> None:
        longest = max(row.tokens for row in rows)
        inputs = pad([row.ids for row in rows], self.loaded.backbone.device)
        generated = self.model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=longest, min_new_tokens=longest
        )
        if generated.shape[1] != longest + 1:  # the start token
            raise BenchmarkError(f"Hugging Face made {generated.shape[1] - 1} tokens of {longest}")


class CTranslate2:
    """Greedy search on the bare backbone, in its fastest precision here."""

    def __init__(self, loaded: Loaded, how: How, wave: Wave, folder: Path) -> None:
        self.how, self.wave = how, wave
        self.kind = KINDS[loaded.hardware][0]
        self.tried: dict[str, float | None] = {}
        self.converted = self._convert(loaded, folder)
        self.agreement = agreement(loaded, self.converted)

    def _convert(self, loaded: Loaded, folder: Path) -> Converted:
        """Start it in the environment in which it is fastest here."""
        if self.how.quick:
            return Converted(loaded, folder, self.kind)
        rows = [wanted.ids for wanted in self.wave.draw()]
        name, self.tried = fastest_environment(loaded, folder, self.kind, rows)
        return Converted(loaded, folder, self.kind, name)

    @property
    def names(self) -> list[str]:
        """Names of the variants."""
        return [f"CTranslate2 {self.kind}, {mode}" for mode in ("batch a task", "one batch", "one batch, whole")]

    def variants(self) -> list[Variant]:
        """Return what is measured. In the last, no row leaves early, so no Python runs for each token."""
        wave, (apart, leaving, whole) = self.wave, self.names
        timed = partial(
            self.how.timed,
            prepare=self._draw,
            count=wave.tokens,
            unit="tokens",
            clock=self.converted.clock,
            lead_s=0.0,
        )
        return [
            timed(apart, self._apart),
            timed(leaving, self._texts),
            timed(whole, lambda drawn: self.converted.texts(drawn[1], max(row.tokens for row in drawn[0]))),
        ]

    def _draw(self) -> tuple[list[Wanted], list[list[str]]]:
        rows = self.wave.draw()
        return rows, self.converted.words([row.ids for row in rows])

    def _apart(self, drawn: tuple[list[Wanted], list[list[str]]]) -> None:
        for rows in self.wave.by_task(drawn[0]):
            indices = [drawn[0].index(row) for row in rows]
            self._texts((rows, [drawn[1][index] for index in indices]))

    def _texts(self, drawn: tuple[list[Wanted], list[list[str]]]) -> None:
        rows, words = drawn
        limits = [row.tokens for row in rows]
        texts = self.converted.texts(words, max(limits), limits)
        if [len(text) for text in texts] != limits:
            raise BenchmarkError(f"CTranslate2 made texts of {[len(text) for text in texts]} tokens, not {limits}")


def ask(loaded: Loaded, how: How, peers: Sequence[str] = PEERS) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    wave = Wave(loaded, how)
    settings: dict[str, Any] = {"tasks": wave.tasks, "rows": wave.rows, "new_tokens": wave.tokens}
    systems: list[Ours | HuggingFace | CTranslate2] = [
        Ours(name, kind, how, wave) for name, kind in kinds_of(loaded).items()
    ]
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        if "huggingface" in peers:
            systems.append(HuggingFace(loaded, how, wave))
        if "ctranslate2" in peers:
            theirs = CTranslate2(loaded, how, wave, Path(folder))
            systems.append(theirs)
            settings["first_words_as_ours"] = {theirs.kind: theirs.agreement}
            settings["ctranslate2_ms"] = {theirs.kind: theirs.tried}
        samples = how.turns([variant for system in systems for variant in system.variants()])
    return samples, ratios(samples), settings | {"reduction": 8, "rungs": "all"}


def ratios(samples: Samples) -> dict[str, Spread]:
    """Return the engine's tokens a second over those of every peer's modes, and over CTranslate2's best in a round."""
    ours = [name for name in samples.variants if name.startswith("engine")]
    theirs = [name for name in samples.variants if name not in ours]
    spreads = {f"{our} / {their}": samples.ratio("tokens_per_s", our, their) for our in ours for their in theirs}
    for our in ours:
        with_ctranslate2 = [
            spread.values for name, spread in spreads.items() if name.startswith(f"{our} / CTranslate2")
        ]
        if with_ctranslate2:
            spreads[f"{our} / CTranslate2 at its best"] = Spread(tuple(map(min, zip(*with_ctranslate2, strict=True))))
    return spreads


@click.command()
@click.option(
    "--peer", "peers", type=click.Choice(PEERS), multiple=True, default=PEERS, show_default=True, help="Of both."
)
@measuring(rounds=3, seconds=0.2)
def main(peers: tuple[str, ...], **arguments: Any) -> None:
    """Compare tokens a second of texts of several tasks and lengths with the peers'."""
    answer(
        lambda loaded, how: ask(loaded, how, peers),
        name="generation",
        title="Texts of unequal lengths for several tasks",
        columns=COLUMNS,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
