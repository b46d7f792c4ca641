"""The cache of rows that come and go: each row sees its own tokens and memory, and it holds no more than it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder.backbone.kv_cache import FEWEST_COLUMNS, FEWEST_SLOTS, STEP, StaticCache

BLOCKS, HEADS, WIDTH = 2, 3, 2
NUMBER = torch.float32.itemsize


class Watched:
    """A cache, and beside it a list of each row's tokens and memory."""

    def __init__(self) -> None:
        self.cache = StaticCache(BLOCKS)
        self.rows: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        self.most_rows = self.most_tokens = self.most_memory = 0

    def admit(self, lengths: list[int]) -> None:
        memory = torch.randn(BLOCKS, 2, len(lengths), HEADS, max(lengths) + 1, WIDTH)
        mask = torch.arange(max(lengths) + 1) < torch.tensor(lengths)[:, None]
        self.cache.admit([(keys, values) for keys, values in memory], mask)
        self.rows += [(memory[:, :, row, :, :length], []) for row, length in enumerate(lengths)]
        self.most_rows = max(self.most_rows, len(self.rows))
        self.most_memory = max(self.most_memory, *lengths)

    def drop(self, gone: set[int]) -> None:
        for row in gone:  # what a broken side network leaves must harm nobody
            for entry in (*self.cache.own, *self.cache.cross):
                if entry.keys is not None and entry.values is not None:
                    entry.keys[row] = entry.values[row] = float("nan")
        self.rows = [self.rows[row] for row in self.cache.drop(gone)]

    def step(self) -> None:
        cache = self.cache
        if not self.rows:
            return
        cache.open()
        new = torch.randn(BLOCKS, 2, len(self.rows), HEADS, 1, WIDTH)
        shown = [entry.extend(*pair) for entry, pair in zip(cache.own, new, strict=True)]
        cache.length += 1
        cache.close()
        for row, (memory, tokens) in enumerate(self.rows):
            tokens.append(new[:, :, row])
            own = torch.stack([torch.stack(pair)[:, row] for pair in shown])
            valid = torch.ones(cache.length, dtype=torch.bool) if cache.valid is None else cache.valid[row]
            assert torch.equal(own[:, :, :, valid], torch.cat(tokens, 3))
            pairs = [each for entry in cache.cross for each in (entry.keys, entry.values) if each is not None]
            cross = torch.stack([each[row] for each in pairs])
            assert torch.equal(cross[:, :, cache.memory_mask[row]], memory.flatten(0, 1))
            assert own.isfinite().all()
            assert cross.isfinite().all()
            self.most_tokens = max(self.most_tokens, len(tokens))
        assert cache.length == max(len(tokens) for _, tokens in self.rows)

    @property
    def bound(self) -> int:
        """Most bytes that it may hold."""
        slots = max(2 * self.most_rows - 1, FEWEST_SLOTS)
        columns = max(4 * self.most_tokens - 1, FEWEST_COLUMNS) + self.most_memory + STEP - 1
        return 2 * BLOCKS * slots * HEADS * columns * WIDTH * NUMBER


MOVES = st.one_of(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),  # memory of rows that join
    st.sets(st.integers(0, 7), min_size=1, max_size=4),  # rows that leave
    st.integers(1, 30),  # steps
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(MOVES, max_size=12))
def test_every_row_sees_its_own_tokens_and_memory(moves):
    watched = Watched()
    for move in moves:
        if isinstance(move, list):
            watched.admit(move)
        elif isinstance(move, set):
            watched.drop({row for row in move if row < len(watched.rows)})
        else:
            for _ in range(move):
                watched.step()
        assert watched.cache.rows == len(watched.rows)
        assert watched.cache.bytes <= watched.bound


def test_an_empty_cache_holds_nothing():
    watched = Watched()
    watched.admit([3, 2])
    watched.step()
    assert watched.cache.bytes > 0
    watched.drop({0, 1})
    assert watched.cache.bytes == 0
    assert watched.cache.length == 0


def test_columns_of_rows_that_left_are_used_again():
    watched = Watched()
    watched.admit([1, 1])
    for turn in range(200):
        watched.step()
        if turn % 5 == 4:
            watched.drop({0})
            watched.admit([1 + turn % 3])
    assert watched.most_tokens <= 10
    assert watched.cache.bytes <= watched.bound
    assert watched.cache.length <= 10


def test_a_step_that_was_not_closed_is_written_over():
    watched = Watched()
    watched.admit([2])
    watched.step()
    watched.admit([1])
    watched.cache.open()
    for entry in watched.cache.own:
        entry.extend(*torch.full((2, 2, HEADS, 1, WIDTH), 9.0))
    watched.cache.length += 1
    watched.drop({0})
    watched.admit([3])
    watched.step()


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_can_be_tried_alone(row):
    watched = Watched()
    watched.admit([2])
    watched.step()
    watched.admit([1])
    watched.step()
    watched.cache.open()
    alone = watched.cache.alone(row)
    expected = torch.cat(watched.rows[row][1], 3)
    assert alone.length == expected.shape[3]
    new = torch.zeros(1, HEADS, 1, WIDTH)
    for block, entry in enumerate(alone.own):
        keys, _ = entry.extend(new, new)
        assert torch.equal(keys[0, :, :-1], expected[block, 0])
    watched.step()
