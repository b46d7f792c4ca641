"""Commands that ask a server with client certificates and tokens: how they are told, and that they use it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.authority import Authority
from serving.access.tokens import create_token
from serving.client.credentials import Credentials
from serving.config import AccessConfig
from sidecast.loadtest.scrape import ScrapeError, read_metrics
from tests.serving.api_kit import SST2, Parlour
from tests.sidecast.cli_kit import done, python, sidecast


class Secured:
    """A server with TLS, client certificates and tokens, and the options that reach it."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        certificate, key = map(str, authority.issue("server"))
        client = authority.issue("client")
        tokens = folder / "tokens.toml"
        self.token = folder / "token"
        self.token.write_text(create_token(tokens, name="ci", scopes=["read", "predict"]) + "\n")
        self.tls = ("--tls-ca", authority.ca, "--client-cert", client[0], "--client-key", client[1])
        self.credentials = Credentials(tls_ca=authority.ca, client_cert=client[0], client_key=client[1])
        access = AccessConfig(tls_cert=certificate, tls_key=key, tls_client_ca=str(authority.ca), tokens=str(tokens))
        self.parlour = Parlour(folder, [SST2], access=access)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("secured"))
    with made.parlour.open():
        yield made


def test_a_command_shows_its_certificate_and_token(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--server", secured.parlour.address, *secured.tls)
    [task] = done("tasks", *where, "--token-file", secured.token, "--json").document["tasks"]
    assert task["task"] == "sst2"
    monkeypatch.setenv("SIDECAST_TOKEN", secured.token.read_text().strip())
    assert done("predict", "sst2", "good", *where, "--json").document
    for option, value in zip(secured.tls[::2], secured.tls[1::2], strict=True):
        monkeypatch.setenv("SIDECAST_" + str(option)[2:].upper().replace("-", "_"), str(value))
    assert done("doctor", "--server", secured.parlour.address).code == 0


def test_what_is_missing_is_said_in_one_line(secured: Secured) -> None:
    where = ("--server", secured.parlour.address)
    assert "send a token as" in sidecast("tasks", *where, *secured.tls).mistake
    assert "cannot read" in sidecast("tasks", *where, *secured.tls, "--token-file", "/nothing/there").mistake
    assert "give client_cert and client_key together" in sidecast("tasks", *where, *secured.tls[:4]).mistake
    assert "tls_ca: cannot read" in sidecast("tasks", *where, "--tls-ca", "/nothing/there").mistake
    denied = sidecast("retire", "sst2", "1", *where, *secured.tls, "--token-file", secured.token).mistake
    assert "ci may not admin sst2" in denied


def test_tls_at_a_port_without_it_is_one_line(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        ran = python("-m", "sidecast", "tasks", "--server", parlour.address, "--tls")
    assert ran.returncode == 2
    [line] = ran.stderr.splitlines()
    assert "that port has no TLS" in line


def test_a_load_test_reads_the_metrics_with_the_same_credentials(secured: Secured) -> None:
    url = f"https://127.0.0.1:{secured.parlour.server.metrics_port}/metrics"
    token = secured.token.read_text().strip()
    how = secured.credentials
    known = Credentials(tls_ca=how.tls_ca, client_cert=how.client_cert, client_key=how.client_key, token=token)
    assert read_metrics(url, known)
    with pytest.raises(ScrapeError):
        read_metrics(url, how)
