"""`/v1/groups`: the same rows for all tasks of a group, and what groups there are."""

from collections.abc import Iterator
from http import HTTPMethod
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from protos import sidecast_pb2 as pb
from serving.api.native import read_ref
from serving.errors import InvalidInput
from serving.http.body import Row, read_inputs
from serving.http.call import HttpCall
from serving.http.operation import Operation, Reply
from serving.http.operations.tasks import JSON, Options, TaskResult, renamed, write_outcomes
from serving.http.replies import json_bytes, json_reply, with_member
from serving.http.services import Services


class PredictGroupBody(Options):
    """The same rows for the tasks of a group."""

    inputs: Annotated[list[Row], Field(min_length=1)]


class GroupResults(TypedDict):
    """One result for each task of the group, in its order."""

    group: str
    version: int
    """Of the group: each change of its tasks makes the next one."""
    results: list[TaskResult]


class Group(TypedDict):
    """A name for several tasks that are asked together."""

    group: str
    version: int
    tasks: list[str]
    """`sst2` follows production, `sst2@canary` that alias, `sst2:7` is that version."""


class GroupList(TypedDict):
    """Every group, sorted by name."""

    groups: list[Group]


class Groups:
    """The operations on groups. Groups are changed over gRPC alone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """Predictions first."""
        yield Operation(
            name="predictGroup",
            method=HTTPMethod.POST,
            path="/v1/groups/{group}:predict",
            summary="Answer the same rows for all tasks of a group, with one pass of the backbone",
            handler=self.predict,
            request=PredictGroupBody,
            responses={JSON: GroupResults},
            counted=True,
            tag="groups",
            parameters={"group": "A group."},
        )
        yield Operation(
            name="listGroups",
            method=HTTPMethod.GET,
            path="/v1/groups",
            summary="List every group",
            handler=self.list_groups,
            responses={JSON: GroupList},
            tag="groups",
        )

    async def predict(self, call: HttpCall, body: PredictGroupBody) -> Reply:
        """Answer the same rows for all tasks of a group."""
        call.limit(body.timeout)
        self._services.check_rows(len(body.inputs))
        name = call.parameters["group"]
        request = pb.PredictTasksRequest(group=name, rows=await read_inputs(body.inputs), **body.fields())
        try:
            answered = await self._services.predict_tasks(call, request)
        except InvalidInput as error:
            raise renamed(error, "inputs") from None
        results = await write_outcomes(answered, call.request_id)
        return json_bytes(with_member({"group": name, "version": answered.group_version}, "results", results))

    async def list_groups(self, call: HttpCall) -> Reply:
        """List every group whose tasks the caller may read."""
        groups = [
            Group(group=one.group, version=one.version, tasks=[str(read_ref(task)) for task in one.tasks])
            for one in await self._services.list_groups(call)
        ]
        return json_reply(GroupList(groups=groups))
