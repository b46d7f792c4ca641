"""Command-line options made of the fields of a settings class: `max_batch_rows: int = 64` becomes `--max-batch-rows`.

The help of an option is the first sentence of the docstring under its field, with the field's default. An option that
is not given is None.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from serving.config import without_none
from sidecast.cli.options import Command, variable

OTHERS = "Options"
"""Heading of a command's options that belong to no group."""


class GroupedOption(click.Option):
    """An option that help shows under a heading."""

    def __init__(self, *names: Any, group: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help has a heading for each group of options, in the order of their first options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups into the help."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", OTHERS), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def setting_options(
    settings: type,
    group: str,
    *,
    environment: bool = False,
    special: Mapping[str, Mapping[str, Any]] | None = None,
    without: Collection[str] = (),
) -> Callable[[Command], Command]:
    """A decorator that adds an option for each field of a dataclass; fields that hold a table or a group get none.

    Args:
        group: the heading in the help.
        environment: the same settings come from variables and a file too. Then options have `SIDECAST_<NAME>` and a
            switch can be set both ways; else a switch only turns its default.
        special: arguments of `click.option` by field, which replace those that follow from the field; `flag` is its
            name on the command line.
        without: fields that get no option.
    """
    types = get_type_hints(settings)
    texts = field_texts(settings)
    options: list[Callable[[Command], Command]] = []
    for field in fields(settings):
        kind = types[field.name]
        if is_dataclass(kind) or get_origin(kind) is dict or field.name in without:
            continue
        attributes = {**_accepts(field, kind, environment), **(special or {}).get(field.name, {})}
        attributes.setdefault("help", _help(texts.get(field.name, ""), field, attributes))
        flag = attributes.pop("flag")
        options.append(click.option(flag, field.name, cls=GroupedOption, group=group, **attributes))

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@cache
def field_texts(settings: type) -> dict[str, str]:
    """The docstring under each field of a class and of its bases, as one line. Empty where there is no source."""
    texts: dict[str, str] = {}
    for kind in reversed(settings.__mro__[:-1]):
        try:
            source = inspect.getsource(sys.modules[kind.__module__])
        except OSError:  # an installation without sources: options work, their help is empty
            continue
        classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
        texts |= _texts_under(classes[kind.__name__].body)
    return texts


def _texts_under(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as docstring)):
                yield name, " ".join(docstring.split())


def _accepts(field: Field[Any], kind: Any, environment: bool) -> dict[str, Any]:
    """The flag of a field, and what click needs to read its value."""
    flag = "--" + field.name.replace("_", "-")
    if kind is bool and environment:
        return {"flag": f"{flag}/--no-{flag[2:]}", "default": None}
    if kind is bool:
        turned = not field.default
        name = flag if turned else f"--no-{flag[2:]}"
        return {"flag": name, "is_flag": True, "flag_value": turned, "default": None}
    kind = without_none(kind)
    accepted = click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind
    return {"flag": flag, "type": accepted} | ({"envvar": variable(flag)} if environment else {})


def _help(text: str, field: Field[Any], attributes: Mapping[str, Any]) -> str:
    """The first sentence, and the default where the option does not say it by being one switch."""
    sentence = re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
    if field.default in (MISSING, None) or "is_flag" in attributes:
        return sentence
    return f"{sentence}  [default: {_in_words(field.default)}]"


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
