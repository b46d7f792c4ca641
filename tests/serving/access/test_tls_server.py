"""A server with TLS: both ports, client certificates, and certificates that are renewed while it serves."""

import http.client
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.authority import Authority
from serving.client import AsyncClient, Client, UnreachableError
from serving.config import AccessConfig
from tests.serving.api_kit import SST2, Parlour


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


def secured(folder: Path, authority: Authority, *, client_ca: Path | None = None) -> Parlour:
    certificate, key = authority.issue("server")
    access = AccessConfig(tls_cert=str(certificate), tls_key=str(key), tls_client_ca=str(client_ca or ""))
    return Parlour(folder, [SST2], access=access)


def scrape(parlour: Parlour, authority: Authority, path: str, client: tuple[Path, Path] | None = None) -> int:
    context = ssl.create_default_context(cafile=authority.ca)
    if client:
        context.load_cert_chain(*client)
    connection = http.client.HTTPSConnection("127.0.0.1", parlour.server.metrics_port, context=context, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


async def test_a_client_that_knows_the_authority_is_answered(tmp_path: Path, authority: Authority) -> None:
    with secured(tmp_path, authority).open() as parlour:
        with Client(parlour.address, tls_ca=authority.ca) as client:
            assert client.ready()
            assert client.predict("sst2", ["good"]).task == "sst2"
        async with AsyncClient(parlour.address, tls_ca=str(authority.ca)) as client:
            assert (await client.predict("sst2", ["good"])).task == "sst2"
        assert scrape(parlour, authority, "/metrics") == 200
        for how in ({}, {"tls": True}, {"tls_ca": Authority(tmp_path, "stranger").ca}):
            with Client(parlour.address, retry=False, timeout=5, **how) as client, pytest.raises(UnreachableError):
                client.tasks()


def test_with_a_client_authority_only_its_clients_are_answered(tmp_path: Path, authority: Authority) -> None:
    clients, strangers = Authority(tmp_path, "clients"), Authority(tmp_path, "strangers")
    good, bad = clients.issue("ours"), strangers.issue("theirs")
    with secured(tmp_path, authority, client_ca=clients.ca).open() as parlour:
        how: dict[str, Any] = {"tls_ca": authority.ca, "retry": False, "timeout": 5}
        with Client(parlour.address, client_cert=good[0], client_key=good[1], **how) as client:
            assert client.tasks()[0].task == "sst2"
        for pair in ({}, {"client_cert": bad[0], "client_key": bad[1]}):
            with Client(parlour.address, **how, **pair) as client, pytest.raises(UnreachableError):
                client.tasks()
        assert scrape(parlour, authority, "/metrics", good) == 200
        assert scrape(parlour, authority, "/metrics") == 401
        assert scrape(parlour, authority, "/readyz") == 200  # Kubernetes can show no certificate
        with pytest.raises((ssl.SSLError, ConnectionError)):
            scrape(parlour, authority, "/readyz", bad)


def test_a_renewed_certificate_is_shown_to_new_callers_and_open_connections_stay(
    tmp_path: Path, authority: Authority
) -> None:
    with secured(tmp_path, authority).open() as parlour, Client(parlour.address, tls_ca=authority.ca) as before:
        assert before.tasks()
        old = shown(parlour.server.port), shown(parlour.server.metrics_port)
        authority.issue("server")
        eventually(lambda: shown(parlour.server.port) != old[0])
        eventually(lambda: shown(parlour.server.metrics_port) != old[1])
        assert shown(parlour.server.port) == shown(parlour.server.metrics_port)
        assert before.tasks()
        with Client(parlour.address, tls_ca=authority.ca) as client:
            assert client.tasks()


def shown(port: int) -> str:
    """The certificate that the port shows."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=30)


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never happened")
