"""`sidecast.v1.Admin`: publish, promote, route, roll back, retire, list, watch."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from grpc.aio import ServicerContext

from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api import admin_messages as messages
from serving.api.admin_messages import read_route, write_awaited, write_comparisons, write_route
from serving.api.drain import Drain
from serving.errors import InvalidInput
from serving.rollout import Compared, Comparisons
from serving.versions import PoolState, Presence, SidePool
from side_registry import Published, Registry
from side_registry.decisions import checked_route
from side_registry.errors import ArtifactError, RouteChanged
from side_registry.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, need_side_network, parse_manifest
from side_registry.route import Route
from side_registry.servers import Announced
from side_registry.task import PRODUCTION

UPLOADED = "the uploaded run"


class Upload:
    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.header: pb.PublishRequest.Header | None = None
        self._folder, self._max_bytes = folder, max_bytes
        self._left: dict[str, int] = {}

    def take(self, request: pb.PublishRequest) -> None:
        """Blocks on the disk.

        Raises:
            InvalidInput, ArtifactError: the pieces are no artifact.
        """
        if request.WhichOneof("part") == "header":
            self._begin(request.header)
        elif request.WhichOneof("part") == "chunk":
            self._append(request.chunk)

    def finish(self) -> pb.PublishRequest.Header:
        """The header, once all bytes are there."""
        if self.header is None:
            raise InvalidInput("header", "is missing; send it first")
        for name, left in self._left.items():
            if left:
                raise ArtifactError(UPLOADED, f"the upload ended {left} bytes before the end of {name}")
        return self.header

    def _begin(self, header: pb.PublishRequest.Header) -> None:
        if self.header is not None:
            raise InvalidInput("header", "came twice; publish one run at a time")
        if len(header.manifest) > MAX_MANIFEST_BYTES:
            raise ArtifactError(UPLOADED, f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        manifest = parse_manifest(header.manifest, UPLOADED)
        self._check_size(manifest)
        need_side_network(manifest, UPLOADED)
        self._left = {name: blob.size for name, blob in manifest.files.items()}
        for name in self._left:
            (self._folder / name).touch()
        (self._folder / MANIFEST).write_bytes(header.manifest)
        self.header = header

    def _check_size(self, manifest: Manifest) -> None:
        total = sum(blob.size for blob in manifest.files.values())
        if total > self._max_bytes:
            raise ArtifactError(UPLOADED, f"its files are {total} bytes, this server takes {self._max_bytes}")

    def _append(self, chunk: pb.PublishRequest.Chunk) -> None:
        if self.header is None:
            raise InvalidInput("header", "must come before the files' bytes")
        if chunk.file not in self._left:
            raise InvalidInput("chunk.file", f"is none of the manifest's files ({', '.join(self._left)})")
        if len(chunk.data) > self._left[chunk.file]:
            raise ArtifactError(UPLOADED, f"{chunk.file} has more bytes than its manifest says")
        with (self._folder / chunk.file).open("ab") as file:
            file.write(chunk.data)
        self._left[chunk.file] -= len(chunk.data)


WATCH_POLL_S = 0.05
SEEN_POLL_S, SEEN_S = 0.005, 1.0
"""How often it is looked whether this server has seen a change, and for how long: a load may hold it up."""
AWAIT_POLL_S = 0.1
LONGEST_WAIT_S = 300.0
LEAVING_S = 0.05
"""A caller that leaves may look as if its upload had ended, until its cancellation comes, soon after."""
PATIENCE_S = 0.5
"""Longest that an upload may pause while the server shuts down."""

Result = TypeVar("Result")


class AdminServicer(sidecast_pb2_grpc.AdminServicer):
    """
    Args:
        wake: called after each change of the registry, so that the server need not find it out.
        max_upload_bytes: of one published run's files together.
        comparisons: of the routes' versions.
        presence: this server's own.
    """

    def __init__(
        self,
        pool: SidePool,
        registry: Registry,
        drain: Drain,
        wake: Callable[[], None],
        *,
        max_upload_bytes: int,
        comparisons: Comparisons,
        presence: Presence,
    ) -> None:
        self._pool, self._registry, self._drain, self._wake = pool, registry, drain, wake
        self._max_upload_bytes = max_upload_bytes
        self._comparisons, self._presence = comparisons, presence
        self._looked_at, self._look = 0.0, cast("asyncio.Task[list[Announced]] | None", None)

    async def Publish(self, requests: AsyncIterator[pb.PublishRequest], context: ServicerContext) -> pb.PublishResponse:
        with tempfile.TemporaryDirectory(prefix="sidecast-publish-") as folder:
            upload = Upload(Path(folder), self._max_upload_bytes)
            async for request in self._drain.arriving(requests, PATIENCE_S):
                await asyncio.to_thread(upload.take, request)
            await asyncio.sleep(LEAVING_S)
            published = await self._change(self._publish, folder, upload.finish())
        return messages.write_published(published)

    async def SetRoute(self, request: pb.SetRouteRequest, context: ServicerContext) -> pb.SetRouteResponse:
        if not request.HasField("route"):
            raise InvalidInput("route", "is missing; give a version, shares or shadows, or an empty one to end them")
        task, alias = request.task, request.alias or PRODUCTION
        route = checked_route(task, alias, read_route(request.route))
        seen = checked_route(task, alias, read_route(request.seen)) if request.HasField("seen") else None
        how = messages.read_change(request.change) | {"version": _version(request.route), "seen": seen}
        generation, own = await self._change(self._set_route, task, alias, route, how)
        return pb.SetRouteResponse(task=task, alias=alias, route=write_route(route, own), generation=generation)

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
            canary_ended=rolled.canary_ended,
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
        commits = await asyncio.to_thread(self._registry.history, request.task or None, request.limit)
        return pb.HistoryResponse(commits=[messages.write_commit(commit, request.task) for commit in commits])

    async def GetComparison(
        self, request: pb.GetComparisonRequest, context: ServicerContext
    ) -> pb.GetComparisonResponse:
        if request.disagreements < 0:
            raise InvalidInput("disagreements", f"must be at least 0, got {request.disagreements}")
        alias = request.alias or PRODUCTION
        own = self._pool.snapshot().task_state(request.task).at(alias)
        compared = self._comparisons.read(request.task, alias) or Compared(
            task=request.task, alias=alias, version=own, comparisons=()
        )
        return write_comparisons(compared, request.disagreements)

    async def AwaitGeneration(
        self, request: pb.AwaitGenerationRequest, context: ServicerContext
    ) -> pb.AwaitGenerationResponse:
        timeout_s = request.timeout.ToNanoseconds() / 1e9
        if not 0 <= timeout_s <= LONGEST_WAIT_S:
            raise InvalidInput("timeout", f"must be within 0..{LONGEST_WAIT_S:g} s, got {timeout_s:g} s")
        if request.generation < 0:
            raise InvalidInput("generation", f"must be at least 0, got {request.generation}")
        generation = request.generation or (await asyncio.to_thread(self._registry.state)).generation
        deadline, since = time.monotonic() + timeout_s, self._drain.left
        self._wake()
        while True:
            response = write_awaited(generation, await self._followers())
            left = deadline - time.monotonic()
            if response.served or left <= 0:
                return response
            await self._drain.pause(min(AWAIT_POLL_S, left), since)

    async def _followers(self) -> list[Announced]:
        """The servers that follow the registry; this one too, whether or not the registry takes its presence.

        All who wait share a look at the registry, and the next one is AWAIT_POLL_S after its end.
        """
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_at >= AWAIT_POLL_S):
            self._look = asyncio.create_task(asyncio.to_thread(self._registry.servers))
            self._look.add_done_callback(self._note_look)
        others = await asyncio.shield(self._look)
        return [self._presence.now, *(server for server in others if server.id != self._presence.id)]

    def _note_look(self, _: object) -> None:
        self._looked_at = time.monotonic()

    async def Watch(self, request: pb.WatchRequest, context: ServicerContext) -> AsyncIterator[pb.WatchEvent]:
        before: messages.Watched | None = None
        since = self._drain.left
        while True:
            now = messages.Watched.of(self._pool.snapshot())
            event = messages.write_event(before or messages.Watched.of(PoolState()), now)
            if before is None or event.changed or event.generations != before.generations:
                yield event
            before = now
            await self._drain.pause(WATCH_POLL_S, since)

    async def _change(self, verb: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Returns when the registry has the change, and this server has seen it: what is asked next knows of it."""
        try:
            result = await asyncio.to_thread(verb, *arguments, **named)
        except RouteChanged:
            await self._see()  # the caller looks again
            raise
        await self._see()
        return result

    async def _see(self) -> None:
        """Wait a little until this server has seen what the registry has just read or written."""
        generation = (await asyncio.to_thread(self._registry.state, refresh=False)).generation
        deadline = time.monotonic() + SEEN_S
        self._wake()
        while self._pool.snapshot().wanted < generation and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(SEEN_POLL_S)

    def _set_route(self, task: str, alias: str, route: Route, how: Mapping[str, Any]) -> tuple[int, int]:
        """The generation, and the alias's own version."""
        generation = self._registry.set_route(task, alias, route, **how)
        return generation, how["version"] or self._registry.state(refresh=False).task(task).at(alias)

    def _publish(self, folder: str, header: pb.PublishRequest.Header) -> Published:
        try:
            return self._registry.publish(folder, alias=header.alias or None, **messages.read_change(header.change))
        except ArtifactError as error:
            raise ArtifactError(UPLOADED, error.why) from None


def _version(route: pb.Route) -> int | None:
    """The alias's own that a request asks for; None: as it is."""
    return route.version if route.WhichOneof("target") == "version" else None
