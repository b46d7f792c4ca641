"""Every error: its message, word for word, and that it survives pickling with all of its fields."""

import inspect
import pickle

import pytest

from side_registry import errors
from side_registry.errors import (
    ArtifactError,
    Contended,
    CorruptBlob,
    DataclassError,
    InvalidGroup,
    InvalidName,
    InvalidRoute,
    InvalidRow,
    InvalidSignature,
    InvalidSpec,
    LogReplaced,
    NoEarlierGroup,
    NotARegistry,
    NothingToRollBack,
    RegistryError,
    RegistryNotFound,
    RollbackUnclear,
    RouteChanged,
    SigningFailed,
    StoreFailed,
    UnknownAlias,
    UnknownGroup,
    UnknownTask,
    UnknownVersion,
    UnreadableCommit,
    VersionInUse,
)

MESSAGES = [
    (
        RegistryNotFound("/nowhere"),
        "there is no registry at /nowhere; check the address, or publish a run to it, which creates one",
    ),
    (
        NotARegistry("/etc", "it holds {other} files"),
        "/etc is not a registry: it holds {other} files; name a registry, or an empty or new folder",
    ),
    (
        StoreFailed("s3://bucket", "log/1", "timed out"),
        "the registry's store s3://bucket failed at 'log/1': timed out; check access to it and try again",
    ),
    (UnknownTask("zzz"), "there is no task 'zzz'; nothing is published yet"),
    (UnknownTask("zzz", ["cola"]), "there is no task 'zzz'; there is 1: cola"),
    (UnknownTask("zzz", ["sst2", "cola"]), "there is no task 'zzz'; there are 2: cola, sst2"),
    (
        UnknownTask("zzz", [f"task-{n:03}" for n in range(500)]),
        "there is no task 'zzz'; of 500 tasks are published: "
        "task-000, task-001, task-002, task-003, task-004, task-005, task-006, task-007, task-008, task-009 "
        "and 490 more",
    ),
    (UnknownTask("sst", ["sst2"]), "there is no task 'sst'; did you mean 'sst2'? (1 task is published)"),
    (
        UnknownTask("sst22", [*(f"task-{n}" for n in range(500)), "sst2", "sst3", "sst222"]),
        "there is no task 'sst22'; did you mean 'sst222', 'sst2' or 'sst3'? (503 tasks are published)",
    ),
    (UnknownVersion("sst2", 9, (1, 2)), "task 'sst2' has no version 9; use one of 2, 1"),
    (UnknownVersion("sst2", 9), "task 'sst2' has no version 9; publish one"),
    (UnknownVersion("sst2", 1, (2,), retired=True), "version 1 of task 'sst2' is retired; use one of 2"),
    (
        UnknownAlias("sst2", "canary", ("production", "beta")),
        "task 'sst2' has no alias 'canary'; its aliases: beta, production",
    ),
    (UnknownAlias("sst2", "canary"), "task 'sst2' has no alias 'canary'; it has no alias yet, set one"),
    (
        UnknownGroup("guard"),
        "there is no group 'guard'; there is none yet: sidecast group set NAME TASK... makes one",
    ),
    (UnknownGroup("gard", ("guard", "other")), "there is no group 'gard'; did you mean 'guard'?"),
    (UnknownGroup("x", ("guard", "all")), "there is no group 'x'; there are: all, guard"),
    (InvalidGroup("guard", "it would have no task"), "group 'guard' cannot be made so: it would have no task"),
    (
        NoEarlierGroup("guard", 3),
        "group 'guard' is version 3 and has no earlier version whose tasks can all be used; "
        "set the tasks that you want: sidecast group set guard TASK...",
    ),
    (
        NoEarlierGroup("guard", 3, 2),
        "group 'guard' is version 3 and has no earlier version 2 whose tasks can all be used; "
        "set the tasks that you want: sidecast group set guard TASK...",
    ),
    (
        VersionInUse("sst2", 3, (), (), ("guard", "all")),
        "version 3 of task 'sst2' is in group all, guard; set that without it first",
    ),
    (
        VersionInUse("sst2", 3, ("production", "beta"), ("canary",)),
        "version 3 of task 'sst2' is in use as beta, production; move that elsewhere first",
    ),
    (
        VersionInUse("sst2", 3, (), ("production",)),
        "version 3 of task 'sst2' has a share or is a shadow of production; end that first",
    ),
    (
        NothingToRollBack("sst2", "production", 1),
        "production of task 'sst2' is version 1 and has no earlier version to go back to; "
        "promote the version you want: sidecast promote sst2 VERSION (sidecast tasks lists them)",
    ),
    (
        NothingToRollBack("sst2", "canary", 1),
        "canary of task 'sst2' is version 1 and has no earlier version to go back to; promote the version you want: "
        "sidecast promote sst2 VERSION --alias canary (sidecast tasks lists them)",
    ),
    (
        NothingToRollBack("sst2", "production", 2, 2),
        "production of task 'sst2' is version 2 already, with all of its traffic; there is nothing to roll back",
    ),
    (
        NothingToRollBack("sst2", "production", 2, 4),
        "production of task 'sst2' is version 2 and was not version 4 before; promote version 4 instead",
    ),
    (
        RollbackUnclear("sst2", "production", 2, 12, 1),
        "the newest change of production of task 'sst2' took its canaries' shares away (generation 12): "
        "version 2 answers all; to move production itself, say where to: --to 1",
    ),
    (
        RouteChanged("sst2", "production"),
        "somebody changed the route of production of task 'sst2' meanwhile; nothing was changed, "
        "look at it again and try again",
    ),
    (
        Contended("/registry", 64),
        "other writers to /registry were faster 64 times in a row; nothing was changed, try again",
    ),
    (InvalidName("alias", "7", "letters"), "'7' is no valid alias: use letters"),
    (InvalidSpec("sst2.toml", "labels: missing"), "the task spec in sst2.toml cannot be used: labels: missing"),
    (InvalidRow("sentence", "is missing"), "field 'sentence' is missing"),
    (
        InvalidRoute("sst2", "production", "version 7 is its own"),
        "production of task 'sst2' cannot be routed so: version 7 is its own",
    ),
    (ArtifactError("/run", "it has no manifest.json"), "no usable artifact in /run: it has no manifest.json"),
    (
        InvalidSignature("it is no bundle"),
        "the signature does not hold: it is no bundle; sign the version with a trusted key (sidecast sign)",
    ),
    (SigningFailed("key.pem", "it is no key"), "cannot sign with key.pem: it is no key"),
    (
        CorruptBlob("ab" * 32, "it is missing"),
        f"blobs/sha256/{'ab' * 32} is damaged: it is missing; publish the run that made it again to restore it",
    ),
    (
        UnreadableCommit("log/00000000000000000001.json", "not JSON"),
        "the registry's log/00000000000000000001.json cannot be read: not JSON; everything before it still holds",
    ),
    (
        LogReplaced("/registry", 12),
        "the log of /registry is not the one that was read here: its commit 12 is gone or another; "
        "if the registry was restored or made anew, start this program again",
    ),
]
ERRORS = [error for error, _ in MESSAGES]


def test_every_error_is_listed_here():
    tree = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, RegistryError)}
    assert {type(error) for error in ERRORS} | {RegistryError} == tree


@pytest.mark.parametrize(("error", "message"), MESSAGES, ids=lambda value: type(value).__name__)
def test_message(error: RegistryError, message: str):
    assert str(error) == message


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_pickles_with_its_fields(error: RegistryError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert copy.args == error.args == tuple(vars(error).values())
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        UnknownTask("x" * 10_000, ["sst2"]),
        InvalidName("alias", "x" * 10_000, "letters"),
        InvalidRow("x" * 10_000, "is missing"),
        InvalidRoute("x" * 10_000, "production", "no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_absurd_name_is_shortened(error: RegistryError):
    assert len(str(error)) < 200


def test_reasons_are_distinct():
    reasons = {type(error): error.reason for error in ERRORS}
    assert len(set(reasons.values())) == len(reasons)
    assert all(reason.replace("_", "").isalpha() and reason.isupper() for reason in reasons.values())


class Odd(DataclassError):
    message = "{count} of {what!q}, {share:.1f} %"
    what: str
    count: int
    share: float = 0.5


class Odder(Odd):
    """As Ray makes one of an error that passes from a task: with an initializer and arguments of its own."""

    def __init__(self, cause: Odd) -> None:
        self.cause = cause
        self.args = (cause,)

    def __str__(self) -> str:
        return f"caused by: {self.cause}"


class TestDataclassError:
    def test_fields_by_position_and_by_name(self):
        assert str(Odd("rows", count=3)) == "3 of 'rows', 0.5 %"
        assert repr(Odd("rows", 3)) == "Odd(what='rows', count=3, share=0.5)"
        with pytest.raises(TypeError, match="count"):
            Odd("rows")  # pyright: ignore[reportCallIssue]

    def test_it_is_raised_from_another_with_notes_and_a_traceback(self):
        error, cause = Odd("rows", 3), ValueError("no")
        error.add_note("seen in row 7")
        with pytest.raises(Odd) as caught:
            raise error.with_traceback(None) from cause
        assert caught.value is error
        assert (error.__cause__, error.__traceback__ is None) == (cause, False)
        assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen in row 7"]

    def test_equal_fields_are_not_the_same_error(self):
        error = Odd("rows", 3)
        assert error == error
        assert error != Odd("rows", 3)
        assert len({error, error, Odd("rows", 3)}) == 2

    def test_a_subclass_keeps_its_own_initializer_and_pickles(self):
        error = Odder(Odd("rows", 3))
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (Odder, "caused by: 3 of 'rows', 0.5 %")
