"""`AsyncClient`: the same calls as `Client`, awaited."""

# ruff: noqa: ASYNC109 - a timeout here is gRPC's own deadline, which is sent to the server

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from serving.client import requests as calls
from serving.client.arguments import RERANK_ROWS, check_timeout, need_work, read_decoding, split_passages
from serving.client.channel import CONNECT_S, READY_POLL_S, Outcomes, Result, _Caller, make_stubs
from serving.client.errors import UnreachableError
from serving.client.requests import Call
from serving.client.responses import joined_rankings
from serving.client.results import (
    Commit,
    Event,
    Group,
    GroupChanged,
    Predictions,
    Promoted,
    Published,
    Ranking,
    Residents,
    Retired,
    Rolled,
    Row,
    TaskInfo,
)
from serving.client.routes import Awaited, Bounds, Comparisons, Route, Routed
from serving.client.streams import AsyncTextStream


class AsyncClient(_Caller):
    """A client that awaits. Belongs to the event loop of its first call. Pickling copies its settings."""

    def _connect(self) -> None:
        """Connect at the first call: the channel belongs to the event loop that runs then."""
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}

    async def predict(
        self,
        task: str,
        rows: Sequence[Row],
        *,
        version: int | None = None,
        alias: str | None = None,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> Predictions:
        """As `Client.predict`."""
        timeout = self._timeout(timeout)
        decoding = read_decoding(decoding, generation)
        how = (version, alias, timeout, decoding, priority, route_key)
        call = await _built(rows, partial(calls.predict, task, rows, *how))
        return await self._do(call, timeout)

    async def predict_tasks(
        self,
        tasks: Sequence[str],
        rows: Sequence[Row],
        *,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> Outcomes:
        """As `Client.predict_tasks`."""
        timeout = self._timeout(timeout)
        decoding = read_decoding(decoding, generation)
        call = await _built(rows, partial(calls.predict_tasks, tasks, rows, timeout, decoding, priority, route_key))
        return await self._do(call, timeout)

    async def predict_group(
        self,
        group: str,
        rows: Sequence[Row],
        *,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> Outcomes:
        """As `Client.predict_group`."""
        timeout = self._timeout(timeout)
        call = await _built(rows, partial(calls.predict_group, group, rows, timeout, decoding, priority, route_key))
        return await self._do(call, timeout)

    async def rerank(
        self,
        task: str,
        query: str,
        passages: Sequence[str],
        *,
        version: int | None = None,
        top: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> Ranking:
        """As `Client.rerank`."""
        timeout = self._timeout(timeout)
        parts: list[Ranking] = []
        for part in split_passages(passages):
            call = calls.rank(task, query, part, version, top or 0, timeout, priority, route_key)
            parts.append(await self._do(call, timeout))
            task, version = parts[0].task, parts[0].version
        return joined_rankings(parts, RERANK_ROWS, top or 0)

    def stream(
        self,
        task: str,
        row: Row,
        *,
        version: int | None = None,
        alias: str | None = None,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> AsyncTextStream:
        """As `Client.stream`: `async for piece in client.stream(...)`, `await stream.result()`.

        Image files are read before it returns, on the event loop; give bytes where that may take long.
        """
        timeout = self._timeout(timeout)
        decoding = read_decoding(decoding, generation)
        call = calls.stream(task, row, version, alias, timeout, decoding, priority, route_key)
        return AsyncTextStream(self._start(call, timeout), self._settings.target)

    async def tasks(self) -> list[TaskInfo]:
        """As `Client.tasks`."""
        return await self._do(calls.tasks(), self._settings.timeout)

    async def task(self, name: str) -> TaskInfo:
        """As `Client.task`."""
        return await self._do(calls.task(name), self._settings.timeout)

    async def history(self, task: str | None = None, *, limit: int = 0, group: str | None = None) -> list[Commit]:
        """As `Client.history`."""
        return await self._do(calls.history(task, limit, group), self._settings.timeout)

    async def residents(self, task: str | None = None) -> Residents:
        """As `Client.residents`."""
        return await self._do(calls.residents(task), self._settings.timeout)

    async def groups(self) -> list[Group]:
        """As `Client.groups`."""
        return await self._do(calls.groups(), self._settings.timeout)

    async def set_group(self, group: str, tasks: Sequence[str], *, message: str = "") -> GroupChanged:
        """As `Client.set_group`."""
        return await self._do(calls.set_group(group, tasks, message), self._settings.timeout)

    async def rollback_group(self, group: str, *, to: int | None = None, message: str = "") -> GroupChanged:
        """As `Client.rollback_group`."""
        return await self._do(calls.rollback_group(group, to, message), self._settings.timeout)

    async def delete_group(self, group: str, *, message: str = "") -> int:
        """As `Client.delete_group`."""
        return await self._do(calls.delete_group(group, message), self._settings.timeout)

    async def promote(self, task: str, version: int, *, alias: str | None = None, message: str = "") -> Promoted:
        """As `Client.promote`."""
        return await self._do(calls.promote(task, version, alias, message), self._settings.timeout)

    async def set_route(
        self,
        task: str,
        *,
        alias: str | None = None,
        version: int | None = None,
        shares: Mapping[int, float | str] | None = None,
        shadows: Sequence[int] = (),
        bounds: Mapping[str, Any] | Bounds | None = None,
        seen: Route | None = None,
        message: str = "",
    ) -> Routed:
        """As `Client.set_route`."""
        call = calls.set_route(task, alias, version, shares, shadows, bounds, seen, message)
        return await self._do(call, self._settings.timeout)

    async def comparison(self, task: str, *, alias: str | None = None, disagreements: int = 0) -> Comparisons:
        """As `Client.comparison`."""
        return await self._do(calls.comparison(task, alias, disagreements), self._settings.timeout)

    async def await_generation(self, generation: int = 0, *, timeout: float = 45.0) -> Awaited:
        """As `Client.await_generation`."""
        return await self._do(calls.await_generation(generation, timeout), timeout + CONNECT_S)

    async def rollback(
        self, task: str, *, alias: str | None = None, to: int | None = None, message: str = ""
    ) -> Rolled:
        """As `Client.rollback`."""
        return await self._do(calls.rollback(task, alias, to, message), self._settings.timeout)

    async def retire(self, task: str, version: int, *, message: str = "") -> Retired:
        """As `Client.retire`."""
        return await self._do(calls.retire(task, version, message), self._settings.timeout)

    async def publish(
        self,
        folder: str | Path,
        *,
        alias: str | None = None,
        message: str = "",
        allow_untrained: bool = False,
        signature: bytes = b"",
        timeout: float | None = None,
    ) -> Published:
        """As `Client.publish`."""
        return await self._do(calls.publish(folder, alias, message, allow_untrained, signature), timeout)

    async def watch(self, *, timeout: float | None = None) -> AsyncIterator[Event]:
        """As `Client.watch`."""
        call = calls.watch()
        watching = self._start(call, timeout)
        try:
            with self._errors():
                async for response in watching:
                    yield call.parse(response)
        finally:
            watching.cancel()

    async def wait_served(self, generation: int, *, timeout: float = 30.0) -> Event:
        """As `Client.wait_served`."""
        async for event in self.watch(timeout=timeout):
            if event.served >= generation:
                return event
        raise UnreachableError(f"{self._settings.target} ended before it served generation {generation}")

    async def ready(self, wait_s: float = 0.0) -> bool:
        """As `Client.ready`."""
        check_timeout(wait_s, "wait_s")
        deadline = time.monotonic() + wait_s
        while not await self._is_serving(max(deadline - time.monotonic(), 1.0)):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(READY_POLL_S)
        return True

    async def close(self) -> None:
        """As `Client.close`."""
        if self._channel:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _do(self, call: Call[Result], timeout: float | None) -> Result:
        with self._errors():
            response = await self._start(call, timeout)
        return call.parse(response)

    def _start(self, call: Call[Any], timeout: float | None) -> Any:
        check_timeout(timeout)
        method = getattr(self._stub(call.service), call.method)
        return method(call.request, timeout=timeout, metadata=self._metadata(call))

    def _stub(self, service: str) -> Any:
        if self._channel is None:
            target, options = self._settings.target, self._settings.options()
            credentials = self._settings.credentials.channel_credentials()
            if credentials:
                self._channel = grpc.aio.secure_channel(target, credentials, options)
            else:
                self._channel = grpc.aio.insecure_channel(target, options)
            self._stubs = make_stubs(self._channel)
        return self._stubs[service]

    async def _is_serving(self, timeout: float) -> bool:
        request = health_pb2.HealthCheckRequest()
        try:
            response = await self._stub("health").Check(request, timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return response.status == health_pb2.HealthCheckResponse.SERVING


async def _built(rows: object, build: Callable[[], Call[Result]]) -> Call[Result]:
    """A call of these rows; on a thread where it reads or encodes images."""
    return await asyncio.to_thread(build) if need_work(rows) else build()
