"""How a request wants to be answered, beside its rows and tasks. Pure values."""

from dataclasses import dataclass, field

from serving.admission import Target
from serving.errors import InvalidInput
from serving.fair_order import PRIORITIES
from serving.overrides import Overrides

MAX_ROUTE_KEY = 1_000
"""Characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    deadline: float | None = None
    """time.monotonic() seconds."""
    generation: Overrides = field(default_factory=Overrides)
    """Settings for making texts, over the spec's."""
    priority: int = 0
    """1, the highest, to 4; 0 for the server's default."""
    tenant: str = ""
    """Requests of different ones share no cached activations."""
    route_key: str = ""
    """Where an alias's traffic is split, requests of one key get one version; "": at random."""
    target: Target | None = None
    """Who is to answer, where whoever asks has found it already."""

    def check(self) -> None:
        """Raises InvalidInput."""
        check_priority(self.priority)
        if (count := len(self.route_key)) > MAX_ROUTE_KEY:
            raise InvalidInput("route_key", f"has {count} characters, at most {MAX_ROUTE_KEY} are allowed; shorten it")


def check_priority(priority: int, where: str = "priority") -> None:
    """Raises InvalidInput, naming the field `where`."""
    if priority and priority not in PRIORITIES:
        rule = f"must be 1 (the highest) to {max(PRIORITIES)}, or 0 for the server's default"
        raise InvalidInput(where, f"{rule}; got {priority}")
