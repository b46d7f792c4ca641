"""The gRPC services that a server offers, by their descriptors. Knows no servicers, and so no model."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import open_inference_pb2, open_inference_pb2_grpc, sidecast_pb2, sidecast_pb2_grpc
from serving.api.reflection import add_reflection

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


def add_services(servicers: Mapping[ServiceDescriptor, Any], server: grpc.aio.Server) -> None:
    """Have `server` answer by these servicers, and list them by reflection."""
    for service, servicer in servicers.items():
        ADD[service](servicer, server)
    add_reflection((service.full_name for service in servicers), server)
