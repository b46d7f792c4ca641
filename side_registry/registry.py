"""The registry: publish versions, move aliases, split their traffic, roll back, retire, read the history, wait.

Every change is one commit that follows from the state its writer read; a writer that loses the race for the next
position reads the newer state and tries again. No server, no lock: any number of processes share a store. Blocks on the
store, so never call it on an event loop. Knows no tensors.
"""

import getpass
import random
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import TypeAlias, TypeVar

from side_registry import decisions
from side_registry.blobs import Blobs, StoredArtifact
from side_registry.checkpoints import EVERY, load_checkpoint, save_checkpoint
from side_registry.decisions import GroupChanged, Published, Rolled
from side_registry.errors import (
    ArtifactError,
    Contended,
    InvalidName,
    LogReplaced,
    RegistryNotFound,
    UnreadableCommit,
)
from side_registry.log import Action, Commit, Log
from side_registry.manifest import Artifact, Manifest, check_publishable, read_artifact
from side_registry.marker import find_marker, read_marker
from side_registry.recent_tasks import read_recent, write_recent
from side_registry.route import Route
from side_registry.servers import Announced, Awaited, Servers
from side_registry.signing import Signatures, check_signature
from side_registry.specs.task import PRODUCTION, check_alias
from side_registry.state import Fold, State, fold
from side_registry.store import Store

ATTEMPTS = 64
PATIENCE_S = 60.0
"""A writer that loses races gives up after ATTEMPTS of them and PATIENCE_S seconds, whichever is later."""
LONGEST_PAUSE_S = 0.01
"""Longest wait before a writer tries again. One of those that race always wins, so a longer wait only loses turns."""
HISTORY_CHUNK = 256
"""Commits that a search for the newest ones about a task reads at a time."""
CHECK_HEAD_S = 30.0
"""While no new commit comes, the last one is read again this often: is the log still the same?"""

MAX_AUTHOR = 200
"""Characters."""
MAX_MESSAGE = 4_000
"""Characters."""

Outcome = TypeVar("Outcome")
Decide: TypeAlias = Callable[[State], tuple[Sequence[Action], Outcome]]


class Registry:
    """One registry, as the store at an address holds it. Safe to use from many threads; open it again in each process.

    `store` holds all of it; `url` is its address; `id` names the registry wherever a copy of it is.
    """

    def __init__(self, store: Store, id: str) -> None:
        """Use `open`."""
        self.url = store.url
        self.id = id
        self.store = store
        self._blobs = Blobs(store)
        self._log = Log(store)
        self._servers = Servers(store)
        self._signatures = Signatures(store)
        self._state: State | None = None
        self._head_checked_at = time.monotonic()
        """When the newest commit of `_state` was last seen in the log."""
        self._adopting = threading.Lock()
        """Never held while the store is asked: a store that hangs must not block other threads."""

    @classmethod
    def open(cls, url: "str | Path | Store", *, create: bool = False) -> "Registry":
        """Open a registry by its address (see Store.open), or make one with `create`.

        Raises:
            RegistryNotFound: nothing is there.
            NotARegistry: something else is there.
            StoreFailed: no access.
        """
        store = url if isinstance(url, Store) else Store.open(url, create=create)
        return cls(store, find_marker(store, create=create).id)

    def __repr__(self) -> str:
        return f"Registry({self.url!r})"

    def state(self, refresh: bool = True) -> State:
        """The state now; without `refresh`, as it was last read (one request less).

        Raises:
            UnreadableCommit: the log is damaged. `state(refresh=False)` still gives what precedes the damage.
            LogReplaced: it is not the log that was read before; checked at every write, and every CHECK_HEAD_S.
            StoreFailed.
        """
        known = self._state
        if known is None:
            return self._catch_up(load_checkpoint(self.store, self._log))
        return self._catch_up(known) if refresh else known

    def wait(self, after: int, timeout_s: float, poll_s: float = 0.2) -> State | None:
        """Block until the generation is past `after`; None when `timeout_s` passes first. One request per poll."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.state()
            if state.generation > after:
                return state
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(poll_s, left))

    def history(self, task: str | None = None, limit: int = 0, *, group: str | None = None) -> list[Commit]:
        """Every commit, or those about one task or group (a deleted one too), oldest first; only the newest `limit`
        unless 0.

        Raises:
            UnknownTask, UnknownGroup: no commit is about it.
        """
        if task is None and group is None:
            start = max(self.state().generation - limit, 0) if limit else 0
            return list(self._log.after(start))[-limit:]
        about, end = deque[Commit](), self.state().generation
        while end and not (limit and len(about) >= limit):
            start = max(end - HISTORY_CHUNK, 0) if limit else 0
            commits = islice(self._log.after(start), end - start)
            chunk = [commit for commit in commits if task in commit.tasks or group in commit.groups]
            about.extendleft(reversed(chunk))
            end = start
        if not about and task is not None:
            self.state().task(task)
        if not about and group is not None:
            self.state().group(group)
        return list(about)[-limit:]

    def commits_after(self, generation: int) -> Iterator[Commit]:
        """The commits after a generation, oldest first, to the log's end. Raises UnreadableCommit, StoreFailed."""
        return self._log.after(generation)

    def state_at(self, at: datetime) -> State:
        """The state at a moment: after the log's last commit that is not later. Reads the log up to its end.

        Commits have the times of their writers' clocks. Where a clock was fast, the order of the log counts: a commit
        that precedes one of that moment had been made too.

        Args:
            at: without a time zone, of this machine's.

        Raises:
            UnreadableCommit, LogReplaced, StoreFailed.
        """
        at = at.astimezone(UTC)
        folding = Fold(State())
        later: list[Commit] = []
        for commit in self._log.after(0):
            later.append(commit)
            if _is_until(commit, at):
                for each in later:
                    folding.add(each)
                later.clear()
        return folding.state()

    def manifest(self, task: str, version: int) -> Manifest:
        """The manifest of a version, retired or not. Raises what `artifact` raises."""
        return self.artifact(task, version).manifest

    def artifact(self, task: str, version: int) -> StoredArtifact:
        """A version, retired or not: its manifest is read and verified, its files only when they are downloaded.

        Raises:
            UnknownTask, UnknownVersion.
            CorruptBlob: the manifest is missing or damaged.
            ArtifactError: its content is no manifest.
            StoreFailed.
        """
        known = self.state(refresh=False).tasks.get(task)
        if known is None or version not in known.versions:
            known = self.state().task(task)
        return self._blobs.artifact(known.entry(version).manifest_sha256, f"{task}:{version}")

    def download(self, task: str, version: int, folder: str | Path) -> Artifact:
        """Copy a version into a folder: `artifact` and its `download` in one call, which raise the same errors."""
        return self.artifact(task, version).download(folder)

    def signatures(self, manifest_sha256: str) -> list[bytes]:
        """The signatures of the version with this manifest, unchecked. Raises StoreFailed."""
        return self._signatures.of(manifest_sha256)

    def add_signature(self, manifest_sha256: str, signature: bytes) -> None:
        """Keep a signature of the version with this manifest. No commit: the history does not have it.

        Raises:
            InvalidSignature, RegistryNotFound, LogReplaced, StoreFailed.
        """
        self._check_marker()
        self._signatures.add(manifest_sha256, signature)

    def publish(
        self,
        folder: str | Path,
        *,
        alias: str | None = None,
        allow_untrained: bool = False,
        signature: bytes = b"",
        author: str | None = None,
        message: str = "",
    ) -> Published:
        """Make a run folder the task's next version. Files first, then one commit: readers see all of it, or nothing.

        The first version of a task becomes `production`, or `alias` where that is named; later ones move no alias but
        `alias`. A manifest that was published before is the same version again, unless that is retired.

        Args:
            signature: of the run, as `SigningKey.sign` makes it; it is kept before the commit, so that servers that
                want one find it.

        Raises:
            InvalidSignature: `signature` is none.
            ArtifactError: the folder is not a complete, sound run; its golden examples are too many tokens; or it is
                untrained, without `allow_untrained`.
            RegistryNotFound, LogReplaced: the registry was deleted meanwhile, or another one is in its place.
            InvalidName, Contended, StoreFailed.
        """
        if alias is not None:
            check_alias(alias)
        artifact = read_artifact(folder)
        check_publishable(artifact.manifest, folder, allow_untrained=allow_untrained)
        self._check_marker()
        if signature:
            check_signature(signature)
        digest = self._upload(artifact)
        if signature:
            self._signatures.add(digest, signature)
        generation, published = self.commit(
            lambda state: decisions.publish(state, artifact.manifest, digest, alias), author, message
        )
        if not self._blobs.has([digest, *(blob.sha256 for blob in artifact.manifest.files.values())]):
            self._upload(artifact)  # a garbage collection that did not know the commit yet removed some
        return replace(published, generation=generation)

    def set_alias(self, task: str, alias: str, version: int, *, author: str | None = None, message: str = "") -> int:
        """Point an alias to a version, and send it all of the alias's traffic: the route becomes plain.

        Returns the generation; commits nothing when that is so already.

        Raises:
            UnknownTask, UnknownVersion (a retired one too), InvalidName, Contended, StoreFailed.
        """
        check_alias(alias)
        return self._change(lambda state: decisions.set_alias(state, task, alias, version), author, message)

    def set_route(
        self,
        task: str,
        alias: str,
        route: Route,
        *,
        version: int | None = None,
        seen: Route | None = None,
        author: str | None = None,
        message: str = "",
    ) -> int:
        """Split an alias's traffic, in place of the route it had; `version` also moves the alias, in the same commit.

        A caller that made the new route from the current one passes that as `seen`.

        Returns the generation; commits nothing when that is so already.

        Raises:
            InvalidRoute: it breaks a rule, or names the alias's main version.
            RouteChanged: the current route is no longer `seen`; read it again.
            UnknownTask, UnknownAlias, UnknownVersion (a retired one too), InvalidName, Contended, StoreFailed.
        """
        check_alias(alias)
        return self._change(
            lambda state: decisions.set_route(state, task, alias, route, version, seen), author, message
        )

    def end_route(
        self,
        task: str,
        alias: str,
        seen: Route,
        *,
        since: int | None = None,
        author: str | None = None,
        message: str = "",
    ) -> int | None:
        """Take away all shares of a route, if it still is `seen`; its shadows stay.

        With `since`, the generation that set it (`TaskState.routed`), it must also not have been set again meanwhile:
        an equal route that was set later, or for another version, is a different one.

        Returns the generation; None when somebody changed the route, which then stays as it is.

        Raises:
            Contended, StoreFailed.
        """
        generation, ended = self.commit(
            lambda state: decisions.end_route(state, task, alias, seen, since), author, message
        )
        return generation if ended else None

    def rollback(
        self, task: str, alias: str = PRODUCTION, to: int | None = None, *, author: str | None = None, message: str = ""
    ) -> Rolled:
        """Take away an alias's shares, if it has any; else point it to the version before, skipping retired ones.

        With `to` the alias goes to that earlier version; if it is there already, its shares are taken away. Its route
        becomes plain.

        Raises:
            RollbackUnclear: its shares were taken away just before; pass `to`.
            UnknownTask, UnknownAlias, UnknownVersion (`to`), NothingToRollBack, Contended, StoreFailed.
        """
        generation, rolled = self.commit(lambda state: decisions.rollback(state, task, alias, to), author, message)
        return replace(rolled, generation=generation)

    def retire(self, task: str, version: int, *, author: str | None = None, message: str = "") -> int:
        """Take a version out of use for ever. Returns the generation.

        Raises:
            VersionInUse: an alias points to it, or names it in its route.
            UnknownTask, UnknownVersion, Contended, StoreFailed.
        """
        return self._change(lambda state: decisions.retire(state, task, version), author, message)

    def delete_task(self, task: str, *, author: str | None = None, message: str = "") -> int:
        """Retire all versions of a task and remove its aliases. Published again, its version numbers go on.

        Returns the generation.

        Raises:
            UnknownTask, Contended, StoreFailed.
        """
        return self._change(lambda state: decisions.delete_task(state, task), author, message)

    def set_group(
        self, group: str, members: Sequence[str], *, author: str | None = None, message: str = ""
    ) -> GroupChanged:
        """Give a group its tasks, or make it: its next version. Commits nothing when it has them already.

        Args:
            members: references: `sst2` follows production, `sst2@canary` that alias, `sst2:7` stays at that version.

        Raises:
            InvalidGroup: no task, too many, or one twice.
            UnknownTask, UnknownVersion (a retired one too), UnknownAlias, InvalidName, Contended, StoreFailed.
        """
        generation, changed = self.commit(lambda state: decisions.set_group(state, group, members), author, message)
        return replace(changed, generation=generation)

    def rollback_group(
        self, group: str, to: int | None = None, *, author: str | None = None, message: str = ""
    ) -> GroupChanged:
        """Give a group the tasks that it had in the version before, or in `to`. Versions with tasks that are no longer
        there, or at retired versions, are skipped.

        Raises:
            NoEarlierGroup: there is no such version.
            UnknownGroup, Contended, StoreFailed.
        """
        generation, changed = self.commit(lambda state: decisions.rollback_group(state, group, to), author, message)
        return replace(changed, generation=generation)

    def delete_group(self, group: str, *, author: str | None = None, message: str = "") -> int:
        """Remove a group; its tasks stay. Set again, its versions go on counting. Returns the generation.

        Raises:
            UnknownGroup, Contended, StoreFailed.
        """
        return self._change(lambda state: decisions.delete_group(state, group), author, message)

    def announce(self, server: Announced) -> None:
        """Record that a server follows this registry and which generation it serves.

        Raises:
            RegistryNotFound, LogReplaced: the registry was deleted, or another one is in its place. Nothing is written.
            StoreFailed.
        """
        self._check_marker()
        self._servers.announce(server)

    def withdraw(self, id: str) -> None:
        """Remove the record of a server that stops. Raises StoreFailed."""
        self._servers.withdraw(id)

    def servers(self) -> list[Announced]:
        """Servers that follow this registry and are alive, sorted by address. Raises StoreFailed."""
        return self._servers.alive()

    def await_generation(self, generation: int, timeout_s: float, poll_s: float = 0.1) -> Awaited:
        """Block until every server that is alive serves a generation, or a later one, or `timeout_s` passes.

        Raises StoreFailed.
        """
        return self._servers.await_generation(generation, timeout_s, poll_s)

    def recent_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that were called last on servers, the last one first: a hint. Raises StoreFailed."""
        return read_recent(self.store)

    def note_recent_tasks(self, tasks: Sequence[str]) -> None:
        """Record which tasks were called last, the last one first.

        Raises:
            RegistryNotFound, LogReplaced: the registry was deleted, or another one is in its place. Nothing is written.
            StoreFailed.
        """
        self._check_marker()
        write_recent(self.store, tasks)

    def _catch_up(self, start: State) -> State:
        """Fold the commits after `start`, and return the newest known state. Keeps the state before an unreadable one.

        Threads that do so at once each read the log.
        """
        folding = Fold(start)
        try:
            for commit in self._log.after(start.generation):
                folding.add(commit)
        except UnreadableCommit:
            self._check_head(folding.state())
            raise
        finally:
            newest = self._adopt(folding.state())
        is_new = folding.state() is not start
        if is_new or time.monotonic() - self._head_checked_at >= CHECK_HEAD_S:
            if not is_new:
                self._check_head(start)
            self._head_checked_at = time.monotonic()
        return newest

    def _check_marker(self) -> None:
        """A write makes the folders above it, so a deleted registry would come back as a few files without a marker.

        Raises:
            RegistryNotFound: the registry was deleted.
            LogReplaced: another registry is in its place.
        """
        marker = read_marker(self.store)
        if marker is None:
            raise RegistryNotFound(self.url)
        if marker.id != self.id:
            known = self._state
            raise LogReplaced(self.url, known.generation if known else 0)

    def _check_head(self, state: State) -> None:
        """Raises LogReplaced: the log no longer holds the last commit of this state."""
        last = self._log.read(state.generation) if state.generation else None
        if state.head != (last.id if last else ""):
            raise LogReplaced(self.url, state.generation)

    def _change(self, decide: Callable[[State], Sequence[Action]], author: str | None, message: str) -> int:
        return self.commit(lambda state: (decide(state), None), author, message)[0]

    def commit(self, decide: Decide[Outcome], author: str | None, message: str) -> tuple[int, Outcome]:
        """Commit the actions that `decide` makes from the newest state; without actions, nothing.

        `decide` is called again whenever another writer was faster. Returns the generation and what `decide` returned.

        Raises:
            Contended, InvalidName (author or message), StoreFailed, UnreadableCommit, LogReplaced; and what `decide`
            raises.
        """
        author = _checked_text("author", author or _whoami(), MAX_AUTHOR)
        message = _checked_text("message", message, MAX_MESSAGE)
        started = time.monotonic()
        for attempt in count(1):
            refresh = attempt % 2 == 1  # a loser has folded the winner's commit: half the time that is the newest
            state = self.state(refresh=refresh)
            actions, outcome = decide(state)
            if not actions:
                return state.generation, outcome
            if refresh:
                self._check_head(state)
            if self._try_commit(state, actions, author, message):
                return state.generation + 1, outcome
            if attempt >= ATTEMPTS and time.monotonic() - started >= PATIENCE_S:
                break
            if attempt % 2 == 0:
                time.sleep(random.uniform(0, LONGEST_PAUSE_S))
        raise Contended(self.url, attempt)

    def _try_commit(self, state: State, actions: Sequence[Action], author: str, message: str) -> bool:
        commit = _new_commit(state, actions, author, message)
        fold([commit], state)  # a commit that does not follow must never be written
        winner = self._log.append(commit)
        if winner is None:
            return False
        after = fold([winner], state)
        self._adopt(after)
        if winner.id != commit.id:
            return False
        if after.generation % EVERY == 0:
            save_checkpoint(self.store, after)
        return True

    def _adopt(self, state: State) -> State:
        """Make a state the known one, unless a newer one is known. Returns the known one."""
        with self._adopting:
            if self._state is None or self._state.generation < state.generation:
                self._state = state
            return self._state

    def _upload(self, artifact: Artifact) -> str:
        """Store an artifact's files and manifest. Returns the manifest's digest."""
        for name, blob in artifact.manifest.files.items():
            if self._blobs.add((artifact.folder / name).read_bytes()) != blob.sha256:
                raise ArtifactError(artifact.folder, f"{name} changed while it was published, publish it again")
        return self._blobs.add(artifact.manifest_bytes)


def _new_commit(before: State, actions: Sequence[Action], author: str, message: str) -> Commit:
    return Commit(
        generation=before.generation + 1,
        parent=before.head,
        id=uuid.uuid4().hex,
        time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        author=author,
        message=message,
        actions=tuple(actions),
    )


def _is_until(commit: Commit, at: datetime) -> bool:
    """Whether a commit is not later than a moment; False where its time does not read: those after it tell then."""
    try:
        return datetime.fromisoformat(commit.time).astimezone(UTC) <= at
    except (ValueError, OverflowError):
        return False


def _whoami() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"


def _checked_text(what: str, text: str, limit: int) -> str:
    if len(text) > limit or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidName(what, text, f"at most {limit} characters of plain text")
    return text
