"""Makes the servicer of each gRPC service.

Not in the wing's face: servicers import the model, which Ray's own processes do without.
"""

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from serving.api.admin import AdminServicer
from serving.api.call import Tenants
from serving.api.drain import Drain
from serving.api.health import HealthServicer
from serving.api.native import NativeServicer
from serving.api.open_inference import OpenInferenceServicer
from serving.api.services import ADMIN, HEALTH, NATIVE, OPEN_INFERENCE
from serving.config import ServeConfig
from serving.metrics import Metrics
from serving.pipeline import PredictService
from serving.rollout import Comparisons
from serving.versions import Presence, SidePool
from side_registry import Registry


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
    device: str = "cpu",
) -> Mapping[ServiceDescriptor, Any]:
    """The servicer of each of SERVICES.

    Args:
        presence: this server's own.
        wake: makes the server look at the registry now.
        device: where the versions are.
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
        device=device,
        answered=metrics.answered,
    )
    return {
        OPEN_INFERENCE: OpenInferenceServicer(service, pool, metrics, drain, tenants),
        NATIVE: NativeServicer(service, metrics, tenants),
        ADMIN: admin,
        HEALTH: HealthServicer(service, pool, drain),
    }
