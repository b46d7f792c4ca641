"""Reads what Ray tells of an application: its state, its replicas, and why it failed. Knows no Ray."""

import re
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
    id: str
    node: str
    pid: int | None
    state: str
    since: str
    """When it was started."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the replica tells of itself; nothing where it was not asked or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    node: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """An application on a cluster."""

    name: str
    status: str
    message: str
    """Why it is as it is, in a line; empty where all is well."""
    wanted: int
    """Replicas that there should be."""
    replicas: Sequence[Replica]
    proxies: Sequence[Proxy]

    @property
    def running(self) -> int:
        return sum(each.state == "RUNNING" for each in self.replicas)

    @property
    def document(self) -> Document:
        return asdict(self)


def read(details: Document, name: str, told: Sequence[Mapping[str, Any]] = ()) -> Deployed | None:
    """An application of `details`, as Serve's REST interface tells them; None where there is none of that name.

    Args:
        told: what replicas tell of themselves.
    """
    app = details.get("applications", {}).get(name)
    if app is None:
        return None
    server = app["deployments"].get(DEPLOYMENT, {})
    own = {each["id"]: each for each in told}
    return Deployed(
        name=name,
        status=app["status"],
        message=_message(app, server),
        wanted=server.get("target_num_replicas", 0),
        replicas=[_replica(each, own) for each in server.get("replicas", ())],
        proxies=[Proxy(node=each["node_ip"], status=each["status"]) for each in details["proxies"].values()],
    )


def _replica(told: Document, own: Mapping[str, Mapping[str, Any]]) -> Replica:
    since = datetime.fromtimestamp(told["start_time_s"], UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Replica(
        id=told["replica_id"],
        node=told.get("node_ip") or "",
        pid=told.get("pid"),
        state=told["state"],
        since=since,
        own=own.get(told["replica_id"], {}),
    )


def _message(app: Document, server: Document) -> str:
    """The deployment's own message says why; the application's, which deployment it was."""
    return root_cause(server.get("message") or app.get("message") or "")


def root_cause(message: str) -> str:
    """What was raised, in a line, of a message of Ray's with a traceback in it; the message where it has none."""
    lines = COLOURS.sub("", message).strip().splitlines()
    frames = [place for place, line in enumerate(lines) if line.startswith('  File "')]
    if not frames:
        return " ".join(" ".join(lines).split())
    after = [place for place in range(frames[-1] + 1, len(lines)) if not lines[place].startswith("    ")]
    raised = "\n".join(lines[after[0] :]) if after else lines[-1]
    found = RAISED.fullmatch(raised)
    if not found:
        return " ".join(raised.split())
    kind, text = found["kind"].rsplit(".", 1)[-1], " ".join(found["text"].split())
    return f"{kind}: {text}"


def state_in_words(found: Deployed) -> str:
    """For a line of progress."""
    states = ", ".join(f"{sum(r.state == s for r in found.replicas)} {s.lower()}" for s in _states(found.replicas))
    line = f"{found.status.lower()}: {states or 'no replicas yet'}, {found.wanted} wanted"
    return f"{line}; {found.message}" if found.message else line


def _states(replicas: Sequence[Replica]) -> list[str]:
    return list(dict.fromkeys(each.state for each in replicas))
