"""What every serving process does between its parts and its first call: join the registry's servers, make the doors."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from serving.admin import AdminDoor
from serving.assembly import Parts
from serving.config import ServeConfig
from serving.doors import Tenants
from serving.gate import Drain
from serving.health import HealthDoor
from serving.metrics import Metrics
from serving.native import NativeDoor
from serving.offered import ADMIN, HEALTH, NATIVE, OPEN_INFERENCE, OURS
from serving.open_inference import OpenInferenceDoor
from serving.presence import Presence
from side_registry.errors import RegistryError

CATCH_UP_S = 10.0
"""Longest that a new server waits until it serves what was committed while it loaded."""
CATCH_UP_POLL_S = 0.02


async def join(parts: Parts, presence: Presence, drain: Drain) -> None:
    """Have writers wait for this server from now on, then serve what they wrote before, so that none is missed.

    Raises:
        Draining: told to stop meanwhile.
    """
    await asyncio.to_thread(presence.start)
    with contextlib.suppress(RegistryError):  # it may be away; what was loaded is served
        newest = (await asyncio.to_thread(parts.registry.state)).generation
        deadline = time.monotonic() + CATCH_UP_S
        parts.wake()
        while parts.pool.snapshot().generation < newest and time.monotonic() < deadline:
            await drain.pause(CATCH_UP_POLL_S)


def open_doors(
    parts: Parts, config: ServeConfig, metrics: Metrics, drain: Drain, presence: Presence
) -> Mapping[ServiceDescriptor, Any]:
    """The servicer of each of our services, and of health."""
    service, pool = parts.service, parts.pool
    tenants = Tenants(config.request.tenant_header)
    admin = AdminDoor(
        pool,
        parts.registry,
        drain,
        parts.wake,
        max_upload_bytes=config.load.max_side_bytes,
        comparisons=parts.comparisons,
        presence=presence,
    )
    return {
        OPEN_INFERENCE: OpenInferenceDoor(service, pool, metrics, drain, tenants),
        NATIVE: NativeDoor(service, metrics, tenants),
        ADMIN: admin,
        HEALTH: HealthDoor(service, pool, drain, OURS),
    }
