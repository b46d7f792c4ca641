"""Everything the registry refuses, as one tree.

    RegistryError
      RegistryNotFound  NotARegistry  StoreFailed              the place
      UnknownTask  UnknownVersion  UnknownAlias                what is asked for is not there
      VersionInUse  NothingToRollBack  RollbackUnclear         what is asked for cannot be done now
      RouteChanged  Contended
      InvalidName  InvalidSpec  InvalidRow  InvalidRoute       what was handed in is wrong
      ArtifactError
      CorruptBlob  UnreadableCommit  LogReplaced               what is stored is wrong

Each carries its fields (so it pickles), has a stable `reason`, and says in one sentence what to do. Knows no documents
and no stores.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

SHOWN = 10
"""Most names a message lists."""
COMPARED = 500
"""Most names looked at for similar ones."""


class RegistryError(Exception):
    reason: ClassVar[str] = "REGISTRY_ERROR"


class RegistryNotFound(RegistryError):
    reason = "REGISTRY_NOT_FOUND"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"there is no registry at {self.url}; check the address, or publish a run to it, which creates one"


class NotARegistry(RegistryError):
    reason = "NOT_A_REGISTRY"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url, self.why = url, why

    def __str__(self) -> str:
        return f"{self.url} is not a registry: {self.why}; name a registry, or an empty or new folder"


class StoreFailed(RegistryError):
    reason = "STORE_FAILED"

    def __init__(self, url: str, path: str, why: str) -> None:
        super().__init__(url, path, why)
        self.url, self.path, self.why = url, path, why

    def __str__(self) -> str:
        return f"the registry's store {self.url} failed at '{self.path}': {self.why}; check access to it and try again"


class UnknownTask(RegistryError):
    reason = "UNKNOWN_TASK"

    def __init__(self, task: str, known: Iterable[str] = ()) -> None:
        self.task, self.known = task, tuple(known)
        super().__init__(task, self.known)

    def __str__(self) -> str:
        if not self.known:
            return f"there is no task {_quoted(self.task)}; nothing is published yet"
        near = _near(self.task, self.known)
        if near:
            return f"there is no task {_quoted(self.task)}; did you mean {_either(near)}? ({_tasks(len(self.known))})"
        shown = f"of {_tasks(len(self.known))}" if len(self.known) > SHOWN else f"there {_is(len(self.known))}"
        return f"there is no task {_quoted(self.task)}; {shown}: {_listed(sorted(self.known))}"


class UnknownVersion(RegistryError):
    """The version was never published, or is retired. `known` are those that can be had."""

    reason = "UNKNOWN_VERSION"

    def __init__(self, task: str, version: int, known: Iterable[int] = (), retired: bool = False) -> None:
        self.task, self.version, self.known, self.retired = task, version, tuple(known), retired
        super().__init__(task, version, self.known, retired)

    def __str__(self) -> str:
        have = f"use one of {_listed(sorted(self.known, reverse=True))}" if self.known else "publish one"
        fault = f"version {self.version} of task {_quoted(self.task)} is retired"
        return f"{fault if self.retired else f'task {_quoted(self.task)} has no version {self.version}'}; {have}"


class UnknownAlias(RegistryError):
    reason = "UNKNOWN_ALIAS"

    def __init__(self, task: str, alias: str, known: Iterable[str] = ()) -> None:
        self.task, self.alias, self.known = task, alias, tuple(known)
        super().__init__(task, alias, self.known)

    def __str__(self) -> str:
        have = f"its aliases: {_listed(sorted(self.known))}" if self.known else "it has no alias yet, set one"
        return f"task {_quoted(self.task)} has no alias {_quoted(self.alias)}; {have}"


class VersionInUse(RegistryError):
    """`aliases` point to the version; `routed` are those that name it in their route."""

    reason = "VERSION_IN_USE"

    def __init__(self, task: str, version: int, aliases: Iterable[str], routed: Iterable[str] = ()) -> None:
        self.task, self.version, self.aliases, self.routed = task, version, tuple(aliases), tuple(routed)
        super().__init__(task, version, self.aliases, self.routed)

    def __str__(self) -> str:
        subject = f"version {self.version} of task {_quoted(self.task)}"
        if self.aliases:
            return f"{subject} is in use as {_listed(sorted(self.aliases))}; move that elsewhere first"
        return f"{subject} has a share or is a shadow of {_listed(sorted(self.routed))}; end that first"


class NothingToRollBack(RegistryError):
    reason = "NOTHING_TO_ROLL_BACK"

    def __init__(self, task: str, alias: str, version: int, to: int | None = None) -> None:
        super().__init__(task, alias, version, to)
        self.task, self.alias, self.version, self.to = task, alias, version, to

    def __str__(self) -> str:
        subject = f"{self.alias} of task {_quoted(self.task)} is version {self.version}"
        if self.to is None:
            return f"{subject} and has no earlier version to go back to; promote the version you want"
        if self.to == self.version:
            return f"{subject} already, with all of its traffic; there is nothing to roll back"
        return f"{subject} and was not version {self.to} before; promote version {self.to} instead"


class RollbackUnclear(RegistryError):
    """The newest thing, shares, is undone already; `target` is where the alias itself would go back to."""

    reason = "ROLLBACK_UNCLEAR"

    def __init__(self, task: str, alias: str, version: int, generation: int, target: int) -> None:
        super().__init__(task, alias, version, generation, target)
        self.task, self.alias, self.version, self.generation, self.target = task, alias, version, generation, target

    def __str__(self) -> str:
        return (
            f"the newest change of {self.alias} of task {_quoted(self.task)} took its canaries' shares away "
            f"(generation {self.generation}): version {self.version} answers all; to move {self.alias} itself, "
            f"say where to: --to {self.target}"
        )


class RouteChanged(RegistryError):
    reason = "ROUTE_CHANGED"

    def __init__(self, task: str, alias: str) -> None:
        super().__init__(task, alias)
        self.task, self.alias = task, alias

    def __str__(self) -> str:
        return (
            f"somebody changed the route of {self.alias} of task {_quoted(self.task)} meanwhile; nothing was changed, "
            "look at it again and try again"
        )


class Contended(RegistryError):
    reason = "CONTENDED"

    def __init__(self, url: str, attempts: int) -> None:
        super().__init__(url, attempts)
        self.url, self.attempts = url, attempts

    def __str__(self) -> str:
        return f"other writers to {self.url} were faster {self.attempts} times in a row; nothing was changed, try again"


class InvalidName(RegistryError):
    """A task's name, an alias, a reference or a free text that breaks its rule."""

    reason = "INVALID_NAME"

    def __init__(self, what: str, value: str, rule: str) -> None:
        super().__init__(what, value, rule)
        self.what, self.value, self.rule = what, value, rule

    def __str__(self) -> str:
        return f"{_quoted(self.value)} is no valid {self.what}: use {self.rule}"


class InvalidSpec(RegistryError):
    reason = "INVALID_SPEC"

    def __init__(self, source: str, why: str) -> None:
        super().__init__(source, why)
        self.source, self.why = source, why

    def __str__(self) -> str:
        return f"the task spec in {self.source} cannot be used: {self.why}"


class InvalidRow(RegistryError):
    reason = "INVALID_ROW"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why

    def __str__(self) -> str:
        return f"field {_quoted(self.field)} {self.why}"


class InvalidRoute(RegistryError):
    reason = "INVALID_ROUTE"

    def __init__(self, task: str, alias: str, why: str) -> None:
        super().__init__(task, alias, why)
        self.task, self.alias, self.why = task, alias, why

    def __str__(self) -> str:
        return f"{self.alias} of task {_quoted(self.task)} cannot be routed so: {self.why}"


class ArtifactError(RegistryError):
    reason = "INVALID_ARTIFACT"

    def __init__(self, folder: str | Path, why: str) -> None:
        self.folder, self.why = str(folder), why
        super().__init__(self.folder, why)

    def __str__(self) -> str:
        return f"no usable artifact in {self.folder}: {self.why}"


class CorruptBlob(RegistryError):
    reason = "CORRUPT_BLOB"

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(digest, why)
        self.digest, self.why = digest, why

    def __str__(self) -> str:
        return f"blobs/sha256/{self.digest} is damaged: {self.why}; publish the run that made it again to restore it"


class UnreadableCommit(RegistryError):
    reason = "UNREADABLE_COMMIT"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"the registry's {self.path} cannot be read: {self.why}; everything before it still holds"


class LogReplaced(RegistryError):
    """The newest commit that this process has read is gone, or is another one."""

    reason = "LOG_REPLACED"

    def __init__(self, url: str, generation: int) -> None:
        super().__init__(url, generation)
        self.url, self.generation = url, generation

    def __str__(self) -> str:
        return (
            f"the log of {self.url} is not the one that was read here: its commit {self.generation} is gone or "
            "another; if the registry was restored or made anew, start this program again"
        )


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Similar names. Of very many only some are compared: this runs wherever a caller misspells a name."""
    likely = [other for other in known if other[:1] == name[:1]] or known
    return difflib.get_close_matches(name[:64], likely[:COMPARED], n=3)


def _either(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _listed(names: Iterable[object]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _tasks(count: int) -> str:
    return "1 task is published" if count == 1 else f"{count} tasks are published"


def _is(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
