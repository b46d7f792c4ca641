"""One HTTP request: its id, headers, deadline and body, as the servicers and the operations read them."""

import asyncio
import contextlib
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serving.errors import DeadlineExpired, InvalidInput
from serving.http.errors import BodyTooLarge, BodyTooSlow

Message = Any
Receive = Callable[[], Awaitable[Message]]
"""ASGI's: the request's next event."""

REQUEST_ID = "x-request-id"
TIMEOUT = "x-request-timeout"
"""Header with the seconds that the caller waits."""
MAX_TIMEOUT_S = 1e9
GOOD_ID = re.compile(r"[!-~]{1,128}")
BODY_GAP_S = 10.0
"""Longest pause of a caller between two parts of its body, in seconds."""


class CallerGone(Exception):
    """The caller closed its connection: nobody reads the response."""


class HttpCall:
    """The context of one request for the servicers, as gRPC's is for a call.

    Args:
        scope: ASGI's.
    """

    def __init__(self, scope: Message) -> None:
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        """By name in lower case; of a header that came twice, the last."""
        self._client: tuple[str, int] | None = scope.get("client")
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        given = self.headers.get(REQUEST_ID, "")
        self.request_id = given if GOOD_ID.fullmatch(given) else secrets.token_hex(8)
        """The caller's, or a new one where it sent none or a bad one."""
        self.parameters: dict[str, str] = {}
        """What the path names, such as the task."""
        self.attachment = b""
        """What follows the JSON of the body: binary tensors of the Open Inference Protocol."""
        self.admitted = False
        """It has reached a servicer, which counts it."""
        self._deadline: float | None = None
        self._timeout: asyncio.Timeout | None = None

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def peer(self) -> str:
        """The caller's address, without its port."""
        return self._client[0] if self._client else ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """The request's headers."""
        return list(self.headers.items())

    def limit(self, seconds: float | None) -> None:
        """End the call after so many seconds at the latest. None: no further limit."""
        if seconds is None:
            return
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        if self._timeout is not None:
            self._timeout.reschedule(self._deadline)  # an event loop's clock is time.monotonic

    def limit_by_header(self) -> None:
        """End the call after the time that its header says. Raises InvalidInput."""
        text = self.headers.get(TIMEOUT)
        if text is None:
            return
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_TIMEOUT_S:
            raise InvalidInput("X-Request-Timeout", f"must be seconds above 0, got {text[:80]!r}")
        self.limit(seconds)

    @contextlib.asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """A block that ends when the deadline passes or the caller goes away. The body must have been read.

        Raises:
            DeadlineExpired, CallerGone.
        """
        running = asyncio.current_task()
        assert running is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            running.cancel()

        watching = asyncio.create_task(watch())
        try:
            async with asyncio.timeout_at(self._deadline) as self._timeout:
                yield
        except TimeoutError:
            raise DeadlineExpired() from None
        except asyncio.CancelledError:
            if gone and not running.uncancel():
                raise CallerGone() from None
            raise
        finally:
            watching.cancel()
            self._timeout = None


async def read_body(receive: Receive, limit: int, content_length: str | None) -> bytes:
    """The body of a request.

    Raises:
        BodyTooLarge: it has more bytes than `limit`, or will have. It is not read to its end.
        BodyTooSlow, CallerGone.
    """
    if content_length and content_length.isdecimal() and int(content_length[:20]) > limit:
        raise BodyTooLarge(limit)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        try:
            async with asyncio.timeout(BODY_GAP_S):
                event = await receive()
        except TimeoutError:
            raise BodyTooSlow(BODY_GAP_S) from None
        if event["type"] == "http.disconnect":
            raise CallerGone()
        part = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLarge(limit)
        parts.append(part)
        more = event.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
