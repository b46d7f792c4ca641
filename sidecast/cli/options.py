"""Options that several commands share, and the choice between those that exclude each other."""

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from sidecast.cli.app import UserError

Command = Callable[..., Any]


def option(name: str, *more: str, **settings: Any) -> Callable[[Command], Command]:
    """A click option that the environment variable SIDECAST_<NAME> sets too."""
    return click.option(name, *more, envvar=variable(name), **settings)


def variable(flag: str) -> str:
    """The environment variable of an option: SIDECAST_MAX_WAIT_S for --max-wait-s."""
    return "SIDECAST_" + flag.lstrip("-").replace("-", "_").upper()


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
CONNECTION = "sidecast.connection"
"""Where a command's context has the arguments of `Client` that its options give."""


def _connects(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Callback of click: keep an argument of `Client` for `connect`."""
    if value:
        ctx.meta.setdefault(CONNECTION, {})[param.name] = value


def _server_options(**settings: Any) -> Callable[[Command], Command]:
    """`--server`, and how it is reached; `connect` and `connection` read the latter."""
    how = {"expose_value": False, "callback": _connects}
    options = (
        option("--server", metavar="HOST:PORT", help="A running server.", **settings),
        option("--tls", is_flag=True, help="Encrypt the connection to the server.", **how),
        option("--tls-ca", metavar="FILE", help="Authorities that the server's certificate is signed by; PEM.", **how),
        option("--client-cert", metavar="FILE", help="This client's certificate, where the server asks; PEM.", **how),
        option("--client-key", metavar="FILE", help="The key of --client-cert; PEM.", **how),
        option("--token-file", metavar="FILE", help="A file with the token that says who calls.", **how),
        click.option("--token", envvar="SIDECAST_TOKEN", hidden=True, **how),
    )

    def add(command: Command) -> Command:
        for each in reversed(options):
            command = each(command)
        return command

    return add


def connection() -> dict[str, Any]:
    """The arguments of `Client` and `AsyncClient` that this command's options give."""
    from serving.client.credentials import read_token

    context = click.get_current_context(silent=True)
    how = dict(context.meta.get(CONNECTION, {})) if context else {}
    file = how.pop("token_file", None)
    if file and "token" not in how:
        how["token"] = partial(read_token, file)
    return how


def connect(address: str) -> Any:
    """A client of the server, with TLS and the token of this command's options."""
    from serving.client import Client

    return Client(address, **connection())


registry = option("--registry", metavar="R", help="The registry: a folder, or a URL such as s3://bucket/path.")
server = _server_options()
required_server = _server_options(required=True)
backbone = option("--backbone", metavar="B", help="A Hugging Face folder, or a hub id such as google/flan-t5-small.")
device = option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
dtype = option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16.")
QUANTIZE = click.Choice(["none", "int8", "int4", "w8a8"])
quantize = option(
    "--quantize", type=QUANTIZE, default="none", show_default=True, help="Bits of the backbone's matrices."
)


vision = option("--vision", metavar="FOLDER", help="A vision encoder: a Hugging Face folder.")
vision_layer = option("--vision-layer", type=int, help="The encoder's hidden layer; not given: its last state.")
vision_size = option(
    "--vision-size", type=int, help="Height and width of the encoder's input; not given: the folder's own."
)


def _renames(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Callback of click: `sentence=review`, any number of times."""
    pairs = [text.partition("=") for text in values]
    if wrong := [text for text, (field, _, column) in zip(values, pairs, strict=True) if not (field and column)]:
        raise click.BadParameter(f"give FIELD=COLUMN, got {wrong[0]!r}")
    return {field: column for field, _, column in pairs}


def rename_option(text: str) -> Callable[[Command], Command]:
    """`--rename FIELD=COLUMN`, any number of times; `text` is its help."""
    return click.option("--rename", "renames", multiple=True, callback=_renames, metavar="FIELD=COLUMN", help=text)


rename = rename_option("The column that a field, or the target, is read from, where their names differ.")


def choose(**values: str | None) -> tuple[str, str]:
    """Return the one option that was given and its value; the command line takes precedence over the environment.

    Raises:
        UserError: none, or more than one.
    """
    context = click.get_current_context()
    given = {name: value for name, value in values.items() if value is not None}
    typed = [n for n in given if context.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE]
    chosen = typed or list(given)
    if len(chosen) != 1:
        had = " and ".join(f"--{name}" for name in chosen) or "none"
        raise UserError(f"give one of {', '.join('--' + name for name in values)}; got {had}")
    return chosen[0], given[chosen[0]]


def command_here(*words: object, alias: str = "production") -> str:
    """A `sidecast` command line about the registry or server that this command's options name.

    What the environment names needs no option.
    """
    context = click.get_current_context()
    for name in ("registry", "server"):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            words += (f"--{name}", context.params[name])
    if alias != "production":
        words += ("--alias", alias)
    return shlex.join(["sidecast", *map(str, words)])


def pick_device(name: str) -> str:
    """Return the torch device of a `--device`.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return str(device)


def load_backbone(source: str, device: str, dtype: str, quantize: str = "none") -> tuple[Any, Any]:
    """Load the backbone and its tokenizer."""
    import ladder

    backbone = ladder.load_backbone(source, device=pick_device(device), dtype=dtype, quantize=quantize)
    return backbone, ladder.load_tokenizer(source)


def layers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Callback of click: `1,3,5` as block numbers, `none` as no blocks; None when not given."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(",")) if value != "none" else ()
    except ValueError:
        raise click.BadParameter(f"give block numbers such as 1,3,5, or none; got {value!r}") from None


def layers_or_all(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Callback of click: as `layers`, and `all` is accepted too."""
    return value if value == "all" else layers(ctx, param, value)


def backbone_source(backbone: str) -> str:
    """Return what `evaluate --run` loads later: a folder as an absolute path, or a hub id unchanged."""
    folder = Path(backbone).expanduser()
    return str(folder.resolve()) if folder.is_dir() else backbone
