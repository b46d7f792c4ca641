"""`python -m sidecast.cli` is the `sidecast` command."""

from sidecast.cli.app import main

main()
