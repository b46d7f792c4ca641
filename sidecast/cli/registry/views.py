"""The registry as commands see it: opened directly, or through a running server.

Both give the same documents; of tasks, a server tells more: what it serves, and the generation that it serves.
"""

from datetime import datetime
from typing import Any, Protocol

from sidecast.cli import options
from sidecast.cli.registry import routes
from sidecast.cli.registry.routes import Document


class View(Protocol):
    """What commands read and change; documents are what `--json` prints."""

    def tasks(self) -> Document: ...
    def history(self, task: str | None, limit: int = 0) -> list[Document]:
        """The newest `limit` changes; 0: all."""
        ...

    def promote(self, task: str, version: int, alias: str, message: str) -> Document: ...
    def route(self, task: str, alias: str) -> Document:
        """The present route of an alias."""
        ...

    def set_route(
        self, task: str, alias: str, version: int | None, route: Document, seen: Document | None, message: str
    ) -> Document:
        """`seen` is the route that this one was made of; where it is another one by now, `is_route_changed`."""
        ...

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document: ...
    def retire(self, task: str, version: int, message: str) -> Document: ...
    def publish(self, run: str, alias: str | None, message: str) -> Document: ...
    def wait(self, generation: int, seconds: float) -> Document:
        """Until every server that follows the registry serves a generation: which there are, and whether they do."""
        ...

    def faults(self, task: str, versions: set[int]) -> list[str]:
        """Why some of a task's versions do not load, as far as can be seen here."""
        ...


def open_view(registry: str | None, server: str | None, *, create: bool = False) -> View:
    """Open the view that the options name; `create` makes a registry that does not exist yet."""
    source, where = options.choose(registry=registry, server=server)
    if source == "server":
        from serving.client import Client

        return ServerView(Client(where))
    from side_registry import Registry

    return RegistryView(Registry.open(where, create=create))


def is_route_changed(error: Exception) -> bool:
    """Whether an error says that the route changed meanwhile: the registry's error, or the client's."""
    return getattr(error, "reason", "") == "ROUTE_CHANGED"


class RegistryView:
    """A registry that this process opens."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def tasks(self) -> Document:
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

    def history(self, task: str | None, limit: int = 0) -> list[Document]:
        return [
            {
                "generation": commit.generation,
                "time": commit.time,
                "author": commit.author,
                "message": commit.message,
                "actions": [_action(action) for action in commit.actions if task in (None, action.task)],
            }
            for commit in self._registry.history(task, limit)
        ]

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        generation = self._registry.set_alias(task, alias, version, message=message)
        return {"task": task, "alias": alias, "version": version, "generation": generation}

    def route(self, task: str, alias: str) -> Document:
        found = self._registry.state().task(task)
        found.at(alias)
        return routes.document(found.route(alias))

    def set_route(
        self, task: str, alias: str, version: int | None, route: Document, seen: Document | None, message: str
    ) -> Document:
        from side_registry.decisions import checked_route

        checked, before = checked_route(task, alias, route), seen and checked_route(task, alias, seen)
        generation = self._registry.set_route(task, alias, checked, version=version, seen=before, message=message)
        own = version or self._registry.state(refresh=False).task(task).at(alias)
        return _routed(task, alias, own, checked, generation)

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        return _rolled(self._registry.rollback(task, alias, to, message=message))

    def wait(self, generation: int, seconds: float) -> Document:
        return _awaited(generation, self._registry.await_generation(generation, seconds))

    def faults(self, task: str, versions: set[int]) -> list[str]:
        return []

    def retire(self, task: str, version: int, message: str) -> Document:
        generation = self._registry.retire(task, version, message=message)
        return {"task": task, "version": version, "generation": generation}

    def publish(self, run: str, alias: str | None, message: str) -> Document:
        return _published(self._registry.publish(run, alias=alias, message=message))


class ServerView:
    """The registry of a running server."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def tasks(self) -> Document:
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

    def history(self, task: str | None, limit: int = 0) -> list[Document]:
        return [
            {
                "generation": commit.generation,
                "time": _time(commit.time),
                "author": commit.author,
                "message": commit.message,
                "actions": [
                    {
                        "verb": each.verb,
                        "task": each.task,
                        "version": each.version,
                        "alias": each.alias,
                        "route": each.route and routes.document(each.route),
                        "run_id": each.run_id,
                    }
                    for each in commit.actions
                ],
            }
            for commit in self._client.history(task, limit=limit)
        ]

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        done = self._client.promote(task, version, alias=alias, message=message)
        return {"task": task, "alias": alias, "version": version, "generation": done.generation}

    def route(self, task: str, alias: str) -> Document:
        found = self._client.task(task)
        if alias not in found.aliases:
            self._client.task(f"{task}@{alias}")  # which says so
        return routes.document(found.routes[alias]) if alias in found.routes else routes.plain()

    def set_route(
        self, task: str, alias: str, version: int | None, route: Document, seen: Document | None, message: str
    ) -> Document:
        from serving.client import Bounds, Route

        changes = route | {"shares": _numbers(route["shares"])}
        before = seen and Route(
            shares=_numbers(seen["shares"]),
            shadows=tuple(seen["shadows"]),
            bounds=Bounds(**seen["bounds"]) if seen["bounds"] else None,
        )
        done = self._client.set_route(task, alias=alias, version=version, seen=before, message=message, **changes)
        return _routed(task, alias, done.version, done.route, done.generation)

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        return _rolled(self._client.rollback(task, alias=alias, to=to, message=message))

    def wait(self, generation: int, seconds: float) -> Document:
        return _awaited(generation, self._client.await_generation(generation, timeout=seconds))

    def faults(self, task: str, versions: set[int]) -> list[str]:
        known = [entry for entry in self._client.task(task).versions if entry.version in versions]
        return [f"version {entry.version} does not load: {entry.failure}" for entry in known if entry.failure]

    def retire(self, task: str, version: int, message: str) -> Document:
        done = self._client.retire(task, version, message=message)
        return {"task": task, "version": version, "generation": done.generation}

    def publish(self, run: str, alias: str | None, message: str) -> Document:
        return _published(self._client.publish(run, alias=alias, message=message))


def _time(time: datetime | None) -> str | None:
    """A time in the format of the registry's files."""
    return time and time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _action(action: Any) -> Document:
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
    """`version` is the alias's own."""
    found = routes.document(route)
    return {"task": task, "alias": alias, "version": version, "route": found, "generation": generation}


def _rolled(rolled: Any) -> Document:
    names = ("task", "alias", "version_from", "version_to", "generation", "canary_ended")
    return {name: getattr(rolled, name) for name in names}


def _numbers(shares: Document) -> dict[int, int]:
    return {int(version): share for version, share in shares.items()}


def _awaited(generation: int, awaited: Any) -> Document:
    servers = [{"address": each.address, "generation": each.generation} for each in awaited.servers]
    return {"generation": generation, "served": awaited.served, "servers": servers}


def _published(published: Any) -> Document:
    names = ("task", "version", "generation", "already")
    return {name: getattr(published, name) for name in names} | {"aliases": dict(published.aliases)}
