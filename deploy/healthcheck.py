"""The image's HEALTHCHECK: exit code 0 if the server of this container reports SERVING by grpc.health.v1, else 1.

With TLS it asks the metrics port's /readyz instead, which needs no client certificate. Ports are read from where the
server reads them: the command line of the container's first process, SIDECAST_PORT and so on, or the settings file.
"""

import http.client
import os
import ssl
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0
DEFAULT_PORTS = {"port": 8001, "metrics_port": 8002}
COMMAND_LINE = Path("/proc/1/cmdline")


def is_serving(target: str) -> bool:
    """Return whether the server at `target` reports that it serves."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def is_ready(port: int) -> bool:
    """Return whether the server's metrics port says over HTTPS that it takes requests. It is this machine's own."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def port_of(words: Sequence[str], environ: Mapping[str, str], name: str = "port") -> int:
    """The port of a server with this command line and environment; `name` is its setting."""
    return int(_setting(words, environ, name) or DEFAULT_PORTS[name])


def has_tls(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a server with this command line and environment has a certificate."""
    return bool(_setting(words, environ, "tls_cert"))


def _setting(words: Sequence[str], environ: Mapping[str, str], name: str) -> Any:
    """A setting's value; None where it is not given."""
    given = _option(words, "--" + name.replace("_", "-")) or environ.get("SIDECAST_" + name.upper())
    file = _option(words, "--config") or environ.get("SIDECAST_CONFIG")
    if given or not file:
        return given
    settings = tomllib.loads(Path(file).read_text("utf-8"))
    return settings.get(name, settings.get("access", {}).get(name))


def _option(words: Sequence[str], name: str) -> str | None:
    """The option's last value, as `--name value` or `--name=value`; None if it is absent."""
    value = None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            value = after
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value


if __name__ == "__main__":
    words = COMMAND_LINE.read_text("utf-8").split("\0")
    if has_tls(words, os.environ):
        sys.exit(not is_ready(port_of(words, os.environ, "metrics_port")))
    sys.exit(not is_serving(f"127.0.0.1:{port_of(words, os.environ)}"))
