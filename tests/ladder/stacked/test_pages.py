"""Pages are given back whole, and nobody else's."""

import mmap
import sys

import pytest
import torch

from ladder.stacked.bank import give_back

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux alone")


@linux
@pytest.mark.parametrize("start", [0, 1, PAGE - 1, PAGE])
@pytest.mark.parametrize("size", [3 * PAGE, 3 * PAGE + 1, 5 * PAGE - 1])
def test_only_whole_pages_within(start: int, size: int) -> None:
    whole = torch.ones(16 * PAGE, dtype=torch.uint8)
    part = whole[start : start + size]
    given = give_back(part)
    assert given % PAGE == 0
    assert size - 2 * PAGE < given <= size
    assert int((part == 0).sum()) == given
    assert int((whole == 0).sum()) == given
    part.fill_(2)  # takes memory again
    assert int((whole == 2).sum()) == size


@pytest.mark.parametrize("size", [0, 1, PAGE - 1])
def test_less_than_a_page_stays(size: int) -> None:
    tensor = torch.ones(size, dtype=torch.uint8)
    assert give_back(tensor) == 0
    assert bool((tensor == 1).all())


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    tensor = torch.ones(4 * PAGE, dtype=torch.uint8)
    assert give_back(tensor) == 0
    assert bool((tensor == 1).all())
