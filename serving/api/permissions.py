"""What each gRPC method needs of its caller: one table, which has every method of every service.

A method that is not in it is refused where callers have tokens. Knows messages; `serving.access` decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.access import ADMIN, PREDICT, PUBLISH, READ
from side_registry.errors import ArtifactError
from side_registry.manifest import MAX_MANIFEST_BYTES, parse_manifest

Charges = tuple[tuple[str, int], ...]
"""The tasks of a request, and the rows that it has for each."""
MayRead = Callable[[str], bool]
"""Whether the caller may read a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a method needs."""

    verb: str | None
    """None: it is open to everybody."""
    tasks: Callable[[Any], Charges | None] = lambda request: ()
    """The tasks of a request; (): it names none, so a caller needs the verb for any task; None: nothing to check here,
    as in later messages of an upload, or where the servicer calls `checked_group`."""
    verb_of: Callable[[Any], str] | None = None
    """The verb of one request, where it depends on what is asked."""
    hide: Callable[[Any, MayRead], None] | None = None
    """Takes tasks out of a response that the caller may not read."""
    is_limited: bool = False
    """Its requests and rows count against the caller's limits."""
    is_change: bool = False
    """It changes the registry, so it is in the audit log."""
    is_checked_singly: bool = False
    """The servicer checks each message of its stream, so that one refused request does not end the others."""


def _named(field: str) -> Callable[[Any], Charges]:
    """The task in a field of the request; without one, none."""

    def tasks(request: Any) -> Charges:
        name = getattr(request, field)
        return ((name, 0),) if name else ()

    return tasks


def _must_name(field: str) -> Callable[[Any], Charges]:
    """The task in a field of the request, even where it is empty: then no scope but that of all tasks allows it."""
    return lambda request: ((getattr(request, field), 0),)


def infer_rows(request: Any) -> int:
    """As the tensors say; whether they tell the truth is checked when they are read."""
    return max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=0)


def _uploaded(request: Any) -> Charges | None:
    """The task of an upload's manifest, which comes first."""
    if request.WhichOneof("part") != "header":
        return None
    if len(request.header.manifest) > MAX_MANIFEST_BYTES:
        raise ArtifactError("the uploaded run", f"its manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    return ((parse_manifest(request.header.manifest, "the uploaded run").task, 0),)


def _hide_in(field: str, name: str) -> Callable[[Any, MayRead], None]:
    """Keep those messages of a list whose task the caller may read."""

    def hide(response: Any, may_read: MayRead) -> None:
        entries = getattr(response, field)
        kept = [entry for entry in entries if may_read(getattr(entry, name))]
        if len(kept) < len(entries):
            kept = [type(entry).FromString(entry.SerializeToString()) for entry in kept]  # they die with the list
            del entries[:]
            entries.extend(kept)

    return hide


def _hide_commits(response: Any, may_read: MayRead) -> None:
    """Keep the actions on tasks that the caller may read, and the commits that have some."""
    for commit in response.commits:
        _hide_in("actions", "task")(commit, may_read)
    kept = [type(commit).FromString(commit.SerializeToString()) for commit in response.commits if commit.actions]
    del response.commits[:]
    response.commits.extend(kept)


def _comparison_verb(request: Any) -> str:
    """Disagreements come with callers' texts, of all tenants."""
    return ADMIN if request.disagreements else READ


EVERY_TASK: Charges = (("", 0),)
"""No scope but that of all tasks allows it."""
GROUP = "group/"
"""What the names of models that are groups begin with."""


def _model(field: str, rows: Callable[[Any], int] = lambda request: 0) -> Callable[[Any], Charges | None]:
    """The task that is the model in a field; None for a group."""

    def tasks(request: Any) -> Charges | None:
        name = getattr(request, field)
        return None if name.startswith(GROUP) else ((name, rows(request)),)

    return tasks


def _asked(request: Any) -> Charges | None:
    """The tasks of PredictTasks; None for those of a group."""
    if request.group:
        return None
    return tuple((ref.task, len(request.rows)) for ref in request.tasks)


def _hide_groups(response: Any, may_read: MayRead) -> None:
    """Keep the groups all of whose tasks the caller may read."""
    kept = [group for group in response.groups if all(may_read(ref.task) for ref in group.tasks)]
    kept = [type(group).FromString(group.SerializeToString()) for group in kept]  # they die with the list
    del response.groups[:]
    response.groups.extend(kept)


def _hide_models(response: Any, may_read: MayRead) -> None:
    """Keep the tasks that the caller may read; the servicer lists only groups that it may."""
    _hide_in("models", "name")(response, lambda name: name.startswith(GROUP) or may_read(name))


OPEN = Rule(verb=None)
KNOWN = Rule(verb=READ)
"""Any caller with a scope."""

_NATIVE = {
    "Predict": Rule(verb=PREDICT, tasks=lambda r: ((r.task, len(r.rows)),), is_limited=True),
    "PredictTasks": Rule(verb=PREDICT, tasks=_asked, is_limited=True),
    "Rank": Rule(verb=PREDICT, tasks=lambda r: ((r.task, len(r.passages)),), is_limited=True),
    "Generate": Rule(verb=PREDICT, tasks=lambda r: ((r.task, 1),), is_limited=True),
}
_ADMIN = {
    "Publish": Rule(verb=PUBLISH, tasks=_uploaded, is_change=True),
    "SetRoute": Rule(verb=PUBLISH, tasks=_must_name("task"), is_change=True),
    "Rollback": Rule(verb=PUBLISH, tasks=_must_name("task"), is_change=True),
    "Retire": Rule(verb=ADMIN, tasks=_must_name("task"), is_change=True),
    "ListTasks": Rule(verb=READ, hide=_hide_in("tasks", "task")),
    "GetTask": Rule(verb=READ, tasks=_must_name("task")),
    "History": Rule(verb=READ, tasks=_named("task"), hide=_hide_commits),
    "GetComparison": Rule(verb=READ, verb_of=_comparison_verb, tasks=_must_name("task")),
    "AwaitGeneration": KNOWN,
    "Watch": Rule(verb=READ, hide=_hide_in("changed", "task")),
    "SetGroup": Rule(verb=PUBLISH, tasks=lambda r: EVERY_TASK, is_change=True),
    "RollbackGroup": Rule(verb=PUBLISH, tasks=lambda r: EVERY_TASK, is_change=True),
    "DeleteGroup": Rule(verb=PUBLISH, tasks=lambda r: EVERY_TASK, is_change=True),
    "ListGroups": Rule(verb=READ, hide=_hide_groups),
    "ListResidents": Rule(verb=READ, tasks=_named("task"), hide=_hide_in("residents", "task")),
}
_OPEN_INFERENCE = {
    "ServerLive": OPEN,
    "ServerReady": OPEN,
    "ServerMetadata": KNOWN,
    "ModelReady": Rule(verb=READ, tasks=_model("name")),
    "ModelMetadata": Rule(verb=READ, tasks=_model("name")),
    "ModelConfig": Rule(verb=READ, tasks=_model("name")),
    "ModelStatistics": Rule(verb=READ, tasks=_named("name"), hide=_hide_in("model_stats", "name")),
    "ModelInfer": Rule(verb=PREDICT, tasks=_model("model_name", infer_rows), is_limited=True),
    "ModelStreamInfer": Rule(
        verb=PREDICT,
        tasks=_model("model_name", infer_rows),
        is_limited=True,
        is_checked_singly=True,
    ),
    "RepositoryIndex": Rule(verb=READ, hide=_hide_models),
    "RepositoryModelLoad": Rule(verb=READ, tasks=_model("model_name")),
    "RepositoryModelUnload": Rule(verb=ADMIN, tasks=_must_name("model_name")),
}
_OTHERS = {
    "/grpc.health.v1.Health/Check": OPEN,
    "/grpc.health.v1.Health/List": OPEN,
    "/grpc.health.v1.Health/Watch": OPEN,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": KNOWN,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": KNOWN,
}

RULES: Mapping[str, Rule] = (
    {f"/sidecast.v1.Sidecast/{name}": rule for name, rule in _NATIVE.items()}
    | {f"/sidecast.v1.Admin/{name}": rule for name, rule in _ADMIN.items()}
    | {f"/inference.GRPCInferenceService/{name}": rule for name, rule in _OPEN_INFERENCE.items()}
    | _OTHERS
)
"""By gRPC's name of a method."""
