"""The gRPC servicers, as HTTP requests call them. All requests that reach a servicer pass `Services.admit`."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from serving.access import ANYBODY, READ, Access, Caller
from serving.api.admin import AdminServicer
from serving.api.guard import Guard, GuardedCall
from serving.api.native import AnsweredTasks, NativeServicer
from serving.api.open_inference import OpenInferenceServicer
from serving.api.permissions import RULES
from serving.api.services import ADMIN, NATIVE, OPEN_INFERENCE
from serving.engine import Piece
from serving.errors import TooManyRows
from serving.http.call import HttpCall
from serving.pipeline import Generated, Prediction
from side_registry.manifest import Manifest

Asked = TypeVar("Asked", bound=Message)
Changed = TypeVar("Changed", bound=Message)


class Services:
    """What operations call. Each method raises what the servicer's method raises, and what a `Guard` raises.

    Args:
        servicers: the servicer of each service.
        max_rows: of one request.
        access: decides who may call what, by the rules of the gRPC methods.
        allows_changes: whether this port may change the registry.
    """

    def __init__(
        self,
        servicers: Mapping[ServiceDescriptor, Any],
        max_rows: int,
        access: Access,
        allows_changes: bool = True,
    ) -> None:
        self._native: NativeServicer = servicers[NATIVE]
        self._admin: AdminServicer = servicers[ADMIN]
        self._inference: OpenInferenceServicer = servicers[OPEN_INFERENCE]
        self._max_rows = max_rows
        self._guards = {path: Guard(access, path, allows_changes) for path in RULES}

    async def _admit(self, call: HttpCall, method: str, message: Message) -> GuardedCall | None:
        guarded = await self._guards[method].begin(call)
        if guarded:
            await guarded.check(message)
        call.admitted = True
        return guarded

    def check_rows(self, rows: int) -> None:
        """Raises TooManyRows: one request has more than any may have. Called before anything is made of them."""
        if rows > self._max_rows:
            raise TooManyRows(rows, self._max_rows)

    async def predict(self, call: HttpCall, request: pb.PredictRequest, kinds: Collection[str] = ()) -> Prediction:
        """The answers of one task, which is of one of the kinds."""
        await self._admit(call, "/sidecast.v1.Sidecast/Predict", request)
        return await self._native.predict(request, call, kinds)

    async def predict_tasks(self, call: HttpCall, request: pb.PredictTasksRequest) -> AnsweredTasks:
        """The answers of many tasks, or of those of a group, or what is wrong with each."""
        await self._admit(call, "/sidecast.v1.Sidecast/PredictTasks", request)
        return await self._native.predict_tasks(request, call)

    async def rank(self, call: HttpCall, request: pb.RankRequest) -> Prediction:
        """The scores of passages for a query, in the passages' order."""
        await self._admit(call, "/sidecast.v1.Sidecast/Rank", request)
        return await self._native.rank(request, call)

    async def generate(self, call: HttpCall, request: pb.GenerateRequest) -> AsyncGenerator[Piece | Generated, None]:
        """The pieces of a text, and last the whole."""
        await self._admit(call, "/sidecast.v1.Sidecast/Generate", request)
        return self._native.generate(request, call)

    async def list_tasks(self, call: HttpCall) -> Sequence[pb.TaskInfo]:
        """Every task of the registry that the caller may read."""
        request = pb.ListTasksRequest()
        guarded = await self._admit(call, "/sidecast.v1.Admin/ListTasks", request)
        response = await self._admin.ListTasks(request, call)
        if guarded:
            await guarded.show(response)
        return response.tasks

    async def get_task(self, call: HttpCall, request: pb.GetTaskRequest) -> pb.TaskInfo:
        """One task."""
        await self._admit(call, "/sidecast.v1.Admin/GetTask", request)
        return (await self._admin.GetTask(request, call)).task

    async def readable(self, call: HttpCall, tasks: Iterable[str]) -> tuple[frozenset[str], bool]:
        """Those of the tasks that the caller may read, and whether it may read every task."""
        guarded = await self._admit(call, "/sidecast.v1.Admin/ListTasks", pb.ListTasksRequest())
        if guarded is None or guarded.caller.scopes.allow_every_task(READ):
            return frozenset(tasks), True
        return frozenset(task for task in tasks if guarded.caller.scopes.allow(READ, task)), False

    async def manifest(self, call: HttpCall, task: str, version: int) -> tuple[pb.Version, Manifest]:
        """What is known of one version."""
        await self._admit(call, "/sidecast.v1.Admin/GetTask", pb.GetTaskRequest(task=task))
        return await self._admin.version(task, version)

    async def history(self, call: HttpCall, request: pb.HistoryRequest) -> Sequence[pb.Commit]:
        """Commits of the registry on tasks that the caller may read."""
        guarded = await self._admit(call, "/sidecast.v1.Admin/History", request)
        response = await self._admin.History(request, call)
        if guarded:
            await guarded.show(response)
        return response.commits

    async def comparison(self, call: HttpCall, request: pb.GetComparisonRequest) -> pb.GetComparisonResponse:
        """How the versions of an alias's route compare on this server."""
        await self._admit(call, "/sidecast.v1.Admin/GetComparison", request)
        return await self._admin.GetComparison(request, call)

    async def servers(self, call: HttpCall) -> pb.AwaitGenerationResponse:
        """The servers that follow the registry, this one first."""
        request = pb.AwaitGenerationRequest()
        await self._admit(call, "/sidecast.v1.Admin/AwaitGeneration", request)
        return await self._admin.AwaitGeneration(request, call)

    async def set_route(self, call: HttpCall, request: pb.SetRouteRequest) -> pb.SetRouteResponse:
        """Set an alias's version and route."""
        return await self._change(call, "/sidecast.v1.Admin/SetRoute", request, self._admin.SetRoute)

    async def roll_back(self, call: HttpCall, request: pb.RollbackRequest) -> pb.RollbackResponse:
        """Return an alias to an earlier version, or end its canary."""
        return await self._change(call, "/sidecast.v1.Admin/Rollback", request, self._admin.Rollback)

    async def retire(self, call: HttpCall, request: pb.RetireRequest) -> pb.RetireResponse:
        """Retire a version."""
        return await self._change(call, "/sidecast.v1.Admin/Retire", request, self._admin.Retire)

    async def _change(
        self, call: HttpCall, method: str, request: Asked, change: Callable[[Asked, Any], Awaitable[Changed]]
    ) -> Changed:
        """Change the registry, and write what became of it to the audit log."""
        guarded = await self._admit(call, method, request)
        fault: BaseException | None = None
        try:
            return await change(request, call)
        except BaseException as error:
            fault = error
            raise
        finally:
            if guarded:
                guarded.end(fault)
            del fault  # else its traceback would hold this frame, and the frame the error

    async def caller(self, call: HttpCall) -> Caller:
        """Who calls."""
        guarded = await self._admit(call, "/inference.GRPCInferenceService/ServerMetadata", oip.ServerMetadataRequest())
        return guarded.caller if guarded else ANYBODY

    async def list_groups(self, call: HttpCall) -> Sequence[pb.Group]:
        """Every group of the registry all of whose tasks the caller may read."""
        request = pb.ListGroupsRequest()
        guarded = await self._admit(call, "/sidecast.v1.Admin/ListGroups", request)
        response = await self._admin.ListGroups(request, call)
        if guarded:
            await guarded.show(response)
        return response.groups

    async def list_residents(self, call: HttpCall) -> pb.ListResidentsResponse:
        """The versions that are loaded here, of the tasks that the caller may read."""
        request = pb.ListResidentsRequest()
        guarded = await self._admit(call, "/sidecast.v1.Admin/ListResidents", request)
        response = await self._admin.ListResidents(request, call)
        if guarded:
            await guarded.show(response)
        return response

    async def infer(self, call: HttpCall, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """The answers of one task as tensors."""
        await self._admit(call, "/inference.GRPCInferenceService/ModelInfer", request)
        return await self._inference.ModelInfer(request, call)

    async def model_metadata(self, call: HttpCall, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """The tensors of one task."""
        await self._admit(call, "/inference.GRPCInferenceService/ModelMetadata", request)
        return await self._inference.ModelMetadata(request, call)

    async def model_ready(self, call: HttpCall, request: oip.ModelReadyRequest) -> bool:
        """Whether one task can be asked here."""
        await self._admit(call, "/inference.GRPCInferenceService/ModelReady", request)
        return (await self._inference.ModelReady(request, call)).ready

    async def server_metadata(self, call: HttpCall) -> oip.ServerMetadataResponse:
        """The server's name and version."""
        request = oip.ServerMetadataRequest()
        await self._admit(call, "/inference.GRPCInferenceService/ServerMetadata", request)
        return await self._inference.ServerMetadata(request, call)

    async def server_ready(self, call: HttpCall) -> bool:
        """Whether the server answers requests."""
        request = oip.ServerReadyRequest()
        await self._admit(call, "/inference.GRPCInferenceService/ServerReady", request)
        return (await self._inference.ServerReady(request, call)).ready
