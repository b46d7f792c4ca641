"""`make demo`: fetch a real backbone and real text, train three tasks, serve them, swap one under load."""

import signal
import sys
from pathlib import Path

import click

from demo.folders import DemoError
from demo.story import tell


@click.command()
@click.option("--folder", default="demo-run", show_default=True, help="Where runs and registry are kept.")
@click.option("--rows", type=click.IntRange(min=64), help="Use the first ROWS rows of each file alone: a quick look.")
def main(folder: str, rows: int | None) -> None:
    """Run the whole story; run again after an interruption, it goes on where it stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to stop, it stops its server too
    try:
        tell(Path(folder), rows)
    except KeyboardInterrupt:
        click.echo("interrupted; make demo goes on where this stopped", err=True)
        sys.exit(130)
    except DemoError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
