"""What users touch, written down: the command line, protos, settings, metrics, errors, Python names and file schemas.

`tests/test_surface.py` compares the program with the files under `tests/data/surface`. After a change on purpose, run

    python -m tests.surface --write

and review the difference: a line that goes or changes breaks somebody's script, a new line is a promise.
"""

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

import sidecast
from protos import open_inference_pb2, sidecast_pb2
from serving.api.status import code_of
from serving.client.errors import BY_CODE, BY_REASON
from serving.config import GROUPS, PREFIX, ServeConfig
from serving.errors import ServingError, StartError
from serving.metrics import Metrics
from side_registry import Commit, Manifest, RegistryError, Route, TaskSpec
from sidecast.cli.app import app
from training.recipes.recipe import Recipe

FOLDER = Path(__file__).parent / "data" / "surface"
PACKAGES = ("ladder", "serving", "side_registry", "sidecast", "training", "demo")
FOLLOWED = ("serving", "side_registry", "sidecast")
"""Packages whose classes are told of where a method returns them; `training` and `ladder` have users of their own."""
PROTOCOLS = ("__aenter__", "__aiter__", "__anext__", "__enter__", "__getitem__", "__iter__", "__len__", "__next__")
"""Special methods that users of a class rely on: with, for, len and so on."""
WIDTH = 110
"""Columns of the terminal that help is formatted for."""


def help_texts() -> str:
    """`--help` of every command."""
    return "\n".join(f"$ {context.command_path} --help\n{context.get_help()}\n" for context in _commands())


def command_line() -> str:
    """Every command's arguments and options: names, types, defaults, environment variables, accepted values."""
    return _json({context.command_path: _parameters(context) for context in _commands()}, levels=2)


def protos() -> str:
    """Every service, message and enum: what is on the wire, without comments."""
    files = (open_inference_pb2.DESCRIPTOR, sidecast_pb2.DESCRIPTOR)
    return "\n".join(line for file in files for line in _file_lines(file)) + "\n"


def settings() -> str:
    """Settings of a server, as keys of a TOML file and environment variables, and of a training run."""
    served = {field.name: _setting(field, "") for field in fields(ServeConfig) if field.name not in GROUPS}
    for table, group in GROUPS.items():
        served |= {field.name: _setting(field, table) for field in fields(group)}
    for name, setting in served.items():
        setting["environment"] = PREFIX + name.upper()
    return _json({"serve": served, "train": {field.name: _setting(field) for field in fields(Recipe)}}, levels=2)


def metrics() -> str:
    """Every metric of a server: name, type, labels and their values that are known from the start, buckets, help."""
    found = [metric for metric in vars(Metrics()).values() if isinstance(metric, MetricWrapperBase)]
    return _json({metric._name: _metric(metric) for metric in found}, levels=2)


def errors() -> str:
    """Reasons: with the gRPC code of each that a server sends, what the client raises for it, and all that exist."""
    roots = (ServingError, RegistryError)
    kinds = [kind for root in roots for kind in _subclasses(root) if kind.__module__ == root.__module__]
    sent = [kind for kind in kinds if not issubclass(kind, StartError)]  # no caller sees one
    return _json(
        {
            "sent": {kind.reason: code_of(kind.__new__(kind)).name for kind in sent},
            "raised by reason": {reason: kind.__name__ for reason, kind in BY_REASON.items()},
            "raised by code": {code.name: kind.__name__ for code, kind in BY_CODE.items()},
            "all reasons": sorted(set(_reasons())),
        },
        levels=2,
    )


def python_names() -> str:
    """What `sidecast` exports, and what its methods return: signatures of constructors and public methods."""
    exported = [getattr(sidecast, name) for name in sidecast.__all__]
    found = {f"sidecast.{kind.__name__}": _members(kind) for kind in exported}
    waiting = [kind for exported_kind in exported for kind in _returned(exported_kind)]
    seen = set(exported)
    while waiting:
        kind = waiting.pop()
        if kind not in seen:
            seen.add(kind)
            waiting += _returned(kind)
            found[f"returned by {kind.__module__.partition('.')[0]}: {kind.__name__}"] = _members(kind)
    return _json(found, levels=2)


def schemas() -> str:
    """The JSON documents of a registry: an artifact's manifest, a commit of the log, a route, a task's spec."""
    documents = {"manifest": Manifest, "commit": Commit, "route": Route, "task": TaskSpec}
    return _json({name: _bare_schema(kind.model_json_schema()) for name, kind in documents.items()}, levels=4)


SNAPSHOTS: Mapping[str, Callable[[], str]] = {
    "help.txt": help_texts,
    "command_line.json": command_line,
    "protos.txt": protos,
    "settings.json": settings,
    "metrics.json": metrics,
    "errors.json": errors,
    "python.json": python_names,
    "schemas.json": schemas,
}
"""File name to what it must hold."""


def write() -> None:
    """Write every snapshot as the program is now."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, snapshot in SNAPSHOTS.items():
        (FOLDER / name).write_text(snapshot(), encoding="utf-8")


def _json(document: Any, levels: int) -> str:
    """Sorted, and below so many levels each value on one line, so that a difference is short."""
    return _layout(document, levels, "") + "\n"


def _layout(value: Any, levels: int, indent: str) -> str:
    if not levels or not isinstance(value, dict) or not value:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    inner = indent + "  "
    lines = (f"{inner}{json.dumps(key)}: {_layout(value[key], levels - 1, inner)}" for key in sorted(value))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _commands() -> Iterator[click.Context]:
    """A context for the root, each command and each command of a group."""
    settings = app.context_settings | {"terminal_width": WIDTH}
    yield from _commands_under(click.Context(app, info_name="sidecast", **settings))


def _commands_under(context: click.Context) -> Iterator[click.Context]:
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from _commands_under(
                click.Context(command, info_name=name, parent=context, **command.context_settings)
            )


def _parameters(context: click.Context) -> dict[str, Any]:
    """By name, without what is as usual."""
    usual = {"nargs": 1, "required": False, "multiple": False, "count": False, "hidden": False, "is_flag": False}
    found = {}
    for parameter in context.command.params:
        document = parameter.to_info_dict()
        kept = {key: value for key, value in document.items() if key not in ("name", "help") and value is not None}
        found[document["name"]] = {key: _plain(value) for key, value in kept.items() if usual.get(key) != value}
    return found


def _plain(value: Any) -> Any:
    """JSON has no classes and no sentinels: those as their names."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _file_lines(file: FileDescriptor) -> Iterator[str]:
    for service in file.services_by_name.values():
        for method in service.methods:
            takes = "stream " * method.client_streaming + method.input_type.full_name
            gives = "stream " * method.server_streaming + method.output_type.full_name
            yield f"rpc {service.full_name}/{method.name} ({takes}) returns ({gives})"
    for message in file.message_types_by_name.values():
        yield from _message_lines(message)
    for enum in file.enum_types_by_name.values():
        yield from _enum_lines(enum)


def _message_lines(message: Descriptor) -> Iterator[str]:
    yield f"message {message.full_name}"
    for field in message.fields:
        yield f"  {message.name}.{field.name} = {field.number}: {_field_type(field)}"
    for nested in message.nested_types:
        yield from _message_lines(nested)
    for enum in message.enum_types:
        yield from _enum_lines(enum)


def _field_type(field: FieldDescriptor) -> str:
    types = {number: name for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    kind = types[field.type].removeprefix("TYPE_").lower()
    named = field.message_type or field.enum_type
    repeated = "repeated " if field.is_repeated else ""
    oneof = f" in oneof {field.containing_oneof.name}" if field.containing_oneof else ""
    options = f" [{field.GetOptions()}]".replace("\n", "; ") if field.has_options else ""
    return f"{repeated}{named.full_name if named else kind}{oneof}{options}"


def _enum_lines(enum: EnumDescriptor) -> Iterator[str]:
    yield f"enum {enum.full_name}"
    for value in enum.values:
        yield f"  {value.name} = {value.number}"


def _setting(field: Field[Any], table: str | None = None) -> dict[str, Any]:
    known = {} if table is None else {"table": table}
    if field.default is not MISSING:
        known["default"] = _plain(field.default)
    elif field.default_factory is not MISSING:
        known["default"] = _plain(field.default_factory())
    return known | {"type": _without_modules(inspect.formatannotation(field.type))}


def _metric(metric: Any) -> dict[str, Any]:
    [family] = metric.collect()
    known = {json.dumps(sample.labels) for sample in family.samples if "le" not in sample.labels and sample.labels}
    if metric._type == "info":  # versions of what is installed
        known.clear()
    return {
        "type": metric._type,
        "help": metric._documentation,
        "labels": list(metric._labelnames),
        "known": [json.loads(labels) for labels in sorted(known)],
        "buckets": metric._kwargs.get("buckets"),
    }


def _subclasses(kind: Any) -> Iterator[Any]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)


def _reasons() -> Iterator[str]:
    """Every `reason` in the body of a class, read from the source: many of these modules are slow to import."""
    for package in PACKAGES:
        for path in (FOLDER.parents[2] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield from _reasons_of(node)


def _reasons_of(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        match statement:
            case (
                ast.Assign(
                    targets=[ast.Name(id="reason" | "default_reason")], value=ast.Constant(value=str() as reason)
                )
                | ast.AnnAssign(
                    target=ast.Name(id="reason" | "default_reason"), value=ast.Constant(value=str() as reason)
                )
            ):
                if reason:  # without one it is a field of some record
                    yield reason


def _members(thing: Any) -> Any:
    if not inspect.isclass(thing):
        return _signature(thing)
    if issubclass(thing, BaseModel):
        members = {"fields": ", ".join(thing.model_fields)}
    else:
        members = {"()": _signature(thing)}
    for name, member in inspect.getmembers(thing):
        if (name.startswith("_") and name not in PROTOCOLS) or name in dir(Exception):
            continue
        if hasattr(BaseModel, name):
            continue
        if isinstance(member, property):
            assert member.fget is not None
            members[name] = f"property{_signature(member.fget)}"
        elif callable(member):
            members[name] = "async " * inspect.iscoroutinefunction(member) + _signature(member)
    return members


def _returned(kind: type) -> Iterator[type]:
    """Our own classes in what public methods and properties return, and in what a dataclass holds."""
    hints = list(get_type_hints(kind).values())
    for name, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not name.startswith("_") or name in PROTOCOLS):
            hints.append(get_type_hints(function).get("return"))
    for hint in hints:
        yield from _classes_in(hint)


def _classes_in(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and hint.__module__.partition(".")[0] in FOLLOWED:
        yield hint
    for argument in get_args(hint):
        yield from _classes_in(argument)


def _signature(member: Any) -> str:
    return _without_modules(str(inspect.signature(member)))


def _without_modules(text: str) -> str:
    """Classes by their own names: the modules that define them may move."""
    return re.sub(r"\b(?:\w+\.)+(?=[A-Za-z_])", "", text)


def _bare_schema(schema: Any) -> Any:
    """Without titles and descriptions, which are docstrings."""
    if isinstance(schema, dict):
        kept = {key: one for key, one in schema.items() if not (key in ("title", "description") and type(one) is str)}
        return {key: _bare_schema(one) for key, one in kept.items()}
    return [_bare_schema(one) for one in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.surface --write")
    write()
