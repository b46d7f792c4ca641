"""The image's HEALTHCHECK: exit code 0 if the server of this container reports SERVING by grpc.health.v1, else 1.

The port is read from where the server reads it: the command line of the container's first process, SIDECAST_PORT, or
the settings file.
"""

import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0
DEFAULT_PORT = 8001
COMMAND_LINE = Path("/proc/1/cmdline")


def is_serving(target: str) -> bool:
    """Return whether the server at `target` reports that it serves."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def port_of(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """The port of a server with this command line and environment."""
    file = _option(words, "--config") or environ.get("SIDECAST_CONFIG")
    port = _option(words, "--port") or environ.get("SIDECAST_PORT")
    return int(port or (tomllib.loads(Path(file).read_text("utf-8")) if file else {}).get("port", DEFAULT_PORT))


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
    sys.exit(not is_serving(f"127.0.0.1:{port_of(words, os.environ)}"))
