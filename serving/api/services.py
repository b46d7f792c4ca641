"""The gRPC services that a server offers: their names, their servicers, and `grpc.health.v1`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_reflection.v1alpha import reflection

from protos import open_inference_pb2, open_inference_pb2_grpc, sidecast_pb2, sidecast_pb2_grpc
from serving.api.admin import AdminServicer
from serving.api.call import Tenants
from serving.api.drain import Drain
from serving.api.native import NativeServicer
from serving.api.open_inference import OpenInferenceServicer
from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.pipeline import PredictService
from serving.rollout import Comparisons
from serving.versions import Presence, SidePool
from side_registry import Registry
from side_registry.task import PRODUCTION

OPEN_INFERENCE: ServiceDescriptor = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NATIVE: ServiceDescriptor = sidecast_pb2.DESCRIPTOR.services_by_name["Sidecast"]
ADMIN: ServiceDescriptor = sidecast_pb2.DESCRIPTOR.services_by_name["Admin"]
HEALTH: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]

SERVICES = (OPEN_INFERENCE, NATIVE, ADMIN, HEALTH)
"""All that a server offers, but for reflection."""
OURS = tuple(service.full_name for service in (OPEN_INFERENCE, NATIVE, ADMIN))
"""Full names of the services whose health is the server's."""

ADD: Mapping[ServiceDescriptor, Callable[[Any, grpc.aio.Server], None]] = {
    OPEN_INFERENCE: open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
    NATIVE: sidecast_pb2_grpc.add_SidecastServicer_to_server,
    ADMIN: sidecast_pb2_grpc.add_AdminServicer_to_server,
    HEALTH: health_pb2_grpc.add_HealthServicer_to_server,
}

WATCH_POLL_S = 0.05

Status = pb.HealthCheckResponse.ServingStatus


def make_servicers(
    *,
    service: PredictService,
    pool: SidePool,
    registry: Registry,
    comparisons: Comparisons,
    presence: Presence,
    wake: Callable[[], None],
    drain: Drain,
    metrics: Metrics,
    config: ServeConfig,
) -> Mapping[ServiceDescriptor, Any]:
    """The servicer of each of SERVICES.

    Args:
        presence: this server's own.
        wake: makes the server look at the registry now.
    """
    tenants = Tenants(config.request.tenant_header)
    admin = AdminServicer(
        pool,
        registry,
        drain,
        wake,
        max_upload_bytes=config.load.max_side_bytes,
        comparisons=comparisons,
        presence=presence,
    )
    return {
        OPEN_INFERENCE: OpenInferenceServicer(service, pool, metrics, drain, tenants),
        NATIVE: NativeServicer(service, metrics, tenants),
        ADMIN: admin,
        HEALTH: HealthServicer(service, pool, drain),
    }


def add_services(servicers: Mapping[ServiceDescriptor, Any], server: grpc.aio.Server) -> None:
    """Have `server` answer by these servicers, and list them by reflection."""
    for service, servicer in servicers.items():
        ADD[service](servicer, server)
    names = (*(service.full_name for service in servicers), reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Health of the server (""), of each of OURS, and of each task by its name."""

    def __init__(self, service: PredictService, pool: SidePool, drain: Drain) -> None:
        self._service = service
        self._pool = pool
        self._drain = drain

    async def Check(self, request: pb.HealthCheckRequest, context: ServicerContext) -> pb.HealthCheckResponse:
        """Answer the status of a service or a task now."""
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service or task {request.service[:80]!r}")
        return pb.HealthCheckResponse(status=status)

    async def Watch(
        self, request: pb.HealthCheckRequest, context: ServicerContext
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """Answer the status of a service or a task now, and again whenever it changes."""
        last = None
        since = self._drain.left
        while self._drain.left == since:
            status = self.status(request.service)
            if status != last:
                yield pb.HealthCheckResponse(status=status)
            last = status
            await asyncio.sleep(WATCH_POLL_S)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this server may be about to end; watch another")

    def status(self, name: str) -> Status:
        """The health of a service or a task. A task is healthy where its production is resident."""
        state = self._pool.snapshot()
        if name and name not in OURS and name not in state.tasks:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        up = self._service.ready and not self._drain.draining
        if up and name in state.tasks:
            up = (name, PRODUCTION) in state.aliases
        return pb.HealthCheckResponse.SERVING if up else pb.HealthCheckResponse.NOT_SERVING
