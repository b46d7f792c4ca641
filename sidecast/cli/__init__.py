"""The `sidecast` command: a thin face over serving, training and the registry."""

from sidecast.cli.app import main

__all__ = ["main"]
