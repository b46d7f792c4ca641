"""`python -m sidecast` is the `sidecast` command."""

from sidecast.cli.app import main

main()
