"""The registry's verbs over gRPC, `sidecast.v1.Admin`, and what this server made of them.

The registry blocks, so it is called on threads. Raises what is wrong; the gate makes statuses of it.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from grpc.aio import ServicerContext

from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving import admin_messages as messages
from serving.errors import InvalidInput
from serving.gate import Drain
from serving.pool import PoolState, SidePool
from serving.upload import UPLOADED, Upload
from side_registry import Published, Registry
from side_registry.errors import ArtifactError
from side_registry.task import PRODUCTION

WATCH_POLL_S = 0.05
PATIENCE_S = 0.5
"""Longest that an upload may pause while the server shuts down."""

Result = TypeVar("Result")


class AdminDoor(sidecast_pb2_grpc.AdminServicer):
    """
    Args:
        wake: called after each change of the registry, so that the server need not find it out.
        max_upload_bytes: of one published run's files together.
    """

    def __init__(
        self, pool: SidePool, registry: Registry, drain: Drain, wake: Callable[[], None], *, max_upload_bytes: int
    ) -> None:
        self._pool, self._registry, self._drain, self._wake = pool, registry, drain, wake
        self._max_upload_bytes = max_upload_bytes

    async def Publish(self, requests: AsyncIterator[pb.PublishRequest], context: ServicerContext) -> pb.PublishResponse:
        with tempfile.TemporaryDirectory(prefix="sidecast-publish-") as folder:
            upload = Upload(Path(folder), self._max_upload_bytes)
            async for request in self._drain.arriving(requests, PATIENCE_S):
                await asyncio.to_thread(upload.take, request)
            published = await self._change(self._publish, folder, upload.finish())
        return messages.write_published(published)

    async def SetRoute(self, request: pb.SetRouteRequest, context: ServicerContext) -> pb.SetRouteResponse:
        if request.route.WhichOneof("target") != "version":
            raise InvalidInput("route", "must name a version")
        alias, version = request.alias or PRODUCTION, request.route.version
        change = messages.read_change(request.change)
        generation = await self._change(self._registry.set_alias, request.task, alias, version, **change)
        return pb.SetRouteResponse(task=request.task, alias=alias, route=request.route, generation=generation)

    async def Rollback(self, request: pb.RollbackRequest, context: ServicerContext) -> pb.RollbackResponse:
        change = messages.read_change(request.change)
        alias, to = request.alias or PRODUCTION, request.to or None
        rolled = await self._change(self._registry.rollback, request.task, alias, to, **change)
        return pb.RollbackResponse(
            task=rolled.task,
            alias=rolled.alias,
            version_from=rolled.version_from,
            version_to=rolled.version_to,
            generation=rolled.generation,
        )

    async def Retire(self, request: pb.RetireRequest, context: ServicerContext) -> pb.RetireResponse:
        change = messages.read_change(request.change)
        generation = await self._change(self._registry.retire, request.task, request.version, **change)
        return pb.RetireResponse(task=request.task, version=request.version, generation=generation)

    async def ListTasks(self, request: pb.ListTasksRequest, context: ServicerContext) -> pb.ListTasksResponse:
        state = self._pool.snapshot()
        tasks = [messages.write_task(state, name) for name in sorted(state.tasks)]
        return pb.ListTasksResponse(tasks=tasks, generations=messages.write_generations(state))

    async def GetTask(self, request: pb.GetTaskRequest, context: ServicerContext) -> pb.GetTaskResponse:
        state = self._pool.snapshot()
        task = messages.write_task(state, request.task)
        if which := request.WhichOneof("which"):
            found = state.resolve(request.task, **{which: getattr(request, which)})
            task.spec.CopyFrom(messages.write_spec(found.spec))
        return pb.GetTaskResponse(task=task, generations=messages.write_generations(state))

    async def History(self, request: pb.HistoryRequest, context: ServicerContext) -> pb.HistoryResponse:
        if request.limit < 0:
            raise InvalidInput("limit", f"must be at least 0, got {request.limit}")
        commits = await asyncio.to_thread(self._registry.history, request.task or None)
        newest = commits[-request.limit :]
        return pb.HistoryResponse(commits=[messages.write_commit(commit, request.task) for commit in newest])

    async def Watch(self, request: pb.WatchRequest, context: ServicerContext) -> AsyncIterator[pb.WatchEvent]:
        before: PoolState | None = None
        while True:
            state = self._pool.snapshot()
            if state is not before:
                event = messages.write_event(before or PoolState(), state)
                if before is None or event.changed or event.generations != messages.write_generations(before):
                    yield event
                before = state
            await self._drain.pause(WATCH_POLL_S)

    async def _change(self, verb: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        result = await asyncio.to_thread(verb, *arguments, **named)
        self._wake()
        return result

    def _publish(self, folder: str, header: pb.PublishRequest.Header) -> Published:
        try:
            return self._registry.publish(folder, alias=header.alias or None, **messages.read_change(header.change))
        except ArtifactError as error:
            raise ArtifactError(UPLOADED, error.why) from None
