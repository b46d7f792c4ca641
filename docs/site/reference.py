"""The reference pages of the site, made from docstrings, from the commands and from the protos."""

import ast
import inspect
import re
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import click
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from sidecast.cli.app import app
from sidecast.cli.settings import OTHERS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "sidecast": "What most programs need: the client, its results, the registry and `train`. A client needs no torch.",
    "training": "Training, evaluation and publishing with every part given apart. It needs the extra `train`.",
    "ladder": "The model: backbones, side networks, answers. It needs the extra `train` or `serve`.",
    "vision": "Images: decoding, encoders, features. It needs the extra `train` or `serve`.",
    "side_registry": "The registry of versions, aliases and routes. It needs no torch.",
}
PROTOS = {
    "sidecast": "The native service, `sidecast.v1`: "
    "[what it is for](../../serving/serving.md#two-grpc-services-one-port).",
    "open_inference": "The Open Inference Protocol v2, `inference`, which `tritonclient` and others speak.",
}
TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in FieldDescriptorProto.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


def pages() -> dict[str, str]:
    """Each page's text by its path in the site."""
    return {
        **{f"reference/python/{name}.md": python_page(name, about) for name, about in PACKAGES.items()},
        "reference/command-line.md": command_page(),
        **{f"reference/grpc/{name}.md": proto_page(name, about) for name, about in PROTOS.items()},
    }


def python_page(package: str, about: str) -> str:
    """A page of directives for mkdocstrings: the package's public names, in the order of `__all__`."""
    lines = [f"# Python: `{package}`", "", about, ""]
    for name in _public_names(ROOT / package / "__init__.py"):
        lines += [f"::: {package}.{name}", ""]
    return "\n".join(lines)


def _public_names(path: Path) -> list[str]:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return ast.literal_eval(statement.value)
    raise ValueError(f"{path} has no __all__")


def command_page() -> str:
    """Every command with its arguments and options, as the commands declare them."""
    lines = ["# Command line", "", "[Commands](../commands.md) says what each command is for.", ""]
    root = click.Context(app, info_name="sidecast")
    for name in app.list_commands(root):
        command = app.get_command(root, name)
        assert command is not None
        lines += _command(command, name, root, "##")
    return "\n".join(lines)


def _command(command: click.Command, name: str, parent: click.Context, heading: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield from [f"{heading} {name}", ""]
    yield from ["```", f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
    yield from [_prose(command.help or ""), ""]
    groups: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            groups.setdefault(getattr(parameter, "group", OTHERS), []).append(f"| `{record[0]}` | {_cell(record[1])} |")
    for group, rows in groups.items():
        yield from [f"**{group}**", "", "| option | what it does |", "|---|---|", *rows, ""]
    if isinstance(command, click.Group):
        for nested in command.list_commands(context):
            child = command.get_command(context, nested)
            assert child is not None
            yield from _command(child, nested, context, heading + "#")


def _prose(help_text: str) -> str:
    """A command's help as Markdown: paragraphs, and what click prints as it is in a block."""
    parts: list[str] = []
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            parts.append("```\n" + paragraph[2:] + "\n```")
        else:
            parts.append(re.sub(r"(?<![\w-])(--?[a-z][\w-]*|\{task\}|[A-Z]+(?:[@/:][\w]+)+)", r"`\1`", paragraph))
    return "\n\n".join(parts)


def proto_page(name: str, about: str) -> str:
    """Services, messages and enums of a proto file with their comments."""
    file = _described(f"protos/{name}.proto")
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    lines = [f"# gRPC: `{file.package}`", "", about, "", f"From `protos/{name}.proto`.", ""]
    for index, service in enumerate(file.service):
        lines += [f"## Service {service.name}", "", comments.get((6, index), ""), ""]
        for at, method in enumerate(service.method):
            asked = _streamed(method.client_streaming) + _short(method.input_type)
            answered = _streamed(method.server_streaming) + _short(method.output_type)
            lines += [f"**{method.name}**: {asked} → {answered}", ""]
            lines += [comments.get((6, index, 2, at), ""), ""]
    for index, message in enumerate(file.message_type):
        lines += _message(message, (4, index), comments, "")
    for index, enum in enumerate(file.enum_type):
        lines += [f"## Enum {enum.name}", "", comments.get((5, index), ""), ""]
        lines += ["| value | number | what |", "|---|---|---|"]
        for at, value in enumerate(enum.value):
            lines.append(f"| `{value.name}` | {value.number} | {_cell(comments.get((5, index, 2, at), ''))} |")
        lines.append("")
    return "\n".join(lines)


def _message(
    message: DescriptorProto, path: tuple[int, ...], comments: dict[tuple[int, ...], str], outer: str
) -> Iterator[str]:
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    yield from [f"## {outer}{message.name}", "", comments.get(path, ""), ""]
    if message.field:
        yield from ["| field | number | type | what |", "|---|---|---|---|"]
    for at, field in enumerate(message.field):
        entry = maps.get(field.type_name.rpartition(".")[2])
        kind = f"map of {_type(entry.field[0])} to {_type(entry.field[1])}" if entry else _type(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED and not entry:
            kind = f"repeated {kind}"
        if field.HasField("oneof_index") and not field.proto3_optional:
            kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
        elif field.proto3_optional:
            kind += ", optional"
        yield f"| `{field.name}` | {field.number} | {kind} | {_cell(comments.get((*path, 2, at), ''))} |"
    yield ""
    for at, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, (*path, 3, at), comments, f"{outer}{message.name}.")


def _described(path: str) -> FileDescriptorProto:
    """A proto file with its comments, as protoc reads it."""
    rpc = Path(str(files("google.rpc") / "status.proto")).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "set"
        arguments = ["protoc", *_includes(rpc), "--include_source_info", f"--descriptor_set_out={output}", path]
        if protoc.main(arguments):
            raise SystemExit("protoc failed; what it says stands above")
        described = FileDescriptorSet.FromString(output.read_bytes())
    return next(file for file in described.file if file.name == path)


def _includes(rpc: Path) -> Sequence[str]:
    return [f"-I{path}" for path in (ROOT, files("grpc_tools") / "_proto", rpc)]


def _type(field: FieldDescriptorProto) -> str:
    return f"`{TYPES[field.type]}`" if field.type in TYPES else _short(field.type_name)


def _short(name: str) -> str:
    """A message's or enum's name without the package of this file."""
    return f"`{re.sub(r'^[.](sidecast[.]v1|inference)[.]|^[.]', '', name)}`"


def _streamed(streams: bool) -> str:
    return "stream of " if streams else ""


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
