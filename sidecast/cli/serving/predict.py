"""`sidecast predict`: ask a running server."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.answers import answer_values
from sidecast.cli.app import UserError
from sidecast.cli.output import plain, say, show_table
from sidecast.cli.serving import decoding
from sidecast.cli.serving.rows import rows_of, with_images

if TYPE_CHECKING:
    from serving.client import TextStream

SHOWN = 4
"""How many numbers of a vector a table shows."""
INPUT_SHOWN = 100
"""Most characters of an input that a table shows."""


def _some_text(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of click: texts come as arguments or by --text; both options are read before. With images none may be
    needed.
    """
    if not value and not ctx.params["literal"] and not ctx.params["images"]:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


@click.command(short_help="Send texts and images to a server and print the answers.")
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
@click.option(
    "--image",
    "images",
    multiple=True,
    is_eager=True,
    metavar="[NAME=]FILE",
    help="An image file (JPEG, PNG, WebP). NAME where the task has two; may be given again.",
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
    images: Sequence[str],
    server: str,
    timeout: float | None,
    priority: int | None,
    route_key: str,
    stream: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Send texts and images to a server and print the answers of TASK (or TASK@alias, TASK:7).

    A task with one field answers each TEXT. A task with several fields takes one row: its fields in order, or by name
    as NAME=TEXT. What begins with a name and an equals sign, as in y=2, is read as NAME=TEXT: give such a text with
    --text.

    A task that reads one image answers each TEXT about each --image. A task that reads two takes one of each name.
    """
    from serving.client import Client
    from side_registry import TaskRef

    with Client(server) as client:
        spec = client.task(str(TaskRef.parse(task))).spec
        if spec is None:
            raise UserError(f"{server} has no version of {task} loaded; see sidecast tasks --server {server}")
        rows: list[Any] = with_images(spec.images, rows_of(spec.fields, text, literal, spec.images), images)
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
        "answers": [
            answer_values(answer, spec.kind, spec.labels) | {"truncated": answer.truncated} for answer in answers
        ],
    }
    if as_json:
        say(True, document, "")
        return
    inputs = _inputs([*text, *literal], images, len(answers))
    show_table(
        ("answer", "score", "input"),
        [(*_cells(answer), _beginning(row)) for answer, row in zip(answers, inputs, strict=True)],
        title=f"{answers.task} version {answers.version}",
    )
    cut = [str(number) for number, answer in enumerate(answers, 1) if answer.truncated]
    if cut:
        limit = f"{spec.max_source_tokens} tokens (max_source_tokens)"
        click.echo(f"longer than {limit}, so its end was not read: input {', '.join(cut)}", err=True)


def _inputs(texts: Sequence[str], images: Sequence[str], rows: int) -> list[str]:
    """What a table shows of each row: its text, else its file, where there is one for each; else all that it has."""
    for each in (texts, images):
        if len(each) == rows:
            return list(each)
    if len(texts) * len(images) == rows:
        return [f"{text} | {image}" for image in images for text in texts]
    return [" | ".join((*texts, *images))]


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


def _cells(answer: Any) -> tuple[str, str]:
    if hasattr(answer, "label"):
        return answer.label, f"{answer.score:.4f}"
    if hasattr(answer, "labels"):
        return ", ".join(answer.labels) or "(none)", " ".join(f"{answer.scores[one]:.4f}" for one in answer.labels)
    if hasattr(answer, "values"):
        first = " ".join(f"{value:.4f}" for value in answer.values[:SHOWN])
        return first + (" ..." if len(answer.values) > SHOWN else ""), ""
    return (f"{answer.value:.4f}", "") if hasattr(answer, "value") else (answer.text, "")
