"""`sidecast batch`: answer many tasks about every row of a dataset."""

from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.output import progress_bar, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from serving.offline.run import Summary


def _part_or_whole(ctx: click.Context, param: click.Parameter, gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise click.BadParameter(f"give a part of one GPU, or whole ones, got {gpus:g}")
    return gpus


@click.command(short_help="Answer tasks about every row of a dataset, with Ray Data.")
@click.argument("input")
@click.argument("output")
@click.option("--task", "tasks", multiple=True, required=True, metavar="TASK", help="A task; as often as you like.")
@options.option("--registry", required=True, metavar="R", help="The registry: a folder, or a URL.")
@options.option("--backbone", required=True, metavar="B", help="A Hugging Face folder, or a hub id.")
@options.rename_option("The column that a template's field or an image is taken from, where their names differ.")
@click.option(
    "--images",
    metavar="I",
    help="Images that the rows name: a folder, or a .parquet file.  [default: the columns hold them]",
)
@options.vision
@options.vision_layer
@options.vision_size
@click.option(
    "--format", "form", type=click.Choice(["parquet", "jsonl"]), default="parquet", show_default=True, help="Of parts."
)
@click.option("--overwrite", is_flag=True, help="Begin again; an earlier run's parts in OUTPUT are removed.")
@click.option("--replicas", type=click.IntRange(1), metavar="N", help="[default: one for each GPU, or node]")
@options.device
@click.option(
    "--gpus",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    callback=_part_or_whole,
    help="Of a replica; 0.5: two on one.",
)
@click.option(
    "--cpus", type=click.IntRange(1), metavar="N", help="Of a replica.  [default: a node's, shared; 1 beside a GPU]"
)
@options.dtype
@click.option("--batch-rows", type=click.IntRange(1), default=64, show_default=True, help="Prompts of a backbone pass.")
@click.option(
    "--batch-tokens", type=click.IntRange(1), default=8192, show_default=True, help="Tokens of it, padding counted."
)
@click.option("--shard-rows", type=click.IntRange(1), default=4096, show_default=True, help="Rows of a part, at most.")
@click.option("--address", default="", metavar="A", help="A Ray cluster's.  [default: one of its own, on this machine]")
@options.as_json
def batch(
    input: str,
    output: str,
    as_json: bool,
    form: str,
    replicas: int | None,
    device: str,
    gpus: float,
    cpus: int | None,
    batch_rows: int,
    batch_tokens: int,
    address: str,
    **wanted: Any,
) -> None:
    """Answer each TASK (or TASK@alias, TASK:7) about every row of INPUT, and write the rows with the answers to OUTPUT.

    INPUT is a file, a folder, a pattern such as 'data/*.jsonl' or a URL, of .parquet, .jsonl, .csv or .tsv; OUTPUT a
    folder. Tasks that make the same prompt of a row share its backbone pass. Tasks that read images need --vision, the
    encoder that they were trained with. Versions are fixed when a run begins. After an interruption, the same command
    (without --overwrite) computes the parts that are missing.
    """
    from serving.offline.placing import Replicas
    from serving.offline.plan import Wanted
    from serving.offline.run import run_batch
    from serving.offline.table import PassLimits

    asked = Wanted(input=input, output=output, format=form, **wanted)  # type: ignore[arg-type]
    where = Replicas(
        address=address,
        device=device,
        count=replicas or 0,
        gpus=gpus,
        cpus=cpus or 0,
        limits=PassLimits(rows=batch_rows, tokens=batch_tokens),
    )
    with progress_bar(quiet=as_json) as bars:
        reading = _Bar(bars, "reading files")
        answering = _Bar(bars, "answering rows")

        def scanned(done: int, total: int) -> None:
            if 0 < done < total or reading.is_there:  # a single file is read in no time, mostly
                reading.show(done, total)

        summary = run_batch(asked, where, answering.show, scanned)
    say(as_json, _document(output, summary), _text(output, summary))


class _Bar:
    """A progress bar that is drawn when it first has something to show."""

    def __init__(self, bars: "Progress", text: str) -> None:
        self._bars = bars
        self._text = text
        self._id: TaskID | None = None

    @property
    def is_there(self) -> bool:
        return self._id is not None

    def show(self, done: int, total: int) -> None:
        if self._id is None:
            self._id = self._bars.add_task(self._text, total=total, note="")
        self._bars.update(self._id, completed=done)


def _document(output: str, summary: "Summary") -> dict[str, Any]:
    counts = summary.counts
    return {
        "output": output,
        "rows": summary.rows,
        "parts": summary.shards,
        "done_before": summary.done_before,
        "answered": counts.rows,
        "prompts": counts.prompts,
        "passes": counts.passes,
        "images": counts.images,
        "failures": counts.failures,
        "truncated": counts.truncated,
        "versions": summary.versions,
        "replicas": summary.replicas,
        "device": summary.device,
        "start_s": round(summary.start_s, 3),
        "seconds": round(summary.seconds, 3),
        "rows_per_s": round(counts.rows / summary.seconds, 1) if summary.seconds else None,
    }


def _text(output: str, summary: "Summary") -> str:
    counts = summary.counts
    tasks = ", ".join(f"{name} version {version}" for name, version in summary.versions.items())
    if not counts.rows:
        return f"{output} is complete: all {summary.rows} rows were answered before ({tasks}); nothing to do"
    lines = [
        f"{counts.rows} rows in {summary.seconds:.1f} s, {counts.rows / summary.seconds:.0f} rows/s ({tasks})",
        f"{counts.prompts} distinct prompts, {counts.passes} backbone passes, "
        + (f"{counts.images} images, " if counts.images else "")
        + f"{sum(counts.failures.values())} failures"
        + "".join(f"; {name}: {count}" for name, count in counts.failures.items() if count),
        *(
            f"warning: {name} read only the beginning of {count} rows: they are longer than its max_source_tokens"
            for name, count in counts.truncated.items()
            if count
        ),
        f"{output}: {summary.rows} rows in {summary.shards} parts"
        + (f", {summary.done_before} of them from before" if summary.done_before else ""),
    ]
    return "\n".join(lines)
