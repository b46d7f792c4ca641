"""The names of our gRPC services, and `grpc.health.v1`: health of the server and of each task."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1 import health_pb2 as pb

from protos import open_inference_pb2, sidecast_pb2
from serving.api.call import Service
from serving.api.drain import Drain
from serving.versions import SidePool
from side_registry.task import PRODUCTION

OPEN_INFERENCE: ServiceDescriptor = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NATIVE: ServiceDescriptor = sidecast_pb2.DESCRIPTOR.services_by_name["Sidecast"]
ADMIN: ServiceDescriptor = sidecast_pb2.DESCRIPTOR.services_by_name["Admin"]
HEALTH: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]

OURS = tuple(each.full_name for each in (OPEN_INFERENCE, NATIVE, ADMIN))
"""Names of those that live and die with the server, for its health."""

WATCH_POLL_S = 0.05

Status = pb.HealthCheckResponse.ServingStatus


class HealthServicer(health_pb2_grpc.HealthServicer):
    """
    Args:
        services: full names of the gRPC services that live and die with the server.
    """

    def __init__(self, service: Service, pool: SidePool, drain: Drain, services: tuple[str, ...]) -> None:
        self._service, self._pool, self._drain, self._services = service, pool, drain, services

    async def Check(self, request: pb.HealthCheckRequest, context: ServicerContext) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service or task {request.service[:80]!r}")
        return pb.HealthCheckResponse(status=status)

    async def Watch(
        self, request: pb.HealthCheckRequest, context: ServicerContext
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        last, since = None, self._drain.left
        while self._drain.left == since:
            status = self.status(request.service)
            if status != last:
                yield pb.HealthCheckResponse(status=status)
            last = status
            await asyncio.sleep(WATCH_POLL_S)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this server may be about to end; watch another")

    def status(self, name: str) -> Status:
        state = self._pool.snapshot()
        if name and name not in self._services and name not in state.tasks:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        up = self._service.ready and not self._drain.draining
        if up and name in state.tasks:
            up = (name, PRODUCTION) in state.aliases
        return pb.HealthCheckResponse.SERVING if up else pb.HealthCheckResponse.NOT_SERVING
