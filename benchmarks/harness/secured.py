"""TLS and tokens of a server that is measured: an authority of its own, certificates and tokens that can be renewed."""

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.authority import Authority, replace
from serving.access.tokens import create_token, revoke_token


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
        self._authority = Authority(folder)
        self.credentials = Credentials(self._authority.ca, folder / "token")
        """Of callers; their token is renewed."""
        self.operator = Credentials(self._authority.ca, folder / "operator-token")
        """For what must last: a watch ends when its token is revoked."""
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
        self._token = create_token(self._folder / "tokens.toml", name=f"callers-{self.renewals}", scopes=["admin"])
        self._authority.issue("server")

    def hand_out(self) -> None:
        """Let callers use the newest token: once the server has read it."""
        replace(self.credentials.token_file, self._token.encode())
