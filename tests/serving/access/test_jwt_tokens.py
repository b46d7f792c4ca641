"""JWTs: which are accepted, and the keys that verify them."""

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from serving.access import jwt_tokens
from serving.access.jwt_tokens import JwtVerifier, parse_keys
from serving.config import AccessConfig
from serving.errors import Unauthenticated, UnusableFile

ISSUER, AUDIENCE = "https://issuer.example", "sidecast"
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, kid: str, **more: str) -> dict[str, Any]:
    kind = {ec.EllipticCurvePrivateKey: "ES256", rsa.RSAPrivateKey: "RS256"}
    name = next((name for base, name in kind.items() if isinstance(key, base)), "EdDSA")
    algorithm = jwt.get_algorithm_by_name(name)
    return json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid} | more  # type: ignore[attr-defined]


JWKS = {"keys": [public(EC, "ec"), public(RSA, "rsa", use="sig"), public(ED, "ed")]}


def claims(**changes: Any) -> dict[str, Any]:
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 600, "scope": "openid predict:sst2*"}
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(key: Any = EC, algorithm: str = "ES256", kid: str | None = "ec", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={} if kid is None else {"kid": kid})


def verifier(folder: Path, jwks: dict[str, Any] = JWKS, **config: Any) -> JwtVerifier:
    (folder / "jwks.json").write_text(json.dumps(jwks))
    return JwtVerifier(
        AccessConfig(jwt_keys=str(folder / "jwks.json"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE, **config)
    )


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(EC, "ES256", "ec"), (RSA, "RS256", "rsa"), (RSA, "PS384", "rsa"), (ED, "EdDSA", "ed")],
)
async def test_a_good_token_says_caller_tenant_and_scopes(tmp_path: Path, key: Any, algorithm: str, kid: str) -> None:
    made = verifier(tmp_path)
    token = signed(key, algorithm, kid, tenant="team-a")
    caller = await made.caller(token)
    assert (caller.name, caller.tenant) == ("alice", "team-a")
    assert caller.scopes.allow("predict", "sst2")
    assert not caller.scopes.allow("publish", "sst2")
    assert await made.caller(token) is caller


async def test_other_claims_can_have_scopes_and_tenant(tmp_path: Path) -> None:
    made = verifier(tmp_path, jwt_scopes_claim="scp", jwt_tenant_claim="org")
    caller = await made.caller(signed(scope="admin", scp=["read", "other"], org="a"))
    assert caller.tenant == "a"
    assert caller.scopes.allow("read", "sst2")
    assert not caller.scopes.allow("admin", "sst2")


HMAC_KEY = EC.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def unsigned() -> str:
    parts = ({"alg": "none", "typ": "JWT", "kid": "ec"}, claims())
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def by_public_key() -> str:
    """Signed with the public key as a shared secret."""
    import hashlib
    import hmac

    parts = ({"alg": "HS256", "typ": "JWT", "kid": "ec"}, claims())
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    signature = hmac.digest(HMAC_KEY, text.encode(), hashlib.sha256)
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: signed(exp=time.time() - 3600), "expired"),
        (lambda: signed(exp=None), "no claim exp"),
        (lambda: signed(sub=None), "no claim sub"),
        (lambda: signed(nbf=time.time() + 3600), "not valid yet"),
        (lambda: signed(aud="another"), "another audience"),
        (lambda: signed(aud=None), "no claim aud|another audience"),
        (lambda: signed(iss="https://evil.example"), "another issuer"),
        (lambda: signed(OTHER), "signature is wrong"),
        (lambda: signed(kid="unknown"), "does not publish"),
        (lambda: signed(kid=None), "does not publish"),
        (lambda: signed(tenant=["a"]), "must be texts"),
        (lambda: signed(sub="x" * 257), "at most 256"),
        (unsigned, "algorithm"),
        (by_public_key, "algorithm"),
        (lambda: signed(RSA, "RS256", "ec"), "algorithm"),
        (lambda: signed()[:-2], "signature|damaged"),
        (lambda: "a.b.c", "nor a JWT"),
        (lambda: "..", "nor a JWT"),
        (lambda: "x" * 20_000, "longer than"),
    ],
)
async def test_a_bad_token_is_refused_and_not_repeated(tmp_path: Path, make: Callable[[], str], why: str) -> None:
    token = make()
    with pytest.raises(Unauthenticated, match=why) as caught:
        await verifier(tmp_path).caller(token)
    assert token not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_known_token_still_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = verifier(tmp_path)
    token = signed()
    await made.caller(token)
    later = time.time() + 700
    monkeypatch.setattr(jwt_tokens.time, "time", lambda: later)
    with pytest.raises(Unauthenticated, match="expired"):
        await made.caller(token)


async def test_a_known_token_is_refused_when_its_key_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = verifier(tmp_path)
    token = signed()
    await made.caller(token)
    keys = parse_keys(json.dumps({"keys": [public(OTHER, "other")]}).encode())
    monkeypatch.setattr(type(made._keys), "current", keys)
    with pytest.raises(Unauthenticated, match="does not publish"):
        await made.caller(token)


async def test_what_is_kept_of_tokens_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_tokens, "MAX_CACHED", 3)
    made = verifier(tmp_path)
    for number in range(10):
        await made.caller(signed(sub=f"caller {number}"))
        assert len(made._callers) <= 3


async def test_keys_of_a_url_are_fetched_again_for_an_unknown_key(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[dict[str, Any]] = [public(EC, "ec")]
    fetched: list[str] = []

    def fetch(url: str) -> dict[str, Any]:
        fetched.append(url)
        if not published:
            raise OSError("away")
        return parse_keys(json.dumps({"keys": published}).encode())

    monkeypatch.setattr(jwt_tokens, "fetch_keys", fetch)
    made = JwtVerifier(AccessConfig(jwt_keys="https://i.example/jwks", jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    await made.caller(signed())
    published.append(public(OTHER, "other"))
    with pytest.raises(Unauthenticated):  # it asked a moment ago
        await made.caller(signed(OTHER, kid="other"))
    assert len(fetched) == 1
    monkeypatch.setattr(jwt_tokens, "RETRY_S", -1.0)
    await made.caller(signed(OTHER, kid="other"))
    assert len(fetched) == 2
    published.clear()
    with pytest.raises(Unauthenticated):
        await made.caller(signed(OTHER, kid="unknown"))
    await made.caller(signed(OTHER, kid="other"))  # those before stay in use


async def test_a_key_that_a_url_withdraws_ends_the_callers_that_are_known_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = [public(EC, "ec")]
    fetch = lambda url: parse_keys(json.dumps({"keys": published}).encode())  # noqa: E731
    monkeypatch.setattr(jwt_tokens, "fetch_keys", fetch)
    made = JwtVerifier(AccessConfig(jwt_keys="https://i.example/jwks", jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    token = signed()
    await made.caller(token)
    published[:] = [public(OTHER, "other")]
    monkeypatch.setattr(jwt_tokens, "REFRESH_S", -1.0)
    await made.caller(token)  # fetched while it is answered
    assert made._keys._fetching is not None  # type: ignore[union-attr]
    await made._keys._fetching  # type: ignore[union-attr]
    with pytest.raises(Unauthenticated, match="does not publish"):
        await made.caller(token)


@pytest.mark.parametrize(
    "jwks", [{}, [], {"keys": []}, {"keys": [{"kty": "oct", "k": "AAAA"}]}, {"keys": [public(EC, "a", use="enc")]}]
)
def test_a_set_without_a_usable_key_is_refused(tmp_path: Path, jwks: Any) -> None:
    with pytest.raises(UnusableFile, match="the keys of JWTs"):
        verifier(tmp_path, jwks)
