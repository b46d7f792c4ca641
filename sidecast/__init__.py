"""Sidecast: one frozen T5 backbone, any number of tasks, each a small side network, swapped while it serves."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import (
        AsyncClient,
        AsyncTextStream,
        Classification,
        Client,
        Embedding,
        GeneratedText,
        Piece,
        Predictions,
        Prompt,
        Regression,
        SidecastError,
        Text,
        TextStream,
    )
    from side_registry import Registry, TaskRef, TaskSpec

__all__ = [
    "AsyncClient",
    "AsyncTextStream",
    "Classification",
    "Client",
    "Embedding",
    "GeneratedText",
    "Piece",
    "Predictions",
    "Prompt",
    "Registry",
    "Regression",
    "SidecastError",
    "TaskRef",
    "TaskSpec",
    "Text",
    "TextStream",
]

_HOMES = {
    "serving.client": (
        "AsyncClient",
        "AsyncTextStream",
        "Classification",
        "Client",
        "Embedding",
        "GeneratedText",
        "Piece",
        "Predictions",
        "Prompt",
        "Regression",
        "SidecastError",
        "Text",
        "TextStream",
    ),
    "side_registry": ("Registry", "TaskRef", "TaskSpec"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: a client needs neither torch nor a registry."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'sidecast' has no attribute {name!r}")
