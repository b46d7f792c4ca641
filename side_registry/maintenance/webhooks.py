"""Webhooks: every change of a registry as a signed HTTP POST, in the log's order, each at least once.

The form is that of Standard Webhooks: the headers webhook-id, webhook-timestamp and webhook-signature. The position in
the log is kept in a file after each event, so a restart sends the event again whose answer was lost, under the same id.
"""

import base64
import hashlib
import hmac
import http.client
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from side_registry.errors import DataclassError, RegistryError
from side_registry.log import Action, Commit
from side_registry.registry import Registry

log = logging.getLogger(__name__)

TYPES = {
    "publish": "version.published",
    "set_alias": "alias.promoted",
    "set_route": "route.changed",
    "rollback": "alias.rolled_back",
    "retire": "version.retired",
    "delete_task": "task.deleted",
}
"""An action of the log to the type of its event."""
PREFIX = "whsec_"
MIN_SECRET_BYTES = 24
TIMEOUT_S = 15.0
"""Longest wait for the receiver's answer, in seconds."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 300.0
GONE = 410
"""The receiver wants no more events."""


class InvalidWebhook(DataclassError):
    """A setting of webhooks is wrong."""

    reason: ClassVar[str] = "INVALID_WEBHOOK"
    message = "{setting}: {why}"
    setting: str
    why: str


class WebhookGone(DataclassError):
    """The receiver of webhooks wants no more of them."""

    reason: ClassVar[str] = "WEBHOOK_GONE"
    exit_code: ClassVar[int] = 1
    message = "{url} answered 410: it wants no more webhooks; end this process, or give another URL"
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What has been delivered."""

    registry: str
    """The registry's id."""
    generation: int
    """Of the newest commit with a delivered event."""
    commit: str
    """Its id; "" for generation 0."""
    actions: int
    """How many of its events are delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """One event as it is sent."""

    id: str
    """Of the event: the same at each try, so that a receiver can tell a repetition."""
    body: bytes


class Webhooks:
    """Follows one registry and tells one receiver.

    Args:
        secrets: that sign each event, the newest first. Several while a secret is replaced.
        file: keeps the position. Where it does not exist, only later changes are sent.
        send: posts one event and returns the status of the answer; raises OSError.
        pause: waits so many seconds.
    """

    def __init__(
        self,
        registry: Registry,
        url: str,
        secrets: Sequence[bytes],
        file: Path,
        *,
        send: Callable[[str, bytes, dict[str, str]], int] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise InvalidWebhook("url", f"must be an http or https URL, got {url}")
        self._registry = registry
        self._url = url
        self._secrets = secrets
        self._file = file
        self._send = send or post
        self._pause = pause
        self._position = self._open()

    @property
    def position(self) -> Position:
        """What has been delivered so far."""
        return self._position

    def deliver(self) -> int:
        """Deliver what the log has now, and return how many events that was. Tries each event until it is accepted.

        Raises:
            WebhookGone: the receiver wants no more events.
            UnreadableCommit, StoreFailed.
        """
        delivered = 0
        position = self._position
        unfinished = (bool(position.generation) and self._commit(position.generation)) or None
        if unfinished and position.actions < len(unfinished.actions):
            delivered += self._deliver(unfinished, position.actions)
        for commit in self._registry.commits_after(position.generation):
            delivered += self._deliver(commit, 0)
        return delivered

    def follow(self, poll_s: float) -> None:
        """Deliver for ever. Where the store cannot be read, it tries again."""
        while True:
            try:
                self.deliver()
                self._registry.wait(self._position.generation, 60, poll_s)
            except RegistryError as error:
                log.warning("cannot read the registry: %s", error)
                self._pause(FIRST_PAUSE_S)

    def _deliver(self, commit: Commit, first: int) -> int:
        for index in range(first, len(commit.actions)):
            self._deliver_event(event_of(self._registry.id, commit, index))
            self._keep(commit, index + 1)
        return len(commit.actions) - first

    def _deliver_event(self, event: WebhookEvent) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            fault = self._try(event)
            if fault is None:
                return
            log.warning("webhook %s was not accepted: %s; next try in %.0f s", event.id, fault, pause_s)
            self._pause(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _try(self, event: WebhookEvent) -> str | None:
        """Send it once. Returns why it was not accepted; None: it was."""
        try:
            status = self._send(self._url, event.body, sign(event, int(time.time()), self._secrets))
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        if status == GONE:
            raise WebhookGone(self._url)
        return None if 200 <= status < 300 else f"status {status}"

    def _open(self) -> Position:
        if not self._file.exists():
            state = self._registry.state()
            commit = self._commit(state.generation) if state.generation else None
            actions = len(commit.actions) if commit else 0
            return self._write(
                Position(
                    registry=self._registry.id,
                    generation=state.generation,
                    commit=commit.id if commit else "",
                    actions=actions,
                )
            )
        try:
            position = Position(**json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InvalidWebhook("position", f"{self._file} cannot be read: {error}") from None
        commit = self._commit(position.generation) if position.generation else None
        if position.registry != self._registry.id or position.commit != (commit.id if commit else ""):
            raise InvalidWebhook("position", f"{self._file} is of another registry; give another file")
        return position

    def _commit(self, generation: int) -> Commit | None:
        return next(iter(self._registry.commits_after(generation - 1)), None)

    def _keep(self, commit: Commit, actions: int) -> None:
        self._position = self._write(
            Position(registry=self._registry.id, generation=commit.generation, commit=commit.id, actions=actions)
        )

    def _write(self, position: Position) -> Position:
        """Write the file so that a crash leaves the old or the new one."""
        draft = self._file.with_name(f"{self._file.name}.draft")
        try:
            with draft.open("w", encoding="utf-8") as file:
                json.dump(asdict(position), file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._file)
        except OSError as error:
            raise InvalidWebhook("position", f"{self._file} cannot be written: {error.strerror}") from None
        return position


def event_of(registry: str, commit: Commit, index: int) -> WebhookEvent:
    """The event of one action of a commit.

    Args:
        registry: the registry's id.
    """
    action = commit.actions[index]
    document = {
        "type": TYPES[action.type],
        "timestamp": commit.time,
        "data": {
            "registry": registry,
            "generation": commit.generation,
            "author": commit.author,
            "message": commit.message,
            **_fields(action),
        },
    }
    return WebhookEvent(id=f"msg_{commit.id}_{index}", body=json.dumps(document).encode())


def _fields(action: Action) -> dict[str, Any]:
    return {name: value for name, value in action.model_dump(mode="json").items() if name != "type"}


def sign(event: WebhookEvent, timestamp: int, secrets: Sequence[bytes]) -> dict[str, str]:
    """The headers of one try of an event.

    Args:
        timestamp: of the try, in seconds since 1970.
    """
    content = f"{event.id}.{timestamp}.".encode() + event.body
    digests = [base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode() for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{digest}" for digest in digests),
    }


def read_secrets(file: Path) -> list[bytes]:
    """The secrets in a file, one `whsec_BASE64` a line.

    Raises:
        InvalidWebhook: there is none, or one is too short.
    """
    try:
        lines = file.read_text(encoding="utf-8").split()
        secrets = [base64.b64decode(line.removeprefix(PREFIX), validate=True) for line in lines]
    except (OSError, ValueError):
        raise InvalidWebhook("secret-file", f"{file} must be readable, with a line whsec_BASE64") from None
    if not secrets or min(map(len, secrets)) < MIN_SECRET_BYTES:
        raise InvalidWebhook("secret-file", f"{file} must have secrets of {MIN_SECRET_BYTES} bytes or more")
    return secrets


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Post one event, without following redirects; returns the status. Raises OSError, http.client.HTTPException."""
    request = urllib.request.Request(url, body, headers | {"user-agent": "sidecast-webhooks"}, method="POST")
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
