"""gRPC: what a caller sends and is told. The only wing but the client that knows grpc and protos."""

from serving.api.admin import AdminServicer
from serving.api.call import Service, Tenants
from serving.api.drain import Drain, end_tasks
from serving.api.interceptor import LASTING, Interceptor, answering, streaming, tolerant
from serving.api.native import NativeServicer
from serving.api.open_inference import OpenInferenceServicer
from serving.api.services import ADMIN, HEALTH, NATIVE, OPEN_INFERENCE, OURS, HealthServicer

__all__ = [
    "ADMIN",
    "HEALTH",
    "LASTING",
    "NATIVE",
    "OPEN_INFERENCE",
    "OURS",
    "AdminServicer",
    "Drain",
    "HealthServicer",
    "Interceptor",
    "NativeServicer",
    "OpenInferenceServicer",
    "Service",
    "Tenants",
    "answering",
    "end_tasks",
    "streaming",
    "tolerant",
]
