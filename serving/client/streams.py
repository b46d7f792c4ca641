"""A streamed text at the client: iterate over its pieces, or call `result` for the whole.

The server stops generating when the stream's `with` block ends, when `cancel` is called, or when the stream is dropped.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import grpc

from protos import sidecast_pb2 as pb
from serving.client.errors import CallCancelledError, SidecastError, UnreachableError, from_call
from serving.client.responses import read_generated, read_piece
from serving.client.results import GeneratedText, Piece


class _Stream:
    """Base class of both streams."""

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        self._target = target
        self._result: GeneratedText | None = None

    def cancel(self) -> None:
        """Cancel the call, here and on the server. No-op after its end."""
        self._call.cancel()

    def _read(self, response: Any) -> Piece | None:
        """The response's piece; None for the last response, which is the result."""
        if response.HasField("generated"):
            self._result = read_generated(response.generated)
            return None
        return read_piece(response)

    def _error(self, error: grpc.RpcError) -> SidecastError:
        return from_call(error, self._target)

    def _finished(self) -> GeneratedText:
        if self._result is None:
            raise UnreachableError(f"{self._target} ended the stream before the text was whole")
        return self._result


class TextStream(_Stream):
    """A streamed text of `Client.stream`. Iteration and `result` raise a SidecastError if the text fails."""

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while True:
            try:
                piece = self._read(next(self._call))
            except grpc.RpcError as error:
                raise self._error(error) from None
            if piece:
                return piece

    def result(self) -> GeneratedText:
        """Wait for the whole text and the version that made it. Pieces that were not read are dropped."""
        for _ in self:
            pass
        return self._finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncTextStream(_Stream):
    """A streamed text of `AsyncClient.stream`: as TextStream, with `async for`, `async with` and `await`."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        while True:
            try:
                response = await self._call.read()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._call.cancelled() or (task and task.cancelling()):
                    raise
                raise CallCancelledError("the stream was cancelled by its caller") from None
            except grpc.RpcError as error:
                raise self._error(error) from None
            if not isinstance(response, pb.GenerateResponse):  # gRPC's end-of-stream marker
                raise StopAsyncIteration
            if piece := self._read(response):
                return piece

    async def result(self) -> GeneratedText:
        """As `TextStream.result`."""
        async for _ in self:
            pass
        return self._finished()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
