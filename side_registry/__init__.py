"""Bytes, versions and aliases of side networks: a commit log on any object store. No torch, no server."""

from side_registry.blobs import StoredArtifact
from side_registry.decisions import Published, Rolled, checked_route
from side_registry.decoding_spec import GenerationSpec
from side_registry.documents import SCHEMA_VERSION
from side_registry.errors import (
    ArtifactError,
    Contended,
    CorruptBlob,
    DataclassError,
    InvalidName,
    InvalidRoute,
    InvalidRow,
    InvalidSpec,
    LogReplaced,
    NotARegistry,
    NothingToRollBack,
    RegistryError,
    RegistryNotFound,
    RollbackUnclear,
    RouteChanged,
    StoreFailed,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    UnreadableCommit,
    VersionInUse,
)
from side_registry.golden import GoldenExample
from side_registry.log import Action, Commit, DeleteTask, Publish, Retire, Rollback, SetAlias, SetRoute
from side_registry.manifest import (
    MANIFEST,
    SIDE_NETWORK,
    Artifact,
    BackboneRef,
    Blob,
    Manifest,
    read_artifact,
    write_manifest,
)
from side_registry.registry import Registry
from side_registry.route import PLAIN, WHOLE, Bounds, Route
from side_registry.servers import Announced, Awaited
from side_registry.state import State, TaskState, VersionState, fold
from side_registry.store import Store
from side_registry.task import PRODUCTION, TaskRef, TaskSpec, check_alias, check_task_name
from side_registry.task_kinds import KINDS, TaskKind

__all__ = [
    "KINDS",
    "MANIFEST",
    "PLAIN",
    "PRODUCTION",
    "SCHEMA_VERSION",
    "SIDE_NETWORK",
    "WHOLE",
    "Action",
    "Announced",
    "Artifact",
    "ArtifactError",
    "Awaited",
    "BackboneRef",
    "Blob",
    "Bounds",
    "Commit",
    "Contended",
    "CorruptBlob",
    "DataclassError",
    "DeleteTask",
    "GenerationSpec",
    "GoldenExample",
    "InvalidName",
    "InvalidRoute",
    "InvalidRow",
    "InvalidSpec",
    "LogReplaced",
    "Manifest",
    "NotARegistry",
    "NothingToRollBack",
    "Publish",
    "Published",
    "Registry",
    "RegistryError",
    "RegistryNotFound",
    "Retire",
    "Rollback",
    "RollbackUnclear",
    "Rolled",
    "Route",
    "RouteChanged",
    "SetAlias",
    "SetRoute",
    "State",
    "Store",
    "StoreFailed",
    "StoredArtifact",
    "TaskKind",
    "TaskRef",
    "TaskSpec",
    "TaskState",
    "UnknownAlias",
    "UnknownTask",
    "UnknownVersion",
    "UnreadableCommit",
    "VersionInUse",
    "VersionState",
    "check_alias",
    "check_task_name",
    "checked_route",
    "fold",
    "read_artifact",
    "write_manifest",
]
