"""Canaries, shadows and waiting on the command line: with a registry alone, and through a running server."""

import contextlib
import inspect
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serving.client.client import Client
from serving.client.errors import UnreachableError
from side_registry import Registry
from side_registry.errors import StoreFailed
from side_registry.route import Route
from side_registry.servers import BEAT_S, LEASE_S, Announced
from sidecast.cli.app import main
from sidecast.cli.percent import Rate, Share, share_text
from sidecast.cli.registry import views
from sidecast.cli.registry.changes import WAIT_S
from tests.serving.api_kit import SST2, Parlour, make_run
from tests.sidecast.cli_kit import done, sidecast

Words = list[Any]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Three versions of one task; the first is production."""
    opened = Registry.open(tmp_path / "registry", create=True)
    for seed in range(3):
        opened.publish(make_run(tmp_path / f"run-{seed}", SST2, seed))
    return tmp_path / "registry"


@pytest.fixture(params=["registry", "server"])
def where(request: pytest.FixtureRequest, registry: Path, tmp_path: Path) -> Iterator[Words]:
    """How commands find the registry: its folder, or a server that follows it."""
    if request.param == "registry":
        yield ["--registry", registry]
        return
    with Parlour(tmp_path, []).open() as parlour:
        yield ["--server", parlour.address]


def moved(where: Words) -> str:
    """What is told of a promotion from version 1 to 2."""
    undo = " ".join(map(str, ("sidecast rollback sst2", *where)))
    return f"sst2@production is version 2, was version 1: {undo} undoes it"


# --- shares and bounds: serving/client/test_client.py has the spellings


def test_a_share_and_a_bound_may_be_a_percentage_or_a_fraction() -> None:
    for text, number in (("5%", 0.05), ("0.05", 0.05), ("0.5%", 0.005)):
        assert Share().convert(text, None, None) == number * 10_000
        assert Rate().convert(text, None, None) == number
    assert Share().convert(share_text(500), None, None) == 500


# --- promote, rollback, tasks, history


def test_a_canary_from_its_first_share_to_all(where: Words) -> None:
    first = done("promote", "sst2", 2, "--canary", "5%", *where)
    default = "errors at most 1% more, latency at most 2 times, judged from 100 rows on"
    assert first.out == (
        f"sst2@production is 1 (95%), 2 (5%); bounds by default: {default} (--no-bounds for none) (generation 4)\n"
    )
    bounds = ["--max-disagreement", "5%", "--max-latency", "1.2", "--max-error-rate", "0.01", "--min-rows", "200"]
    told = "errors at most 1% more, latency at most 1.2 times, disagreement at most 5%, judged from 200 rows on"
    stepped = done("promote", "sst2", "--step", "0.25", *bounds, *where)
    assert stepped.out == f"sst2@production is 1 (75%), 2 (25%); {told} (generation 5)\n"
    again = done("promote", "sst2", "--step", "50%", "--max-latency", "2", *where, "--json").document
    assert again == {
        "task": "sst2",
        "alias": "production",
        "version": 1,
        "route": {
            "shares": {"2": 5000},
            "shadows": [],
            "bounds": {"error_rate": 0.01, "latency": 2.0, "disagreement": 0.05, "min_rows": 200},
        },
        "generation": 6,
    }
    assert done("promote", "sst2", 2, *where).out == f"{moved(where)} (generation 7)\n"
    assert done("tasks", *where, "--json").document["tasks"][0]["routes"] == {}


def test_a_canary_has_the_bounds_that_it_is_given_or_none(where: Words) -> None:
    def bounds(*words: str) -> object:
        return done("promote", "sst2", *words, *where, "--json").document["route"]["bounds"]

    default = {"error_rate": 0.01, "latency": 2.0, "disagreement": None, "min_rows": 100}
    assert bounds("2", "--canary", "5%") == default
    assert bounds("2", "--canary", "6%", "--min-rows", "500") == default | {"min_rows": 500}
    assert bounds("--step", "7%") == default | {"min_rows": 500}
    only = {"error_rate": None, "latency": None, "disagreement": 0.1, "min_rows": 100}
    assert bounds("2", "--canary", "5%", "--max-disagreement", "10%") == only
    told = done("promote", "sst2", "--step", "8%", "--no-bounds", *where).out
    ends = "no bounds, so only sidecast rollback sst2 ends it"
    assert told == f"sst2@production is 1 (92%), 2 (8%); {ends} (generation 8)\n"
    assert ends in done("promote", "sst2", 2, "--canary", "5%", "--no-bounds", *where).out
    assert ends in done("promote", "sst2", "--step", "9%", *where).out


def test_rollback_ends_a_canary_and_says_so(where: Words) -> None:
    done("promote", "sst2", 2, *where)
    done("promote", "sst2", 3, "--canary", "5%", *where)
    ended = "the canary of sst2@production is ended: version 3 has no share any more, version 2 answers all"
    assert done("rollback", "sst2", *where).out == f"{ended} (generation 6)\n"
    told = sidecast("rollback", "sst2", *where).mistake
    assert "took its canaries' shares away (generation 6): version 2 answers all" in told
    back = done("rollback", "sst2", "--to", 1, *where)
    assert back.out == "sst2@production is version 1 again, was 2 (generation 7)\n"
    assert "is version 1 already" in sidecast("rollback", "sst2", "--to", 1, *where).mistake
    done("promote", "sst2", 3, "--canary", "5%", *where)
    assert done("rollback", "sst2", "--to", 1, *where, "--json").document["canary_ended"] is True
    done("promote", "sst2", 3, "--canary", "5%", *where)
    told = done("rollback", "sst2", *where, "--json").document
    assert (told["canary_ended"], told["version_from"], told["version_to"]) == (True, 3, 1)


def test_a_canary_that_is_rolled_back_meanwhile_does_not_come_back(
    where: Words, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody is done between this command's look and its change."""
    rival = Registry.open(registry)
    looked: list[str] = []
    meddling: dict[int, Callable[[], object]] = {}

    def meddled(look: Callable[..., Any]) -> Callable[..., Any]:
        def look_late(view: object, task: str, alias: str) -> Any:
            found = look(view, task, alias)
            looked.append(alias)
            if meddle := meddling.get(len(looked)):
                meddle()
            return found

        return look_late

    for view in (views.RegistryView, views.ServerView):
        monkeypatch.setattr(view, "route", meddled(view.route))
    done("promote", "sst2", 2, "--canary", "5%", *where)
    looked.clear()
    meddling = {1: lambda: rival.rollback("sst2")}
    assert "but no version has one" in sidecast("promote", "sst2", "--step", "25%", *where).mistake
    assert rival.state().task("sst2").routes == {}
    looked.clear()
    meddling = {1: lambda: rival.set_route("sst2", "production", Route(shadows=(2,)))}
    assert done("promote", "sst2", "--shadow", 3, *where).out.startswith("sst2@production is 1, shadow 2, shadow 3 ")
    looked.clear()
    meddling = {
        turn: partial(rival.set_route, "sst2", "production", Route(shares={2: turn}, shadows=(3,)))
        for turn in range(1, 9)
    }
    told = sidecast("promote", "sst2", "--no-shadow", 3, *where).mistake
    assert "somebody changed the route of production of task 'sst2' meanwhile" in told
    assert len(looked) == 3


def test_with_to_a_rollback_goes_by_the_versions(where: Words) -> None:
    done("promote", "sst2", 2, *where)
    done("promote", "sst2", 3, "--canary", "5%", *where)
    rolled = done("rollback", "sst2", "--to", 1, *where)
    assert rolled.out == "sst2@production is version 1 again, was 2 (generation 6)\n"
    assert done("tasks", *where, "--json").document["tasks"][0]["routes"] == {}


def test_shadows_come_and_go_beside_a_canary(where: Words) -> None:
    both = done("promote", "sst2", "--shadow", 3, "--shadow", 2, *where)
    assert both.out == "sst2@production is 1, shadow 3, shadow 2 (generation 4)\n"
    canary = done("promote", "sst2", 2, "--canary", "0.5%", *where, "--json").document["route"]
    assert (canary["shares"], canary["shadows"]) == ({"2": 50}, [3])
    assert done("promote", "sst2", "--shadow", 3, *where, "--json").document["generation"] == 5
    done("promote", "sst2", "--no-shadow", 3, *where)
    moved = done("promote", "sst2", 2, "--shadow", 1, *where)
    assert moved.out == "sst2@production is 2, shadow 1 (generation 7)\n"
    assert "has a share or is a shadow of production" in sidecast("retire", "sst2", 1, *where).mistake


def test_tasks_and_history_tell_routes_in_words(where: Words) -> None:
    done("promote", "sst2", 2, "--alias", "canary", *where)
    done("promote", "sst2", 2, "--canary", "5%", "--max-latency", "1.5", "--shadow", 3, "-m", "try it", *where)
    shown = done("tasks", *where).out.splitlines()[1]
    assert "production: 1 (95%), 2 (5%), shadow 3" in shown
    assert "canary 2" in shown
    [task] = done("tasks", *where, "--json").document["tasks"]
    assert task["routes"] == {
        "production": {
            "shares": {"2": 500},
            "shadows": [3],
            "bounds": {"error_rate": None, "latency": 1.5, "disagreement": None, "min_rows": 100},
        }
    }
    done("rollback", "sst2", *where)
    *_, canary, ended = done("history", "sst2", *where).out.splitlines()
    bounds = "bounds: latency at most 1.5 times, judged from 100 rows on"
    assert f"set_route sst2@production: 2 (5%), shadow 3; {bounds}" in canary
    assert canary.rstrip().endswith("try it")
    assert "set_route sst2@production: its own version alone" in ended
    action = done("history", *where, "--json").document[-2]["actions"][0]
    names = {"verb": "set_route", "task": "sst2", "version": None, "alias": "production", "run_id": None}
    assert action == names | {"route": task["routes"]["production"]}


def test_a_registry_and_a_server_tell_the_same_of_routes(registry: Path, tmp_path: Path) -> None:
    done("promote", "sst2", 2, "--canary", "5%", "--max-latency", "2", "--registry", registry)
    with Parlour(tmp_path, []).open() as parlour:
        here, there = ["--registry", registry], ["--server", parlour.address]
        assert done("history", *there, "--json").document == done("history", *here, "--json").document
        [told], [written] = (done("tasks", *each, "--json").document["tasks"] for each in (there, here))
        assert (told["routes"], told["aliases"]) == (written["routes"], written["aliases"])


MISTAKES = [
    ("promote sst2", "Missing argument 'VERSION'; without it, give --step, --shadow or --no-shadow"),
    ("promote sst2 --canary 5%", "--canary gives a share to a version; name it"),
    ("promote sst2 2 --step 5%", "--step takes no VERSION"),
    ("promote sst2 2 --canary 200%", "a share is 0.01% to 99.99%, in steps of 0.01%, written as a percentage (5%)"),
    ("promote sst2 2 --canary 5", "'5' has no unit: write a percentage with its sign (5%), or a fraction (0.05)"),
    ("promote sst2 2 --canary 5% --max-error-rate 1", "'1' has no unit: write a percentage with its sign (1%), or a"),
    ("promote sst2 2 --canary 5% --max-error-rate 200%", "this is 0% to 100%"),
    ("promote sst2 2 --canary 5% --max-latency 0.5", "'--max-latency': 0.5 is not in the range 1<=x<=1000"),
    ("promote sst2 2 --canary 5% --min-rows 0", "'--min-rows'"),
    ("promote sst2 2 --canary 5% --no-bounds --min-rows 10", "--no-bounds excludes --max-... and --min-rows"),
    ("promote sst2 2 --no-bounds", "are for a version with a share"),
    ("promote sst2 2 --max-latency 2", "bounds (--max-..., --min-rows, --no-bounds) are for a version with a share"),
    ("promote sst2 --shadow 2 --max-latency 2", "are for a version with a share"),
    ("promote sst2 --step 5%", "--step changes the only share of sst2@production, but no version has one"),
    ("promote sst2 2 --no-shadow 3", "to promote VERSION ends all shadows already"),
    ("promote sst2 --no-shadow 3", "version 3 is no shadow of sst2@production; it has none"),
    ("promote sst2 1 --canary 5%", "version 1 is its main version, which gets the rest of the traffic"),
    ("promote sst2 9 --canary 5%", "has no version 9"),
    ("promote sst2 --shadow 9", "has no version 9"),
    ("promote sst2 --shadow 1", "version 1 is its main version"),
    ("promote sst2 2 --canary 5% --shadow 2", "a shadow must be named once, and have no share"),
    ("promote sst2 2 --canary 5% --alias other", "has no alias 'other'"),
    ("promote sst3 2 --canary 5%", "there is no task 'sst3'"),
    ("promote sst2 2 --wait soon", "'soon' is not a valid float"),
    ("promote sst2 2 --wait 301", "301.0 is not in the range 0<=x<=300"),
]


def test_a_mistake_is_one_line_and_changes_nothing(where: Words, registry: Path) -> None:
    for words, message in MISTAKES:
        assert message in sidecast(*words.split(), *where).mistake, words
    assert Registry.open(registry).state().generation == 3


def test_step_must_know_whose_share_it_changes(registry: Path) -> None:
    Registry.open(registry).set_route("sst2", "production", Route(shares={2: 100, 3: 200}))
    told = sidecast("promote", "sst2", "--step", "5%", "--registry", registry).mistake
    assert "but versions 2 and 3 have some; use VERSION --canary 5%" in told
    assert done("promote", "sst2", 3, "--canary", "5%", "--registry", registry).code == 0


# --- waiting


def test_waiting_for_nobody_says_so(registry: Path, tmp_path: Path) -> None:
    told = done("promote", "sst2", 2, "--registry", registry, "--wait")
    end = "; no server is known to follow this registry\n"
    assert told.out == f"{moved(['--registry', registry])} (generation 4){end}"
    waited = done("rollback", "sst2", "--registry", registry, "--wait", "1", "--json").document["wait"]
    assert waited == {"generation": 5, "served": True, "servers": [], "faults": []}
    new = make_run(tmp_path / "new", SST2, 7)
    assert done("publish", new, "--registry", registry, "--wait").out.endswith(end)


def test_once_a_publish_was_waited_for_every_server_answers_with_it(registry: Path, tmp_path: Path) -> None:
    with Parlour(tmp_path, []).open() as one, Parlour(tmp_path, []).open() as other:
        servers = (["--server", one.address], ["--server", other.address])
        for seed, where in enumerate([["--registry", registry], *servers, *servers], 10):
            run = make_run(tmp_path / f"run-{seed}", SST2, seed)
            told = done("publish", run, *where, "--alias", "production", "--wait").out
            assert one.address in told
            assert other.address in told
            versions = [done("predict", "sst2", "a", *each, "--json").document["version"] for each in servers]
            assert versions == [seed - 6] * 2
        waited = done("rollback", "sst2", *servers[0], "--wait", "9", "--json").document["wait"]
        assert waited["served"] is True
        assert {each["address"] for each in waited["servers"]} == {one.address, other.address}
        assert done("predict", "sst2", "a", *servers[1], "--json").document["version"] == 7


def test_who_does_not_follow_in_time_is_named_and_the_change_stays(where: Words, registry: Path) -> None:
    Registry.open(registry).announce(Announced(id="stuck", address="10.0.0.9:8001", generation=3, counter=0))
    ran = sidecast("promote", "sst2", 2, *where, "--wait", "0.3")
    assert (ran.code, ran.out) == (1, f"{moved(where)} (generation 4)\n")
    assert ran.err == (
        "Error: it is committed, but after 0.3 s not served everywhere: 10.0.0.9:8001 serves generation 3, not 4\n"
    )
    ran = sidecast("rollback", "sst2", *where, "--wait=0.3", "--json")
    assert (ran.code, ran.err) == (1, "")
    waited = json.loads(ran.out)["wait"]
    assert waited["served"] is False
    assert {"address": "10.0.0.9:8001", "generation": 3} in waited["servers"]
    assert waited["faults"][0].startswith("after 0.3 s not served everywhere: 10.0.0.9:8001 serves")


def test_a_version_that_a_server_cannot_load_is_not_waited_for_in_vain(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        where = ["--server", parlour.address]
        ran = sidecast("publish", parlour.run(SST2, 1, backbone="another"), *where, "--wait")
        assert (ran.code, ran.out.startswith("published sst2 version 2")) == (1, True)
        told = "it is committed, but version 2 does not load: sst2: trained on sha256:another"
        assert told in ran.err
        assert told in sidecast("promote", "sst2", 2, "--canary", "5%", *where, "--wait").err
        done("rollback", "sst2", *where)
        waited = sidecast("promote", "sst2", "--shadow", 2, *where, "--wait", "--json").document["wait"]
        assert (waited["served"], len(waited["faults"])) == (True, 1)
        assert done("predict", "sst2", "a", *where, "--json").document["version"] == 1


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (StoreFailed("s3://bucket", "servers", "timed out"), "the registry's store s3://bucket failed at 'servers'"),
        (UnreachableError("no answer from 10.0.0.9:8001"), "no answer from 10.0.0.9:8001"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_a_wait_that_fails_does_not_hide_what_was_committed(
    registry: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, why: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(views.RegistryView, "wait", fail)
    ran = sidecast("promote", "sst2", 2, "--registry", registry, "--wait")
    assert (ran.code, ran.out) == (1, f"{moved(['--registry', registry])} (generation 4)\n")
    assert ran.err.startswith(f"Error: it is committed, but whether it is served could not be seen: {why}")
    ran = sidecast("promote", "sst2", 3, "--registry", registry, "--wait", "--json")
    told = json.loads(ran.out)
    assert (ran.code, told["generation"], told["wait"]["served"], len(told["wait"]["faults"])) == (1, 5, False, 1)


def test_what_was_committed_is_told_before_the_wait(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def wait(view: object, generation: int, seconds: float) -> dict[str, Any]:
        told.append(out.getvalue())
        return {"generation": generation, "served": True, "servers": []}

    monkeypatch.setattr(views.RegistryView, "wait", wait)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(["promote", "sst2", "2", "--registry", str(registry), "--wait"])
    assert told == [f"{moved(['--registry', registry])} (generation 4)"]


def test_a_wait_outlasts_the_lease_of_a_server_that_was_killed() -> None:
    """It counts for a lease by the objects of others, which move with every beat."""
    assert WAIT_S > LEASE_S + BEAT_S
    assert inspect.signature(Client.await_generation).parameters["timeout"].default == WAIT_S


# --- shadow, predict


def test_shadow_tells_how_versions_compare(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        where = ["--server", parlour.address]
        told = done("shadow", "sst2", *where).out
        assert told == "all traffic of sst2@production is version 1's: sidecast promote sst2 --shadow VERSION\n"
        document = done("shadow", "sst2", *where, "--json").document
        assert (document["version"], document["versions"], document["keeps_inputs"]) == (1, [], False)
        assert "there is no task 'sst3'" in sidecast("shadow", "sst3", *where).mistake
        assert "has no alias 'other'" in sidecast("shadow", "sst2", "--alias", "other", *where).mistake
        assert "'--disagreements'" in sidecast("shadow", "sst2", "--disagreements", 0, *where).mistake
    assert "Missing option '--server'" in sidecast("shadow", "sst2").mistake


def test_predict_sends_its_route_key(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        done("predict", "sst2", "a", "--route-key", "me", "--server", parlour.address)
        assert parlour.service.route_keys == ["me"]
