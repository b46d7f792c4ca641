"""`grpc.health.v1`: the health of the server, of each of its services, and of each task."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from serving.api.drain import Drain
from serving.api.services import OURS
from serving.pipeline import PredictService
from serving.versions import SidePool
from side_registry.specs.task import PRODUCTION

WATCH_POLL_S = 0.05

Status = pb.HealthCheckResponse.ServingStatus


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
