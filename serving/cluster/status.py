"""Reads Ray Serve's description of an application: its state, its replicas, and why it failed. Knows no Ray."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from serving.cluster.serve_config import DEPLOYMENT

Document = dict[str, Any]

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(r"(?P<kind>[A-Za-z_][\w.]*(?:\([\w.]+\))?): (?P<text>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica of an application."""

    id: str
    node: str
    pid: int | None
    state: str
    since: str
    """Time of its start, in ISO 8601."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The status that the replica reports itself; empty if it was not asked or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Ray's proxy on one node."""

    node: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """An application on a cluster."""

    name: str
    status: str
    message: str
    """Reason of the status, in a line; empty if all is well."""
    wanted: int
    """Number of replicas that is aimed at."""
    replicas: Sequence[Replica]
    proxies: Sequence[Proxy]

    @property
    def running(self) -> int:
        """Replicas that take calls."""
        return sum(replica.state == "RUNNING" for replica in self.replicas)

    @property
    def document(self) -> Document:
        """As JSON has it."""
        return asdict(self)


def read(details: Document, name: str, statuses: Sequence[Mapping[str, Any]] = ()) -> Deployed | None:
    """The application `name`; None if there is none.

    Args:
        details: answer of Serve's REST interface.
        statuses: what the replicas report themselves.
    """
    app = details.get("applications", {}).get(name)
    if app is None:
        return None
    server = app["deployments"].get(DEPLOYMENT, {})
    by_replica = {status["id"]: status for status in statuses}
    return Deployed(
        name=name,
        status=app["status"],
        message=_message(app, server),
        wanted=server.get("target_num_replicas", 0),
        replicas=[_replica(replica, by_replica) for replica in server.get("replicas", ())],
        proxies=[Proxy(node=proxy["node_ip"], status=proxy["status"]) for proxy in details["proxies"].values()],
    )


def _replica(details: Document, statuses: Mapping[str, Mapping[str, Any]]) -> Replica:
    since = datetime.fromtimestamp(details["start_time_s"], UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Replica(
        id=details["replica_id"],
        node=details.get("node_ip") or "",
        pid=details.get("pid"),
        state=details["state"],
        since=since,
        own=statuses.get(details["replica_id"], {}),
    )


def _message(app: Document, server: Document) -> str:
    """The deployment's message says why it failed; the application's says only which deployment failed."""
    return root_cause(server.get("message") or app.get("message") or "")


def root_cause(message: str) -> str:
    """The exception of a message with a traceback, in a line; without a traceback the message itself."""
    lines = COLOURS.sub("", message).strip().splitlines()
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return " ".join(" ".join(lines).split())
    after = [index for index in range(frames[-1] + 1, len(lines)) if not lines[index].startswith("    ")]
    raised = "\n".join(lines[after[0] :]) if after else lines[-1]
    match = RAISED.fullmatch(raised)
    if not match:
        return " ".join(raised.split())
    return f"{match['kind'].rsplit('.', 1)[-1]}: {' '.join(match['text'].split())}"


def state_in_words(app: Deployed) -> str:
    """The state as a line of progress."""
    counts = Counter(replica.state for replica in app.replicas)
    states = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
    line = f"{app.status.lower()}: {states or 'no replicas yet'}, {app.wanted} wanted"
    return f"{line}; {app.message}" if app.message else line
