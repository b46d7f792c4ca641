"""`sidecast history --at`: which versions served at a moment, from a registry and from a server."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from side_registry import Registry, Route
from sidecast.cli.registry.views import RegistryView, aliases_at
from tests.serving.api_kit import Parlour
from tests.sidecast.cli_kit import done, sidecast


def test_it_tells_what_each_alias_pointed_at(registry: Path) -> None:
    opened = Registry.open(registry)
    first = opened.history()[-1].time
    opened.set_route("letters", "production", Route(shares={2: 500}))
    split = opened.history()[-1].time
    opened.set_alias("letters", "production", 2)
    where = ["letters", "--registry", registry]
    title, heading, row = done("history", *where, "--at", split).out.splitlines()
    assert title.startswith("at ")
    assert title.rstrip().endswith("(generation 3)")
    assert heading.split() == ["task", "alias", "version"]
    assert row.split()[:3] == ["letters", "production", "1"]
    assert "5%" in row
    document = done("history", *where, "--at", first, "--json").document
    assert document["generation"] == 2
    assert document["tasks"] == [{"task": "letters", "aliases": {"production": 1}, "routes": {}}]
    now = done("history", "--registry", registry, "--at", "2999-01-01", "--json").document
    assert (now["generation"], now["tasks"][0]["aliases"]) == (4, {"production": 2})
    early = done("history", *where, "--at", "2000-01-01T00:00:00Z").out
    assert early == "letters was not in the registry at 2000-01-01T00:00:00Z (generation 0)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "yesterday"], "give a time such as 2026-03-31T18:00:00Z (ISO 8601), got 'yesterday'"),
        (["--at", "2 hours ago"], "give a time such as"),
        (["--at", "2026-03-31", "--limit", "3"], "give one of them"),
        (["nothing", "--at", "2999-01-01"], "there is no task 'nothing'"),
    ],
)
def test_mistakes_are_one_line(registry: Path, words: list[str], message: str) -> None:
    assert message in sidecast("history", *words, "--registry", registry).mistake


def test_a_server_tells_the_same(parlour: Parlour) -> None:
    words = ["history", "--at", "2999-01-01", "--json"]
    there = done(*words, "--server", parlour.address).document
    assert there["tasks"]
    assert there == done(*words, "--registry", parlour.folder / "registry").document


def test_the_documents_of_a_history_add_up_to_the_registrys_state(registry: Path) -> None:
    opened = Registry.open(registry)
    view = RegistryView(opened)
    opened.set_route("letters", "production", Route(shares={2: 500}))
    opened.set_alias("letters", "canary", 2)
    opened.set_route("letters", "canary", Route(shadows=(1,)))
    opened.set_alias("letters", "production", 2)
    opened.rollback("letters")
    opened.set_route("letters", "canary", Route())
    opened.delete_task("letters")
    changes = view.history(None)
    for change in changes:
        moment = datetime.fromisoformat(change["time"]).astimezone(UTC)
        assert aliases_at(changes, moment) == view.at(moment)
