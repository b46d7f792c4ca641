"""A clock that replaces the module `time`: a sleep advances it and takes no real time."""

from collections.abc import Callable


class FakeClock:
    """`slept` has the seconds of every sleep; `on_sleep` is called during a sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.on_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.on_sleep()
        self.now += seconds
        self.slept.append(seconds)
