"""`sidecast group` and `predict --group`: on a registry's folder, and on a server that answers by a rule."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from side_registry import Registry
from tests.serving.api_kit import SST2, TWEETS, Parlour, rule
from tests.side_registry.runs import make_run
from tests.sidecast.cli_kit import sidecast


@pytest.fixture
def registry(tmp_path: Path) -> str:
    opened = Registry.open(tmp_path / "registry", create=True)
    for task in ("sst2", "rte"):
        opened.publish(make_run(tmp_path / task, task))
    return str(tmp_path / "registry")


@pytest.fixture
def parlour(tmp_path: Path) -> Iterator[Parlour]:
    parlour = Parlour(tmp_path, (SST2, TWEETS))
    parlour.registry.set_group("guard", ["sst2", "tweets"])
    with parlour.open():
        yield parlour


def test_a_group_is_set_listed_rolled_back_and_deleted(registry: str) -> None:
    def run(text: str) -> str:
        ran = sidecast(*text.split(), "--registry", registry)
        assert ran.code == 0, ran.err
        return ran.out

    assert run("group list") == "no groups yet: sidecast group set NAME TASK... makes one\n"
    assert run("group set guard sst2 rte:1") == "group guard version 1: sst2, rte:1 (generation 3)\n"
    assert "version 2: rte (generation 4)" in run("group set guard rte -m smaller")
    assert "version 2: rte already (generation 4)" in run("group set guard rte")
    assert json.loads(run("group list --json")) == [{"group": "guard", "version": 2, "tasks": ["rte"]}]
    assert "version 1: sst2, rte:1 again, was version 2" in run("group rollback guard")
    history = run("group history guard")
    assert "set_group guard 1: sst2, rte:1" in history
    assert "smaller" in history
    assert "rollback_group guard 1" in history
    assert "set_group" in run("history")
    assert "group guard is deleted" in run("group delete guard")


def test_mistakes_with_groups_are_one_line(registry: str) -> None:
    for words, why in (
        ("group rollback guard", "there is no group 'guard'"),
        ("group set guard sst2 sst2:1", "task 'sst2' twice"),
        ("group set guard nope", "there is no task 'nope'"),
        ("group set guard", "Missing argument"),
    ):
        ran = sidecast(*words.split(), "--registry", registry)
        assert ran.code == 2
        assert why in ran.err
        assert len(ran.err.splitlines()) == 1


def test_predict_asks_all_tasks_of_a_group(parlour: Parlour) -> None:
    words = ("predict", "--group", "guard", "sentence=a film", "text=fine", "--server", parlour.address)
    ran = sidecast(*words, "--json")
    assert ran.code == 0, ran.err
    answers = json.loads(ran.out)["tasks"]
    assert answers["sst2"]["answers"][0]["label"] == rule(SST2, "a film").label  # type: ignore[union-attr]
    value = rule(TWEETS, "rate: fine").value  # type: ignore[union-attr]
    assert answers["tweets"]["answers"] == [{"value": pytest.approx(value), "truncated": False}]
    ran = sidecast(*words)
    assert "sst2 version 1" in ran.out
    assert "tweets version 1" in ran.out


def test_predict_needs_a_task_or_a_group(parlour: Parlour) -> None:
    ran = sidecast("predict", "--text", "a", "--server", parlour.address)
    assert (ran.code, "name a task, or give --group" in ran.err) == (2, True)
    ran = sidecast("predict", "--group", "nope", "a film", "--server", parlour.address)
    assert (ran.code, "there is no group 'nope'" in ran.err) == (2, True)
