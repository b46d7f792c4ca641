"""Bundles, the fair order in which they wait, and the choice of a batch among the next ones."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import BatchConfig
from serving.scheduler.fair_queue import SCORES, TEXTS, RowQueue
from serving.scheduler.requests import Bundle
from serving.scheduler.selection import choose, window_size
from tests.serving.scheduler.batch_kit import FakeRow, bundles_of, row

PLENTY = 10**6


def waste(batch: list[Bundle]) -> tuple[int, int]:
    """Tokens of padding, and all tokens."""
    lengths = list({bundle.input: bundle.tokens for bundle in batch}.values())
    return len(lengths) * max(lengths) - sum(lengths), len(lengths) * max(lengths)


def fits(batch: list[Bundle], config: BatchConfig) -> bool:
    return sum(each.weight for each in batch) <= config.max_batch_rows and waste(batch)[1] <= config.max_batch_tokens


# --- bundles


def test_rows_of_the_same_tokens_are_a_bundle_and_rows_that_stand_alone_are_not() -> None:
    rows = [row(3, alone=True), row(3, alone=True), row(3), row(3), row(3, salt="other")]
    assert [bundle.places for bundle in bundles_of(rows)] == [[0], [1], [2, 3], [4]]


def test_a_bundle_costs_its_tasks_their_share_of_one_backbone_row() -> None:
    [bundle] = bundles_of([row(12, task="a"), row(12, task="b"), row(12, task="b")])
    assert bundle.shares == pytest.approx({"a": 4, "b": 8})


# --- the choice


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
    assert {bundle.places[0] for bundle in choose(window, BatchConfig(max_batch_rows=3))} == {0, 1, 2}


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
    window = [bundle for each in rows for bundle in bundles_of([each])]
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
    window = [bundle for n, each in enumerate(rows) for bundle in bundles_of([replace(each, salt=str(n))])]

    def worth(batch: list[Bundle]) -> float:
        padding, tokens = waste(batch)
        return (tokens - padding) / (tokens - padding + padded * padding + cost)

    by_length = sorted(window, key=lambda each: each.tokens)
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
        waiting = [each for each in waiting if each not in taken] + [fresh() for _ in batch]
    assert padding / tokens < 0.05


# --- the order


def served(queue: RowQueue, count: int, priority: int = 2, line: int = SCORES) -> list[str]:
    """Tasks of the next bundles, one served after the other."""
    found = []
    for _ in range(count):
        [(_, _, bundle)] = queue.orders[priority].window(line, 1)
        queue.serve([bundle])
        found.append(bundle.owner)
    return found


def add(queue: RowQueue, task: str, count: int, length: int = 10, **changes: object) -> list[Bundle]:
    bundles = bundles_of([row(length, n, task, **changes) for n in range(count)])
    queue.add(bundles)
    return bundles


def test_one_tasks_rows_keep_their_order() -> None:
    queue = RowQueue()
    bundles = add(queue, "sst2", 20)
    assert [bundle for _, _, bundle in queue.orders[2].window(SCORES, 20)] == bundles


def test_tasks_take_turns_whatever_one_of_them_queues() -> None:
    queue = RowQueue()
    add(queue, "hot", 100)
    assert served(queue, 5) == ["hot"] * 5
    add(queue, "light", 3)
    assert sorted(served(queue, 6)) == ["hot"] * 3 + ["light"] * 3


def test_turns_are_weighted_by_tokens() -> None:
    queue = RowQueue()
    add(queue, "long", 100, length=30)
    add(queue, "short", 100, length=10)
    assert Counter(served(queue, 80)) == {"long": 20, "short": 60}


def test_a_task_gets_nothing_for_the_time_it_did_not_wait() -> None:
    queue = RowQueue()
    add(queue, "busy", 200)
    served(queue, 100)
    add(queue, "late", 100)
    assert Counter(served(queue, 60)) == {"busy": 30, "late": 30}


def test_rows_that_leave_unserved_cost_nothing() -> None:
    queue = RowQueue()
    gone = add(queue, "unlucky", 50)
    add(queue, "other", 50)
    queue.remove(gone)
    add(queue, "unlucky", 50)
    assert Counter(served(queue, 40)) == {"unlucky": 20, "other": 20}


def test_tasks_that_have_nothing_waiting_are_forgotten_once_they_owe_nothing() -> None:
    queue = RowQueue()
    order = queue.orders[2]
    add(queue, "steady", 10**4)
    for n in range(500):
        gone = add(queue, f"visitor {n}", 1)
        if n % 5 == 0:
            queue.remove(gone)
        served(queue, 2)
    assert len(order._tasks) < 10
    assert list(order._scoring) == ["steady"]
    order.charge("in debt", 10**6)
    served(queue, 50)
    assert "in debt" in order._tasks
    queue.remove(list(order._tasks["steady"].lines[SCORES].values()))
    assert (order._tasks, order._resting, order.ahead_of("steady", 10)) == ({}, [], 0)


def test_texts_ahead_are_those_of_higher_priorities_and_as_many_of_each_other_task() -> None:
    queue = RowQueue()
    assert queue.texts_ahead_of(2, "own", 1) == 0
    add(queue, "hot", 50, steps=3)
    add(queue, "own", 2, steps=3, weight=4)
    add(queue, "scores", 9)
    assert queue.texts_ahead_of(2, "own", 2) == 8 + 10
    assert queue.texts_ahead_of(2, "new", 1) == 1 + 1
    assert queue.texts_ahead_of(2, "hot", 1) == 50 + 8
    assert queue.texts_ahead_of(3, "new", 1) == 50 + 8
    served(queue, 5, line=TEXTS)
    assert queue.orders[2].texts == sum(bundle.running for _, _, bundle in queue.orders[2].window(TEXTS, PLENTY))


def test_a_bundle_waits_with_the_busiest_of_its_tasks_and_each_pays_its_share() -> None:
    queue = RowQueue()
    add(queue, "hot", 10)
    add(queue, "calm", 10)
    served(queue, 8)
    queue.orders[2].charge("hot", 30)
    [both] = bundles_of([row(20, 99, "calm"), row(20, 99, "hot")])
    queue.add([both])
    assert both.owner == "hot"
    assert served(queue, 3) == ["calm"] * 3
    assert "hot" in served(queue, 3)


def test_what_a_text_costs_while_it_is_made_is_charged_too() -> None:
    queue = RowQueue()
    add(queue, "writes", 100)
    add(queue, "other", 100)
    for _ in range(10):
        queue.orders[2].charge("writes", 10)
    assert served(queue, 10) == ["other"] * 10


def test_nobody_owes_anything_when_nothing_waits() -> None:
    queue = RowQueue()
    queue.orders[2].charge("writes", 10**9)
    add(queue, "writes", 2)
    served(queue, 2)
    add(queue, "writes", 50)
    add(queue, "other", 50)
    assert Counter(served(queue, 40)) == {"writes": 20, "other": 20}


def test_texts_wait_in_lines_of_their_own() -> None:
    queue = RowQueue()
    add(queue, "titles", 3, steps=4)
    add(queue, "sst2", 2)
    assert queue.orders[2].counts == [2, 3]
    assert served(queue, 2) == ["sst2"] * 2
    assert served(queue, 3, line=TEXTS) == ["titles"] * 3


def test_a_window_is_what_one_at_a_time_would_be() -> None:
    queue, again = RowQueue(), RowQueue()
    for each in (queue, again):
        draw = random.Random(3)
        for n in range(60):
            add(each, f"task{draw.randrange(5)}", 1, length=draw.randrange(1, 30), salt=str(n))
    window = [bundle.owner for _, _, bundle in queue.orders[2].window(SCORES, 60)]
    assert window == served(again, 60)


def test_how_much_is_ahead_of_a_newcomer() -> None:
    queue = RowQueue()
    assert queue.ahead_of(2, "light", 10) == 0
    add(queue, "hot", 100)
    assert queue.ahead_of(2, "hot", 10) == 1000
    assert queue.ahead_of(2, "light", 10) <= 20
    assert queue.ahead_of(3, "light", 10) == 1000
    assert queue.ahead_of(1, "light", 10) == 0


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(1, 3), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("serve"), st.integers(1, 4)),
        st.tuples(st.just("charge"), st.sampled_from("abc"), st.integers(1, 20)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(operations)
def test_counts_are_right_after_whatever_happened_and_tags_never_fall(steps: list[tuple]) -> None:
    queue, waiting = RowQueue(), []
    for what, *how in steps:
        if what == "add":
            task, count, priority, writes = how
            bundles = bundles_of([row(n + 2, n, task, steps=int(writes)) for n in range(count)], priority)
            queue.add(bundles)
            waiting += bundles
        elif what == "remove" and waiting:
            gone = waiting[how[0] % len(waiting)]
            assert queue.remove([gone, gone]) == [gone]
            waiting.remove(gone)
        elif what == "charge":
            queue.orders[2].charge(*how)
        elif what == "serve":
            for order in queue.orders.values():
                batch = [bundle for line in (SCORES, TEXTS) for _, _, bundle in order.window(line, how[0])]
                if batch:
                    queue.serve(batch)
                    waiting = [each for each in waiting if each not in batch]
        assert len(queue) == len(waiting)
        assert (queue.rows, queue.tokens) == (sum(b.weight for b in waiting), sum(b.tokens for b in waiting))
        for order in queue.orders.values():
            for line in (SCORES, TEXTS):
                window = order.window(line, PLENTY)
                assert len(window) == order.counts[line]
                assert all(a[:2] <= b[:2] for a, b in pairwise(window))
