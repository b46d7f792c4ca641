"""The gRPC services of a serving process, by what protobuf knows of them."""

from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from protos import open_inference_pb2, sidecast_pb2

OPEN_INFERENCE: ServiceDescriptor = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
NATIVE: ServiceDescriptor = sidecast_pb2.DESCRIPTOR.services_by_name["Sidecast"]
ADMIN: ServiceDescriptor = sidecast_pb2.DESCRIPTOR.services_by_name["Admin"]
HEALTH: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]

OURS = tuple(each.full_name for each in (OPEN_INFERENCE, NATIVE, ADMIN))
"""Names of those that live and die with the server, for its health."""
