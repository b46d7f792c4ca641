"""Bundles, the fair order in which they wait, and the choice of a batch among the next ones."""

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.scheduler.fair_queue import SCORES, TEXTS, RowQueue
from serving.scheduler.requests import Bundle
from tests.serving.scheduler.batch_kit import bundles_of, row

PLENTY = 10**6


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


def test_a_task_gains_no_credit_while_its_queue_is_empty() -> None:
    queue = RowQueue()
    add(queue, "busy", 200)
    served(queue, 100)
    add(queue, "late", 100)
    assert Counter(served(queue, 60)) == {"busy": 30, "late": 30}


def test_removed_rows_are_not_charged() -> None:
    queue = RowQueue()
    gone = add(queue, "unlucky", 50)
    add(queue, "other", 50)
    queue.remove(gone)
    add(queue, "unlucky", 50)
    assert Counter(served(queue, 40)) == {"unlucky": 20, "other": 20}


def test_tasks_with_an_empty_queue_are_deleted_once_their_tags_are_reached() -> None:
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
    assert (order._tasks, order._idle, order.ahead_of("steady", 10)) == ({}, [], 0)


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


def test_the_steps_of_a_running_text_are_charged_too() -> None:
    queue = RowQueue()
    add(queue, "writes", 100)
    add(queue, "other", 100)
    for _ in range(10):
        queue.orders[2].charge("writes", 10)
    assert served(queue, 10) == ["other"] * 10


def test_an_empty_queue_resets_all_tags() -> None:
    queue = RowQueue()
    queue.orders[2].charge("writes", 10**9)
    add(queue, "writes", 2)
    served(queue, 2)
    add(queue, "writes", 50)
    add(queue, "other", 50)
    assert Counter(served(queue, 40)) == {"writes": 20, "other": 20}


def test_texts_wait_in_a_separate_queue() -> None:
    queue = RowQueue()
    add(queue, "titles", 3, steps=4)
    add(queue, "sst2", 2)
    assert queue.orders[2].counts == [2, 3]
    assert served(queue, 2) == ["sst2"] * 2
    assert served(queue, 3, line=TEXTS) == ["titles"] * 3


def test_a_window_equals_taking_bundles_one_at_a_time() -> None:
    queue, same = RowQueue(), RowQueue()
    for filled in (queue, same):
        draw = random.Random(3)
        for n in range(60):
            add(filled, f"task{draw.randrange(5)}", 1, length=draw.randrange(1, 30), salt=str(n))
    window = [bundle.owner for _, _, bundle in queue.orders[2].window(SCORES, 60)]
    assert window == served(same, 60)


def test_the_rows_ahead_of_a_new_request_are_counted() -> None:
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
                    waiting = [waiter for waiter in waiting if waiter not in batch]
        assert len(queue) == len(waiting)
        assert (queue.rows, queue.tokens) == (sum(b.weight for b in waiting), sum(b.tokens for b in waiting))
        for order in queue.orders.values():
            for line in (SCORES, TEXTS):
                window = order.window(line, PLENTY)
                assert len(window) == order.counts[line]
                assert all(a[:2] <= b[:2] for a, b in pairwise(window))
