"""What a client shows to a server and asks of it: TLS, a certificate of its own, a token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import grpc

from serving.client.errors import InvalidInputError

Token = str | Callable[[], str]
"""A bearer token, or a function that returns the present one and is called for every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How a client connects. The arguments of `_Caller` of the same names."""

    tls: bool = False
    tls_ca: str | PathLike[str] | None = None
    client_cert: str | PathLike[str] | None = None
    client_key: str | PathLike[str] | None = None
    token: Token | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.client_cert is None) != (self.client_key is None):
            raise InvalidInputError("client_cert: give client_cert and client_key together")
        if isinstance(self.token, str):
            _check_token(self.token)
        elif self.token is not None and not callable(self.token):
            raise InvalidInputError(f"token: must be a text or a function, got {type(self.token).__name__}")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted: it was asked for, or a file of TLS is given."""
        return bool(self.tls or self.tls_ca or self.client_cert)

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """gRPC's credentials, from the files as they are now; None without TLS.

        Raises:
            InvalidInputError: a file cannot be read.
        """
        if not self.uses_tls:
            return None
        ca, cert, key = self.tls_ca, self.client_cert, self.client_key
        return grpc.ssl_channel_credentials(_read("tls_ca", ca), _read("client_key", key), _read("client_cert", cert))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call that says who calls. Raises InvalidInputError: the token cannot be sent."""
        if self.token is None:
            return ()
        token = self.token if isinstance(self.token, str) else self.token()
        _check_token(token)
        return (("authorization", f"Bearer {token}"),)


def read_token(path: str) -> str:
    """The token in a file. Raises InvalidInputError: it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"token: cannot read {path}: {error}") from None


def _check_token(token: object) -> None:
    if not isinstance(token, str) or not token or not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError("token: must be one word of ASCII characters, as it was printed when it was made")


def _read(name: str, path: str | PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{name}: cannot read {path}: {error.strerror or error}") from None
