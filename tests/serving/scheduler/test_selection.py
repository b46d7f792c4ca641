"""Bundles, and the selection of a batch among the next ones."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import BatchConfig
from serving.scheduler.requests import Bundle
from serving.scheduler.selection import choose, window_size
from tests.serving.scheduler.batch_kit import FakeRow, bundles_of, row


def waste(batch: list[Bundle]) -> tuple[int, int]:
    """Tokens of padding, and all tokens."""
    lengths = list({bundle.input: bundle.tokens for bundle in batch}.values())
    return len(lengths) * max(lengths) - sum(lengths), len(lengths) * max(lengths)


def fits(batch: list[Bundle], config: BatchConfig) -> bool:
    return (
        sum(bundle.weight for bundle in batch) <= config.max_batch_rows and waste(batch)[1] <= config.max_batch_tokens
    )


def test_rows_of_the_same_tokens_are_a_bundle_and_rows_that_stand_alone_are_not() -> None:
    rows = [row(3, alone=True), row(3, alone=True), row(3), row(3), row(3, salt="other")]
    assert [bundle.indices for bundle in bundles_of(rows)] == [[0], [1], [2, 3], [4]]


def test_rows_that_read_other_images_are_bundles_of_one_input() -> None:
    """Else a hundred images of one caption would be a batch of a hundred rows that nothing can divide."""
    rows = [row(3, image_names=names) for names in (("a",), ("b",), ("a",), ())]
    bundles = bundles_of(rows)
    assert [bundle.indices for bundle in bundles] == [[0, 2], [1], [3]]
    assert len({bundle.input for bundle in bundles}) == 1
    many = bundles_of([row(3, image_names=(str(number),)) for number in range(9)])
    assert len(choose(many, BatchConfig(max_batch_rows=4, max_batch_tokens=3))) == 4


def test_images_count_as_tokens_but_lengthen_no_batch() -> None:
    [bundle] = bundles_of([row(12, task="a", image_work=4), row(12, task="b", image_work=4), row(12, task="b")])
    assert (bundle.length, bundle.tokens) == (12, 20)
    assert bundle.uses == {"a": (1, 16), "b": (2, 28)}
    assert bundle.shares == pytest.approx({"a": 8, "b": 12})
    window = bundles_of([row(12, 1, image_work=500), row(12, 2)])
    assert len(choose(window, BatchConfig(max_batch_tokens=24))) == 2


def test_a_bundle_costs_its_tasks_their_share_of_one_backbone_row() -> None:
    [bundle] = bundles_of([row(12, task="a"), row(12, task="b"), row(12, task="b")])
    assert bundle.shares == pytest.approx({"a": 4, "b": 8})


def test_heavy_rows_fill_a_batch_sooner() -> None:
    window = bundles_of([row(3, first, weight=4) for first in range(5)])
    assert len(choose(window, BatchConfig(max_batch_rows=9))) == 2
    assert len(choose(window, BatchConfig(max_batch_rows=3))) == 1


def test_equal_inputs_of_different_requests_are_one_row_of_the_backbone() -> None:
    window = [bundle for _ in range(4) for bundle in bundles_of([row(3)])]
    assert len(choose(window, BatchConfig(max_batch_tokens=3))) == 4
    window = [bundle for salt in "abcd" for bundle in bundles_of([row(3, salt=salt)])]
    assert len(choose(window, BatchConfig(max_batch_tokens=3))) == 1


def test_a_much_longer_row_is_left_for_another_batch() -> None:
    window = bundles_of([*(row(20, n) for n in range(20)), row(300, 99)])
    assert len(choose(window, BatchConfig())) == 20


def test_a_few_short_rows_are_not_worth_a_batch_each() -> None:
    window = bundles_of([row(length) for length in (4, 9, 14, 20)])
    assert len(choose(window, BatchConfig())) == 4


def test_the_older_of_one_length_go_first() -> None:
    window = bundles_of([row(10, n) for n in range(6)])
    assert {bundle.indices[0] for bundle in choose(window, BatchConfig(max_batch_rows=3))} == {0, 1, 2}


def test_what_fills_a_batch_does_not_make_it_longer() -> None:
    core, window = bundles_of([row(20, 1)]), bundles_of([row(length, 2) for length in (3, 15, 19, 20, 21)])
    filled = choose(window, BatchConfig(batch_cost_tokens=0), core)
    assert [bundle.tokens for bundle in filled] == [20, 20]
    filled = choose(window, BatchConfig(batch_cost_tokens=1000), core)
    assert [bundle.tokens for bundle in filled] == [3, 15, 19, 20, 20]
    assert len(choose(window, BatchConfig(max_batch_rows=2), core)) == 2
    assert len(choose(window, BatchConfig(max_batch_tokens=60), core)) == 3


lengths = st.integers(1, 40)
made = st.lists(st.builds(row, lengths, st.integers(0, 3), weight=st.integers(1, 3)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(rows=made, most_rows=st.integers(1, 12), most_tokens=st.integers(1, 200), cost=st.sampled_from([0, 32, 500]))
def test_a_batch_holds_the_first_and_keeps_to_its_budgets(
    rows: list[FakeRow], most_rows: int, most_tokens: int, cost: int
) -> None:
    config = BatchConfig(max_batch_rows=most_rows, max_batch_tokens=most_tokens, batch_cost_tokens=cost)
    window = [bundle for row in rows for bundle in bundles_of([row])]
    batch = choose(window, config)
    assert window[0] in batch
    assert len(set(batch)) == len(batch)
    assert [bundle.tokens for bundle in batch] == sorted(bundle.tokens for bundle in batch)
    assert fits(batch, config) or batch == [window[0]]
    filled = choose(window, config, batch[:1])
    assert set(batch[:1]) <= set(filled) <= set(window)
    assert fits(filled, config) or filled == batch[:1]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.builds(row, lengths), min_size=1, max_size=14),
    cost=st.sampled_from([0, 32, 500]),
    padded=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_no_run_of_lengths_is_worth_more_than_the_one_chosen(rows: list[FakeRow], cost: int, padded: float) -> None:
    config = BatchConfig(max_batch_rows=6, max_batch_tokens=150, batch_cost_tokens=cost, padding_cost=padded)
    window = [bundle for n, asked in enumerate(rows) for bundle in bundles_of([replace(asked, salt=str(n))])]

    def worth(batch: list[Bundle]) -> float:
        padding, tokens = waste(batch)
        return (tokens - padding) / (tokens - padding + padded * padding + cost)

    by_length = sorted(window, key=lambda bundle: bundle.tokens)
    runs = [by_length[a:b] for a in range(len(window)) for b in range(a + 1, len(window) + 1)]
    best = max(worth(run) for run in runs if window[0] in run and fits(run, config))
    assert worth(choose(window, config)) == pytest.approx(best)


GLUE_LIKE = {"cola": (13, 5), "mnli": (47, 20), "mrpc": (61, 14), "qnli": (57, 25), "qqp": (36, 14), "rte": (82, 50),
             "sst2": (17, 12), "stsb": (35, 18)}  # fmt: skip
"""Mean and deviation of a task's tokens in a row."""


@pytest.mark.parametrize("max_rows", [64, 128])
def test_padding_is_under_five_per_cent_at_saturation(max_rows: int) -> None:
    draw, config = random.Random(0), BatchConfig(max_batch_rows=max_rows)

    def fresh() -> Bundle:
        mean, deviation = GLUE_LIKE[draw.choice(list(GLUE_LIKE))]
        shape = (mean / deviation) ** 2
        return bundles_of([row(max(4, round(draw.gammavariate(shape, mean / shape))), salt=str(draw.random()))])[0]

    waiting = [fresh() for _ in range(window_size(config))]
    padding = tokens = 0
    for _ in range(80):
        batch = choose(waiting[: window_size(config)], config)
        more = waste(batch)
        padding, tokens = padding + more[0], tokens + more[1]
        taken = set(batch)
        waiting = [waiter for waiter in waiting if waiter not in taken] + [fresh() for _ in batch]
    assert padding / tokens < 0.05
