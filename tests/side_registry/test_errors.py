import inspect
import pickle

import pytest

from side_registry import errors
from side_registry.errors import (
    ArtifactError,
    Contended,
    CorruptBlob,
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

EVERY_ERROR = [
    RegistryNotFound("/nowhere"),
    NotARegistry("/etc", "it holds other files"),
    StoreFailed("s3://bucket", "log/1", "timed out"),
    UnknownTask("sst", ["sst2", "cola"]),
    UnknownVersion("sst2", 9, (1, 2)),
    UnknownAlias("sst2", "canary", ("production",)),
    VersionInUse("sst2", 3, ["production"]),
    NothingToRollBack("sst2", "production", 1),
    RollbackUnclear("sst2", "production", 2, 12, 1),
    RouteChanged("sst2", "production"),
    Contended("/registry", 64),
    InvalidName("alias", "7", "letters"),
    InvalidSpec("sst2.toml", "labels: missing"),
    InvalidRow("sentence", "is missing"),
    InvalidRoute("sst2", "production", "version 7 is its own"),
    ArtifactError("/run", "it has no manifest.json"),
    CorruptBlob("ab" * 32, "it is missing"),
    UnreadableCommit("log/00000000000000000001.json", "not JSON"),
    LogReplaced("/registry", 12),
]


def test_every_error_is_listed_here():
    tree = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RegistryError)}
    assert {type(error) for error in EVERY_ERROR} | {RegistryError} == tree


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_pickles_with_its_fields(error: RegistryError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_is_one_short_line(error: RegistryError):
    assert "\n" not in str(error)
    assert len(str(error)) < 300


def test_reasons_are_distinct():
    reasons = [error.reason for error in EVERY_ERROR]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.replace("_", "").isalpha() and reason.isupper() for reason in reasons)


def test_unknown_task_names_what_is_near():
    message = str(UnknownTask("sst22", [f"task-{n}" for n in range(500)] + ["sst2"]))
    assert "did you mean 'sst2'?" in message
    assert "501 tasks" in message


def test_unknown_task_lists_a_few_when_nothing_is_near():
    assert str(UnknownTask("zzz", ["cola", "sst2"])) == "there is no task 'zzz'; there are 2: cola, sst2"
    assert "and 490 more" in str(UnknownTask("zzz", [f"task-{n}" for n in range(500)]))
    assert "nothing is published yet" in str(UnknownTask("zzz"))


def test_an_absurd_name_is_shortened():
    assert len(str(UnknownTask("x" * 10_000, ["sst2"]))) < 200


def test_unknown_version_and_alias_list_what_there_is():
    assert str(UnknownVersion("sst2", 9, (1, 2))) == "task 'sst2' has no version 9; use one of 2, 1"
    assert "is retired" in str(UnknownVersion("sst2", 1, (2,), retired=True))
    assert str(UnknownAlias("sst2", "canary", ("production", "beta"))).endswith("its aliases: beta, production")
