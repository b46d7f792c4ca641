"""The tokens file: made, read, revoked; and who a token stands for."""

import logging
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.access.tokens import TokenFile, create_token, digest_of, read_tokens, revoke_token
from serving.errors import Unauthenticated, UnusableFile

HASH = "sha256:" + "0" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_a_token_stands_for_its_caller(file: Path) -> None:
    ci = create_token(file, name="ci", scopes=["predict:sst2*", "read"], tenant="team-a")
    other = create_token(file, name="other", scopes=["admin"])
    tokens = TokenFile(file)
    caller = tokens.caller(ci)
    assert (caller.name, caller.tenant) == ("ci", "team-a")
    assert caller.scopes.allow("predict", "sst2")
    assert tokens.caller(ci) is caller
    assert (tokens.caller(other).name, tokens.caller(other).tenant) == ("other", "")


def test_the_file_has_hashes_alone_and_is_its_owners(file: Path) -> None:
    token = create_token(file, name="ci", scopes=["read"])
    assert token.startswith("sc_")
    assert token not in file.read_text()
    assert digest_of(token) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(file.parent.glob(".tokens*"))


@pytest.mark.parametrize("token", ["", "sc_", "sc_wrong", HASH, "x" * 100_000])
def test_another_token_stands_for_nobody(file: Path, token: str) -> None:
    create_token(file, name="ci", scopes=["read"])
    with pytest.raises(Unauthenticated, match="not one that this server knows") as caught:
        TokenFile(file).caller(token)
    assert not token or token not in str(caught.value)


def test_an_expired_token_stands_for_nobody(file: Path) -> None:
    now = datetime.now(UTC)
    late = create_token(file, name="late", scopes=["read"], expires=now - timedelta(seconds=5))
    good = create_token(file, name="good", scopes=["read"], expires=now + timedelta(days=1))
    tokens = TokenFile(file)
    assert tokens.caller(good).name == "good"
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.caller(late)


def test_a_changed_file_counts_without_a_restart(file: Path) -> None:
    first = create_token(file, name="first", scopes=["read"])
    tokens = TokenFile(file, look_every_s=0)
    second = create_token(file, name="second", scopes=["read"])
    assert tokens.caller(second).name == "second"
    revoke_token(file, "first")
    with pytest.raises(Unauthenticated):
        tokens.caller(first)
    assert tokens.caller(second).name == "second"


def test_a_damaged_file_leaves_the_tokens_as_they_were(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = create_token(file, name="ci", scopes=["read"])
    tokens = TokenFile(file, look_every_s=0)
    for damage in ("[[token]", "", '[[token]]\nname = "ci"'):
        if not damage:
            file.unlink()
        else:
            file.write_text(damage)
        with caplog.at_level(logging.ERROR):
            assert tokens.caller(token).name == "ci"
    assert len(caplog.records) == 3


def test_revoking_leaves_the_rest_of_the_file(file: Path) -> None:
    file.write_text("# of the whole service\n\n")
    for name in ("a", "b", "c"):
        create_token(file, name=name, scopes=["read"])
    revoke_token(file, "b")
    assert [entry.caller.name for entry in read_tokens(file)] == ["a", "c"]
    assert file.read_text().startswith("# of the whole service\n")
    with pytest.raises(ValueError, match="no token named 'b'; there are a, c"):
        revoke_token(file, "b")


def test_a_name_is_given_once(file: Path) -> None:
    create_token(file, name="ci", scopes=["read"])
    with pytest.raises(ValueError, match="a token named 'ci' already"):
        create_token(file, name="ci", scopes=["read"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[token]]\n", "name must be"),
        (f'[[token]]\nname = "a b"\nhash = "{HASH}"\nscopes = ["read"]', "name must be"),
        ('[[token]]\nname = "a"\nhash = "secret"\nscopes = ["read"]', "hash must be sha256: and 64"),
        (f'[[token]]\nname = "a"\nhash = "{HASH}"\nscopes = []', "scopes must be a list"),
        (f'[[token]]\nname = "a"\nhash = "{HASH}"\nscopes = ["write"]', "'write' is no scope"),
        (f'[[token]]\nname = "a"\nhash = "{HASH}"\nscopes = ["read"]\nscope = 1', r"unknown keys \['scope'\]"),
        (f'[[token]]\nname = "a"\nhash = "{HASH}"\nscopes = ["read"]\nexpires = 2027-01-01', "a time with a zone"),
        (f'[[token]]\nname = "a"\nhash = "{HASH}"\nscopes = ["read"]\ntenant = "x y"', "tenant must be"),
        (f'[[token]]\nname = "a"\nhash = "{HASH}"\nscopes = ["read"]\n' * 2, "two tokens have the same hash"),
        ("token = 1", r"tables \[\[token\]\]"),
        ("token = [1]", "must be a table"),
        ("[tokens]\n", r"tables \[\[token\]\]"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_it(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(UnusableFile, match=why):
        TokenFile(file)


def test_no_token_is_made_of_arguments_that_the_file_cannot_have(file: Path) -> None:
    for how in ({"name": 'a"b', "scopes": ["read"]}, {"name": "a", "scopes": ["write"]}, {"name": "a", "scopes": []}):
        with pytest.raises(ValueError):
            create_token(file, **how)  # type: ignore[arg-type]
    assert not file.exists()
