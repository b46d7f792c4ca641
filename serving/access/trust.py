"""Whose side networks may be loaded: a TOML file of keys by pattern of task names.

    [[trust]]
    tasks = "team-a-*"
    keys = ["team-a.pub.pem"]
    certificates = ["authority.pem"]

    [[trust]]
    tasks = "*"
    unsigned = true

The first table whose pattern matches a task decides; a task that none matches is refused. Paths are relative to the
file. The server reads the file again, and the keys with it, when the file changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from serving.access.scopes import PATTERN
from serving.access.watched_file import LOOK_EVERY_S, WatchedFiles, read_toml
from serving.errors import UnusableFile
from side_registry.errors import InvalidSignature
from side_registry.signing import TrustedKeys

KEYS = {"tasks", "keys", "certificates", "unsigned"}
MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TrustRule:
    """Who is trusted for the tasks of a pattern."""

    pattern: str
    trusted: TrustedKeys | None
    """None: the table names nobody."""
    unsigned: bool
    """Whether a version without any signature is let in."""


class TrustPolicy:
    """The rules of a file, read again when it changes. Any thread may ask.

    Raises:
        UnusableFile: the file, or a key that it names, cannot be used now.
    """

    def __init__(self, path: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        try:
            self._files = WatchedFiles([path], lambda: read_trust(path), look_every_s)
        except (OSError, ValueError) as error:
            raise UnusableFile("the trust policy", str(path), str(error)) from None

    def fault(self, task: str, digests: Mapping[str, str], signatures: Sequence[bytes]) -> str:
        """Why a version with these files and signatures may not be loaded; empty where it may."""
        rule = next((rule for rule in self._files.current if fnmatchcase(task, rule.pattern)), None)
        if rule is None:
            return "no table of the trust policy is about this task"
        if not signatures:
            return "" if rule.unsigned else "it has no signature"
        if rule.trusted is None:
            return "" if rule.unsigned else "the trust policy names no key for this task"
        why = ""
        for signature in signatures:
            try:
                rule.trusted.check(signature, task, digests)
            except InvalidSignature as error:
                why = error.why
            else:
                return ""
        return why


def read_trust(path: Path) -> tuple[TrustRule, ...]:
    """The rules of a file, and the keys that it names.

    Raises:
        OSError, ValueError: it or a key cannot be read, or a table breaks a rule, which the message says.
    """
    document = read_toml(path.read_bytes(), MAX_BYTES)
    tables = document.get("trust", [])
    if set(document) - {"trust"} or not (isinstance(tables, list) and tables):
        raise ValueError("it must have tables [[trust]] and nothing else")
    return tuple(_rule(f"trust {number}", table, path.parent) for number, table in enumerate(tables, 1))


def _rule(where: str, table: Any, folder: Path) -> TrustRule:
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table")
    if unknown := sorted(set(table) - KEYS):
        raise ValueError(f"{where} has unknown keys {unknown}; known are {', '.join(sorted(KEYS))}")
    pattern, unsigned = table.get("tasks"), table.get("unsigned", False)
    if not (isinstance(pattern, str) and PATTERN.fullmatch(pattern)):
        raise ValueError(f"{where}: tasks must be a pattern of task names such as team-a-*, got {str(pattern)[:80]!r}")
    if not isinstance(unsigned, bool):
        raise ValueError(f"{where}: unsigned must be true or false")
    keys = _paths(where, "keys", table, folder)
    certificates = _paths(where, "certificates", table, folder)
    if not (keys or certificates or unsigned):
        raise ValueError(f"{where} names no keys and no certificates; name some, or say unsigned = true")
    try:
        trusted = TrustedKeys(keys, certificates) if keys or certificates else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return TrustRule(pattern, trusted, unsigned)


def _paths(where: str, name: str, table: Mapping[str, Any], folder: Path) -> list[Path]:
    values = table.get(name, [])
    if not (isinstance(values, list) and all(isinstance(value, str) and value for value in values)):
        raise ValueError(f"{where}: {name} must be a list of files")
    return [folder / Path(value).expanduser() for value in values]
