"""gRPC: the services, their messages and their errors. Only this wing and the client know grpc and protos."""

from serving.api.drain import Drain, end_tasks
from serving.api.guard import Guards
from serving.api.inbox import Inbox
from serving.api.interceptor import Interceptor, intercepted, path_of, set_status
from serving.api.services import HEALTH, SERVICES, add_services

__all__ = [
    "HEALTH",
    "SERVICES",
    "Drain",
    "Guards",
    "Inbox",
    "Interceptor",
    "add_services",
    "end_tasks",
    "intercepted",
    "path_of",
    "set_status",
]
