"""The activation cache: bounded in bytes, right in what it says, and kind to what is asked again."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ladder.backbone.model import Taps
from serving.engine.activation_cache import KEPT_SHARE, ActivationCache, Key, KnownPass
from serving.metrics import Metrics

WIDTH, BLOCKS = 4, 3
ROW_BYTES = WIDTH * 4
"""Of one token in one layer."""


def value_of(key: Key, layer: int) -> float:
    return float(hash((key, layer)) % 1009)


def passed(keys: Sequence[Key], depth: int | None = None) -> Taps:
    """A backbone pass whose numbers tell whose they are; 77 is padding."""
    longest = max(len(ids) for _, ids in keys)

    def layer(number: int) -> torch.Tensor:
        made = torch.full((len(keys), longest, WIDTH), 77.0)
        for row, key in enumerate(keys):
            made[row, : len(key[1])] = value_of(key, number)
        return made

    blocks = tuple(layer(number + 1) for number in range(BLOCKS if depth is None else depth))
    mask = torch.tensor([[column < len(ids) for column in range(longest)] for _, ids in keys])
    final = layer(99) if len(blocks) == BLOCKS else None
    return Taps(embeddings=layer(0), blocks=blocks, mask=mask, final=final)


def first_step_of(keys: Sequence[Key]) -> Taps:
    """A first decoder step."""
    layers = [torch.tensor([[[value_of(key, number)] * WIDTH] for key in keys]) for number in (100, 101, 102)]
    return Taps(
        embeddings=layers[0], blocks=(layers[1],), mask=torch.ones(len(keys), 1, dtype=torch.bool), final=layers[2]
    )


def keys_of(*numbers: int, salt: str = "") -> list[Key]:
    return [(salt, tuple(range(number, number + 2))) for number in numbers]


def size_of(tokens: int, layers: int = BLOCKS + 2) -> int:
    return tokens * layers * ROW_BYTES


@pytest.fixture
def cache() -> ActivationCache:
    return ActivationCache(1_000_000)


def test_cached_activations_have_no_padding(cache: ActivationCache) -> None:
    keys: list[Key] = [("", (5, 1)), ("", (5, 6, 7, 1))]
    cache.keep(keys, passed(keys))
    for _ in range(2):  # from the pass, and then on its own
        for key, known in zip(keys, cache.find(keys, None), strict=True):
            assert known is not None
            assert known.layers.shape == (BLOCKS + 2, len(key[1]), WIDTH)
            assert known.layers[1].unique().tolist() == [value_of(key, 1)]
            assert known.layers[-1].unique().tolist() == [value_of(key, 99)]


def test_tenants_share_no_cache_entries(cache: ActivationCache) -> None:
    cache.keep(keys_of(1, salt="one"), passed(keys_of(1, salt="one")))
    assert cache.find(keys_of(1, salt="two") + keys_of(1), None) == [None, None]


def test_a_pass_that_stopped_early_is_a_hit_for_requests_of_that_depth(cache: ActivationCache) -> None:
    cache.keep(keys_of(1), passed(keys_of(1), depth=2))
    assert cache.find(keys_of(1), 3) == [None]
    assert cache.find(keys_of(1), None) == [None]
    [known] = cache.find(keys_of(1), 1)
    assert known
    assert not known.whole
    assert cache.find(keys_of(1), None) == [None]
    cache.keep(keys_of(1), passed(keys_of(1)))
    [deeper] = cache.find(keys_of(1), None)
    assert deeper
    assert deeper.whole
    assert len(cache) == 1


def test_a_new_pass_is_not_copied_and_a_cached_copy_outlives_it(cache: ActivationCache) -> None:
    keys = keys_of(1, 5)
    taps = passed(keys)
    cache.keep(keys, taps)
    taps.embeddings[0] = 42
    [known] = cache.find(keys[:1], None)
    assert known
    assert known.layers[0].unique().tolist() == [42]
    taps.embeddings[0] = 43
    [again] = cache.find(keys[:1], None)
    assert again is known
    assert known.layers[0].unique().tolist() == [42]


def test_inputs_that_come_again_together_are_read_as_their_pass(cache: ActivationCache) -> None:
    keys = keys_of(1, 2, 3)
    taps = passed(keys)
    cache.keep(keys, taps)
    [(indices, known)] = cache.find_passes(keys_of(3, 1, 2), None)
    assert indices == [1, 2, 0]
    assert known.layers[0] is taps.embeddings
    assert cache.find_passes(keys_of(1, 2), None) == []  # not all of it
    assert cache.find_passes(keys_of(1, 2, 3, 4), None) == []  # one that is not known
    assert cache.find_passes(keys_of(1, 2, 3, salt="other"), None) == []
    cache.find(keys_of(2), None)
    assert cache.find_passes(keys, None) == []  # one has left it


def test_a_pass_of_one_input_is_copied_instead(cache: ActivationCache) -> None:
    cache.keep(keys_of(1), passed(keys_of(1)))
    assert cache.find_passes(keys_of(1), None) == []


def test_small_passes_are_not_read_one_by_one(cache: ActivationCache) -> None:
    for numbers in ((1, 2), (3, 4), range(10, 19), range(20, 29)):
        cache.keep(keys_of(*numbers), passed(keys_of(*numbers)))
    assert cache.find_passes(keys_of(1, 2, 3, 4), None) == []
    large = cache.find_passes(keys_of(*range(20, 29), *range(10, 19)), None)
    assert [indices for indices, _ in large] == [[*range(9)], [*range(9, 18)]]


def test_a_pass_that_stopped_early_is_not_read_again_for_deeper_blocks(cache: ActivationCache) -> None:
    cache.keep(keys_of(1, 2), passed(keys_of(1, 2), depth=1))
    assert cache.find_passes(keys_of(1, 2), None) == []
    assert len(cache.find_passes(keys_of(1, 2), 1)) == 1


def test_a_pass_that_is_used_again_is_the_newest() -> None:
    cache = ActivationCache(size_of(2) * 6)
    for numbers in ((1, 2), (3, 4), (5, 6)):
        cache.keep(keys_of(*numbers), passed(keys_of(*numbers)))
    [(_, known)] = cache.find_passes(keys_of(1, 2), None)
    cache.use([known])
    cache.keep(keys_of(7, 8), passed(keys_of(7, 8)))
    assert len(cache.find_passes(keys_of(1, 2), None)) == 1
    assert cache.find_passes(keys_of(3, 4), None) == []


def test_inputs_asked_once_do_not_evict_inputs_asked_again() -> None:
    cache = ActivationCache(size_of(2) * 10)
    cache.keep(keys_of(1), passed(keys_of(1)))
    cache.find(keys_of(1), None)
    for number in range(100, 200, 2):
        cache.keep(keys_of(number, number + 1), passed(keys_of(number, number + 1)))
    assert cache.find(keys_of(1), None) != [None]
    assert cache.find(keys_of(100), None) == [None]
    assert cache.find(keys_of(198), None) != [None]


def test_of_inputs_asked_again_the_least_recently_used_is_evicted() -> None:
    cache = ActivationCache(size_of(2) * 5)  # four of them may be kept
    for number in range(4):
        cache.keep(keys_of(number), passed(keys_of(number)))
        cache.find(keys_of(number), None)
    cache.find(keys_of(0), None)
    cache.keep(keys_of(9), passed(keys_of(9)))
    cache.find(keys_of(9), None)
    assert [known is not None for known in cache.find(keys_of(0, 1, 2, 3, 9), None)] == [True, False, True, True, True]


def test_of_a_pass_larger_than_the_cache_the_first_inputs_are_kept() -> None:
    cache = ActivationCache(size_of(2) * 3)
    keys = keys_of(*range(8))
    cache.keep(keys, passed(keys), first_step_of(keys[2:4]), keys[2:4])
    found = [known is not None for known in cache.find(keys, None)]
    assert found == [True] * 2 + [False] * 6
    assert cache.bytes <= cache.limit


def test_a_cache_of_zero_bytes_keeps_nothing() -> None:
    cache = ActivationCache(0)
    cache.keep(keys_of(1), passed(keys_of(1)))
    assert (len(cache), cache.bytes, cache.find(keys_of(1), None)) == (0, 0, [None])


def test_the_first_decoder_step_is_kept_with_its_input(cache: ActivationCache) -> None:
    keys = keys_of(1, 2, 3)
    cache.keep(keys, passed(keys), first_step_of(keys[1:]), keys[1:])
    without, *with_first_step = cache.find(keys, None)
    assert without
    assert without.first is None
    for key, known in zip(keys[1:], with_first_step, strict=True):
        assert known
        assert known.first is not None
        assert known.first[:, 0, 0].tolist() == [value_of(key, number) for number in (100, 101, 102)]
    before = cache.bytes
    cache.add_first(keys[0], torch.ones(3, 1, WIDTH))
    [without] = cache.find(keys[:1], None)
    assert without
    assert without.first is not None
    assert cache.bytes == before + 3 * ROW_BYTES


def test_a_view_counts_with_its_whole_storage() -> None:
    wide = torch.zeros(BLOCKS + 2, 8, 2, WIDTH)
    embeddings, *blocks, final = (layer[:1] for layer in wide)
    taps = Taps(embeddings=embeddings, blocks=tuple(blocks), mask=torch.ones(1, 2, dtype=torch.bool), final=final)
    cache = ActivationCache(1_000_000)
    cache.keep(keys_of(1), taps)
    assert cache.bytes == wide.numel() * 4
    cache.find(keys_of(1), None)
    assert cache.bytes == size_of(2)


def test_hits_misses_and_evictions_are_counted() -> None:
    metrics = Metrics()
    cache = ActivationCache(size_of(2) * 2, metrics)

    def read(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"sidecast_cache_{name}", labels)

    for number in (1, 2, 1, 3, 4):
        if cache.find(keys_of(number), None) == [None]:
            cache.keep(keys_of(number), passed(keys_of(number)))
    assert (read("hits_total"), read("misses_total")) == (1, 4)
    assert read("evictions_total", cause="fresh") == 2
    assert (read("entries"), read("bytes")) == (2, 2 * size_of(2))
    cache.clear()
    assert read("evictions_total", cause="memory") == 2
    assert (read("entries"), read("bytes")) == (0, 0)


class CacheMachine(RuleBasedStateMachine):
    """Against what was ever put in: a hit says what was put in last and deep enough, and the bytes are bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ActivationCache(size_of(2) * 12)
        self.deepest: dict[Key, int] = {}
        self.with_first_step: set[Key] = set()

    @rule(
        numbers=st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True),
        depth=st.sampled_from([1, 2, None]),
        first_step=st.booleans(),
    )
    def ask(self, numbers: list[int], depth: int | None, first_step: bool) -> None:
        """As the engine does: what is not there comes from a pass and is kept."""
        keys: list[Key] = [("", (*range(number % 4 + 1), number)) for number in numbers]
        if passes := self.cache.find_passes(keys, depth):
            self.cache.use([known for _, known in passes])
            self.check_passes(keys, passes, depth)
            return
        known = self.cache.find(keys, depth)
        for key, entry in zip(keys, known, strict=True):
            if entry is not None:
                self.check(key, entry, depth)
        missing = [key for key, entry in zip(keys, known, strict=True) if entry is None]
        first_keys = missing[::2] if first_step and depth is None else []
        if missing:
            first = first_step_of(first_keys) if first_keys else None
            self.cache.keep(missing, passed(missing, depth), first, first_keys)
            self.deepest |= dict.fromkeys(missing, BLOCKS if depth is None else depth)
            self.with_first_step |= set(first_keys)

    def check_passes(self, keys: list[Key], passes: list[tuple[list[int], KnownPass]], depth: int | None) -> None:
        assert sorted(index for indices, _ in passes for index in indices) == list(range(len(keys)))
        for indices, known in passes:
            assert len(known.layers) >= (BLOCKS + 2 if depth is None else depth + 1)
            for row, index in enumerate(indices):
                own = known.layers[1][row, : len(keys[index][1])]
                assert own.unique().tolist() == [value_of(keys[index], 1)]
            for row, index in enumerate(indices if known.first_step([keys[index] for index in indices]) else ()):
                assert keys[index] in self.with_first_step
                assert known.first[0][row].unique().tolist() == [value_of(keys[index], 100)]

    def check(self, key: Key, known: object, depth: int | None) -> None:
        assert self.deepest[key] >= (BLOCKS if depth is None else depth)
        layers = known.layers  # type: ignore[attr-defined]
        assert layers.shape[1] == len(key[1])
        assert len(layers) >= (BLOCKS + 2 if depth is None else depth + 1)
        assert layers[1].unique().tolist() == [value_of(key, 1)]
        first = known.first  # type: ignore[attr-defined]
        if first is not None:
            assert key in self.with_first_step
            assert first[0].unique().tolist() == [value_of(key, 100)]

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert (len(self.cache), self.cache.bytes) == (0, 0)

    @invariant()
    def bytes_are_bounded(self) -> None:
        assert 0 <= self.cache.kept_bytes <= KEPT_SHARE * self.cache.limit
        assert self.cache.bytes <= self.cache.limit


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestCacheMachineAtLength(CacheMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
