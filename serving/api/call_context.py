"""What is read of a call, whatever it came by."""

from collections.abc import Iterable
from typing import Protocol


class CallContext(Protocol):
    """What the servicers read of a call's context: gRPC's, Ray's or that of an HTTP request."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The caller's metadata, or the headers of its HTTP request; names are in lower case."""
        ...
