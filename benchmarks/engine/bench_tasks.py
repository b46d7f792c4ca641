"""What do many tasks cost the engine: in one batch, on one input, and on inputs with cached activations?

    python -m benchmarks.engine.bench_tasks

The engine is called in this process, with its defaults, on rows of random tokens. No row is used twice, so its
activation cache has no hits, except in variants named "kept". Both kinds of heads are measured: text (labels as words
of the LM head, on the decoder's first step) and linear (a head on the side encoder, no decoder). Each is compared with
the backbone alone, which does the same without side network: encoder, and for text the decoder's first step and the two
rows of the LM head.
"""

from collections.abc import Sequence
from typing import Any

import click
import torch

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Loaded, make_residents
from benchmarks.harness.samples import BenchmarkError, Column, Samples, Spread, Variant
from ladder.answering import Classify
from serving.engine import Engine, EngineRow, Resident

TASKS, ROWS, TOKENS = 16, 32, 32
COLUMNS = (Column(figure="rows_per_s", heading="rows/s"), Column(figure="ms", heading="ms a call", digits=2))


class HeadVariants:
    """The variants of one kind of head. A row is one input for one task."""

    def __init__(self, head: str, loaded: Loaded, how: How, tasks: int, rows: int) -> None:
        self.head, self.loaded, self.how, self.rows = head, loaded, how, rows
        self.residents = make_residents(loaded, tasks, HEADS[head], how.seed)
        self.engine, self.inputs = loaded.engine(), Inputs(loaded, how.seed)

    def variants(self) -> list[Variant]:
        """Return what is measured: batches of many inputs, then one input for many tasks."""
        inputs, everyone, one = self.inputs, self.residents, self.residents[:1]
        mixed = [everyone[row % len(everyone)] for row in range(self.rows)]
        many = len(everyone)
        return [
            self._batch("1 task", lambda: inputs.ask(one * self.rows, TOKENS)),
            self._batch(f"{many} tasks", lambda: inputs.ask(mixed, TOKENS)),
            self._batch("tasks drawn", lambda: inputs.ask(inputs.draw(everyone, self.rows), TOKENS)),
            self._backbone_alone(),
            self._batch("kept", lambda: self._kept_rows(self.rows)),
            self._one("1 task", 1, lambda: inputs.ask_one(one, TOKENS)),
            self._one(f"{many} tasks", many, lambda: inputs.ask_one(everyone, TOKENS)),
            self._one("kept", 1, lambda: self._kept_rows(1)),
        ]

    def ratios(self, samples: Samples) -> dict[str, Spread]:
        """Return the ratios of the report."""
        many = len(self.residents)
        batch, one = self._name("batch"), self._name("one input")
        return {
            f"{batch}, {many} tasks / 1": samples.ratio("rows_per_s", f"{batch}, {many} tasks", f"{batch}, 1 task"),
            f"{batch}, tasks drawn / 1": samples.ratio("rows_per_s", f"{batch}, tasks drawn", f"{batch}, 1 task"),
            f"{batch}, 1 task / backbone": samples.ratio("rows_per_s", f"{batch}, 1 task", f"{batch}, backbone alone"),
            f"{batch}, kept / cold": samples.ratio("rows_per_s", f"{batch}, kept", f"{batch}, 1 task"),
            f"{one}, {many} tasks / 1": samples.ratio("ms", f"{one}, {many} tasks", f"{one}, 1 task"),
            f"{one}, kept / cold": samples.ratio("rows_per_s", f"{one}, kept", f"{one}, 1 task"),
        }

    def _name(self, what: str) -> str:
        return f"{self.head} {what}"

    def _batch(self, name: str, prepare: Any) -> Variant:
        label = f"{self._name('batch')}, {name}"
        return self.how.timed(label, self._predict, prepare, self.rows, self.loaded.device)

    def _one(self, name: str, rows: int, prepare: Any) -> Variant:
        label = f"{self._name('one input')}, {name}"
        return self.how.timed(label, self._predict, prepare, rows, self.loaded.device)

    def _kept_rows(self, count: int) -> list[EngineRow]:
        """Return rows for one task whose inputs another task has just answered."""
        first, another = self.residents[0], self.residents[-1]
        rows = self.inputs.ask([first] * count, TOKENS)
        self._predict(rows)
        return [EngineRow(row.ids, another) for row in rows]

    def _predict(self, rows: Sequence[EngineRow]) -> None:
        predict(self.engine, rows)

    def _backbone_alone(self) -> Variant:
        call = self._label_words if self.head == "text" else self._encode
        label = f"{self._name('batch')}, backbone alone"
        return self.how.timed(label, call, lambda: self.inputs.rows(self.rows, TOKENS), self.rows, self.loaded.device)

    @torch.inference_mode()
    def _encode(self, rows: Sequence[Sequence[int]]) -> None:
        self.loaded.run(rows)

    @torch.inference_mode()
    def _label_words(self, rows: Sequence[Sequence[int]]) -> None:
        """Compute the backbone's probabilities of the labels' first words."""
        final = self.loaded.run(rows).decoder_taps().final
        assert final is not None
        words = torch.tensor(first_words(self.residents[0]), device=final.device)
        torch.softmax(self.loaded.backbone.logits(final[:, -1], words).float(), -1).tolist()


def first_words(resident: Resident) -> list[int]:
    """Return the first tokens in which the labels of a text head differ."""
    how = resident.answerer
    assert isinstance(how, Classify)
    assert how.trie is not None
    return list(how.trie.branches[0].tokens)


def predict(engine: Engine, rows: Sequence[EngineRow]) -> None:
    """Answer `rows`.

    Raises:
        BenchmarkError: a row failed.
    """
    for outcome in engine.predict(rows):
        if isinstance(outcome, Exception):
            raise BenchmarkError(f"the engine failed a row: {outcome}")


def ask(loaded: Loaded, how: How) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    tasks, rows = how.size(TASKS, 3), how.size(ROWS, 6)
    heads = [HeadVariants(head, loaded, how, tasks, rows) for head in ("text", "linear")]
    samples = how.turns([variant for head in heads for variant in head.variants()])
    ratios = {name: spread for head in heads for name, spread in head.ratios(samples).items()}
    return samples, ratios, {"tasks": tasks, "rows": rows, "tokens": TOKENS, "reduction": 8, "rungs": "all"}


@click.command()
@measuring(rounds=5, seconds=0.6)
def main(**arguments: Any) -> None:
    """Measure many tasks on the engine: in one batch, on one input, on inputs with cached activations."""
    answer(ask, name="tasks", title="The engine, by tasks and inputs", columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
