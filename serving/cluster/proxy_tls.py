"""TLS of a Ray cluster of this machine: HAProxy, which Ray starts, ends it before Ray's own ports.

Ray has no setting for it. It copies the variable BALANCE unchanged into HAProxy's configuration, and whole sections may
follow there: they listen for callers, and pass the bytes on to Ray's ports, which listen on this machine alone.
Knows no Ray.
"""

import fcntl
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.access import Certificates, Pem
from serving.errors import NoProxyTls

BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
DEFAULT_BALANCE = "leastconn"
"""Ray's value of BALANCE where nobody sets it."""
SOCKET = "RAY_SERVE_HAPROXY_SOCKET_PATH"
"""Variable with the path of HAProxy's admin socket. Ray adds a folder with the node's id before the file."""
FOLDER = "SIDECAST_TLS"
"""Variable in the environment of every process of a cluster with TLS: the folder of the files that HAProxy reads."""
BUNDLE = "tls.pem"
"""The certificate, intermediate ones and the key."""
CLIENT_CA = "client-ca.pem"
LOOPBACK = "127.0.0.1"
SILENT_S = 3600
"""Longest that nothing may pass on a connection, in seconds: as Ray has it on its own ports."""
ANSWER_S = 5.0
"""Longest that HAProxy may take to answer."""
DONE = "Success!"
"""In HAProxy's answer to a change that it made."""


class ProxyFault(OSError):
    """HAProxy did not take a renewed certificate. It is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPorts:
    """Where HAProxy listens for callers, and the ports of Ray behind it."""

    host: str
    port: int
    http_port: int
    asks_clients: bool
    """Whether callers must show a certificate."""
    inner_port: int = 0
    """Ray's gRPC port, on this machine alone; 0: not chosen yet."""
    inner_http_port: int = 0

    def fits(self, other: "TlsPorts") -> bool:
        """Whether callers find the same as at another one's."""
        return self._outer() == other._outer()

    def _outer(self) -> tuple[Any, ...]:
        return self.host, self.port, self.http_port, self.asks_clients


def environment(folder: Path, ports: TlsPorts, balance: str) -> dict[str, str]:
    """Environment with which Ray must be started.

    Args:
        folder: of the files that HAProxy reads.
        balance: the value of BALANCE without TLS.
    """
    sections = [
        _section("grpc", folder, ports, ports.port, ports.inner_port, "h2"),
        _section("http", folder, ports, ports.http_port, ports.inner_http_port, "http/1.1"),
    ]
    return {BALANCE: "\n".join([balance, *sections]), FOLDER: str(folder)}


def _section(name: str, folder: Path, ports: TlsPorts, outer: int, inner: int, protocol: str) -> str:
    asked = f" ca-file {folder / CLIENT_CA} verify required" if ports.asks_clients else ""
    tls = f"ssl crt {folder / BUNDLE}{asked} ssl-min-ver TLSv1.2 no-tls-tickets alpn {protocol}"
    return f"""listen sidecast_{name}
    mode tcp
    option tcplog
    balance roundrobin
    timeout connect 5s
    timeout client {SILENT_S}s
    timeout server {SILENT_S}s
    bind {ports.host}:{outer} {tls}
    server ray {LOOPBACK}:{inner}"""


def write_files(folder: Path, pem: Pem) -> None:
    """Write what HAProxy reads when it starts, each file at once."""
    _write(folder / BUNDLE, _bundle(pem))
    if pem.client_ca is not None:
        _write(folder / CLIENT_CA, pem.client_ca)


class ProxyCertificate:
    """Gives HAProxy a renewed certificate, without a restart. Several processes may do the same.

    Args:
        folder: of the files that HAProxy reads.
        socket_path: the value of SOCKET.
    """

    def __init__(self, folder: Path, socket_path: Path, certificates: Certificates) -> None:
        self._folder = folder
        self._socket_path = socket_path
        self._certificates = certificates
        self._shown: Pem | None = None

    def refresh(self) -> bool:
        """Give HAProxy the newest files, if it does not have them; whether it took them now. Blocks.

        Raises:
            ProxyFault, OSError
        """
        pem = self._certificates.current
        if pem == self._shown:
            return False
        with (self._folder / f"{BUNDLE}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_files(self._folder, pem)
            for admin in self._socket_path.parent.glob(f"*/{self._socket_path.name}"):
                _give(admin, "cert", self._folder / BUNDLE, _bundle(pem))
                if pem.client_ca is not None:
                    _give(admin, "ca-file", self._folder / CLIENT_CA, pem.client_ca)
        self._shown = pem
        return True


def proxy_certificate(certificates: Certificates | None, environment: Mapping[str, str]) -> ProxyCertificate | None:
    """What gives the proxy of this replica its certificate; None where the replica has none.

    Args:
        environment: of this process.

    Raises:
        NoProxyTls: the replica has a certificate, and its cluster was started without, or asks callers otherwise.
    """
    if certificates is None:
        return None
    if not environment.get(FOLDER):
        raise NoProxyTls("at all")
    folder = Path(environment[FOLDER])
    if (folder / CLIENT_CA).exists() != certificates.asks_clients:
        raise NoProxyTls("of these settings")
    return ProxyCertificate(folder, Path(environment[SOCKET]), certificates)


def _give(admin: Path, kind: str, file: Path, data: bytes) -> None:
    lines = "\n".join(line for line in data.decode().splitlines() if line.strip())  # an empty one ends it
    _ask(admin, f"set ssl {kind} {file} <<\n{lines}\n\n")
    said = _ask(admin, f"commit ssl {kind} {file}\n")
    if DONE not in said:
        raise ProxyFault(f"the proxy did not take the renewed {kind}: {' '.join(said.split())[:200]}")


def _ask(admin: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_S)
        client.connect(str(admin))
        client.sendall(command.encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile(encoding="utf-8", errors="replace") as answer:
            return answer.read()


def _bundle(pem: Pem) -> bytes:
    return pem.chain.rstrip() + b"\n" + pem.key


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    new.replace(path)
