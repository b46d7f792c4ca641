"""gRPC: the services, their messages and their errors. Only this wing and the client know grpc and protos."""

from serving.api.drain import Drain, end_tasks
from serving.api.interceptor import LASTING, Interceptor, answering, streaming, tolerant
from serving.api.services import HEALTH, SERVICES, add_services

__all__ = [
    "HEALTH",
    "LASTING",
    "SERVICES",
    "Drain",
    "Interceptor",
    "add_services",
    "answering",
    "end_tasks",
    "streaming",
    "tolerant",
]
