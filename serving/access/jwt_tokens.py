"""JSON Web Tokens of an identity provider: signature, issuer, audience, times, scopes and tenant.

Keys come from a JWKS, a file or an HTTPS URL, and are kept in memory. Needs the extra `jwt` (PyJWT and cryptography).
"""

import asyncio
import hashlib
import json
import logging
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.access.caller import Caller
from serving.access.scopes import Scope, Scopes
from serving.access.watched_file import WatchedFiles
from serving.config import AccessConfig
from serving.errors import Unauthenticated, UnusableFile

log = logging.getLogger(__name__)

ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Signatures that are accepted, by the kind of key. Neither `none` nor one whose key would be a shared secret."""
LEEWAY_S = 30.0
"""How far the clocks of the provider and the server may differ, in seconds."""
REFRESH_S = 300.0
"""Age at which keys of a URL are fetched again, in seconds."""
RETRY_S = 10.0
"""Least time between two fetches from a URL, in seconds: a token with an unknown key asks for one."""
FETCH_S = 5.0
MAX_JWKS_BYTES = 2**20
MAX_TOKEN_CHARS = 16_384
MAX_CACHED = 4096
"""Verified tokens that are kept until they expire or the keys change. To verify one takes about 0.1 ms."""
MAX_NAME = 256

Keys = dict[str, Any]
"""PyJWK by its `kid`; one without is under ""."""


class JwtVerifier:
    """Turns a JWT into its caller. Use it on one event loop.

    Raises:
        UnusableFile: the keys cannot be read now, or the extra is not installed.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._config = config
        self._callers: dict[bytes, tuple[Caller, float]] = {}
        """By the hash of the token: its caller, and when it expires, in time.time() seconds."""
        self._callers_of: Keys | None = None
        """The keys that verified them."""
        is_url = urllib.parse.urlsplit(config.jwt_keys).scheme in ("http", "https")
        try:
            _need_library()
            self._keys = _UrlKeys(config.jwt_keys) if is_url else _FileKeys(Path(config.jwt_keys))
        except (OSError, ValueError) as error:
            raise UnusableFile("the keys of JWTs", config.jwt_keys, str(error)) from None

    async def caller(self, token: str) -> Caller:
        """Who the token stands for.

        Raises:
            Unauthenticated: it is not valid; the message says why, and repeats nothing of it.
        """
        if len(token) > MAX_TOKEN_CHARS:
            raise Unauthenticated(f"the JWT is longer than {MAX_TOKEN_CHARS:,} characters")
        if self._keys.current is not self._callers_of or len(self._callers) >= MAX_CACHED:
            self._callers_of = self._keys.current
            self._callers.clear()
        digest = hashlib.sha256(token.encode()).digest()
        if digest in self._callers:
            caller, expires = self._callers[digest]
            if time.time() < expires + LEEWAY_S:
                return caller
            raise Unauthenticated("the JWT has expired; get a new one")
        claims = await self._claims(token)
        caller = self._read(claims)
        self._callers[digest] = caller, float(claims["exp"])
        return caller

    async def _claims(self, token: str) -> dict[str, Any]:
        import jwt

        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
        except (jwt.InvalidTokenError, ValueError):
            raise Unauthenticated("the token is neither one that this server knows nor a JWT") from None
        key = await self._keys.get(kid if isinstance(kid, str) else "")
        if key is None:
            raise Unauthenticated("the JWT is signed by a key that its issuer does not publish")
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=_algorithms(key),
                audience=self._config.jwt_audience,
                issuer=self._config.jwt_issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise Unauthenticated(_why(error)) from None
        except (ValueError, TypeError, OverflowError):
            raise Unauthenticated("the JWT is damaged") from None

    def _read(self, claims: Mapping[str, Any]) -> Caller:
        name = claims["sub"]
        tenant = claims.get(self._config.jwt_tenant_claim, "")
        said = claims.get(self._config.jwt_scopes_claim, "")
        if not isinstance(name, str) or not isinstance(tenant, str) or max(len(name), len(tenant)) > MAX_NAME:
            raise Unauthenticated(f"the JWT's subject and tenant must be texts of at most {MAX_NAME} characters")
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        return Caller(name, tenant, Scopes(_known_scopes(words)))


def _known_scopes(words: list[Any]) -> list[Scope]:
    """Those that are ours: a provider adds others, such as `openid`."""
    scopes = []
    for word in words:
        try:
            scopes.append(Scope.parse(str(word)))
        except ValueError:
            continue
    return scopes


def _why(error: Exception) -> str:
    import jwt

    match error:
        case jwt.ExpiredSignatureError():
            return "the JWT has expired; get a new one"
        case jwt.ImmatureSignatureError():
            return "the JWT is not valid yet"
        case jwt.InvalidAudienceError():
            return "the JWT is for another audience"
        case jwt.InvalidIssuerError():
            return "the JWT is of another issuer"
        case jwt.MissingRequiredClaimError():
            return f"the JWT has no claim {error.claim}"
        case jwt.InvalidAlgorithmError():
            return "the JWT's algorithm is not one that this server accepts for its key"
        case jwt.InvalidSignatureError():
            return "the JWT's signature is wrong"
        case _:
            return "the JWT is damaged"


def _algorithms(key: Any) -> list[str]:
    """Those of the key's kind; the one alone that the provider names for the key."""
    allowed = ALGORITHMS[key.key_type]
    named = key._jwk_data.get("alg")
    return [name for name in allowed if named in (None, name)]


def parse_keys(data: bytes) -> Keys:
    """The keys of a JWKS that can verify signatures of ALGORITHMS.

    Raises:
        ValueError: it has none, or is no JWKS.
    """
    import jwt

    if len(data) > MAX_JWKS_BYTES:
        raise ValueError(f"it has more than {MAX_JWKS_BYTES:,} bytes")
    document = json.loads(data)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it is no JWKS: {"keys": [...]}')
    keys: Keys = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in ALGORITHMS or entry.get("use") == "enc":
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue  # of a curve or an algorithm that is not supported
        if _algorithms(key):
            keys[str(entry.get("kid", ""))] = key
    if not keys:
        raise ValueError("it has no key that verifies signatures (RSA, EC or Ed25519)")
    return keys


class _FileKeys:
    """Keys of a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._files = WatchedFiles([path], lambda: parse_keys(path.read_bytes()))

    @property
    def current(self) -> Keys:
        return self._files.current

    async def get(self, kid: str) -> Any:
        return _pick(self.current, kid)


class _UrlKeys:
    """Keys of a URL, fetched on a thread: at the start, when they are old, and when a token has an unknown key."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys = fetch_keys(url)
        self._fetched_at = time.monotonic()
        self._fetching: asyncio.Task[None] | None = None

    @property
    def current(self) -> Keys:
        """The newest keys. Old ones are fetched again in the background: for callers who are known already, too."""
        if time.monotonic() - self._fetched_at > REFRESH_S:
            self._fetch()
        return self._keys

    async def get(self, kid: str) -> Any:
        """The key; None where there is none. Waits for one fetch if the key is unknown."""
        key = _pick(self.current, kid)
        if key is None and (self._fetching or time.monotonic() - self._fetched_at > RETRY_S):
            await asyncio.shield(self._fetch())
        return _pick(self._keys, kid)

    def _fetch(self) -> "asyncio.Task[None]":
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh())
        return self._fetching

    async def _refresh(self) -> None:
        try:
            self._keys = await asyncio.to_thread(fetch_keys, self._url)
        except (OSError, ValueError) as error:
            log.error("the keys of JWTs at %s cannot be fetched: %s; those before stay in use", self._url, error)
        finally:
            self._fetched_at = time.monotonic()
            self._fetching = None


def fetch_keys(url: str) -> Keys:
    """Fetch a JWKS. Blocks. Raises OSError, ValueError."""
    with urllib.request.urlopen(url, timeout=FETCH_S) as response:
        return parse_keys(response.read(MAX_JWKS_BYTES + 1))


def _pick(keys: Keys, kid: str) -> Any:
    """The key of this id. A token that names none is by the only key."""
    if kid:
        return keys.get(kid)
    return next(iter(keys.values())) if len(keys) == 1 else None


def _need_library() -> None:
    try:
        import jwt  # noqa: F401
    except ImportError:
        raise ValueError("JWTs need PyJWT; pip install 'sidecast[jwt]'") from None
