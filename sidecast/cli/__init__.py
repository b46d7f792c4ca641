"""The `sidecast` command: a thin face over serving, training and the registry. Human tables by default, --json for machines."""

from sidecast.cli.app import main

__all__ = ["main"]
