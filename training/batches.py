"""Rows ready for the model: token ids and targets, in batches of like lengths, in an order that the seed fixes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladder import Tokenizer
from ladder.answerers import IGNORED
from side_registry.task import TaskSpec
from training.data import Example

BUCKET = 32
"""Batches whose rows are sorted by length together: more wastes less padding and shuffles less."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One example for the model."""

    ids: tuple[int, ...]
    target: int | float | tuple[int, ...]
    """A label's index, a value, or a text's token ids, by the task's kind."""


def tokenize(spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[TokenizedRow]:
    """Token ids of every example, cut at the spec's length as a server cuts them."""
    prompts = [spec.render(example.fields) for example in examples]
    encoded = tokenizer.encode_batch(prompts, spec.max_source_tokens)
    targets = _targets(spec, tokenizer, examples)
    return [TokenizedRow(tuple(ids), target) for ids, target in zip(encoded, targets, strict=True)]


def _targets(
    spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example]
) -> list[int] | list[float] | list[tuple[int, ...]]:
    if spec.kind == "classification":
        index = {label: place for place, label in enumerate(spec.labels)}
        return [index[str(example.target)] for example in examples]
    if spec.kind == "regression":
        return [float(example.target) for example in examples]
    texts = [str(example.target) for example in examples]
    return [tuple(ids) for ids in tokenizer.encode_batch(texts, spec.max_new_tokens)]


def shuffled_batches(rows: Sequence[TokenizedRow], size: int, seed: str) -> Iterator[list[int]]:
    """Places of the rows in each batch: shuffled, then sorted by length within buckets, then batches shuffled."""
    order, shuffler = list(range(len(rows))), random.Random(seed)
    shuffler.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=lambda place: len(rows[place].ids))
        batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
    shuffler.shuffle(batches)
    yield from batches


def target_tensor(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    """What an answerer's loss takes: (B,) indices or values, or (B, T) token ids padded with IGNORED."""
    targets = [row.target for row in rows]
    if spec.kind == "classification":
        return torch.tensor(targets, dtype=torch.long, device=device)
    if spec.kind == "regression":
        return torch.tensor(targets, dtype=torch.float32, device=device)
    tokens = [torch.tensor(target) for target in targets]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=IGNORED).to(device)
