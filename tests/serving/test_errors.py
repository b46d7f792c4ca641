"""Every error pickles with its fields, and has a stable reason of its own."""

import pickle

import pytest

from serving import errors

EXAMPLES = [
    errors.InvalidInput("rows[3].sentence", "is empty"),
    errors.TooManyRows(2000, 1024),
    errors.NotLoaded("sst2", 3, "it is still loading"),
    errors.VersionRefused("sst2", 3, "damaged"),
    errors.Overloaded(100, 90, 0.25),
    errors.TooSlow(3.5, 1.0, 2.5),
    errors.TaskOverloaded("sst2", "rows waiting", 100, 90, 0.25),
    errors.TooManyBytes(600_000_000, 500_000_000, 1.0),
    errors.OutOfMemory(32),
    errors.PassTooLarge(100_000, 2_000_000_000, 1_000_000_000),
    errors.RateLimited("ci", "sst2", "rows", 100.0, 0.25),
    errors.Draining(),
    errors.DeadlineExpired(),
    errors.SideFailed("sst2", 3, "NaN"),
    errors.ImageFailed("NaN"),
    errors.Unauthenticated("the token has expired; get a new one"),
    errors.PermissionDenied("ci", "publish sst2", "publish:sst2"),
    errors.NotThisPort("Publish"),
    errors.NotThisMachine(),
    errors.IncompatibleSide("sst2", "t5-small", "t5-base"),
    errors.CorruptSide("sst2", 3, "bits flipped", transient=True),
    errors.UntrustedSide("sst2", 3, "it has no signature"),
    errors.SideTooLarge("sst2", 3, 2_000_000, 1_000_000),
    errors.TextsTooLong("sst2", 3, 65_536, 4096),
    errors.GoldenMismatch("sst2", 3, 0, "label 'a' instead of 'b'"),
    errors.ReplayTooLong("sst2", 3, "they took longer than 30 s", transient=True),
    errors.LoadFailed("sst2", 3, "connection refused", transient=True),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_it_pickles_with_its_fields_and_message(error: errors.ServingError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert str(error)


def test_reasons_are_stable_words_and_none_is_shared() -> None:
    reasons = [type(error).reason for error in EXAMPLES]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isupper() and reason.replace("_", "").isalpha() for reason in reasons)


def test_each_kind_of_error_is_among_the_examples() -> None:
    def leaves(kind: type) -> set[type]:
        below = kind.__subclasses__()
        return set().union(*map(leaves, below)) if below else {kind}

    start = leaves(errors.StartError)
    ours = {kind for kind in leaves(errors.ServingError) if kind.__module__ == errors.__name__} - start
    raised_itself = {errors.NotLoaded}  # though it has a subclass
    assert ours | raised_itself == {type(error) for error in EXAMPLES}
