"""`sidecast bench`: put load on a running server, and report what its callers measured."""

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import progress_bar, say, show_table

CONCURRENCY = "1,4,16,64"
METRICS_PORT = 8002
INTERRUPTED = 130
GONE = 1
LARGEST = 1_000_000


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Callback of click: `1,4,16`."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"give numbers such as 1,4,16; got {value!r}") from None


def _seconds(name: str, default: float, help: str, *, zero: bool = False) -> Any:
    kind = click.FloatRange(0, 86_400, min_open=not zero)
    return click.option(name, type=kind, default=default, show_default=True, metavar="S", help=help)


@click.command(short_help="Put load on a server: latencies, throughput, stages.")
@click.argument("task", nargs=-1)
@options.required_server
@click.option("--concurrency", callback=_numbers, metavar="N,...", help=f"Callers at a time.  [default: {CONCURRENCY}]")
@click.option("--rate", callback=_numbers, metavar="R,...", help="Requests a second, instead of --concurrency.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="Of --rate: at random times, or evenly.",
)
@_seconds("--duration", 10.0, "Seconds that are measured, of each level.")
@_seconds("--warmup", 1.0, "Seconds of the same load before them.", zero=True)
@click.option(
    "--rows", type=click.IntRange(1, LARGEST), default=1, show_default=True, metavar="N", help="Rows in a request."
)
@_seconds("--timeout", 60.0, "Seconds that an answer may take; what comes in time is goodput.")
@click.option(
    "--priority", type=click.IntRange(0, 4), default=0, metavar="N", help="1 (highest) to 4.  [default: the server's]"
)
@click.option(
    "--tasks-per-request",
    type=click.IntRange(1, LARGEST),
    metavar="N",
    default=1,
    show_default=True,
    help="Ask so many tasks about the same rows in one request (PredictTasks).",
)
@click.option("--stream", is_flag=True, help="Text tasks: token by token.")
@click.option("--min-new-tokens", type=click.IntRange(1), metavar="N", help="Text: at least N tokens.")
@click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="Text: at most N, up to the task's limit.")
@click.option("--prompts", metavar="FILE", help="Rows: .txt, one a line, or .jsonl, .csv, .tsv, .parquet by field.")
@click.option(
    "--whole-prompts", is_flag=True, help="Send texts as whole prompts, without templates; a file's column is prompt."
)
@click.option(
    "--repeat-share",
    type=click.FloatRange(0, 1),
    metavar="P",
    default=0.0,
    show_default=True,
    help="Share of rows that were sent shortly before, for the activation cache.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(1, LARGEST),
    metavar="N",
    default=1024,
    show_default=True,
    help="Of --rate: requests under way; those due beyond it wait, and their latency grows.",
)
@options.option("--metrics-url", metavar="URL", help=f"The server's metrics.  [default: its host, port {METRICS_PORT}]")
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Of inputs and arrivals.  [default: another each time]"
)
@click.option("--out", metavar="FILE", help="Write the JSON document there.")
@click.option("--plot", metavar="FILE", help="Draw the results: .png, .svg, or .html with everything in it.")
@options.as_json
@click.pass_context
def bench(
    ctx: click.Context,
    task: Sequence[str],
    server: str,
    prompts: str | None,
    metrics_url: str | None,
    out: str | None,
    plot: str | None,
    as_json: bool,
    **load: Any,
) -> None:
    """Put load on a server and report latencies, throughput, errors, and the server's stages.

    Requests go to each TASK (or TASK@alias, TASK:7) equally often; without TASK, to all tasks that the server serves in
    production and that read text alone. Levels run one after the other: so many callers that each wait for their answer
    (--concurrency), or requests at their own times (--rate), whose latency counts from when they were due. Ctrl-C
    reports what was seen.

    A task that reads images needs --prompts: a column for each image, with the bytes of its file (.parquet) or its path
    relative to the folder of --prompts.
    """
    made = _plan(**load)
    _check_files(out, plot)
    with progress_bar(quiet=as_json) as bars:
        document, levels = asyncio.run(_run(server, tuple(task), made, prompts, metrics_url, bars))
    _check_levels(levels, document["interrupted"])
    _write(document, out, plot)
    if as_json:
        say(True, document, "")
    else:
        _show(document)
    ctx.exit(INTERRUPTED if document["interrupted"] else GONE if levels[-1].lost else 0)


def _plan(
    concurrency: tuple[float, ...] | None,
    rate: tuple[float, ...] | None,
    arrivals: str,
    duration: float,
    warmup: float,
    timeout: float,
    seed: int | None,
    min_new_tokens: int | None,
    max_new_tokens: int | None,
    **same: Any,
) -> Any:
    from sidecast.loadtest.plan import Closed, Open, Plan

    if concurrency and rate:
        raise UserError("give --concurrency or --rate, not both")
    if rate:
        levels = tuple(Open(per_second, arrivals) for per_second in rate)  # type: ignore[arg-type]
    else:
        levels = tuple(Closed(_whole(callers)) for callers in concurrency or map(float, CONCURRENCY.split(",")))
    lengths = {"min_new_tokens": min_new_tokens, "max_new_tokens": max_new_tokens}
    return Plan(
        levels=levels,
        duration_s=duration,
        warmup_s=warmup,
        timeout_s=timeout,
        seed=random.randrange(LARGEST) if seed is None else seed,
        generation={name: value for name, value in lengths.items() if value is not None},
        **same,
    )


def _whole(number: float) -> int:
    if not number.is_integer():
        raise UserError(f"--concurrency must be whole numbers, got {number:g}")
    return int(number)


async def _run(
    server: str, refs: tuple[str, ...], plan: Any, prompts: str | None, metrics_url: str | None, bars: Any
) -> tuple[dict[str, Any], Any]:
    """The document, and the levels that it is made of."""
    from serving.client import AsyncClient
    from serving.client.credentials import Credentials
    from sidecast.loadtest.asking import ClientAsker, find_targets
    from sidecast.loadtest.inputs import Inputs
    from sidecast.loadtest.report import make_document
    from sidecast.loadtest.runner import Runner
    from sidecast.loadtest.scrape import read_metrics

    how = options.connection()
    credentials = Credentials(**how)
    url = metrics_url or guess_metrics_url(server, "https" if credentials.uses_tls else "http")
    async with AsyncClient(server, retry=False, **how) as client:
        targets = await find_targets(client, refs, plan)
        inputs = Inputs(targets, plan, prompts)
        began = datetime.now(UTC)
        with _telling(bars, plan) as tell:
            levels = await Runner(
                plan, inputs, ClientAsker(client, plan), lambda: read_metrics(url, credentials), tell
            ).run()
    about = {"server": server, "metrics_url": url, "began": began.isoformat(timespec="seconds")}
    return about | make_document(plan, targets, inputs, levels), levels


def guess_metrics_url(server: str, scheme: str = "http") -> str:
    """The URL of the metrics of a server that was started with default ports."""
    host = server.rpartition(":")[0] if ":" in server else server
    return f"{scheme}://{host}:{METRICS_PORT}/metrics"


@contextmanager
def _telling(bars: Any, plan: Any) -> Any:
    """A bar of seconds over all levels; its note: which level, and answers a second so far."""
    whole = (plan.warmup_s + plan.duration_s) * len(plan.levels)
    bar = bars.add_task("load", total=round(whole), note="")
    numbers = {id(level): number for number, level in enumerate(plan.levels)}

    def tell(level: Any, seconds: float, ended: int) -> None:
        before = numbers[id(level)] * (plan.warmup_s + plan.duration_s)
        rate = f", {ended / seconds:,.0f} req/s" if seconds > 0 else ""
        bars.update(bar, completed=int(before + seconds), note=f"{level}{rate}")

    yield tell
    bars.update(bar, completed=round(whole))


def _check_files(out: str | None, plot: str | None) -> None:
    """Raise UserError for a file that cannot be written: before the load, not after it."""
    if plot is not None:
        from sidecast.loadtest.plot import check_plot

        check_plot(plot)
    for name, path in (("--out", out), ("--plot", plot)):
        if path is not None:
            try:
                Path(path).expanduser().open("ab").close()
            except OSError as error:
                raise UserError(f"{name} {path} cannot be written: {error.strerror}") from None


def _check_levels(levels: Any, interrupted: bool) -> None:
    from sidecast.loadtest.report import check_answered

    if interrupted and not any(ran.calls for ran in levels):
        raise click.exceptions.Abort
    check_answered(levels)


def _write(document: dict[str, Any], out: str | None, plot: str | None) -> None:
    if out is not None:
        text = json.dumps(document, ensure_ascii=False, indent=2)
        Path(out).expanduser().write_text(text + "\n", encoding="utf-8")
    if plot is not None:
        from sidecast.loadtest.plot import draw

        draw(document, Path(plot).expanduser())


def _show(document: dict[str, Any]) -> None:
    from sidecast.loadtest.report import explain, tables

    for title, headings, rows in tables(document):
        show_table(headings, rows, title=title)
        click.echo()
    for word, meaning in explain(document).items():
        click.echo(f"{word}: {meaning}")
    for note in document["notes"]:
        click.echo(f"note: {note}")
