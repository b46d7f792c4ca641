"""Sidecast: one frozen T5 backbone, any number of tasks, each a small side network, swapped while it serves.

    from sidecast import Client

    with Client("localhost:8001") as client:
        print(client.predict("sst2", ["a gripping film"])[0].label)

`Client` and `AsyncClient` call a server, and raise subclasses of `SidecastError`. `Registry` reads and changes a
registry without a server. `train` trains a side network on rows in memory or in files. A name is imported when it is
first used: a client needs neither torch nor a registry.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import (
        AsyncClient,
        AsyncTextStream,
        Bounds,
        CallCancelledError,
        Classification,
        Client,
        ContendedError,
        DeadlineExceededError,
        DrainingError,
        Embedding,
        GeneratedText,
        IncompatibleSideError,
        InternalError,
        InvalidArtifactError,
        InvalidGroupError,
        InvalidInputError,
        InvalidNameError,
        InvalidRequestError,
        InvalidRouteError,
        MessageTooLargeError,
        MultiLabel,
        NoEarlierGroupError,
        NotFoundError,
        NothingToRollBackError,
        NotLoadedError,
        OverloadedError,
        PermissionDeniedError,
        Piece,
        Predictions,
        Prompt,
        RankedPassage,
        Ranking,
        RefusedError,
        Regression,
        Relevance,
        RollbackUnclearError,
        Route,
        RouteChangedError,
        SidecastError,
        SideFailedError,
        Span,
        Text,
        TextStream,
        TokenClassification,
        TooManyRowsError,
        UnauthenticatedError,
        UnavailableError,
        UnknownAliasError,
        UnknownGroupError,
        UnknownTaskError,
        UnknownVersionError,
        UnreachableError,
        UnsupportedError,
        VersionInUseError,
        VersionRefusedError,
    )
    from side_registry import Registry, TaskRef, TaskSpec
    from sidecast.training import TrainedRun, train

    __version__: str

__all__ = [
    "AsyncClient",
    "AsyncTextStream",
    "Bounds",
    "CallCancelledError",
    "Classification",
    "Client",
    "ContendedError",
    "DeadlineExceededError",
    "DrainingError",
    "Embedding",
    "GeneratedText",
    "IncompatibleSideError",
    "InternalError",
    "InvalidArtifactError",
    "InvalidGroupError",
    "InvalidInputError",
    "InvalidNameError",
    "InvalidRequestError",
    "InvalidRouteError",
    "MessageTooLargeError",
    "MultiLabel",
    "NoEarlierGroupError",
    "NotFoundError",
    "NotLoadedError",
    "NothingToRollBackError",
    "OverloadedError",
    "PermissionDeniedError",
    "Piece",
    "Predictions",
    "Prompt",
    "RankedPassage",
    "Ranking",
    "RefusedError",
    "Registry",
    "Regression",
    "Relevance",
    "RollbackUnclearError",
    "Route",
    "RouteChangedError",
    "SideFailedError",
    "SidecastError",
    "Span",
    "TaskRef",
    "TaskSpec",
    "Text",
    "TextStream",
    "TokenClassification",
    "TooManyRowsError",
    "TrainedRun",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownAliasError",
    "UnknownGroupError",
    "UnknownTaskError",
    "UnknownVersionError",
    "UnreachableError",
    "UnsupportedError",
    "VersionInUseError",
    "VersionRefusedError",
    "train",
]

_OF_REGISTRY = ("Registry", "TaskRef", "TaskSpec")
"""Names that `side_registry` has."""
_OF_TRAINING = ("TrainedRun", "train")
"""Names that need torch; `serving.client` has the others."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is used."""
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("sidecast")
    if name in __all__:
        if name in _OF_TRAINING:
            return getattr(_training(), name)
        home = "side_registry" if name in _OF_REGISTRY else "serving.client"
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'sidecast' has no attribute {name!r}")


def _training() -> Any:
    """Raises ModuleNotFoundError: the extra `train` is not installed."""
    import importlib

    try:
        return importlib.import_module("sidecast.training")
    except ModuleNotFoundError as error:
        why = f"{error}; sidecast.train needs an extra: pip install 'sidecast[train]'"
        raise ModuleNotFoundError(why, name=error.name) from error


def __dir__() -> list[str]:
    """All public names, also those that are not imported yet."""
    hidden = {"Any", "TYPE_CHECKING"}
    return sorted({*globals(), *__all__, "__version__"} - hidden)
