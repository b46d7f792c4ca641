"""Tokenized rows and their batches: pairs for embeddings, no row lost, none alone that needs company."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import load_tokenizer
from side_registry.specs.task import TaskSpec
from training.batches import (
    TokenizedRow,
    all_inputs,
    count_batches,
    count_truncated,
    draw_references,
    input_indices,
    least_rows,
    shuffled_batches,
    target_tensor,
    tokenize,
)
from training.data import Example

MEANING = TaskSpec(name="meaning", kind="embedding", template="{text}", max_source_tokens=8)
CPU = torch.device("cpu")


def examples(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(fields={"text": text}, target=target, line=1) for text, target in pairs]


def test_a_pairs_texts_are_both_inputs_cut_as_a_server_cuts_them(tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    [row] = tokenize(MEANING, tokenizer, examples(("cat", "a cat that sat on the mat")))
    assert row.inputs == (tuple(tokenizer.encode("cat")), tuple(tokenizer.encode("a cat that sat on the mat", 8)))
    assert [len(ids) for ids in row.inputs] == [4, 8]
    assert (row.length, row.target) == (8, None)
    [row] = tokenize(MEANING.model_copy(update={"kind": "text"}), tokenizer, examples(("cat", "dog")))
    assert (row.inputs, row.target) == ((tuple(tokenizer.encode("cat")),), tuple(tokenizer.encode("dog")))


def test_a_batchs_inputs_are_the_first_texts_and_then_the_second_ones(tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    rows = tokenize(MEANING, tokenizer, examples(("a", "A"), ("b", "B"), ("c", "C")))
    inputs = all_inputs(rows)
    texts = [tokenizer.decode(inputs[index]) for index in input_indices([2, 0], 2)]
    assert texts == ["c", "a", "C", "A"]
    assert input_indices([2, 0], 1) == [2, 0]


def test_equal_texts_have_one_number_also_where_they_were_cut_alike(tiny_t5):
    pairs = (("a", "b"), ("b", "c"), ("the same beginning", "the same but not the end"))
    rows = tokenize(MEANING, load_tokenizer(tiny_t5), examples(*pairs))
    assert target_tensor(MEANING, rows, CPU).tolist() == [0, 1, 2, 1, 3, 2]


def test_one_reference_of_each_row_is_drawn_by_the_seed(tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    spec = TaskSpec(name="captions", kind="text", template="{text}")
    references = ("one", "two", "three")
    found = [Example(fields={"text": text}, target=references, line=1) for text in "abcdefghijkl"]
    found.append(Example(fields={"text": "m"}, target="alone", line=1))
    rows = tokenize(spec, tokenizer, found)
    known = [tuple(tokenizer.encode(text)) for text in references]
    drawn = draw_references(rows, "0:0")
    assert drawn == draw_references(rows, "0:0")
    assert {row.target for row in drawn[:-1]} == set(known)
    assert [row.target for row in drawn] != [row.target for row in draw_references(rows, "0:1")]
    assert drawn[-1] is rows[-1]
    assert (rows[-1].target, rows[-1].references) == (tuple(tokenizer.encode("alone")), ())
    assert [row.inputs for row in drawn] == [row.inputs for row in rows]


def pair_rows(lengths: list[int]) -> list[TokenizedRow]:
    return [TokenizedRow(((5,) * length, (6,)), None) for length in lengths]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=60), size=st.integers(2, 5), seed=st.text(max_size=3))
def test_every_row_is_in_one_batch_and_no_pair_is_alone(lengths, size, seed):
    rows = pair_rows(lengths)
    batches = list(shuffled_batches(rows, size, seed, least=2))
    assert Counter(index for batch in batches for index in batch) == Counter(range(len(rows)))
    assert all(2 <= len(batch) <= size + 1 for batch in batches)
    assert len(batches) == count_batches(len(rows), size, 2)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 129])
def test_batches_are_as_many_as_counted(count, size):
    batches = list(shuffled_batches(pair_rows([1] * count), size, "0"))
    assert len(batches) == count_batches(count, size) == -(-count // size)
    assert max(map(len, batches)) <= size


def test_only_embeddings_need_two_rows():
    assert least_rows(MEANING) == 2
    assert least_rows(TaskSpec(name="a", kind="text", template="{a}")) == 1


def test_texts_that_are_cut_are_counted(tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    spec = MEANING.model_copy(update={"max_source_tokens": 4})
    pairs = examples(("abc", "abc"), ("abcd", "a"), ("a", "abcdefg"), ("abcde", "abcde"))
    assert [len(row.inputs[0]) for row in tokenize(spec, tokenizer, pairs)] == [4, 4, 2, 4]
    assert count_truncated(spec, tokenizer, pairs) == 3
    assert count_truncated(spec, tokenizer, [replace(example, target=None) for example in pairs]) == 2
