"""A backend of torch.compile for tests: it needs no compiler."""

from collections.abc import Callable, Sequence
from typing import Any


class Counting:
    """A backend that runs the graph in torch and counts compilations and calls."""

    def __init__(self) -> None:
        self.compiled = self.calls = 0

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run
