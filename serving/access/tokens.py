"""Callers' tokens: a TOML file that holds the hash of each, and who it stands for.

    [[token]]
    name = "ci"
    hash = "sha256:..."
    scopes = ["predict:sst2*", "read"]
    tenant = "team-a"
    expires = 2027-01-01T00:00:00Z

A token is 256 random bits, so that one SHA-256 is enough: there is nothing to guess, unlike with a password. The server
reads the file again when it changes.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.access.caller import Caller
from serving.access.scopes import Scope, Scopes
from serving.access.watched_file import LOOK_EVERY_S, WatchedFiles
from serving.errors import Unauthenticated, UnusableFile

PREFIX = "sc_"
"""Begins every token, so that scanners for secrets find one that was committed."""
RANDOM_BYTES = 32
HASH = re.compile(r"sha256:[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9_.@/\-]{1,128}")
"""Of tokens and tenants: safe in logs and in TOML."""
KEYS = {"name", "hash", "scopes", "tenant", "expires", "created"}
MAX_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token of the file."""

    digest: str
    """sha256:..., of the token."""
    caller: Caller
    scopes: tuple[Scope, ...]
    expires: datetime | None = None


class TokenFile:
    """The tokens of a file, read again when it changes.

    Raises:
        UnusableFile: the file cannot be used now.
    """

    def __init__(self, path: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        try:
            self._files = WatchedFiles([path], lambda: _by_digest(path), look_every_s)
        except (OSError, ValueError) as error:
            raise UnusableFile("the tokens file", str(path), str(error)) from None

    def caller(self, token: str) -> Caller:
        """Who the token stands for.

        Raises:
            Unauthenticated: the file does not have it, or its time has passed.
        """
        digest = digest_of(token)
        entry = self._files.current.get(digest)
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            raise Unauthenticated("the token is not one that this server knows")
        if entry.expires and entry.expires <= datetime.now(UTC):
            raise Unauthenticated("the token has expired; get a new one")
        return entry.caller


def digest_of(token: str) -> str:
    """A token's hash, as the file has it."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> list[TokenEntry]:
    """The tokens of a file.

    Raises:
        OSError, ValueError: the file cannot be read, or an entry breaks a rule, which the message says.
    """
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, at most {MAX_BYTES:,} are read")
    document = tomllib.loads(data.decode())
    tables = document.get("token", [])
    if set(document) - {"token"} or not isinstance(tables, list):
        raise ValueError("it must have tables [[token]] and nothing else; 'sidecast token create' adds one")
    entries = [_entry(number, table) for number, table in enumerate(tables, 1)]
    for what, values in (("hash", [e.digest for e in entries]), ("name", [e.caller.name for e in entries])):
        if len(set(values)) < len(values):
            raise ValueError(f"two tokens have the same {what}")
    return entries


def create_token(
    path: Path, *, name: str, scopes: Sequence[str], tenant: str = "", expires: datetime | None = None
) -> str:
    """Make a token and append its hash to the file, which is made where there is none. Returns the token.

    Raises:
        OSError, ValueError: the file cannot be written, or an argument breaks a rule.
    """
    token = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    _entry(1, {"name": name, "hash": digest_of(token), "scopes": list(scopes), "tenant": tenant, "expires": expires})
    lines = ["[[token]]", f"name = {json.dumps(name)}", f'hash = "{digest_of(token)}"']
    lines.append(f"scopes = {json.dumps(list(scopes))}")
    if tenant:
        lines.append(f"tenant = {json.dumps(tenant)}")
    if expires:
        lines.append(f"expires = {_written(expires)}")
    lines.append(f"created = {_written(datetime.now(UTC))}")
    with _Lock(path):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if any(entry.caller.name == name for entry in (read_tokens(path) if text else ())):
            raise ValueError(f"there is a token named {name!r} already; choose another name, or revoke it first")
        _replace(path, text.rstrip() + "\n\n" * bool(text.strip()) + "\n".join(lines) + "\n")
    return token


def revoke_token(path: Path, name: str) -> None:
    """Take a token out of the file. Comments of its table go with it.

    Raises:
        OSError, ValueError: the file cannot be read or written, or has no such token.
    """
    with _Lock(path):
        names = [entry.caller.name for entry in read_tokens(path)]
        if name not in names:
            raise ValueError(f"there is no token named {name!r}; there are {', '.join(names) or 'none'}")
        head, *tables = re.split(r"(?m)^(?=[ \t]*\[\[[ \t]*token[ \t]*\]\])", path.read_text(encoding="utf-8"))
        if len(tables) != len(names):
            raise ValueError("its tables are not written as 'sidecast token create' writes them; edit it by hand")
        kept = [table for table, each in zip(tables, names, strict=True) if each != name]
        _replace(path, head + "".join(kept))


def _by_digest(path: Path) -> dict[str, TokenEntry]:
    return {entry.digest: entry for entry in read_tokens(path)}


def _entry(number: int, table: Any) -> TokenEntry:
    where = f"token {number}"
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table")
    if unknown := sorted(set(table) - KEYS):
        raise ValueError(f"{where} has unknown keys {unknown}; known are {', '.join(sorted(KEYS))}")
    name, tenant, digest = table.get("name", ""), table.get("tenant", ""), table.get("hash", "")
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(
            f"{where}: name must be 1 to 128 characters of A-Z, a-z, 0-9 and _.@/-, got {str(name)[:80]!r}"
        )
    if not (isinstance(tenant, str) and (not tenant or NAME.fullmatch(tenant))):
        raise ValueError(f"{where}: tenant must be as a name is, got {str(tenant)[:80]!r}")
    if not (isinstance(digest, str) and HASH.fullmatch(digest)):
        raise ValueError(f"{where}: hash must be sha256: and 64 hexadecimal digits")
    scopes = table.get("scopes")
    if not (isinstance(scopes, list) and scopes and all(isinstance(scope, str) for scope in scopes)):
        raise ValueError(f"{where}: scopes must be a list of at least one scope")
    expires = table.get("expires")
    if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo):
        raise ValueError(f"{where}: expires must be a time with a zone, as 2027-01-01T00:00:00Z")
    parsed = tuple(Scope.parse(scope) for scope in scopes)
    return TokenEntry(digest, Caller(name, tenant, Scopes(parsed)), parsed, expires)


def _written(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Lock:
    """Holds back other commands that change the file."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _replace(path: Path, text: str) -> None:
    """Write the whole file at once, readable by its owner alone where it is new."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
