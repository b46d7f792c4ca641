"""Every error of the registry, as one tree.

    DataclassError                                             how an error carries its fields
      RegistryError
        RegistryNotFound  NotARegistry  StoreFailed            the address
        UnknownTask  UnknownVersion  UnknownAlias              the named thing does not exist
        UnknownGroup
        VersionInUse  NothingToRollBack  RollbackUnclear       the change is not possible now
        RouteChanged  Contended  NoEarlierGroup
        InvalidName  InvalidSpec  InvalidRow  InvalidRoute     an argument is wrong
        InvalidGroup  ArtifactError  InvalidSignature  SigningFailed
        CorruptBlob  UnreadableCommit  LogReplaced             stored data is wrong

Each has fields (so it pickles), a stable `reason`, and a message of one sentence that says what to do. Imports nothing
of this package.
"""

import difflib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

SHOWN = 10
"""Most names that a message lists."""
COMPARED = 500
"""Most names that are compared in the search for similar ones."""
MAX_QUOTED = 80
"""Most characters of a name that a message repeats."""


@dataclass_transform(eq_default=False)
@dataclass(eq=False)
class DataclassError(Exception):
    """An exception whose arguments are dataclass fields and whose text is a format string over them.

    A subclass annotates its fields and sets `message`; it needs neither a decorator nor an `__init__`. `args` holds the
    values of all fields: pickle makes the copy from them. Errors compare and hash by identity, as other exceptions do.
    """

    message: ClassVar[str] = ""
    """Format string over the fields. `{name!q}` quotes a text that a caller sent, and shortens a very long one."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclass(eq=False)(cls)

    def __post_init__(self) -> None:
        super().__init__(*(getattr(self, field.name) for field in fields(self)))

    def __str__(self) -> str:
        return _FORMATTER.vformat(self.message, (), vars(self))


class RegistryError(DataclassError):
    """Root of this package's errors."""

    reason: ClassVar[str] = "REGISTRY_ERROR"
    """Stable name of the error, for programs."""


class RegistryNotFound(RegistryError):
    """The address is good, and nothing is there."""

    reason = "REGISTRY_NOT_FOUND"
    message = "there is no registry at {url}; check the address, or publish a run to it, which creates one"
    url: str


class NotARegistry(RegistryError):
    """The address cannot be that of a registry, or something else is there."""

    reason = "NOT_A_REGISTRY"
    message = "{url} is not a registry: {why}; name a registry, or an empty or new folder"
    url: str
    why: str


class StoreFailed(RegistryError):
    """The object store did not do what was asked: no access, no answer, no space."""

    reason = "STORE_FAILED"
    message = "the registry's store {url} failed at '{path}': {why}; check access to it and try again"
    url: str
    path: str
    why: str


class UnknownTask(RegistryError):
    """The task was never published, or is deleted. `known` are those that exist."""

    reason = "UNKNOWN_TASK"
    task: str
    known: Sequence[str] = ()

    def __str__(self) -> str:
        subject = f"there is no task {_quoted(self.task)}"
        if not self.known:
            return f"{subject}; nothing is published yet"
        count = len(self.known)
        published = "1 task is published" if count == 1 else f"{count} tasks are published"
        if similar := _similar(self.task, self.known):
            return f"{subject}; did you mean {_either(similar)}? ({published})"
        are = "there is 1" if count == 1 else f"there are {count}"
        return f"{subject}; {f'of {published}' if count > SHOWN else are}: {_listed(sorted(self.known))}"


class UnknownVersion(RegistryError):
    """The version was never published, or is retired. `known` are those that can be used."""

    reason = "UNKNOWN_VERSION"
    task: str
    version: int
    known: Sequence[int] = ()
    retired: bool = False

    def __str__(self) -> str:
        remedy = f"use one of {_listed(sorted(self.known, reverse=True))}" if self.known else "publish one"
        if self.retired:
            return f"version {self.version} of task {_quoted(self.task)} is retired; {remedy}"
        return f"task {_quoted(self.task)} has no version {self.version}; {remedy}"


class UnknownAlias(RegistryError):
    """The task has no such alias. `known` are those that it has."""

    reason = "UNKNOWN_ALIAS"
    task: str
    alias: str
    known: Sequence[str] = ()

    def __str__(self) -> str:
        remedy = f"its aliases: {_listed(sorted(self.known))}" if self.known else "it has no alias yet, set one"
        return f"task {_quoted(self.task)} has no alias {_quoted(self.alias)}; {remedy}"


class UnknownGroup(RegistryError):
    """There was never such a group, or it is deleted. `known` are those that exist."""

    reason = "UNKNOWN_GROUP"
    group: str
    known: Sequence[str] = ()

    def __str__(self) -> str:
        subject = f"there is no group {_quoted(self.group)}"
        if not self.known:
            return f"{subject}; there is none yet: sidecast group set NAME TASK... makes one"
        if similar := _similar(self.group, self.known):
            return f"{subject}; did you mean {_either(similar)}?"
        return f"{subject}; there are: {_listed(sorted(self.known))}"


class InvalidGroup(RegistryError):
    """A group's list of tasks breaks a rule."""

    reason = "INVALID_GROUP"
    message = "group {group!q} cannot be made so: {why}"
    group: str
    why: str


class NoEarlierGroup(RegistryError):
    """The group, now at `version`, has no earlier version (or not `to`) whose tasks can all be used."""

    reason = "NO_EARLIER_GROUP"
    group: str
    version: int
    to: int | None = None

    def __str__(self) -> str:
        earlier = "no earlier version" if self.to is None else f"no earlier version {self.to}"
        subject = f"group {_quoted(self.group)} is version {self.version} and has {earlier} whose tasks can all be used"
        return f"{subject}; set the tasks that you want: sidecast group set {self.group} TASK..."


class VersionInUse(RegistryError):
    """`aliases` point to the version; `routed` are the aliases that name it in their route, `groups` have it."""

    reason = "VERSION_IN_USE"
    task: str
    version: int
    aliases: Sequence[str]
    routed: Sequence[str] = ()
    groups: Sequence[str] = ()

    def __str__(self) -> str:
        subject = f"version {self.version} of task {_quoted(self.task)}"
        if self.aliases:
            return f"{subject} is in use as {_listed(sorted(self.aliases))}; move that elsewhere first"
        if self.groups:
            return f"{subject} is in group {_listed(sorted(self.groups))}; set that without it first"
        return f"{subject} has a share or is a shadow of {_listed(sorted(self.routed))}; end that first"


class NothingToRollBack(RegistryError):
    """The alias, now at `version`, was nowhere else before, or not at version `to`."""

    reason = "NOTHING_TO_ROLL_BACK"
    task: str
    alias: str
    version: int
    to: int | None = None

    def __str__(self) -> str:
        subject = f"{self.alias} of task {_quoted(self.task)} is version {self.version}"
        if self.to is None:
            alias = "" if self.alias == "production" else f" --alias {self.alias}"
            remedy = f"promote the version you want: sidecast promote {self.task} VERSION{alias}"
            return f"{subject} and has no earlier version to go back to; {remedy} (sidecast tasks lists them)"
        if self.to == self.version:
            return f"{subject} already, with all of its traffic; there is nothing to roll back"
        return f"{subject} and was not version {self.to} before; promote version {self.to} instead"


class RollbackUnclear(RegistryError):
    """The alias's newest change, its shares, is undone already. The alias itself would go back to `target`."""

    reason = "ROLLBACK_UNCLEAR"
    message = (
        "the newest change of {alias} of task {task!q} took its canaries' shares away (generation {generation}): "
        "version {version} answers all; to move {alias} itself, say where to: --to {target}"
    )
    task: str
    alias: str
    version: int
    generation: int
    """Of the commit that took the shares away."""
    target: int


class RouteChanged(RegistryError):
    """The route is no longer the one from which the caller made the new one."""

    reason = "ROUTE_CHANGED"
    message = (
        "somebody changed the route of {alias} of task {task!q} meanwhile; nothing was changed, "
        "look at it again and try again"
    )
    task: str
    alias: str


class Contended(RegistryError):
    """Other writers won every race for the next commit."""

    reason = "CONTENDED"
    message = "other writers to {url} were faster {attempts} times in a row; nothing was changed, try again"
    url: str
    attempts: int


class InvalidName(RegistryError):
    """A task's name, an alias, a reference or a free text that breaks its rule."""

    reason = "INVALID_NAME"
    message = "{value!q} is no valid {what}: use {rule}"
    what: str
    value: str
    rule: str


class InvalidSpec(RegistryError):
    """A task spec cannot be read or breaks a rule. `source` is its file, or says that it was text."""

    reason = "INVALID_SPEC"
    message = "the task spec in {source} cannot be used: {why}"
    source: str
    why: str


class InvalidRow(RegistryError):
    """A row has a wrong value in one field, or lacks it. `why` is the rest of the sentence after the field's name."""

    reason = "INVALID_ROW"
    message = "field {field!q} {why}"
    field: str
    why: str


class InvalidRoute(RegistryError):
    """A route breaks a rule, or names the alias's main version."""

    reason = "INVALID_ROUTE"
    message = "{alias} of task {task!q} cannot be routed so: {why}"
    task: str
    alias: str
    why: str


class ArtifactError(RegistryError):
    """A run folder, an upload or an export is not complete and sound."""

    reason = "INVALID_ARTIFACT"
    message = "no usable artifact in {folder}: {why}"
    folder: str | Path
    why: str


class InvalidSignature(RegistryError):
    """A signature is damaged, of other files, or of a key that is not trusted."""

    reason = "INVALID_SIGNATURE"
    message = "the signature does not hold: {why}; sign the version with a trusted key (sidecast sign)"
    why: str


class SigningFailed(RegistryError):
    """A key cannot sign: it cannot be read, is of another kind, or the library is not installed."""

    reason = "SIGNING_FAILED"
    message = "cannot sign with {key}: {why}"
    key: str
    why: str


class CorruptBlob(RegistryError):
    """A file of the registry is missing, or its content does not have the digest in its name."""

    reason = "CORRUPT_BLOB"
    message = "blobs/sha256/{digest} is damaged: {why}; publish the run that made it again to restore it"
    digest: str
    """sha256, 64 hexadecimal digits."""
    why: str


class UnreadableCommit(RegistryError):
    """A commit of the log is damaged, foreign, from a newer program, or does not follow from those before it."""

    reason = "UNREADABLE_COMMIT"
    message = "the registry's {path} cannot be read: {why}; everything before it still holds"
    path: str
    why: str


class LogReplaced(RegistryError):
    """The newest commit that this process has read is gone, or is another one."""

    reason = "LOG_REPLACED"
    message = (
        "the log of {url} is not the one that was read here: its commit {generation} is gone or another; "
        "if the registry was restored or made anew, start this program again"
    )
    url: str
    generation: int


class _Formatter(string.Formatter):
    """str.format with the conversion `!q`: quoted, and shortened where it is very long."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return _quoted(value) if conversion == "q" else super().convert_field(value, conversion)


_FORMATTER = _Formatter()


def _quoted(name: str) -> str:
    return repr(name if len(name) <= MAX_QUOTED else name[: MAX_QUOTED - 3] + "...")


def _similar(name: str, known: Sequence[str]) -> list[str]:
    """Similar names. Of very many only some are compared: this runs whenever a caller misspells a name."""
    likely = [other for other in known if other[:1] == name[:1]] or known
    return difflib.get_close_matches(name[:64], likely[:COMPARED], n=3)


def _either(names: list[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


def _listed(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
