"""A clock in place of the module `time`: it moves when somebody sleeps, at once."""

from collections.abc import Callable


class FakeClock:
    """`slept` are the seconds of each sleep; `on_sleep` is called during each."""

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
