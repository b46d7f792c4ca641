"""Responses of operations: JSON documents, whose long lists are written while other calls go on, and event streams."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

PAUSE_VALUES = 2048
"""Values that are written before other calls go on, about a fifth of a millisecond."""
EVENT_STREAM = "text/event-stream"


def json_reply(document: Any, status: int = 200) -> Response:
    """A small document as a response."""
    return json_bytes(to_json(document), status)


def json_bytes(data: bytes, status: int = 200) -> Response:
    """JSON as a response."""
    return Response(data, status, media_type="application/json")


async def write_list(items: Iterable[Any], weight: int = 1) -> bytes:
    """A JSON list of items, each of about `weight` values."""
    pause = max(PAUSE_VALUES // weight, 1)
    parts = []
    for index, item in enumerate(items):
        if index % pause == pause - 1:
            await asyncio.sleep(0)
        parts.append(to_json(item))
    return b"[" + b",".join(parts) + b"]"


def with_member(document: Mapping[str, Any], name: str, value: bytes) -> bytes:
    """The JSON of a document with one more member, whose value is JSON already. The document has members."""
    return b'%s,"%s":%s}' % (to_json(document)[:-1], name.encode(), value)


def event(data: Any, name: str = "") -> bytes:
    """A server-sent event whose data is JSON."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%sdata: %s\n\n" % (head, to_json(data))


class EventStream:
    """Server-sent events as a response. `begin` makes one.

    Args:
        events: all but the first.
        failed: the event for an error after the first event.
    """

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes]) -> None:
        self._first = first
        self._events = events
        self._failed = failed
        self._begun = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events, as ASGI has it."""
        headers = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-cache")]
        async with aclosing(self._events) as events:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            try:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                await self.end(send, error)
            else:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def end(self, send: Any, error: Exception) -> None:
        """End the stream with an error. Raises it where the stream has not begun: then it is an ordinary one."""
        if not self._begun:
            raise error
        await send({"type": "http.response.body", "body": self._failed(error), "more_body": False})


async def begin(events: AsyncGenerator[bytes, None], failed: Callable[[Exception], bytes]) -> EventStream:
    """The response, once the first event is there: what fails before it is an ordinary error.

    Args:
        events: at least one.
        failed: makes the last event of a later error.
    """
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, failed)
