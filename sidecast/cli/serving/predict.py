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
    from serving.client import Client, TextStream

SHOWN = 4
"""How many numbers of a vector a table shows."""
INPUT_SHOWN = 100
"""Most characters of an input that a table shows."""


def _some_text(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of click: texts come as arguments or by --text; both options are read before. With images none may be
    needed. With --group there is no TASK: the first argument is a text.
    """
    first = ctx.params["task"]
    if ctx.params["group"]:
        value = (first, *value) if first is not None else value
    elif first is None:
        raise click.UsageError("Missing argument 'TASK': name a task, or give --group.", ctx)
    if not value and not ctx.params["literal"] and not ctx.params["images"]:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


@click.command(short_help="Send texts and images to a server and print the answers.")
@click.argument("task", required=False)
@click.argument("text", nargs=-1, metavar="TEXT...", callback=_some_text)
@click.option("--group", is_eager=True, metavar="NAME", help="Ask all tasks of a group, instead of TASK.")
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
@options.required_server
@click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), help="Seconds to wait for the answer.")
@click.option("--priority", type=click.IntRange(1, 4), default=None, help="1, served first, to 4.")
@click.option("--route-key", default="", metavar="KEY", help="Where traffic is split, one key gets one version.")
@click.option("--stream", is_flag=True, help="Text: print it while it is made. With --json, a line for each piece.")
@decoding.options
@options.as_json
def predict(
    task: str | None,
    text: Sequence[str],
    group: str | None,
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

    With --group NAME, all tasks of that group answer, and there is no TASK. Fields are those of all its tasks.
    """
    from side_registry import TaskRef

    with options.connect(server) as client:
        if group is not None:
            if stream:
                raise UserError("--stream is for one text task; leave --group away")
            asked = {"timeout": timeout, "priority": priority or 0, "route_key": route_key}
            predict_group(client, group, (text, literal, images), asked | {"decoding": decoding.settings(how)}, as_json)
            return
        assert task is not None
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


def predict_group(
    client: "Client", group: str, words: tuple[Sequence[str], Sequence[str], Sequence[str]], how: Any, as_json: bool
) -> None:
    """Ask all tasks of a group, and print their answers. Exits with 1 if a task failed."""
    from serving.client import SidecastError

    text, literal, images = words
    known = {one.group: one.tasks for one in client.groups()}
    specs = {ref.partition("@")[0].partition(":")[0]: client.task(ref).spec for ref in known.get(group, ())}
    loaded = [spec for spec in specs.values() if spec is not None]
    fields = list(dict.fromkeys(name for spec in loaded for name in spec.fields))
    names = list(dict.fromkeys(name for spec in loaded for name in spec.images))
    rows: list[Any] = with_images(names, rows_of(fields, text, literal, names), images) if fields or names else [*text]
    outcomes = client.predict_group(group, rows, **how)
    inputs = _inputs([*text, *literal], images, len(rows))
    documents: dict[str, Any] = {}
    for task, outcome in outcomes.items():
        spec = specs.get(task)
        if isinstance(outcome, SidecastError):
            documents[task] = {"error": {"reason": outcome.reason, "message": str(outcome)}}
            if not as_json:
                click.echo(f"{task}: {outcome}", err=True)
            continue
        labels = spec.labels if spec is not None else ()
        kind = spec.kind if spec is not None else ""
        answers = [answer_values(one, kind, labels) | {"truncated": one.truncated} for one in outcome] if kind else []
        documents[task] = {"version": outcome.version, "generation": outcome.generation, "answers": answers}
        if not as_json:
            cells = [(*_cells(answer), _beginning(row)) for answer, row in zip(outcome, inputs, strict=True)]
            show_table(("answer", "score", "input"), cells, title=f"{task} version {outcome.version}")
    if as_json:
        say(True, {"group": group, "tasks": documents}, "")
    if any("error" in document for document in documents.values()):
        click.get_current_context().exit(1)


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
    if hasattr(answer, "relevance"):
        return f"{answer.relevance:.4f}", ""
    if hasattr(answer, "values"):
        first = " ".join(f"{value:.4f}" for value in answer.values[:SHOWN])
        return first + (" ..." if len(answer.values) > SHOWN else ""), ""
    if hasattr(answer, "spans"):
        scores = " ".join(f"{span.score:.4f}" for span in answer.spans[:SHOWN])
        found = ", ".join(f"{span.text} ({span.label} {span.start}-{span.end})" for span in answer.spans)
        return found or "no entities", scores + (" ..." if len(answer.spans) > SHOWN else "")
    return (f"{answer.value:.4f}", "") if hasattr(answer, "value") else (answer.text, "")
