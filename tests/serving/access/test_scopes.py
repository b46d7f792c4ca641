"""Scopes: what they allow, and how they are written."""

import pytest

from serving.access.scopes import ADMIN, PREDICT, PUBLISH, READ, VERBS, Scope, Scopes


@pytest.mark.parametrize(
    ("scope", "verb", "task", "allowed"),
    [
        ("predict:sst2*", PREDICT, "sst2", True),
        ("predict:sst2*", PREDICT, "sst2-large", True),
        ("predict:sst2*", PREDICT, "SST2", False),
        ("predict:sst2*", PREDICT, "my-sst2", False),
        ("predict:sst2", PREDICT, "sst2\n", False),
        ("predict:sst2*", READ, "sst2", True),
        ("predict:sst2*", READ, "cola", False),
        ("predict:sst2*", PUBLISH, "sst2", False),
        ("read", READ, "anything", True),
        ("read", PREDICT, "anything", False),
        ("publish:team-a-*", PUBLISH, "team-a-mail", True),
        ("publish:team-a-*", PUBLISH, "team-b-mail", False),
        ("publish:team-a-*", PREDICT, "team-a-mail", False),
        ("publish:team-a-*", ADMIN, "team-a-mail", False),
        ("admin:team-a-*", ADMIN, "team-a-mail", True),
        ("admin:team-a-*", PREDICT, "team-a-mail", True),
        ("admin:team-a-*", PREDICT, "team-b-mail", False),
        ("admin", PUBLISH, "anything", True),
        ("predict:sst2*", PREDICT, "", False),
    ],
)
def test_a_scope_allows_its_verb_for_its_tasks(scope: str, verb: str, task: str, allowed: bool) -> None:
    assert Scopes([Scope.parse(scope)]).allow(verb, task) is allowed


def test_a_caller_with_several_scopes_may_do_what_one_of_them_allows() -> None:
    scopes = Scopes(map(Scope.parse, ("predict:a", "publish:b")))
    assert [scopes.allow(PREDICT, task) for task in "ab"] == [True, False]
    assert [scopes.allow(READ, task) for task in "abc"] == [True, True, False]
    assert not scopes.allow_every_task(READ)
    assert scopes.allow_some_task(PUBLISH)
    assert not scopes.allow_some_task(ADMIN)
    assert Scopes([Scope.parse("read:*")]).allow_every_task(READ)
    assert not any(Scopes(()).allow_some_task(verb) for verb in VERBS)


@pytest.mark.parametrize("text", ["", "write", "Predict", "predict:", "predict:a b", "predict:a/b", "predict :a", "*"])
def test_what_is_no_scope_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="is no scope; use predict, read, publish, admin"):
        Scope.parse(text)


def test_a_scope_is_written_as_it_is_read() -> None:
    assert [str(Scope.parse(text)) for text in ("read", "read:*", "predict:a*")] == ["read", "read", "predict:a*"]
