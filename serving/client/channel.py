"""A client's channel, sync or async: address, limits, retry policy; and the base class of both clients."""

import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from protos import sidecast_pb2_grpc
from serving.client.arguments import check_timeout
from serving.client.credentials import Credentials, Token
from serving.client.errors import InvalidInputError, SidecastError, from_call
from serving.client.requests import Call
from serving.client.results import Predictions

DEFAULT_PORT = 8001
READY_POLL_S = 0.05
LARGEST_MESSAGE_BYTES = 2**31 - 1
"""The range of gRPC's settings."""
CONNECT_S = 10.0
"""Seconds added to the timeout of a call that waits at the server, for the connection."""

RETRIED = (
    "Retire",
    "ListTasks",
    "ListGroups",
    "ListResidents",
    "GetTask",
    "History",
    "GetComparison",
    "AwaitGeneration",
)
"""Methods of Admin that are retried; of Sidecast all are. A call whose answer is lost may have changed the registry: a
second try of a change, other than a retirement, could undo what somebody else changed in between."""

RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "0.8s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "UNKNOWN"],
}
"""No Sidecast server answers UNKNOWN. gRPC reports a page of HTTP 500 as UNKNOWN; Ray Serve's HAProxy sends one when it
has lost a replica or has none."""


Result = TypeVar("Result")
Outcomes = dict[str, Predictions | SidecastError]
"""By task as asked: its answers, or the error with which it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a client was made with; the arguments of `_Caller`."""

    address: str
    timeout: float | None
    max_message_bytes: int
    retry: bool
    credentials: Credentials = field(default_factory=Credentials)

    @property
    def target(self) -> str:
        """HOST:PORT; or the address itself, where it has a scheme of gRPC's, such as unix: or dns:."""
        host = self.address
        if _is_ipv6(host):  # without brackets its last colon would begin a port
            host = f"[{host}]"
        has_port = ":" in host.rpartition("]")[2]
        return host if has_port else f"{host}:{DEFAULT_PORT}"

    def options(self) -> list[tuple[str, Any]]:
        """gRPC's channel arguments."""
        return [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.service_config", json.dumps(service_config())),
            ("grpc.enable_retries", int(self.retry)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", int(not self._is_local)),  # a proxy would connect to its own loopback
        ]

    @property
    def _is_local(self) -> bool:
        return self.target.startswith(("localhost", "127.", "[::1]"))


def check_address(address: str) -> None:
    """Raises InvalidInputError for what gRPC cannot take as an address."""
    try:
        address.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInputError(f"address: must be HOST:PORT, got {ascii(address)[:100]}") from None
    if address.startswith(("http://", "https://")):
        raise InvalidInputError(
            f"address: must be HOST:PORT of the gRPC port, such as 127.0.0.1:8001; got {address[:100]}"
        )


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def service_config() -> dict[str, Any]:
    """The retry policy in gRPC's JSON format, for clients in other languages too."""
    admin = [{"service": "sidecast.v1.Admin", "method": method} for method in RETRIED]
    return {"methodConfig": [{"name": [{"service": "sidecast.v1.Sidecast"}, *admin], "retryPolicy": RETRY_POLICY}]}


def make_stubs(channel: Any) -> dict[str, Any]:
    """A stub of each service, by the names in `Call.service` and `health`."""
    return {
        "sidecast": sidecast_pb2_grpc.SidecastStub(channel),
        "admin": sidecast_pb2_grpc.AdminStub(channel),
        "health": health_pb2_grpc.HealthStub(channel),
    }


class _Caller:
    """Base class of both clients: settings, pickling, errors."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float | None = 60.0,
        max_message_bytes: int = 64 * 2**20,
        retry: bool = True,
        tls: bool = False,
        tls_ca: str | PathLike[str] | None = None,
        client_cert: str | PathLike[str] | None = None,
        client_key: str | PathLike[str] | None = None,
        token: Token | None = None,
    ) -> None:
        """
        Args:
            address: HOST:PORT; without a port, 8001. An IPv6 address with a port has brackets: `[::1]:8001`.
            timeout: seconds that a call may take, unless the call has its own; None: no limit. `publish` and `watch` do
                not use it.
            max_message_bytes: largest answer; -1: no limit.
            retry: retry calls that end with UNAVAILABLE, as the docstring of `serving.client.client` describes.
            tls: encrypt, and check the server's certificate. `tls_ca` and `client_cert` turn it on too.
            tls_ca: PEM file of the authorities that the server's certificate must be signed by; None: gRPC's own list
                of public ones.
            client_cert, client_key: PEM files of this client's certificate and its key, where the server asks for one.
            token: a bearer token that says who calls, or a function that returns the present one.
        """
        check_address(address)
        check_timeout(timeout)
        if not isinstance(max_message_bytes, int) or not -1 <= max_message_bytes <= LARGEST_MESSAGE_BYTES:
            raise InvalidInputError(
                f"max_message_bytes: must be a whole number up to {LARGEST_MESSAGE_BYTES}, or -1 for no limit"
            )
        self._settings = Settings(
            address=address,
            timeout=timeout,
            max_message_bytes=max_message_bytes,
            retry=retry,
            credentials=Credentials(
                tls=tls, tls_ca=tls_ca, client_cert=client_cert, client_key=client_key, token=token
            ),
        )
        self._connect()

    def _connect(self) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._settings.target!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._settings)

    def _metadata(self, call: Call[Any]) -> tuple[tuple[str, str], ...]:
        return call.metadata + self._settings.credentials.metadata()

    def _timeout(self, timeout: float | None) -> float | None:
        check_timeout(timeout)
        return self._settings.timeout if timeout is None else timeout

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise from_call(error, self._settings.target) from None


def _reopen(kind: type, settings: Settings) -> Any:
    arguments = {each.name: getattr(settings, each.name) for each in fields(settings)}
    credentials = arguments.pop("credentials")
    return kind(**arguments, **{each.name: getattr(credentials, each.name) for each in fields(credentials)})
