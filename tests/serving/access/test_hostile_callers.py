"""Whatever a caller sends as its token, or an operator writes into a file, ends in one of our errors."""

import asyncio
import base64
import contextlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.access import Access
from serving.access.audit import _line
from serving.access.jwt_tokens import parse_keys
from serving.access.scopes import VERBS, Scope, Scopes
from serving.access.tokens import create_token, digest_of, read_tokens
from serving.config import AccessConfig
from serving.errors import Unauthenticated
from tests.serving.access.test_jwt_tokens import AUDIENCE, ISSUER, JWKS, claims, signed

pytestmark = pytest.mark.slow

MANY = settings(
    max_examples=300, deadline=timedelta(seconds=5), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def access(tmp_path: Path) -> Access:
    create_token(tmp_path / "tokens.toml", name="ci", scopes=["admin"])
    (tmp_path / "jwks.json").write_text(json.dumps(JWKS))
    return Access(
        AccessConfig(
            tokens=str(tmp_path / "tokens.toml"),
            jwt_keys=str(tmp_path / "jwks.json"),
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
        )
    )


def refused(access: Access, header: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        asyncio.run(access.authenticate({"authorization": header}))
    assert len(str(caught.value)) < 200


@MANY
@given(kind=st.sampled_from(["", "Bearer ", "bearer ", "Basic "]), token=st.text(max_size=500))
def test_any_text_as_a_token(access: Access, kind: str, token: str) -> None:
    refused(access, kind + token)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@MANY
@given(
    header=JSON | st.fixed_dictionaries({"alg": JSON | st.sampled_from(["none", "HS256", "ES256"]), "kid": JSON}),
    payload=JSON,
    signature=st.binary(max_size=80),
)
def test_any_json_as_a_jwt(access: Access, header: Any, payload: Any, signature: bytes) -> None:
    end = base64.urlsafe_b64encode(signature).decode().rstrip("=")
    refused(access, f"Bearer {part(header)}.{part(payload)}.{end}")


@MANY
@given(cut=st.integers(0, 400), put=st.text("abcXYZ019-_.=", max_size=3))
def test_a_good_jwt_with_a_change(access: Access, cut: int, put: str) -> None:
    good = signed()
    changed = good[: cut % len(good)] + put + good[cut % len(good) + 1 :]
    if changed != good and changed.rpartition(".")[0] != good.rpartition(".")[0]:
        refused(access, f"Bearer {changed}")


@MANY
@given(name=st.sampled_from(["sub", "exp", "iss", "aud", "nbf", "iat", "tenant", "scope"]), value=JSON)
def test_a_signed_jwt_with_any_claim(access: Access, name: str, value: Any) -> None:
    """Its provider signed it, so a caller may come of it; nothing else may."""
    import jwt

    try:
        token = signed(**{name: value})
    except (TypeError, jwt.PyJWTError):  # the library signs no such thing
        return
    try:
        caller = asyncio.run(access.authenticate({"authorization": f"Bearer {token}"}))
    except Unauthenticated:
        return
    assert caller.name == (value if name == "sub" else claims()["sub"])
    assert not caller.scopes.allow("publish", "sst2") or name == "scope"


@MANY
@given(data=st.binary(max_size=300) | JSON.map(lambda value: json.dumps({"keys": value}).encode()))
def test_any_bytes_as_keys(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert parse_keys(data)


@MANY
@given(text=st.text(max_size=200), field=st.sampled_from(["name", "hash", "scopes", "tenant", "expires"]))
def test_any_text_in_the_tokens_file(tmp_path: Path, text: str, field: str) -> None:
    file = tmp_path / "any.toml"
    entry = {"name": '"a"', "hash": f'"{digest_of("t")}"', "scopes": '["read"]'} | {field: text}
    file.write_text("[[token]]\n" + "\n".join(f"{key} = {value}" for key, value in entry.items()), "utf-8", "replace")
    with contextlib.suppress(ValueError):
        assert len(read_tokens(file)) >= 1


@MANY
@given(verb=st.sampled_from(VERBS), pattern=st.text("ab*?[]!-", max_size=30), task=st.text("ab", max_size=60))
def test_any_pattern_is_matched_or_refused(verb: str, pattern: str, task: str) -> None:
    try:
        scope = Scope.parse(f"{verb}:{pattern}")
    except ValueError:
        return
    assert Scopes([scope]).allow(verb, task) in (True, False)


@MANY
@given(text=st.text(max_size=500))
def test_any_text_in_an_audit_line_is_one_line_of_json(text: str) -> None:
    fields = dict.fromkeys(("caller", "tenant", "peer", "verb", "method", "result", "request_id"), text)
    line = _line("change", tasks=(text,), **fields)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["verb"] == text
