"""Takes requests in: bounds the bytes in flight, and makes messages of bytes without stopping other calls.

gRPC bounds the size of one message, decompressed; nothing but this bounds all of them together. Knows no services.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from serving.api.status import code_of
from serving.api.wire import PAUSE_VALUES, check_values, has_at_most
from serving.errors import InvalidInput, ServingError, TooManyBytes
from serving.metrics import Metrics

Request = TypeVar("Request", bound=Message)

SMALL_BYTES = 4096
"""Requests up to this size are always accepted, such as health checks."""
INLINE_BYTES = 2**16
"""Messages up to this size are decoded on the event loop, in about a millisecond at most."""
COUNTED_BYTES = 2**18
"""In larger messages the values are counted before they are decoded; first up to PAUSE_VALUES on the event loop, which
is enough for images."""
RETRY_S = 1.0
"""When a caller may try again who found too many bytes in flight."""


class Inbox:
    """Counts the bytes of requests in flight, and decodes requests. Use it on one event loop.

    Args:
        limit: most bytes in flight, as sent but decompressed; None: any number. A request that finds none in flight is
            accepted however large.
    """

    def __init__(self, limit: int | None = None, metrics: Metrics | None = None) -> None:
        self.bytes = 0
        """In flight."""
        self._limit = limit
        self._metrics = metrics or Metrics()
        self._metrics.in_flight_bytes.set_function(lambda: self.bytes)
        self._left = asyncio.Event()
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._counter = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        """For messages of many values, which are counted first: that takes up to two seconds, and smaller ones and
        images do not wait."""

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count a request of so many bytes as in flight within the block.

        Raises:
            TooManyBytes: they are more than the limit leaves.
        """
        if self._limit is not None and not self._has_room(size):
            self._metrics.shed("bytes")
            raise TooManyBytes(self.bytes, self._limit, RETRY_S)
        self.bytes += size
        try:
            yield
        finally:
            self.give_back(size)

    def give_back(self, size: int) -> None:
        """Count so many bytes as no longer in flight."""
        self.bytes -= size
        self._left.set()

    async def decode(self, data: bytes, kind: type[Request]) -> Request:
        """The message in these bytes. A large one is decoded on a thread.

        Raises:
            InvalidInput: they are no such message, or it has too many values.
        """
        if len(data) <= INLINE_BYTES:
            return _decoded(data, kind)
        loop = asyncio.get_running_loop()
        if len(data) <= COUNTED_BYTES or has_at_most(data, kind.DESCRIPTOR, PAUSE_VALUES):
            return await loop.run_in_executor(self._decoder, _decoded, data, kind)
        return await loop.run_in_executor(self._counter, _counted, data, kind)

    def count_refusal(self, error: ServingError) -> None:
        """Count a request that was refused before its task was known."""
        self._metrics.request(None, None, code_of(error).name)

    def close(self) -> None:
        """End the threads that decode, once they are idle."""
        self._decoder.shutdown(wait=False)
        self._counter.shutdown(wait=False)

    def _has_room(self, size: int) -> bool:
        return self._limit is None or size <= SMALL_BYTES or not self.bytes or self.bytes + size <= self._limit

    async def wait(self, size: int) -> None:
        """Wait until there is room for so many bytes, and count them as in flight."""
        while not self._has_room(size):
            self._left.clear()
            await self._left.wait()
        self.bytes += size


class Messages(AsyncIterator[Request]):
    """The messages of a stream. Each counts as in flight until the next one is asked for, or until it is given back.

    A message that finds too many bytes in flight waits: the stream is not read on meanwhile.

    Args:
        chunks: the bytes of each message.
        check: raises where the caller may not send a message.
    """

    def __init__(
        self,
        inbox: Inbox,
        chunks: AsyncIterator[bytes],
        kind: type[Request],
        check: Callable[[Request], Awaitable[None]] | None = None,
    ) -> None:
        self._check = check
        self._inbox = inbox
        self._chunks = aiter(chunks)
        self._kind = kind
        self._held = 0

    async def __anext__(self) -> Request:
        """The next message. Raises InvalidInput, and what `check` raises."""
        self._inbox.give_back(self.take_bytes())
        data = await anext(self._chunks)
        await self._inbox.wait(len(data))
        self._held = len(data)
        message = await self._inbox.decode(data, self._kind)
        if self._check:
            await self._check(message)
        return message

    def take_bytes(self) -> int:
        """Bytes of the message that came last. They count as in flight until the caller gives them back."""
        held = self._held
        self._held = 0
        return held

    def give_back(self, size: int) -> None:
        """Give back what `take_bytes` took."""
        self._inbox.give_back(size)

    async def aclose(self) -> None:
        """Give back what the last message has, and read no more."""
        self._inbox.give_back(self.take_bytes())
        close = getattr(self._chunks, "aclose", None)
        if close is not None:  # gRPC's reader and its generator are a cycle, which holds the last message
            with contextlib.suppress(RuntimeError):
                await close()


def _counted(data: bytes, kind: type[Request]) -> Request:
    check_values(data, kind.DESCRIPTOR)
    return _decoded(data, kind)


def _decoded(data: bytes, kind: type[Request]) -> Request:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        fault = f"is not the message of this method, or a string in it is not UTF-8 ({error})"
    raise InvalidInput("request", fault)
