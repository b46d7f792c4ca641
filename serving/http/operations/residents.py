"""`/v1/residents`: which versions this server has loaded, where, since when, and which other servers there are."""

from collections.abc import Iterator
from http import HTTPMethod

from typing_extensions import TypedDict

from protos import sidecast_pb2 as pb
from serving.http.call import HttpCall
from serving.http.operation import Operation, Reply
from serving.http.operations.tasks import JSON
from serving.http.replies import json_bytes, with_member, write_list
from serving.http.services import Services


class Server(TypedDict):
    """A server that follows the registry."""

    id: str
    address: str
    """HOST:PORT of its gRPC; of a replica on Ray Serve its node and a name."""
    generation: int
    """The registry's generation that it serves."""


class Resident(TypedDict):
    """A version that is loaded here."""

    task: str
    version: int
    bytes: int
    """Of its weights on the device."""
    since: str
    last_asked: str | None
    """When it last answered a request here; null: it has not since it was loaded."""
    requests: int
    """That it answered here since it was loaded."""


class ResidentList(TypedDict):
    """The versions of one server, sorted by task and version."""

    server: Server
    """The one that answers; on Ray Serve one replica."""
    device: str
    others: list[Server]
    """The other servers that follow the registry and are alive."""
    residents: list[Resident]


class Residents:
    """The operation on what is loaded."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """The one that lists it."""
        yield Operation(
            name="listResidents",
            method=HTTPMethod.GET,
            path="/v1/residents",
            summary="Say which versions this server has loaded, where and since when",
            handler=self.list_residents,
            responses={JSON: ResidentList},
            tag="tasks",
        )

    async def list_residents(self, call: HttpCall) -> Reply:
        """Say which versions are loaded, of the tasks that the caller may read."""
        found = await self._services.list_residents(call)
        head = {
            "server": _describe_server(found.server),
            "device": found.device,
            "others": [_describe_server(other) for other in found.others],
        }
        residents = await write_list(map(_describe, found.residents), 8)
        return json_bytes(with_member(head, "residents", residents))


def _describe_server(server: pb.ServerInfo) -> Server:
    return Server(id=server.id, address=server.address, generation=server.generation)


def _describe(resident: pb.Resident) -> Resident:
    return Resident(
        task=resident.task,
        version=resident.version,
        bytes=resident.bytes,
        since=resident.since.ToJsonString(),
        last_asked=resident.last_asked.ToJsonString() if resident.HasField("last_asked") else None,
        requests=resident.requests,
    )
