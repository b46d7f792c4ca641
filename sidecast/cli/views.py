"""The registry as commands see it: opened by itself, or through a running server.

Both give the same documents; of tasks, a server tells more: what it serves, and the generation that it serves.
"""

from datetime import datetime
from typing import Any, Protocol

from sidecast.cli import options

Document = dict[str, Any]


class View(Protocol):
    def tasks(self) -> Document: ...
    def history(self, task: str | None) -> list[Document]: ...
    def promote(self, task: str, version: int, alias: str, message: str) -> Document: ...
    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document: ...
    def retire(self, task: str, version: int, message: str) -> Document: ...
    def publish(self, run: str, alias: str | None, message: str) -> Document: ...


def open_view(registry: str | None, server: str | None, *, create: bool = False) -> View:
    """The view that the options name; `create` makes a registry that is not there yet."""
    source, where = options.choose(registry=registry, server=server)
    if source == "server":
        from serving.client import Client

        return ServerView(Client(where))
    from side_registry import Registry

    return RegistryView(Registry.open(where, create=create))


class RegistryView:
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
        return {"task": task.name, "kind": newest.kind, "aliases": task.serving, "versions": versions}

    def history(self, task: str | None) -> list[Document]:
        return [
            {
                "generation": commit.generation,
                "time": commit.time,
                "author": commit.author,
                "message": commit.message,
                "actions": [_action(action) for action in commit.actions if task in (None, action.task)],
            }
            for commit in self._registry.history(task)
        ]

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        generation = self._registry.set_alias(task, alias, version, message=message)
        return {"task": task, "alias": alias, "version": version, "generation": generation}

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        return _rolled(self._registry.rollback(task, alias, to, message=message))

    def retire(self, task: str, version: int, message: str) -> Document:
        generation = self._registry.retire(task, version, message=message)
        return {"task": task, "version": version, "generation": generation}

    def publish(self, run: str, alias: str | None, message: str) -> Document:
        return _published(self._registry.publish(run, alias=alias, message=message))


class ServerView:
    def __init__(self, client: Any) -> None:
        self._client = client

    def tasks(self) -> Document:
        listed, event = self._client.tasks(), next(self._client.watch())
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
            "serving": info.serving,
            "versions": versions,
        }

    def history(self, task: str | None) -> list[Document]:
        return [
            {
                "generation": commit.generation,
                "time": _time(commit.time),
                "author": commit.author,
                "message": commit.message,
                "actions": [
                    {"verb": a.verb, "task": a.task, "version": a.version, "alias": a.alias} for a in commit.actions
                ],
            }
            for commit in self._client.history(task)
        ]

    def promote(self, task: str, version: int, alias: str, message: str) -> Document:
        done = self._client.promote(task, version, alias=alias, message=message)
        return {"task": task, "alias": alias, "version": version, "generation": done.generation}

    def rollback(self, task: str, alias: str, to: int | None, message: str) -> Document:
        return _rolled(self._client.rollback(task, alias=alias, to=to, message=message))

    def retire(self, task: str, version: int, message: str) -> Document:
        done = self._client.retire(task, version, message=message)
        return {"task": task, "version": version, "generation": done.generation}

    def publish(self, run: str, alias: str | None, message: str) -> Document:
        return _published(self._client.publish(run, alias=alias, message=message))


def _time(time: datetime | None) -> str | None:
    """As the registry writes it."""
    return time and time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _action(action: Any) -> Document:
    version = getattr(action, "version", getattr(action, "version_to", None))
    return {"verb": action.type, "task": action.task, "version": version, "alias": getattr(action, "alias", None)}


def _rolled(rolled: Any) -> Document:
    names = ("task", "alias", "version_from", "version_to", "generation")
    return {name: getattr(rolled, name) for name in names}


def _published(published: Any) -> Document:
    names = ("task", "version", "generation", "already")
    return {name: getattr(published, name) for name in names} | {"aliases": dict(published.aliases)}
