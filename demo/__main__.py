"""`make demo`: fetch a real backbone and real text, train three tasks, serve them, swap one under load."""

import importlib.util
import signal
import sys
from pathlib import Path

import click

from demo.folders import DemoError
from demo.story import Narrator, first_rows, get_inputs, tell


@click.command()
@click.option("--folder", default="demo-run", show_default=True, help="Where runs and registry are kept.")
@click.option("--rows", type=click.IntRange(min=64), help="Use only the first ROWS rows of each file: a quick look.")
def main(folder: str, rows: int | None) -> None:
    """Run the whole story. Run it again after an interruption: it continues where it stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM must stop the demo's server too
    target = Path(folder)
    try:
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
    except KeyboardInterrupt:
        click.echo("interrupted; make demo continues where it stopped", err=True)
        sys.exit(130)
    except DemoError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
