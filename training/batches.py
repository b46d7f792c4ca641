"""Rows ready for the model: token ids and targets, in batches of like lengths, in an order that the seed fixes."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ladder import Tokenizer
from ladder.answering import IGNORED
from ladder.backbone.tokenizer import Pair
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.data import Example, as_fields, references
from training.tagging import tag_windows, windows_of

BUCKET = 32
"""Batches whose rows are sorted by length together: a larger bucket wastes less padding and shuffles less."""


Target = int | float | tuple[int, ...] | None
"""A label's index, a value, a text's token ids, the indices of several labels, or tags of the input's tokens, by the
task's kind; None where the
target is an input."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One example for the model."""

    inputs: tuple[tuple[int, ...], ...]
    """Token ids of what the backbone reads: the prompt, and for an embedding its target. As many in every row."""
    target: Target
    references: tuple[Target, ...] = ()
    """All of the row's targets where its file gives several; `target` is one of them."""
    pair: Pair | None = None
    """Where the two texts of a pair lie in its first input; None for a task of one text or of more than two."""

    @property
    def length(self) -> int:
        """Tokens of its longest input."""
        return max(map(len, self.inputs))


def tokenize(spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[TokenizedRow]:
    """Token ids of every example, cut at the spec's length as a server cuts them.

    A long text whose words are tagged makes several rows: its windows.
    """
    if KINDS[spec.kind].has_spans:
        texts = windows_of(spec, tokenizer, [example.fields for example in examples])
        pairs = zip(texts, examples, strict=True)
        tagged = (window for text, example in pairs for window in tag_windows(spec, text, example.target))
        return [TokenizedRow((ids,), tags) for ids, tags in tagged]
    inputs = [_encode(spec, tokenizer, [example.fields for example in examples])]
    if KINDS[spec.kind].target_is_input:
        inputs.append(_encode(spec, tokenizer, [as_fields(spec, str(example.target)) for example in examples]))
    right = [references(example.target) for example in examples]
    pairs = locate_pairs(spec, tokenizer, [example.fields for example in examples], inputs[0])
    targets = iter(TARGETS[spec.kind].encode(spec, tokenizer, [target for row in right for target in row]))
    rows: list[TokenizedRow] = []
    for ids, row, pair in zip(zip(*inputs, strict=True), right, pairs, strict=True):
        encoded = tuple(islice(targets, len(row)))
        rows.append(TokenizedRow(ids, encoded[0], encoded if len(encoded) > 1 else (), pair))
    return rows


def locate_pairs(
    spec: TaskSpec, tokenizer: Tokenizer, rows: Sequence[Mapping[str, str]], ids: Sequence[Sequence[int]]
) -> "list[Pair] | list[None]":
    """Where the two texts of each row lie among its tokens `ids`; None for each where the spec has no pair."""
    if not spec.has_pair:
        return [None] * len(rows)
    prompts, cuts = zip(*(spec.render_pair(row) for row in rows), strict=True)
    return tokenizer.locate(prompts, cuts, ids)


def draw_references(rows: Sequence[TokenizedRow], seed: str) -> list[TokenizedRow]:
    """The rows with one of their references as the target, each as likely; a row with one target stays as it is.

    Args:
        seed: the same seed draws the same.
    """
    pick = random.Random(f"{seed}:references")
    return [replace(row, target=pick.choice(row.references)) if row.references else row for row in rows]


def count_truncated(spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example]) -> int:
    """How many examples have a text longer than the spec's `max_source_tokens`: its end is not read.

    Where words are tagged: longer than all windows together.
    """
    if KINDS[spec.kind].has_spans:
        texts = windows_of(spec, tokenizer, [example.fields for example in examples])
        return sum(text.truncated for text in texts)
    _, truncated = tokenizer.encode_cut([spec.render(example.fields) for example in examples], spec.max_source_tokens)
    if KINDS[spec.kind].target_is_input and examples[0].target is not None:
        texts = [spec.render(as_fields(spec, str(example.target))) for example in examples]
        _, targets = tokenizer.encode_cut(texts, spec.max_source_tokens)
        truncated = [either or other for either, other in zip(truncated, targets, strict=True)]
    return sum(truncated)


def _encode(spec: TaskSpec, tokenizer: Tokenizer, rows: Sequence[dict[str, str]]) -> list[tuple[int, ...]]:
    prompts = [spec.render(row) for row in rows]
    return [tuple(ids) for ids in tokenizer.encode_batch(prompts, spec.max_source_tokens)]


def least_rows(spec: TaskSpec) -> int:
    """The fewest rows that a batch may have: 2 where training compares rows, else 1."""
    return 2 if KINDS[spec.kind].target_is_input else 1


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
        Classification: (B,) label indices, IGNORED for a target that is no label. Regression: (B,) float32.
        Text: (B, T) token ids, padded with IGNORED.
        Token classification: (B, T) tags, IGNORED but for each word's first token.
        Embedding: (2B,), a number for each distinct input, in the order of `input_indices`.
        Ranking: (B,) float32, the relevances.
        Multilabel: (B, K) float32, 1 for the labels that are right, else 0.
    """
    return TARGETS[spec.kind].stack(spec, rows, device)


def count_targets(targets: Tensor) -> int:
    """How many targets of a batch a mean loss is taken over: labels, tokens or words that teach; or rows."""
    return len(targets) if targets.is_floating_point() else int((targets != IGNORED).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetKind:
    """What becomes of the targets of a kind of task."""

    encode: Callable[[TaskSpec, Tokenizer, Sequence[Any]], Sequence[Target]]
    """Examples' targets to those of TokenizedRow, in the same order."""
    stack: Callable[[TaskSpec, Sequence[TokenizedRow], torch.device], Tensor]
    """A batch's rows to the tensor that `target_tensor` describes."""


def _encode_labels(spec: TaskSpec, tokenizer: Tokenizer, targets: Sequence[str | float]) -> list[int]:
    index = {label: number for number, label in enumerate(spec.labels)}
    return [index.get(str(target), IGNORED) for target in targets]  # others are there with `open_labels` alone


def _encode_values(spec: TaskSpec, tokenizer: Tokenizer, targets: Sequence[str | float]) -> list[float]:
    return [float(target) for target in targets]


def _encode_texts(spec: TaskSpec, tokenizer: Tokenizer, targets: Sequence[str | float]) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in tokenizer.encode_targets([str(target) for target in targets], spec.max_new_tokens)]


def _encode_label_sets(
    spec: TaskSpec, tokenizer: Tokenizer, targets: Sequence[frozenset[str]]
) -> list[tuple[int, ...]]:
    index = {label: number for number, label in enumerate(spec.labels)}
    return [tuple(sorted(index[label] for label in target)) for target in targets]


def _encode_none(spec: TaskSpec, tokenizer: Tokenizer, targets: Sequence[str | float]) -> list[None]:
    return [None] * len(targets)


def _stack_labels(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    return torch.tensor([row.target for row in rows], dtype=torch.long, device=device)


def _stack_values(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    return torch.tensor([row.target for row in rows], dtype=torch.float32, device=device)


def _stack_texts(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    tokens = [torch.tensor(row.target) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=IGNORED).to(device)


def _stack_label_sets(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    flags = torch.zeros(len(rows), len(spec.labels))
    for index, row in enumerate(rows):
        assert isinstance(row.target, tuple)
        flags[index, list(row.target)] = 1
    return flags.to(device)


def _stack_pairs(spec: TaskSpec, rows: Sequence[TokenizedRow], device: torch.device) -> Tensor:
    inputs = [ids for part in zip(*(row.inputs for row in rows), strict=True) for ids in part]
    distinct = {ids: number for number, ids in enumerate(dict.fromkeys(inputs))}
    return torch.tensor([distinct[ids] for ids in inputs], device=device)


TARGETS: Mapping[str, TargetKind] = {
    "classification": TargetKind(encode=_encode_labels, stack=_stack_labels),
    "regression": TargetKind(encode=_encode_values, stack=_stack_values),
    "text": TargetKind(encode=_encode_texts, stack=_stack_texts),
    "embedding": TargetKind(encode=_encode_none, stack=_stack_pairs),
    "multilabel": TargetKind(encode=_encode_label_sets, stack=_stack_label_sets),
    "ranking": TargetKind(encode=_encode_values, stack=_stack_values),
    "token_classification": TargetKind(encode=_encode_none, stack=_stack_texts),  # tags come with their tokens
}
"""By kind of task."""
