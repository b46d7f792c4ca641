"""The cache of features: bounded in bytes, by least recent use, against a model that is a plain list."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serving.engine import EncodedImage
from serving.images.feature_cache import ENTRY_BYTES, FeatureCache, bytes_of

LIMIT = 4 * ENTRY_BYTES + 1200
KEYS = st.tuples(st.sampled_from(["", "a"]), st.sampled_from(["x", "y", "z", "w"]))


def image(name: str, numbers: int) -> EncodedImage:
    return EncodedImage(name, torch.zeros(numbers, 1))


class CacheRules(RuleBasedStateMachine):
    """Keeps and looks up images of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = FeatureCache(LIMIT)
        self.model: list[tuple[tuple[str, str], EncodedImage]] = []
        """The least recently used first."""

    @rule(key=KEYS, numbers=st.sampled_from([1, 100, 200, 2000]))
    def keep(self, key: tuple[str, str], numbers: int) -> None:
        new = image(key[1], numbers)
        evicted = self.cache.keep(key, new)
        expected = 0
        if 4 * numbers + ENTRY_BYTES <= LIMIT:
            self.model = [entry for entry in self.model if entry[0] != key] + [(key, new)]
            while sum(bytes_of(kept) for _, kept in self.model) > LIMIT:
                self.model.pop(0)
                expected += 1
        assert evicted == expected

    @rule(key=KEYS)
    def find(self, key: tuple[str, str]) -> None:
        known = dict(self.model).get(key)
        assert self.cache.find(key) is known
        if known is not None:
            self.model = [entry for entry in self.model if entry[0] != key] + [(key, known)]

    @invariant()
    def counts_are_right(self) -> None:
        assert len(self.cache) == len(self.model)
        assert self.cache.bytes == sum(bytes_of(kept) for _, kept in self.model) <= LIMIT


TestCacheRules = CacheRules.TestCase
TestCacheRules.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = FeatureCache(0)
    assert cache.keep(("", "x"), image("x", 1)) == 0
    assert (len(cache), cache.find(("", "x"))) == (0, None)


def test_a_view_counts_all_the_memory_that_it_keeps() -> None:
    view = torch.zeros(10, 4)[:1]
    assert bytes_of(EncodedImage("x", view)) == 160 + ENTRY_BYTES
