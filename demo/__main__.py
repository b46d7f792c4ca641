"""`make demo` and `make demo-vision`: fetch real models and data, train, serve, swap a version under load.

`python -m demo backbone` and `python -m demo encoder` print the folders of the demo's models.
"""

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from demo.backbone import get_backbone
from demo.downloads import cache_folder
from demo.encoders import get_lite2
from demo.folders import DemoError
from demo.story import Narrator, first_rows, get_inputs, tell


@click.group(invoke_without_command=True)
@click.option("--folder", default="demo-run", show_default=True, help="Where runs and registry are kept.")
@click.option("--rows", type=click.IntRange(min=64), help="Use only the first ROWS rows of each file: a quick look.")
@click.pass_context
def main(ctx: click.Context, folder: str, rows: int | None) -> None:
    """Run the whole story on texts. Run it again after an interruption: it continues where it stopped."""
    if ctx.invoked_subcommand is not None:
        return
    target = Path(folder)
    with _told("make demo"):
        if importlib.util.find_spec("tritonclient") is None:  # its last step would fail, minutes later
            raise DemoError(
                "the demo needs tritonclient, which is not installed", "run make demo, or install '.[demo]'"
            )
        narrator = Narrator()
        backbone, data = get_inputs(narrator)
        if rows is not None:
            target /= f"first-{rows}-rows"
            data = first_rows(data, target / "data", rows)
        tell(target, backbone, data, narrator=narrator)


@main.command()
@click.option("--folder", default="demo-vision-run", show_default=True, help="Where runs, registry and page are kept.")
@click.option("--pictures", type=click.IntRange(min=64), help="Train on the first PICTURES pictures: a quick look.")
def vision(folder: str, pictures: int | None) -> None:
    """Run the story with images. Run it again after an interruption: it continues where it stopped."""
    from demo.vision import story

    target = Path(folder)
    with _told("make demo-vision"):
        narrator = Narrator()
        inputs = story.get_inputs(narrator)
        sizes = story.DEFAULT_SIZES
        if pictures is not None:
            target /= f"first-{pictures}-pictures"
            sizes = story.quick_sizes(pictures)
        story.tell(target, inputs, sizes, narrator=narrator)


@main.command()
def backbone() -> None:
    """Print the folder of the demo's T5, for --backbone; fetch it into the cache first if it is not there."""
    with _told("the command"), Progress(console=Console(stderr=True)) as bars:
        click.echo(get_backbone(cache_folder(), bars))


@main.command()
def encoder() -> None:
    """Print the folder of the demo's vision encoder, for --vision; fetch it into the cache first if it is not there."""
    with _told("the command"), Progress(console=Console(stderr=True)) as bars:
        click.echo(get_lite2(cache_folder(), bars))


@contextmanager
def _told(again: str) -> Iterator[None]:
    """End the process with one line where the block is interrupted or fails.

    Args:
        again: what to run again after an interruption.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM must stop the demo's server too
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted; {again} continues where it stopped", err=True)
        sys.exit(130)
    except DemoError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
