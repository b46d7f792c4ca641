"""How many threads a step has: what other processes and loads leave. The times are made up."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from serving.engine import SpareCores, YieldingSteps
from serving.engine.spare_cores import LOOK_S, Usage, look_at_cores


class Machine:
    """Cores whose use is set by hand."""

    def __init__(self, cores: int) -> None:
        self.cores, self.everyone_s, self.own_s, self.now = cores, 100.0, 50.0, 1000.0

    def pass_time(self, seconds: float, others: float, own: float) -> None:
        """Let time pass with so many cores in use."""
        self.now += seconds
        self.own_s += own * seconds
        self.everyone_s += (own + others) * seconds

    def look(self) -> Usage:
        return Usage(self.everyone_s, self.own_s, self.cores, self.now)

    def spare(self, most: int) -> SpareCores:
        return SpareCores(most, self.look, lambda: self.now)


@pytest.mark.parametrize(
    ("cores", "most", "others", "own", "spare"),
    [
        (2, 2, 0.0, 2.0, 2),
        (2, 2, 0.4, 1.6, 2),  # a caller on the same machine
        (2, 2, 0.6, 1.4, 1),
        (2, 2, 2.0, 0.0, 1),
        (16, 8, 7.0, 8.0, 8),  # eight threads for sixteen hyperthreads
        (16, 8, 12.0, 4.0, 4),
        (16, 16, 1.0, 15.0, 15),
        (4, 4, -0.3, 4.0, 4),  # the two clocks tick apart
    ],
)
def test_others_cores_are_left_to_them(cores: int, most: int, others: float, own: float, spare: int) -> None:
    machine = Machine(cores)
    counted = machine.spare(most)
    machine.pass_time(1.0, others, own)
    assert counted.count() == spare


def test_the_count_follows_neighbours_that_come_and_go() -> None:
    machine = Machine(2)
    spare = machine.spare(2)
    assert spare.count() == 2
    machine.pass_time(LOOK_S / 2, others=2, own=0)
    assert spare.count() == 2  # not looked at yet
    machine.pass_time(LOOK_S / 2, others=2, own=0)
    assert spare.count() == 1
    machine.pass_time(LOOK_S, others=0, own=1)
    assert spare.count() == 2


class Recorder:
    """Steps that note how many threads they have."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def step(self, rows: Sequence[Any], cancelled: Sequence[Any], deliver: Any) -> bool:
        self.threads.append(torch.get_num_threads())
        return bool(rows)


@pytest.fixture
def usual_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    yield
    torch.set_num_threads(usual)


def test_a_step_has_as_many_threads_as_there_are_spare_cores(usual_threads: None) -> None:
    machine, recorder, aside = Machine(4), Recorder(), 0
    steps = YieldingSteps(recorder, machine.spare(4), lambda: aside)
    assert steps.step([1], [], print)
    machine.pass_time(1.0, others=1, own=3)
    assert not steps.step([], [], print)
    aside = 1
    steps.step([], [], print)
    aside = 5
    steps.step([], [], print)
    aside = 0
    machine.pass_time(1.0, others=0, own=1)
    steps.step([], [], print)
    assert recorder.threads == [4, 3, 2, 1, 4]


def test_own_work_is_not_others() -> None:
    before = look_at_cores()
    until = before.own_s + 0.3
    while look_at_cores().own_s < until:
        sum(range(100_000))
    after = look_at_cores()
    assert after.at > before.at
    assert after.cores >= 1
    assert after.everyone_s - before.everyone_s >= 0.2  # the kernel counts in hundredths of a second
