"""The registry: publish versions, move aliases, split their traffic, roll back, retire, look back, wait.

Every change is one commit that follows from the state its writer saw; who loses the race for the next position looks
again and retries. No server, no lock: any number of processes share a store. Blocks on the store, so never call it on
an event loop. Knows no tensors.
"""

import getpass
import random
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import TypeAlias, TypeVar

from side_registry import decisions
from side_registry.blobs import Blobs
from side_registry.checkpoints import EVERY, load_checkpoint, save_checkpoint
from side_registry.decisions import Published, Rolled
from side_registry.documents import replacing
from side_registry.errors import ArtifactError, Contended, InvalidName, LogReplaced, UnreadableCommit
from side_registry.log import Action, Commit, Log
from side_registry.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    NO_TOKENIZER,
    Artifact,
    Manifest,
    parse_manifest,
    read_artifact,
)
from side_registry.marker import find_marker
from side_registry.route import Route
from side_registry.servers import Announced, Awaited, Servers
from side_registry.state import Fold, State, fold
from side_registry.store import Store
from side_registry.task import PRODUCTION, check_alias

ATTEMPTS, PATIENCE_S = 64, 60.0
"""A writer that loses races gives up after so many, and so long."""
LONGEST_PAUSE_S = 0.01
"""Before it looks again. Of those who race one always wins, so who waits longer only loses turns."""
LOOK_BACK = 256
"""Commits of the log that a search for the newest ones about a task reads at a time."""
LOOK_BACK_S = 30.0
"""Where nothing new comes, it is looked this often whether the log is still the one that was read."""

MAX_AUTHOR, MAX_MESSAGE = 200, 4_000
"""Characters."""

Outcome = TypeVar("Outcome")
Decide: TypeAlias = Callable[[State], tuple[Sequence[Action], Outcome]]


class Registry:
    """One registry. Safe to use from many threads; open it again in each process."""

    def __init__(self, store: Store, id: str) -> None:
        """Use `open`."""
        self.url, self.id = store.url, id
        self._store, self._blobs, self._log = store, Blobs(store), Log(store)
        self._servers = Servers(store)
        self._state: State | None = None
        self._sound_at = time.monotonic()
        """When the newest commit that we know was last seen in the log."""
        self._refreshing = threading.Lock()

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
        """What is true now; without `refresh`, what was true at the last look (one request less).

        Raises:
            UnreadableCommit: the log is damaged. What precedes it still answers `state(refresh=False)`.
            LogReplaced: it is not the log that was read before; looked for at every write, and in between now and then.
        """
        with self._refreshing:
            if self._state is None:
                self._state = load_checkpoint(self._store, self._log)
                refresh = True
            if refresh:
                self._catch_up(self._state)
            return self._state

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

    def history(self, task: str | None = None, limit: int = 0) -> list[Commit]:
        """Every commit, or those about one task, oldest first; of the newest `limit` only. Deleted tasks have one too.

        Raises:
            UnknownTask: no commit is about it.
        """
        if task is None:
            start = max(self.state().generation - limit, 0) if limit else 0
            return list(self._log.after(start))[-limit:]
        about, end = deque[Commit](), self.state().generation
        while end and not (limit and len(about) >= limit):
            start = max(end - LOOK_BACK, 0) if limit else 0
            part = [each for each in islice(self._log.after(start), end - start) if task in each.tasks]
            about.extendleft(reversed(part))
            end = start
        if not about:
            self.state().task(task)
        return list(about)[-limit:]

    def manifest(self, task: str, version: int) -> Manifest:
        """The manifest of a version, retired or not.

        Raises:
            UnknownTask, UnknownVersion, CorruptBlob.
        """
        return parse_manifest(self._manifest_bytes(task, version), f"{task}:{version}")

    def download(self, task: str, version: int, folder: str | Path) -> Artifact:
        """Copy a version's files into a folder, verified, the manifest last. What is there already is kept.

        Raises:
            UnknownTask, UnknownVersion.
            CorruptBlob: a file is damaged or missing; it does not appear in the folder.
        """
        folder = Path(folder).expanduser()
        data = self._manifest_bytes(task, version)
        manifest = parse_manifest(data, f"{task}:{version}")
        folder.mkdir(parents=True, exist_ok=True)
        for name, blob in manifest.files.items():
            self._blobs.fetch(blob, folder / name)
        with replacing(folder / MANIFEST) as file:
            file.write(data)
        return Artifact(folder, manifest, data)

    def publish(
        self, folder: str | Path, *, alias: str | None = None, author: str | None = None, message: str = ""
    ) -> Published:
        """Make a run folder the task's next version. The files go first, then one commit: all of it is seen, or none.

        The first version of a task becomes `production` unless `alias` says otherwise; later ones move no alias but
        `alias`. The same manifest again is the same version, unless that is retired.

        Raises:
            ArtifactError: the folder is not a complete, sound run.
            InvalidName, Contended, StoreFailed.
        """
        if alias is not None:
            check_alias(alias)
        artifact = read_artifact(folder)
        if artifact.manifest.tokenizer_fingerprint == NO_TOKENIZER:
            raise ArtifactError(
                folder, "it was made without a tokenizer; make it again from a backbone folder that has one"
            )
        digest = self._upload(artifact)
        generation, published = self.commit(
            lambda state: decisions.publish(state, artifact.manifest, digest, alias), author, message
        )
        if not self._blobs.has([digest, *(blob.sha256 for blob in artifact.manifest.files.values())]):
            self._upload(artifact)  # a collector that did not know of the commit yet took some
        return replace(published, generation=generation)

    def set_alias(self, task: str, alias: str, version: int, *, author: str | None = None, message: str = "") -> int:
        """Point an alias to a version, all its traffic too: its route becomes plain.

        Returns the generation; nothing is committed when it is so already.

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
        """Split an alias's traffic, in place of the route it had; with `version` the alias moves there with it.

        Who makes a route out of the one that was there says with `seen` which that was.

        Returns the generation; nothing is committed when it is so already.

        Raises:
            InvalidRoute: it breaks a rule, or names the alias's own version.
            RouteChanged: it is no longer as `seen`; look again.
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
        """Take away all shares of a route, if it is still as `seen`; its shadows stay.

        With `since`, the generation that set it (`TaskState.routed`), it must also not have been set again meanwhile:
        the same route on another version, or after others, is another one.

        Returns the generation; None when somebody changed the route, which is left alone.

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
        """Take away an alias's shares, if it has any, else point it to where it was before, past retired versions.

        With `to` it goes to that earlier version; the one where it is takes its shares away. Its route becomes plain.

        Raises:
            RollbackUnclear: its shares were taken away just before; say `to`.
            UnknownTask, UnknownAlias, UnknownVersion (`to`), NothingToRollBack, Contended, StoreFailed.
        """
        generation, rolled = self.commit(lambda state: decisions.rollback(state, task, alias, to), author, message)
        return replace(rolled, generation=generation)

    def retire(self, task: str, version: int, *, author: str | None = None, message: str = "") -> int:
        """Take a version out of use for good. Returns the generation.

        Raises:
            VersionInUse: an alias points to it, or names it in its route.
            UnknownTask, UnknownVersion, Contended, StoreFailed.
        """
        return self._change(lambda state: decisions.retire(state, task, version), author, message)

    def delete_task(self, task: str, *, author: str | None = None, message: str = "") -> int:
        """Take a task out of use with all its versions and aliases. Published again, its numbers go on.

        Raises:
            UnknownTask, Contended, StoreFailed.
        """
        return self._change(lambda state: decisions.delete_task(state, task), author, message)

    def announce(self, server: Announced) -> None:
        """Tell who follows this registry and what it serves, in place of what it told before. Raises StoreFailed."""
        self._servers.announce(server)

    def withdraw(self, id: str) -> None:
        """Forget a server that stops. Raises StoreFailed."""
        self._servers.withdraw(id)

    def servers(self) -> list[Announced]:
        """Servers that follow this registry, by address, without those that stopped telling. Raises StoreFailed."""
        return self._servers.alive()

    def await_generation(self, generation: int, timeout_s: float, poll_s: float = 0.1) -> Awaited:
        """Block until every server that is alive serves a generation, or a later one, or `timeout_s` passes.

        Raises StoreFailed.
        """
        return self._servers.await_generation(generation, timeout_s, poll_s)

    def _catch_up(self, start: State) -> None:
        """Fold what is new. Keeps what was good before an unreadable commit."""
        folding = Fold(start)
        try:
            for commit in self._log.after(start.generation):
                folding.add(commit)
        except UnreadableCommit:
            self._look_back(folding.state())
            raise
        finally:
            self._state = folding.state()
        if self._state is start and time.monotonic() - self._sound_at < LOOK_BACK_S:
            return
        if self._state is start:
            self._look_back(start)
        self._sound_at = time.monotonic()

    def _look_back(self, state: State) -> None:
        """Raises LogReplaced: the log no longer holds what led to this state."""
        last = self._log.read(state.generation) if state.generation else None
        if state.head != (last.id if last else ""):
            raise LogReplaced(self.url, state.generation)

    def _change(self, decide: Callable[[State], Sequence[Action]], author: str | None, message: str) -> int:
        return self.commit(lambda state: (decide(state), None), author, message)[0]

    def commit(self, decide: Decide[Outcome], author: str | None, message: str) -> tuple[int, Outcome]:
        """Make what `decide` says of the newest state the next commit; no actions, no commit."""
        author = _note("author", author or _whoami(), MAX_AUTHOR)
        message = _note("message", message, MAX_MESSAGE)
        started = time.monotonic()
        for attempt in count(1):
            looks = attempt % 2 == 1  # who lost holds the winner's: half the time it is the newest
            state = self.state(refresh=looks)
            actions, outcome = decide(state)
            if not actions:
                return state.generation, outcome
            if looks:
                self._look_back(state)
            if self._try_commit(state, actions, author, message):
                return state.generation + 1, outcome
            if attempt >= ATTEMPTS and time.monotonic() - started >= PATIENCE_S:
                break
            if attempt % 2 == 0:
                time.sleep(random.uniform(0, LONGEST_PAUSE_S))
        raise Contended(self.url, attempt)

    def _try_commit(self, state: State, actions: Sequence[Action], author: str, message: str) -> bool:
        commit = _new_commit(state, actions, author, message)
        fold([commit], state)  # what does not follow must never be written
        winner = self._log.append(commit)
        if winner is None:
            return False
        after = fold([winner], state)
        self._adopt(after)
        if winner.id != commit.id:
            return False
        if after.generation % EVERY == 0:
            save_checkpoint(self._store, after)
        return True

    def _adopt(self, state: State) -> None:
        with self._refreshing:
            if self._state is None or self._state.generation < state.generation:
                self._state = state

    def _upload(self, artifact: Artifact) -> str:
        """Store an artifact's files and manifest. Returns the manifest's digest."""
        for name, blob in artifact.manifest.files.items():
            if self._blobs.add((artifact.folder / name).read_bytes()) != blob.sha256:
                raise ArtifactError(artifact.folder, f"{name} changed while it was published, publish it again")
        return self._blobs.add(artifact.manifest_bytes)

    def _manifest_bytes(self, task: str, version: int) -> bytes:
        known = self.state(refresh=False).tasks.get(task)
        if known is None or version not in known.versions:
            known = self.state().task(task)
        entry = known.entry(version)
        return self._blobs.read(entry.manifest_sha256, MAX_MANIFEST_BYTES)


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


def _whoami() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"


def _note(what: str, text: str, limit: int) -> str:
    if len(text) > limit or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidName(what, text, f"at most {limit} characters of plain text")
    return text
