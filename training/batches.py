"""Rows ready for the model: token ids and targets, in batches of like lengths, in an order that the seed fixes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladder import Tokenizer
from ladder.answering import IGNORED
from side_registry.task import TaskSpec
from training.data import Example, as_fields

BUCKET = 32
"""Batches whose rows are sorted by length together: a larger bucket wastes less padding and shuffles less."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One example for the model."""

    inputs: tuple[tuple[int, ...], ...]
    """Token ids of what the backbone reads: the prompt, and for an embedding its target. As many in every row."""
    target: int | float | tuple[int, ...] | None
    """A label's index, a value, or a text's token ids, by the task's kind; None for an embedding."""

    @property
    def length(self) -> int:
        """Tokens of its longest input."""
        return max(map(len, self.inputs))


def tokenize(spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[TokenizedRow]:
    """Token ids of every example, cut at the spec's length as a server cuts them."""
    inputs = [_encode(spec, tokenizer, [example.fields for example in examples])]
    if spec.kind == "embedding":
        inputs.append(_encode(spec, tokenizer, [as_fields(spec, str(example.target)) for example in examples]))
    targets = _targets(spec, tokenizer, examples)
    return [TokenizedRow(row, target) for row, target in zip(zip(*inputs, strict=True), targets, strict=True)]


def _encode(spec: TaskSpec, tokenizer: Tokenizer, rows: Sequence[dict[str, str]]) -> list[tuple[int, ...]]:
    prompts = [spec.render(row) for row in rows]
    return [tuple(ids) for ids in tokenizer.encode_batch(prompts, spec.max_source_tokens)]


def _targets(
    spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example]
) -> list[int] | list[float] | list[tuple[int, ...]] | list[None]:
    if spec.kind == "classification":
        index = {label: number for number, label in enumerate(spec.labels)}
        return [index[str(example.target)] for example in examples]
    if spec.kind == "regression":
        return [float(example.target) for example in examples]
    if spec.kind == "embedding":
        return [None] * len(examples)
    texts = [str(example.target) for example in examples]
    return [tuple(ids) for ids in tokenizer.encode_targets(texts, spec.max_new_tokens)]


def least_rows(spec: TaskSpec) -> int:
    """Return the fewest rows of a batch: 2 for an embedding, whose loss compares rows, else 1."""
    return 2 if spec.kind == "embedding" else 1


def count_batches(rows: int, size: int, least: int = 1) -> int:
    """Return the number of batches that `shuffled_batches` makes of `rows` rows."""
    full, rest = divmod(rows, size)
    return full + (rest >= least if full else 1)


def shuffled_batches(rows: Sequence[TokenizedRow], size: int, seed: str, least: int = 1) -> Iterator[list[int]]:
    """Indices of the rows in each batch: shuffled, then sorted by length within buckets, then batches shuffled.

    Args:
        size: rows of a batch.
        seed: the same seed gives the same batches.
        least: a last batch of fewer rows joins the batch before it.
    """
    order = list(range(len(rows)))
    shuffler = random.Random(seed)
    shuffler.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=lambda index: rows[index].length)
        batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
    if len(batches) > 1 and len(batches[-1]) < least:
        last = batches.pop()
        batches[-1] += last
    shuffler.shuffle(batches)
    yield from batches


def all_inputs(rows: Sequence[TokenizedRow]) -> list[tuple[int, ...]]:
    """Return all inputs, row after row."""
    return [ids for row in rows for ids in row.inputs]


def input_indices(rows: Sequence[int], inputs: int) -> list[int]:
    """Return the indices of a batch's inputs in `all_inputs`: all first inputs, then all second ones if rows have two.

    Args:
        rows: indices of the batch's rows.
        inputs: number of inputs of a row.
    """
    return [row * inputs + part for part in range(inputs) for row in rows]


def target_tensor(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    """Targets as an answerer's loss takes them.

    Returns:
        Classification: (B,) label indices. Regression: (B,) float32. Text: (B, T) token ids, padded with IGNORED.
        Embedding: (2B,), a number for each distinct input, in the order of `input_indices`.
    """
    if spec.kind == "embedding":
        inputs = [ids for part in zip(*(row.inputs for row in rows), strict=True) for ids in part]
        distinct = {ids: number for number, ids in enumerate(dict.fromkeys(inputs))}
        return torch.tensor([distinct[ids] for ids in inputs], device=device)
    targets = [row.target for row in rows]
    if spec.kind == "classification":
        return torch.tensor(targets, dtype=torch.long, device=device)
    if spec.kind == "regression":
        return torch.tensor(targets, dtype=torch.float32, device=device)
    tokens = [torch.tensor(target) for target in targets]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=IGNORED).to(device)
