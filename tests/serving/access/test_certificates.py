"""Certificates: which files are accepted, and when they are read again."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.harness.authority import Authority
from serving.access.certificates import Certificates, open_certificates
from serving.config import AccessConfig
from serving.errors import UnusableFile


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_renewed_pair_is_read_again(authority: Authority) -> None:
    chain, key = authority.issue("server")
    certificates = Certificates(chain, key, look_every_s=0)
    first = certificates.current
    assert certificates.current == first
    authority.issue("server")
    assert certificates.current.chain == chain.read_bytes() != first.chain
    assert certificates.current.key == key.read_bytes()


def test_half_of_a_renewal_is_not_used(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    chain, key = authority.issue("server")
    certificates = Certificates(chain, key, look_every_s=0)
    first = certificates.current
    other_chain, other_key = authority.issue("renewed")
    with caplog.at_level(logging.ERROR):
        shutil.copy(other_chain, chain)
        assert certificates.current == first
        assert certificates.current == first
        chain.write_bytes(other_chain.read_bytes()[:100])
        assert certificates.current == first
        chain.unlink()
        assert certificates.current == first
    assert len(caplog.records) == 3
    assert all("stays in use" in record.getMessage() for record in caplog.records)
    assert "PRIVATE" not in caplog.text
    shutil.copy(other_chain, chain)
    shutil.copy(other_key, key)
    assert certificates.current.chain == other_chain.read_bytes()


def test_a_change_within_a_tick_of_the_clock_is_seen(authority: Authority) -> None:
    chain, key = authority.issue("server")
    ca = authority.ca
    certificates = Certificates(chain, key, ca, look_every_s=0)
    before = ca.stat()
    text = ca.read_bytes()
    ca.write_bytes(text[:-1] + b" ")
    os.utime(ca, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert certificates.current.client_ca == text[:-1] + b" "


@pytest.mark.parametrize("fault", ["no file", "no PEM", "another key", "no authority"])
def test_a_server_does_not_begin_with_files_that_cannot_be_used(
    fault: str, authority: Authority, tmp_path: Path
) -> None:
    chain, key = authority.issue("server")
    if fault == "no file":
        key.unlink()
    elif fault == "no PEM":
        chain.write_text("nothing")
    elif fault == "another key":
        key = authority.issue("other")[1]
    else:
        authority.ca.write_text("nothing")
    with pytest.raises(UnusableFile, match=r"the TLS certificate .*server\.crt cannot be used"):
        Certificates(chain, key, authority.ca)


def test_without_settings_there_is_no_tls() -> None:
    assert open_certificates(AccessConfig()) is None
