"""`sidecast token`: makes, lists and revokes the tokens of a server's callers."""

from pathlib import Path

import pytest

from serving.access.tokens import TokenFile
from serving.errors import Unauthenticated
from tests.sidecast.cli_kit import done, sidecast


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_a_token_is_printed_once_and_works_until_it_is_revoked(file: Path) -> None:
    words = ("--scope", "predict:sst2*", "--scope", "read", "--tenant", "team-a", "--days", 30, "--tokens", file)
    token = done("token", "create", "ci", *words).out.strip()
    caller = TokenFile(file).caller(token)
    assert (caller.name, caller.tenant, caller.scopes.allow("predict", "sst2-b")) == ("ci", "team-a", True)
    listed = done("token", "list", "--tokens", file)
    assert token not in listed.out
    assert "sha256" not in listed.out
    assert "predict:sst2*, read" in listed.out
    assert done("token", "revoke", "ci", "--tokens", file).out == "revoked ci\n"
    assert done("token", "list", "--tokens", file, "--json").document == []
    with pytest.raises(Unauthenticated):
        TokenFile(file).caller(token)


def test_json_has_the_token_and_the_list(file: Path) -> None:
    made = done("token", "create", "ci", "--scope", "admin", "--tokens", file, "--json").document
    assert made["name"] == "ci"
    assert TokenFile(file).caller(made["token"]).scopes.allow_every_task("publish")
    [entry] = done("token", "list", "--tokens", file, "--json").document
    assert entry == {"name": "ci", "tenant": "", "scopes": ["admin"], "expires": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("create ci --scope write", "'write' is no scope; use predict, read, publish, admin"),
        ("create c,i --scope read", "name must be 1 to 128 characters"),
        ("create ci", "Missing option '--scope'"),
        ("create ci --scope read --days 0", "Invalid value for '--days'"),
        ("revoke ci", "No such file"),
        ("list", "No such file"),
    ],
)
def test_a_mistake_is_one_line(file: Path, words: str, message: str) -> None:
    assert message in sidecast("token", *words.split(), "--tokens", file).mistake
    assert not file.exists()


def test_a_second_token_of_a_name_is_a_mistake(file: Path) -> None:
    done("token", "create", "ci", "--scope", "read", "--tokens", file)
    told = sidecast("token", "create", "ci", "--scope", "read", "--tokens", file).mistake
    assert "there is a token named 'ci' already; choose another name, or revoke it first" in told
