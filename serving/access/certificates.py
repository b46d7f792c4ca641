"""The server's certificate, its key and the authorities of client certificates: PEM files, rotated without a restart.

Knows `ssl` alone. `serving.ports` makes gRPC's credentials of `Certificates.current`.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.access.watched_file import LOOK_EVERY_S, WatchedFiles
from serving.config import AccessConfig
from serving.errors import UnusableFile


@dataclass(frozen=True, slots=True)
class Pem:
    """The bytes of a certificate chain, its private key, and the authorities that sign client certificates."""

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None
    """None: client certificates are not asked for."""


class Certificates:
    """What the server shows to clients; read again when the files change. Any thread may use it.

    A certificate that does not belong to its key, such as halfway through a renewal, is never used: the one before
    stays, and the log says why.

    Args:
        chain: file of the certificate, followed by intermediate ones.
        key: file of its private key, without a password.
        client_ca: file of the authorities that client certificates must be signed by; None: callers need none.

    Raises:
        UnusableFile: the files cannot be used now.
    """

    def __init__(
        self, chain: Path, key: Path, client_ca: Path | None = None, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self._paths = (chain, key) if client_ca is None else (chain, key, client_ca)
        try:
            self._files = WatchedFiles(self._paths, self._load, look_every_s)
        except (OSError, ValueError) as error:
            raise UnusableFile("the TLS certificate", str(chain), str(error)) from None

    @property
    def current(self) -> Pem:
        """The newest files that fit together."""
        return self._files.current.pem

    @property
    def asks_clients(self) -> bool:
        """Whether callers must show a certificate."""
        return len(self._paths) == 3

    def ssl_context(self, *, optional_client: bool = False) -> ssl.SSLContext:
        """A server's context, for any library. Every handshake uses the newest files.

        Args:
            optional_client: let callers without a certificate in too, where `client_ca` would ask for one. A
                certificate that is shown must be good.
        """

        def choose(connection: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
            loaded = self._files.current
            connection.context = loaded.lenient if optional_client else loaded.strict

        first = self._context(optional_client)
        first.sni_callback = choose  # OpenSSL calls it for clients that name no server too
        return first

    def _load(self) -> "_Loaded":
        """Raises OSError, ValueError: a file cannot be read, is no PEM, or the certificate is not that of the key."""
        pem = self._read()
        loaded = _Loaded(pem, strict=self._context(False), lenient=self._context(True))
        if self._read() != pem:
            raise ValueError("the files changed while they were read")
        return loaded

    def _read(self) -> Pem:
        return Pem(*(path.read_bytes() for path in self._paths))

    def _context(self, optional_client: bool) -> ssl.SSLContext:
        chain, key, *client_ca = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET  # a resumed session would skip the check of the client's certificate
        context.num_tickets = 0
        context.load_cert_chain(chain, key, password=_no_password)
        for path in client_ca:
            context.load_verify_locations(path)
            context.verify_mode = ssl.CERT_OPTIONAL if optional_client else ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True)
class _Loaded:
    pem: Pem
    strict: ssl.SSLContext
    """Asks callers for a certificate where there is a `client_ca`."""
    lenient: ssl.SSLContext
    """Lets callers without a certificate in."""


def _no_password() -> Any:
    raise ValueError("the key has a password; store it without one, readable by the server alone")


def open_certificates(config: AccessConfig) -> Certificates | None:
    """The certificates that the settings name; None where they name none. Raises UnusableFile."""
    if not config.tls_cert:
        return None
    client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
    return Certificates(Path(config.tls_cert), Path(config.tls_key), client_ca)
