"""The registry as commands see it: opened directly, or through a running server.

Both give the same documents; of tasks, a server tells more: what it serves, and the generation that it serves.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from sidecast.cli import options
from sidecast.cli.registry import routes
from sidecast.cli.registry.routes import Document

if TYPE_CHECKING:
    from side_registry.signing import SigningKey


class View(Protocol):
    """What commands read and change; documents are what `--json` prints."""

    def tasks(self) -> Document:
        """Tasks with their aliases, routes and versions, sorted by name."""
        ...

    def history(self, task: str | None, limit: int = 0, group: str | None = None) -> list[Document]:
        """The newest `limit` changes; 0: all. Of a task, of a group, or of everything."""
        ...

    def groups(self) -> list[Document]:
        """Groups with their tasks, sorted by name."""
        ...

    def set_group(self, group: str, tasks: Sequence[str], message: str) -> Document:
        """Give a group its tasks, or make it."""
        ...

    def rollback_group(self, group: str, to: int | None, message: str) -> Document:
        """Give a group the tasks of an earlier version."""
        ...

    def delete_group(self, group: str, message: str) -> int:
        """Remove a group. Returns the generation."""
        ...

    def at(self, moment: datetime) -> Document:
        """Each task's aliases and routes at a moment, sorted by name, and the generation then."""
        ...

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        """Move an alias to a version."""
        ...

    def route(self, task: str, alias: str) -> Document:
        """The present route of an alias."""
        ...

    def set_route(
        self, task: str, alias: str, version: int | None, route: Document, seen: Document | None, message: str
    ) -> Document:
        """Replace an alias's route. If it is no longer `seen`, an error for which `is_route_changed` holds."""
        ...

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        """Move an alias back, or end the shares of its traffic."""
        ...

    def retire(self, task: str, version: int, message: str) -> Document:
        """Take a version out of service."""
        ...

    def aliases(self, task: str) -> dict[str, int]:
        """The version of each alias of a task; empty if there is no such task."""
        ...

    def publish(
        self, run: str, alias: str | None, message: str, allow_untrained: bool, key: "SigningKey | None"
    ) -> Document:
        """Publish a run folder as its task's next version, signed where there is a key."""
        ...

    def wait(self, generation: int, seconds: float) -> Document:
        """Wait until every server that follows the registry serves a generation; the servers, and whether they do."""
        ...

    def faults(self, task: str, versions: set[int]) -> list[str]:
        """Why some of a task's versions do not load; empty if this view cannot tell."""
        ...


def open_view(registry: str | None, server: str | None, *, create: bool = False) -> View:
    """Open the view that the options name; `create` makes a registry that does not exist yet."""
    source, where = options.choose(registry=registry, server=server)
    if source == "server":
        return ServerView(options.connect(where))
    from side_registry import Registry

    return RegistryView(Registry.open(where, create=create))


def is_route_changed(error: Exception) -> bool:
    """Whether an error says that the route changed meanwhile: the registry's error, or the client's."""
    return getattr(error, "reason", "") == "ROUTE_CHANGED"


class _Groups:
    """The groups of a view: `Registry` and `Client` take the same arguments."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def set_group(self, group: str, tasks: Sequence[str], message: str) -> Document:
        """As `View.set_group`."""
        return _group_changed(self._source.set_group(group, tasks, message=message))

    def rollback_group(self, group: str, to: int | None, message: str) -> Document:
        """As `View.rollback_group`."""
        return _group_changed(self._source.rollback_group(group, to=to, message=message))

    def delete_group(self, group: str, message: str) -> int:
        """As `View.delete_group`."""
        return self._source.delete_group(group, message=message)


class RegistryView(_Groups):
    """A registry that this process opens."""

    def __init__(self, registry: Any) -> None:
        super().__init__(registry)
        self._registry = registry

    def groups(self) -> list[Document]:
        """As `View.groups`."""
        return [_group(name, group.current) for name, group in self._registry.state().live_groups.items()]

    def tasks(self) -> Document:
        """As `View.tasks`."""
        state = self._registry.state()
        tasks = [self._task(task) for _, task in sorted(state.live.items())]
        return {"generation": state.generation, "tasks": tasks}

    def _task(self, task: Any) -> Document:
        newest = task.versions[task.last_version]
        versions = [
            {
                "version": entry.version,
                "published_at": entry.published_at,
                "author": entry.author,
                "message": entry.message,
                "retired": entry.retired,
                "untrained": entry.untrained,
            }
            for entry in task.versions.values()
        ]
        return {
            "task": task.name,
            "kind": newest.kind,
            "aliases": task.serving,
            "routes": _routes(task.routes),
            "versions": versions,
        }

    def history(self, task: str | None, limit: int = 0, group: str | None = None) -> list[Document]:
        """As `View.history`."""
        return [
            {
                "generation": commit.generation,
                "time": commit.time,
                "author": commit.author,
                "message": commit.message,
                "actions": [_action(action) for action in commit.actions if _is_about(action, task, group)],
            }
            for commit in self._registry.history(task, limit, group=group)
        ]

    def at(self, moment: datetime) -> Document:
        """As `View.at`."""
        state = self._registry.state_at(moment)
        tasks = [
            {"task": name, "aliases": task.serving, "routes": _routes(task.routes)} for name, task in state.live.items()
        ]
        return {"generation": state.generation, "tasks": tasks}

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        """As `View.promote`."""
        generation = self._registry.set_alias(task, alias, version, message=message)
        return {"task": task, "alias": alias, "version": version, "generation": generation}

    def route(self, task: str, alias: str) -> Document:
        """As `View.route`."""
        state = self._registry.state().task(task)
        state.at(alias)  # raises UnknownAlias
        return routes.document(state.route(alias))

    def set_route(
        self, task: str, alias: str, version: int | None, route: Document, seen: Document | None, message: str
    ) -> Document:
        """As `View.set_route`."""
        from side_registry.decisions import checked_route

        checked = checked_route(task, alias, route)
        before = seen and checked_route(task, alias, seen)
        generation = self._registry.set_route(task, alias, checked, version=version, seen=before, message=message)
        own_version = version or self._registry.state(refresh=False).task(task).at(alias)
        return _routed(task, alias, own_version, checked, generation)

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        """As `View.rollback`."""
        return _rolled(self._registry.rollback(task, alias, to, message=message))

    def wait(self, generation: int, seconds: float) -> Document:
        """As `View.wait`."""
        return _awaited(generation, self._registry.await_generation(generation, seconds))

    def faults(self, task: str, versions: set[int]) -> list[str]:
        """As `View.faults`."""
        return []

    def retire(self, task: str, version: int, message: str) -> Document:
        """As `View.retire`."""
        generation = self._registry.retire(task, version, message=message)
        return {"task": task, "version": version, "generation": generation}

    def aliases(self, task: str) -> dict[str, int]:
        """As `View.aliases`."""
        known = self._registry.state().live.get(task)
        return known.serving if known else {}

    def publish(
        self, run: str, alias: str | None, message: str, allow_untrained: bool, key: "SigningKey | None"
    ) -> Document:
        """As `View.publish`."""
        done = self._registry.publish(
            run,
            alias=alias,
            message=message,
            allow_untrained=allow_untrained,
            signature=key.sign_run(run) if key else b"",
        )
        return _published(done)


class ServerView(_Groups):
    """The registry of a running server."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._client = client

    def groups(self) -> list[Document]:
        """As `View.groups`."""
        return [_group(group.group, group) for group in self._client.groups()]

    def tasks(self) -> Document:
        """As `View.tasks`."""
        listed = self._client.tasks()
        event = next(self._client.watch())
        return {"generation": event.served, "tasks": [self._task(info) for info in listed]}

    def _task(self, info: Any) -> Document:
        versions = [
            {
                "version": entry.version,
                "published_at": _time(entry.published_at),
                "author": entry.author,
                "message": entry.message,
                "retired": entry.retired,
                "untrained": entry.untrained,
                "resident": entry.resident,
                "failure": entry.failure or None,
            }
            for entry in info.versions
        ]
        kind = info.spec.kind if info.spec else None
        return {
            "task": info.task,
            "kind": kind,
            "aliases": info.aliases,
            "routes": _routes(info.routes),
            "serving": info.serving,
            "versions": versions,
        }

    def history(self, task: str | None, limit: int = 0, group: str | None = None) -> list[Document]:
        """As `View.history`."""
        return [
            {
                "generation": commit.generation,
                "time": _time(commit.time),
                "author": commit.author,
                "message": commit.message,
                "actions": [_client_action(action) for action in commit.actions],
            }
            for commit in self._client.history(task, limit=limit, group=group)
        ]

    def at(self, moment: datetime) -> Document:
        """As `View.at`: what the server's history adds up to."""
        return aliases_at(self.history(None), moment)

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        """As `View.promote`."""
        done = self._client.promote(task, version, alias=alias, message=message)
        return {"task": task, "alias": alias, "version": version, "generation": done.generation}

    def route(self, task: str, alias: str) -> Document:
        """As `View.route`."""
        info = self._client.task(task)
        if alias not in info.aliases:
            self._client.task(f"{task}@{alias}")  # raises UnknownAliasError
        return routes.document(info.routes[alias]) if alias in info.routes else routes.plain()

    def set_route(
        self, task: str, alias: str, version: int | None, route: Document, seen: Document | None, message: str
    ) -> Document:
        """As `View.set_route`."""
        from serving.client import Bounds, Route

        changes = route | {"shares": _fractions(route["shares"])}
        before = seen and Route(
            shares=_fractions(seen["shares"]),
            shadows=tuple(seen["shadows"]),
            bounds=Bounds(**seen["bounds"]) if seen["bounds"] else None,
        )
        done = self._client.set_route(task, alias=alias, version=version, seen=before, message=message, **changes)
        return _routed(task, alias, done.version, done.route, done.generation)

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        """As `View.rollback`."""
        return _rolled(self._client.rollback(task, alias=alias, to=to, message=message))

    def wait(self, generation: int, seconds: float) -> Document:
        """As `View.wait`."""
        return _awaited(generation, self._client.await_generation(generation, timeout=seconds))

    def faults(self, task: str, versions: set[int]) -> list[str]:
        """As `View.faults`."""
        known = [entry for entry in self._client.task(task).versions if entry.version in versions]
        return [f"version {entry.version} does not load: {entry.failure}" for entry in known if entry.failure]

    def retire(self, task: str, version: int, message: str) -> Document:
        """As `View.retire`."""
        done = self._client.retire(task, version, message=message)
        return {"task": task, "version": version, "generation": done.generation}

    def aliases(self, task: str) -> dict[str, int]:
        """As `View.aliases`."""
        from serving.client import SidecastError

        try:
            return self._client.task(task).aliases
        except SidecastError as error:
            if error.reason != "UNKNOWN_TASK":
                raise
            return {}

    def publish(
        self, run: str, alias: str | None, message: str, allow_untrained: bool, key: "SigningKey | None"
    ) -> Document:
        """As `View.publish`."""
        done = self._client.publish(
            run,
            alias=alias,
            message=message,
            allow_untrained=allow_untrained,
            signature=key.sign_run(run) if key else b"",
        )
        return _published(done)


def aliases_at(changes: Sequence[Document], moment: datetime) -> Document:
    """What `Registry.state_at` tells of aliases and routes, from the documents of a whole history."""
    made = [place for place, change in enumerate(changes, 1) if datetime.fromisoformat(change["time"]) <= moment]
    before = changes[: max(made, default=0)]
    aliases: dict[str, dict[str, int]] = {}
    shares: dict[str, dict[str, Document]] = {}
    for action in (action for change in before for action in change["actions"]):
        task, alias = action["task"], action["alias"]
        if action["verb"] == "delete_task":
            aliases.pop(task, None)
            shares.pop(task, None)
            continue
        theirs, split = aliases.setdefault(task, {}), shares.setdefault(task, {})
        if action["verb"] == "set_route":
            split[alias] = action["route"]
        elif action["verb"] in ("set_alias", "rollback"):
            theirs[alias] = action["version"]
            split.pop(alias, None)
    tasks = [
        {
            "task": task,
            "aliases": theirs,
            "routes": {alias: route for alias, route in sorted(shares[task].items()) if route != routes.plain()},
        }
        for task, theirs in sorted(aliases.items())
    ]
    return {"generation": before[-1]["generation"] if before else 0, "tasks": tasks}


def _time(time: datetime | None) -> str | None:
    """A time in the format of the registry's files."""
    return time and time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _group(name: str, group: Any) -> Document:
    """A group of the registry, whose tasks are its members, or of a client."""
    return {"group": name, "version": group.version, "tasks": list(getattr(group, "members", None) or group.tasks)}


def _group_changed(changed: Any) -> Document:
    numbers = {"version_from": changed.version_from, "generation": changed.generation}
    return _group(changed.group, changed) | numbers


def _is_about(action: Any, task: str | None, group: str | None) -> bool:
    if group is not None:
        return getattr(action, "group", None) == group
    return task is None or getattr(action, "task", None) == task


def _client_action(action: Any) -> Document:
    if action.group:
        return _group_action(action.verb, action.group, action.version, action.members)
    return {
        "verb": action.verb,
        "task": action.task,
        "version": action.version,
        "alias": action.alias,
        "route": action.route and routes.document(action.route),
        "run_id": action.run_id,
    }


def _group_action(verb: str, group: str, version: int | None, members: Sequence[str]) -> Document:
    return {"verb": verb, "group": group, "version": version, "members": list(members)}


def _action(action: Any) -> Document:
    if group := getattr(action, "group", None):
        version = getattr(action, "version", getattr(action, "version_to", None))
        return _group_action(action.type, group, version, getattr(action, "members", ()))
    version = getattr(action, "version", getattr(action, "version_to", None))
    route = getattr(action, "route", None)
    return {
        "verb": action.type,
        "task": action.task,
        "version": version,
        "alias": getattr(action, "alias", None),
        "route": route and routes.document(route),
        "run_id": getattr(action, "run_id", None) or None,
    }


def _routes(by_alias: Any) -> Document:
    return {alias: routes.document(route) for alias, route in sorted(by_alias.items())}


def _routed(task: str, alias: str, version: int, route: Any, generation: int) -> Document:
    """`version` is the alias's main version."""
    document = routes.document(route)
    return {"task": task, "alias": alias, "version": version, "route": document, "generation": generation}


def _rolled(rolled: Any) -> Document:
    names = ("task", "alias", "version_from", "version_to", "generation", "canary_ended")
    return {name: getattr(rolled, name) for name in names}


def _fractions(shares: Document) -> dict[int, float]:
    """Shares as a client takes them."""
    return {int(version): share / routes.WHOLE for version, share in shares.items()}


def _awaited(generation: int, awaited: Any) -> Document:
    servers = [{"address": server.address, "generation": server.generation} for server in awaited.servers]
    return {"generation": generation, "served": awaited.served, "servers": servers}


def _published(published: Any) -> Document:
    names = ("task", "version", "generation", "already")
    return {name: getattr(published, name) for name in names} | {"aliases": dict(published.aliases)}
