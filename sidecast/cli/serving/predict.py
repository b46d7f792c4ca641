"""`sidecast predict`: ask a running server."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import plain, say, show_table
from sidecast.cli.serving import decoding

if TYPE_CHECKING:
    from serving.client import TextStream

SHOWN = 4
"""How many numbers of a vector a table shows."""
INPUT_SHOWN = 100
"""Most characters of an input that a table shows."""


def _some_text(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of click: texts come as arguments or by --text, which is read before."""
    if not value and not ctx.params["literal"]:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


@click.command(short_help="Send texts to a server and print the answers.")
@click.argument("task")
@click.argument("text", nargs=-1, metavar="TEXT...", callback=_some_text)
@click.option(
    "--text",
    "literal",
    multiple=True,
    is_eager=True,
    metavar="TEXT",
    help="A text as it is, though it looks like NAME=TEXT. Comes after the others; may be given again.",
)
@options.option("--server", required=True, metavar="HOST:PORT", help="A running server.")
@click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), help="Seconds to wait for the answer.")
@click.option("--priority", type=click.IntRange(1, 4), default=None, help="1, served first, to 4.")
@click.option("--route-key", default="", metavar="KEY", help="Where traffic is split, one key gets one version.")
@click.option("--stream", is_flag=True, help="Text: print it while it is made. With --json, a line for each piece.")
@decoding.options
@options.as_json
def predict(
    task: str,
    text: Sequence[str],
    literal: Sequence[str],
    server: str,
    timeout: float | None,
    priority: int | None,
    route_key: str,
    stream: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Send texts to a server and print the answers of TASK (or TASK@alias, TASK:7).

    A task with one field answers each TEXT. A task with several fields takes one row: its fields in order, or by name
    as NAME=TEXT. What begins with a name and an equals sign, as in y=2, is read as NAME=TEXT: give such a text with
    --text.
    """
    from serving.client import Client
    from side_registry import TaskRef

    with Client(server) as client:
        spec = client.task(str(TaskRef.parse(task))).spec
        if spec is None:
            raise UserError(f"{server} has no version of {task} loaded; see sidecast tasks --server {server}")
        rows: list[Any] = rows_of(spec.fields, text, literal)
        request_options: dict[str, Any] = {"timeout": timeout, "priority": priority or 0, "route_key": route_key}
        request_options["decoding"] = decoding.settings(how)
        if stream:
            for row in rows:
                _print_stream(client.stream(task, row, **request_options), as_json)
            return
        answers = client.predict(task, rows, **request_options)
    document = {
        "task": answers.task,
        "version": answers.version,
        "generation": answers.generation,
        "answers": [_plain(answer) for answer in answers],
    }
    if as_json:
        say(True, document, "")
        return
    texts = [*text, *literal]
    inputs = texts if len(answers) == len(texts) else [" | ".join(texts)]
    show_table(
        ("answer", "score", "input"),
        [(*_cells(answer), _beginning(row)) for answer, row in zip(answers, inputs, strict=True)],
        title=f"{answers.task} version {answers.version}",
    )
    cut = [str(number) for number, answer in enumerate(answers, 1) if answer.truncated]
    if cut:
        limit = f"{spec.max_source_tokens} tokens (max_source_tokens)"
        click.echo(f"longer than {limit}, so its end was not read: input {', '.join(cut)}", err=True)


def _beginning(text: str) -> str:
    return text if len(text) <= INPUT_SHOWN else text[: INPUT_SHOWN - 1] + "…"


def _print_stream(stream: "TextStream", as_json: bool) -> None:
    """Print a text while it is generated, then a newline; or a JSON line for each piece and one for the result."""
    for piece in stream:
        click.echo(json.dumps(asdict(piece), ensure_ascii=False) if as_json else plain(piece.text), nl=as_json)
    result = stream.result()
    click.echo(json.dumps({"result": asdict(result)}, ensure_ascii=False) if as_json else "")
    if result.truncated and not as_json:
        click.echo("the input is longer than the task's max_source_tokens, so its end was not read", err=True)


def rows_of(fields: Sequence[str], texts: Sequence[str], literal: Sequence[str] = ()) -> list[dict[str, str]]:
    """Make rows from the texts on the command line.

    Args:
        literal: texts in which no name is looked for; they come last.
    Raises:
        UserError: a name that is no field, a field twice, too many texts, or too few.
    """
    pairs = [*(_named(fields, text) for text in texts), *(("", text) for text in literal)]
    if len(fields) == 1:
        return [{fields[0]: value} for _, value in pairs]
    named = [(name, value) for name, value in pairs if name]
    unnamed = [value for name, value in pairs if not name]
    row = dict(named)
    if len(row) < len(named):
        raise UserError(f"a field is given twice; give each of {', '.join(fields)} once")
    free = [name for name in fields if name not in row]
    if len(unnamed) != len(free):
        needs = " ".join(f"{name}=TEXT" for name in fields)
        got = f"no text for {', '.join(free[len(unnamed) :])}" if len(unnamed) < len(free) else f"{len(pairs)} texts"
        raise UserError(f"this task takes one row of {len(fields)} fields: {needs}; got {got}")
    return [row | dict(zip(free, unnamed, strict=True))]


def _named(fields: Sequence[str], text: str) -> tuple[str, str]:
    """NAME=TEXT in its two parts; the name is "" for any other text, such as `x = 3`, `1+1=2` and `a==b`.

    Raises:
        UserError: it begins with a name and an equals sign, but this is no field.
    """
    name, mark, value = text.partition("=")
    if mark and name in fields:
        return name, value
    if mark and name.isidentifier() and not value.startswith("="):
        raise UserError(
            f"this task has no field {name!r}; its fields: {', '.join(fields)}. If {text!r} is a text, write --text "
            f"before it, or {fields[0]}="
        )
    return "", text


def _plain(answer: Any) -> dict[str, Any]:
    return _values(answer) | {"truncated": answer.truncated}


def _values(answer: Any) -> dict[str, Any]:
    if hasattr(answer, "label"):
        return {"label": answer.label, "score": answer.score, "scores": answer.scores}
    if hasattr(answer, "values"):
        return {"embedding": list(answer.values)}
    return {"value": answer.value} if hasattr(answer, "value") else {"text": answer.text}


def _cells(answer: Any) -> tuple[str, str]:
    if hasattr(answer, "label"):
        return answer.label, f"{answer.score:.4f}"
    if hasattr(answer, "values"):
        first = " ".join(f"{value:.4f}" for value in answer.values[:SHOWN])
        return first + (" ..." if len(answer.values) > SHOWN else ""), ""
    return (f"{answer.value:.4f}", "") if hasattr(answer, "value") else (answer.text, "")
