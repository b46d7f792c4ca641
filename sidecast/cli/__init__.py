"""The `sidecast` command: a thin command line over serving, training and the registry."""

from sidecast.cli.app import main

__all__ = ["main"]
