"""The servicer of `sidecast.v1.Admin`: publish, promote, route, roll back, retire, list, watch."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from grpc.aio import ServicerContext

from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api import admin_messages as messages
from serving.api.admin_messages import read_route, write_awaited, write_comparisons, write_route
from serving.api.call_context import CallContext
from serving.api.drain import Drain
from serving.errors import InvalidInput
from serving.metrics import Answered
from serving.rollout import Compared, Comparisons
from serving.versions import PoolState, Presence, SidePool
from side_registry import Published, Registry
from side_registry.decisions import checked_route
from side_registry.errors import ArtifactError, RegistryError, RouteChanged
from side_registry.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, need_side_network, parse_manifest
from side_registry.route import Route
from side_registry.servers import Announced
from side_registry.specs.task import PRODUCTION

UPLOADED = "the uploaded run"


class Upload:
    """A run that is being uploaded into a folder.

    Args:
        max_bytes: of its files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.header: pb.PublishRequest.Header | None = None
        self._folder = folder
        self._max_bytes = max_bytes
        self._missing: dict[str, int] = {}
        """Bytes that are still to come, by file."""

    def take(self, request: pb.PublishRequest) -> None:
        """Write one piece of the upload. Blocks on the disk.

        Raises:
            InvalidInput, ArtifactError: the pieces so far cannot become an artifact.
        """
        if request.WhichOneof("part") == "header":
            self._begin(request.header)
        elif request.WhichOneof("part") == "chunk":
            self._append(request.chunk)

    def finish(self) -> pb.PublishRequest.Header:
        """The header, once all bytes are there. Raises InvalidInput, ArtifactError: some are missing."""
        if self.header is None:
            raise InvalidInput("header", "is missing; send it first")
        for name, missing in self._missing.items():
            if missing:
                raise ArtifactError(UPLOADED, f"the upload ended {missing} bytes before the end of {name}")
        return self.header

    def _begin(self, header: pb.PublishRequest.Header) -> None:
        if self.header is not None:
            raise InvalidInput("header", "came twice; publish one run at a time")
        if len(header.manifest) > MAX_MANIFEST_BYTES:
            raise ArtifactError(UPLOADED, f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        manifest = parse_manifest(header.manifest, UPLOADED)
        self._check_size(manifest)
        need_side_network(manifest, UPLOADED)
        self._missing = {name: blob.size for name, blob in manifest.files.items()}
        for name in self._missing:
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
        if chunk.file not in self._missing:
            raise InvalidInput("chunk.file", f"is none of the manifest's files ({', '.join(self._missing)})")
        if len(chunk.data) > self._missing[chunk.file]:
            raise ArtifactError(UPLOADED, f"{chunk.file} has more bytes than its manifest says")
        with (self._folder / chunk.file).open("ab") as file:
            file.write(chunk.data)
        self._missing[chunk.file] -= len(chunk.data)


WATCH_POLL_S = 0.05
SEEN_POLL_S = 0.005
SEEN_S = 1.0
"""How often, and for how long, a change waits until this server has seen it: a load may hold the server up."""
AWAIT_POLL_S = 0.1
LONGEST_WAIT_S = 300.0
LEAVING_S = 0.05
"""When a caller leaves, its upload seems to have ended until its cancellation arrives, which is soon after."""
PATIENCE_S = 0.5
"""Longest that an upload may pause while the server shuts down."""

Result = TypeVar("Result")


class AdminServicer(sidecast_pb2_grpc.AdminServicer):
    """Answers calls of `sidecast.v1.Admin`: changes the registry, and reports its state as this server sees it.

    Args:
        wake: called after each change of the registry, so that the server looks at it at once.
        max_upload_bytes: of one published run's files together.
        comparisons: of the routes' versions.
        presence: this server's own.
        device: where this server's versions are.
        answered: what a version (task, version) has answered here.
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
        device: str = "cpu",
        answered: Callable[[str, int], Answered] = lambda task, version: Answered(),
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._drain = drain
        self._wake = wake
        self._max_upload_bytes = max_upload_bytes
        self._comparisons = comparisons
        self._presence = presence
        self._device = device
        self._answered = answered
        self._servers: asyncio.Task[list[Announced]] | None = None
        """The newest read of the servers that the registry knows."""
        self._servers_read_at = 0.0
        """Its end, in time.monotonic() seconds."""

    async def Publish(self, requests: AsyncIterator[pb.PublishRequest], context: ServicerContext) -> pb.PublishResponse:
        """Publish an uploaded run as the next version of its task."""
        with tempfile.TemporaryDirectory(prefix="sidecast-publish-") as folder:
            upload = Upload(Path(folder), self._max_upload_bytes)
            async for request in self._drain.arriving(requests, PATIENCE_S):
                await asyncio.to_thread(upload.take, request)
            await asyncio.sleep(LEAVING_S)
            published = await self._change(self._publish, folder, upload.finish())
        return messages.write_published(published)

    async def SetRoute(self, request: pb.SetRouteRequest, context: ServicerContext) -> pb.SetRouteResponse:
        """Set an alias's version and how its traffic is split."""
        if not request.HasField("route"):
            raise InvalidInput("route", "is missing; give a version, shares or shadows, or an empty one to end them")
        task, alias = request.task, request.alias or PRODUCTION
        route = checked_route(task, alias, read_route(request.route))
        seen = checked_route(task, alias, read_route(request.seen)) if request.HasField("seen") else None
        how = messages.read_change(request.change) | {"version": _version(request.route), "seen": seen}
        generation, version = await self._change(self._set_route, task, alias, route, how)
        return pb.SetRouteResponse(task=task, alias=alias, route=write_route(route, version), generation=generation)

    async def Rollback(self, request: pb.RollbackRequest, context: ServicerContext) -> pb.RollbackResponse:
        """Return an alias to an earlier version, or end its canary."""
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
        """Retire a version that no alias or route names."""
        change = messages.read_change(request.change)
        generation = await self._change(self._registry.retire, request.task, request.version, **change)
        return pb.RetireResponse(task=request.task, version=request.version, generation=generation)

    async def ListTasks(self, request: pb.ListTasksRequest, context: CallContext) -> pb.ListTasksResponse:
        """Describe every task of the registry."""
        state = self._pool.snapshot()
        tasks = [messages.write_task(state, name) for name in sorted(state.tasks)]
        return pb.ListTasksResponse(tasks=tasks, generations=messages.write_generations(state))

    async def GetTask(self, request: pb.GetTaskRequest, context: CallContext) -> pb.GetTaskResponse:
        """Describe one task."""
        state = self._pool.snapshot()
        task = messages.write_task(state, request.task)
        if which := request.WhichOneof("which"):
            resident = state.resolve(request.task, **{which: getattr(request, which)})
            task.spec.CopyFrom(messages.write_spec(resident.spec))
        return pb.GetTaskResponse(task=task, generations=messages.write_generations(state))

    async def version(self, task: str, version: int) -> tuple[pb.Version, Manifest]:
        """One version as GetTask describes it, and its manifest.

        Raises:
            UnknownTask, UnknownVersion, StoreFailed.
        """
        state = self._pool.snapshot()
        state.task_state(task).entry(version)
        [described] = [known for known in messages.write_task(state, task).versions if known.version == version]
        return described, await asyncio.to_thread(self._registry.manifest, task, version)

    async def History(self, request: pb.HistoryRequest, context: CallContext) -> pb.HistoryResponse:
        """List the registry's commits, oldest first."""
        if request.limit < 0:
            raise InvalidInput("limit", f"must be at least 0, got {request.limit}")
        task, group = request.task, request.group
        if task and group:
            raise InvalidInput("group", "is given with task; give one of the two")
        commits = await asyncio.to_thread(self._registry.history, task or None, request.limit, group=group or None)
        return pb.HistoryResponse(commits=[messages.write_commit(commit, task, group) for commit in commits])

    async def GetComparison(self, request: pb.GetComparisonRequest, context: CallContext) -> pb.GetComparisonResponse:
        """Answer how the versions of an alias's route compare on this server."""
        if request.disagreements < 0:
            raise InvalidInput("disagreements", f"must be at least 0, got {request.disagreements}")
        alias = request.alias or PRODUCTION
        version = self._pool.snapshot().task_state(request.task).at(alias)
        compared = self._comparisons.read(request.task, alias) or Compared(
            task=request.task, alias=alias, version=version, comparisons=()
        )
        return write_comparisons(compared, self._comparisons.rolled_back(request.task, alias), request.disagreements)

    async def AwaitGeneration(
        self, request: pb.AwaitGenerationRequest, context: CallContext
    ) -> pb.AwaitGenerationResponse:
        """Wait until every server that follows the registry serves a generation."""
        timeout_s = request.timeout.ToNanoseconds() / 1e9
        if not 0 <= timeout_s <= LONGEST_WAIT_S:
            raise InvalidInput("timeout", f"must be within 0..{LONGEST_WAIT_S:g} s, got {timeout_s:g} s")
        if request.generation < 0:
            raise InvalidInput("generation", f"must be at least 0, got {request.generation}")
        generation = request.generation or (await asyncio.to_thread(self._registry.state)).generation
        deadline = time.monotonic() + timeout_s
        since = self._drain.left
        self._wake()
        while True:
            response = write_awaited(generation, await self._followers())
            remaining_s = deadline - time.monotonic()
            if response.served or remaining_s <= 0:
                return response
            await self._drain.pause(min(AWAIT_POLL_S, remaining_s), since)

    async def _followers(self) -> list[Announced]:
        """The servers that follow the registry, and this one, even where the registry does not take its presence.

        All calls that wait share one read of the registry; the next read begins AWAIT_POLL_S after its end.
        """
        is_old = time.monotonic() - self._servers_read_at >= AWAIT_POLL_S
        if self._servers is None or (self._servers.done() and is_old):
            self._servers = asyncio.create_task(asyncio.to_thread(self._registry.servers))
            self._servers.add_done_callback(self._note_read)
        others = await asyncio.shield(self._servers)
        return [self._presence.now, *(server for server in others if server.id != self._presence.id)]

    def _note_read(self, _: object) -> None:
        self._servers_read_at = time.monotonic()

    async def SetGroup(self, request: pb.SetGroupRequest, context: ServicerContext) -> pb.SetGroupResponse:
        """Give a group its tasks, or make it."""
        members = [messages.read_member(task) for task in request.tasks]
        change = messages.read_change(request.change)
        changed = await self._change(self._registry.set_group, request.group, members, **change)
        return messages.write_group_change(pb.SetGroupResponse, changed)

    async def RollbackGroup(
        self, request: pb.RollbackGroupRequest, context: ServicerContext
    ) -> pb.RollbackGroupResponse:
        """Give a group the tasks of an earlier version."""
        change = messages.read_change(request.change)
        changed = await self._change(self._registry.rollback_group, request.group, request.to or None, **change)
        return messages.write_group_change(pb.RollbackGroupResponse, changed)

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: ServicerContext) -> pb.DeleteGroupResponse:
        """Remove a group."""
        change = messages.read_change(request.change)
        generation = await self._change(self._registry.delete_group, request.group, **change)
        return pb.DeleteGroupResponse(group=request.group, generation=generation)

    async def ListGroups(self, request: pb.ListGroupsRequest, context: CallContext) -> pb.ListGroupsResponse:
        """Describe every group of the registry."""
        state = self._pool.snapshot()
        groups = [messages.write_group(name, group.current) for name, group in sorted(state.groups.items())]
        return pb.ListGroupsResponse(groups=groups, generations=messages.write_generations(state))

    async def ListResidents(self, request: pb.ListResidentsRequest, context: CallContext) -> pb.ListResidentsResponse:
        """Tell which versions this server has loaded, and which other servers there are."""
        state = self._pool.snapshot()
        if request.task:
            state.task_state(request.task)
        residents = [one for key, one in sorted(state.residents.items()) if request.task in ("", key[0])]
        try:
            me, *others = await self._followers()
        except RegistryError:  # out of reach: this server tells of itself
            me, others = self._presence.now, []
        return messages.write_residents(me, others, self._device, residents, self._answered)

    async def Watch(self, request: pb.WatchRequest, context: ServicerContext) -> AsyncIterator[pb.WatchEvent]:
        """Answer the state, and then every change of it, until the caller or the server leaves."""
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
        """Change the registry, and wait until this server has seen it, so that the next call knows of it."""
        try:
            result = await asyncio.to_thread(verb, *arguments, **named)
        except RouteChanged:
            await self._see()  # the caller reads the route again
            raise
        await self._see()
        return result

    async def _see(self) -> None:
        """Wait, SEEN_S at most, until this server has seen what was just read from the registry or written to it."""
        generation = (await asyncio.to_thread(self._registry.state, refresh=False)).generation
        deadline = time.monotonic() + SEEN_S
        self._wake()
        while self._pool.snapshot().wanted < generation and time.monotonic() < deadline:  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(SEEN_POLL_S)

    def _set_route(self, task: str, alias: str, route: Route, how: Mapping[str, Any]) -> tuple[int, int]:
        """Set the route. Returns the generation, and the alias's main version."""
        generation = self._registry.set_route(task, alias, route, **how)
        return generation, how["version"] or self._registry.state(refresh=False).task(task).at(alias)

    def _publish(self, folder: str, header: pb.PublishRequest.Header) -> Published:
        try:
            return self._registry.publish(
                folder,
                alias=header.alias or None,
                allow_untrained=header.allow_untrained,
                signature=header.signature,
                **messages.read_change(header.change),
            )
        except ArtifactError as error:
            raise ArtifactError(UPLOADED, error.why) from None


def _version(route: pb.Route) -> int | None:
    """The alias's main version that a request asks for; None: it stays."""
    return route.version if route.WhichOneof("target") == "version" else None
