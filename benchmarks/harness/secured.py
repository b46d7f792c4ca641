"""TLS and tokens of a server that is measured: an authority of its own, certificates and tokens that can be renewed."""

import datetime
import ipaddress
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving.access.tokens import create_token, revoke_token

DAY = datetime.timedelta(days=1)
NAMES = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller needs: the authority's certificate, and a file with the present token."""

    ca: Path
    token_file: Path

    def token(self) -> str:
        """The present token."""
        return self.token_file.read_text(encoding="utf-8")

    def client(self) -> dict[str, Any]:
        """Arguments of `Client` and `AsyncClient`."""
        return {"tls_ca": str(self.ca), "token": self.token}

    def context(self) -> ssl.SSLContext:
        """For connections of other clients."""
        return ssl.create_default_context(cafile=str(self.ca))


class Issuer:
    """Writes the files of a server with TLS and tokens into a folder, and renews them while it serves.

    Args:
        folder: must not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority")
        itself = _builder(self._name, self._name, self._key)
        itself = itself.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.credentials = Credentials(folder / "ca.pem", folder / "token")
        """Of callers; their token is renewed."""
        self.operator = Credentials(folder / "ca.pem", folder / "operator-token")
        """For what must last: a watch ends when its token is revoked."""
        self.credentials.ca.write_bytes(_pem(itself.sign(self._key, hashes.SHA256())))
        token = create_token(folder / "tokens.toml", name="operator", scopes=["admin"])
        self.operator.token_file.write_text(token, encoding="utf-8")
        self.renewals = 0
        self._issue()
        self.hand_out()

    def settings(self) -> dict[str, str]:
        """Settings of the server."""
        names = {"tls_cert": "server.crt", "tls_key": "server.key", "tokens": "tokens.toml", "audit_log": "audit.log"}
        return {name: str(self._folder / file) for name, file in names.items()}

    def refusals(self) -> int:
        """Calls that the server refused, by its audit log."""
        lines = (self._folder / "audit.log").read_text(encoding="utf-8").splitlines()
        return sum(json.loads(line)["event"] == "refusal" for line in lines)

    def renew(self) -> None:
        """Give the server another certificate, and the callers another token; the token before the last one ends."""
        self.renewals += 1
        self._issue()
        if self.renewals > 1:
            revoke_token(self._folder / "tokens.toml", f"callers-{self.renewals - 2}")

    def _issue(self) -> None:
        token = create_token(self._folder / "tokens.toml", name=f"callers-{self.renewals}", scopes=["admin"])
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name("server"), self._name, key).add_extension(NAMES, critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _replace(self._folder / "server.crt", _pem(builder.sign(self._key, hashes.SHA256())))
        _replace(self._folder / "server.key", private)
        self._token = token

    def hand_out(self) -> None:
        """Let callers use the newest token: once the server has read it."""
        _replace(self.credentials.token_file, self._token.encode())


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.replace(path)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
