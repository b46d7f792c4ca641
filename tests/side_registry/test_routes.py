"""Routes in the log: what sets them, what ends them, and what they keep from happening."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import (
    PLAIN,
    Bounds,
    Commit,
    InvalidName,
    InvalidRoute,
    NothingToRollBack,
    Registry,
    RollbackUnclear,
    Route,
    RouteChanged,
    SetAlias,
    SetRoute,
    UnknownAlias,
    UnknownTask,
    UnknownVersion,
    UnreadableCommit,
    VersionInUse,
    checked_route,
    fold,
)
from side_registry.log import log_path
from tests.side_registry.races.turns import before_next_commit
from tests.side_registry.runs import make_regression_run

CANARY = Route(shares={3: 500}, bounds=Bounds(error_rate=0.01, min_rows=20))
SHADOW = Route(shadows=(1,))
BOTH = Route(shares={3: 500, 4: 500}, shadows=(1,))


@pytest.fixture
def routed(registry: Registry, run: Callable[..., Path]) -> Registry:
    """Five versions; production went 1, 2."""
    for number in range(1, 6):
        registry.publish(run(number))
    registry.set_alias("sst2", "production", 2)
    return registry


def route(registry: Registry, alias: str = "production") -> Route:
    return registry.state().task("sst2").route(alias)


def own(registry: Registry, alias: str = "production") -> int:
    return registry.state().task("sst2").at(alias)


class TestSetRoute:
    def test_one_commit_that_says_who_and_why(self, routed: Registry):
        before = routed.state().generation
        generation = routed.set_route("sst2", "production", CANARY, author="ada@lab", message="five per cent of 3")
        assert generation == before + 1
        assert (own(routed), route(routed)) == (2, CANARY)
        last = routed.history("sst2")[-1]
        assert (last.author, last.message) == ("ada@lab", "five per cent of 3")
        assert last.actions == (SetRoute(task="sst2", alias="production", route=CANARY),)
        assert routed.state().task("sst2").routed == {"production": generation}

    def test_a_route_based_on_an_outdated_one_is_refused(self, routed: Registry):
        """Whose share grows has just been rolled back: it must not come back so."""
        routed.set_route("sst2", "production", CANARY)
        grown = CANARY.model_copy(update={"shares": {3: 2500}})
        generation = routed.rollback("sst2").generation
        with pytest.raises(RouteChanged, match="somebody changed the route of production of task 'sst2' meanwhile"):
            routed.set_route("sst2", "production", grown, seen=CANARY)
        with pytest.raises(RouteChanged):
            routed.set_route("sst2", "production", PLAIN, version=3, seen=CANARY)
        assert (route(routed), routed.state().generation) == (PLAIN, generation)
        assert routed.set_route("sst2", "production", PLAIN, seen=CANARY) == generation  # as it is
        assert routed.set_route("sst2", "production", grown, seen=PLAIN) == generation + 1

    def test_the_newest_route_is_the_one_that_counts(self, routed: Registry, monkeypatch: pytest.MonkeyPatch):
        """The other writer is done between our look and our commit."""
        routed.set_route("sst2", "production", CANARY)
        rival = Registry.open(routed.store)
        before_next_commit(monkeypatch, routed, lambda: rival.end_route("sst2", "production", CANARY))
        with pytest.raises(RouteChanged):
            routed.set_route("sst2", "production", BOTH, seen=CANARY)
        assert route(rival) == PLAIN

    def test_the_alias_moves_in_the_same_commit(self, routed: Registry):
        before = routed.state().generation
        assert routed.set_route("sst2", "production", CANARY, version=5) == before + 1
        assert (own(routed), route(routed)) == (5, CANARY)
        routed.set_route("sst2", "beta", SHADOW, version=3)
        assert (own(routed, "beta"), route(routed, "beta")) == (3, SHADOW)
        assert [type(action) for action in routed.history()[-1].actions] == [SetAlias, SetRoute]
        assert routed.rollback("sst2", to=2).version_from == 5

    def test_the_same_route_on_another_version_is_set_again(self, routed: Registry):
        routed.set_route("sst2", "production", CANARY)
        generation = routed.set_route("sst2", "production", CANARY, version=5)
        assert (own(routed), route(routed)) == (5, CANARY)
        assert routed.state().task("sst2").routed == {"production": generation}

    def test_a_version_alone_is_a_promotion(self, routed: Registry):
        routed.set_route("sst2", "production", CANARY)
        routed.set_route("sst2", "production", PLAIN, version=3)
        assert (own(routed), route(routed)) == (3, PLAIN)
        assert [type(action) for action in routed.history()[-1].actions] == [SetAlias]

    @pytest.mark.parametrize(
        ("task", "alias", "wanted", "version", "error", "why"),
        [
            ("cola", "production", CANARY, None, UnknownTask, "no task 'cola'"),
            ("sst2", "beta", CANARY, None, UnknownAlias, "no alias 'beta'"),
            ("sst2", "production", Route(shares={9: 1}), None, UnknownVersion, "no version 9"),
            ("sst2", "production", Route(shadows=(9,)), None, UnknownVersion, "no version 9"),
            ("sst2", "production", Route(shadows=(5,)), None, UnknownVersion, "is retired"),
            ("sst2", "production", CANARY, 9, UnknownVersion, "no version 9"),
            ("sst2", "production", Route(shares={2: 1}), None, InvalidRoute, "version 2 is its main version"),
            ("sst2", "production", CANARY, 3, InvalidRoute, "version 3 is its main version"),
            ("sst2", "7", CANARY, None, InvalidName, "alias"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self,
        routed: Registry,
        task: str,
        alias: str,
        wanted: Route,
        version: int | None,
        error: type[Exception],
        why: str,
    ):
        routed.retire("sst2", 5)
        before = routed.state()
        with pytest.raises(error, match=why):
            routed.set_route(task, alias, wanted, version=version)
        assert routed.state() == before


class TestFaultyRoutes:
    @pytest.mark.parametrize("route", [Route(shares={6: 500}), Route(shadows=(6,))])
    def test_versions_of_different_kinds_share_no_traffic(self, routed: Registry, tmp_path: Path, route: Route):
        routed.publish(make_regression_run(tmp_path / "numbers"))
        before = routed.state().generation
        with pytest.raises(InvalidRoute, match="version 6 is regression, its own version 2 classification"):
            routed.set_route("sst2", "production", route)
        assert routed.state().generation == before

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"shares": {3: 9999, 4: 1}}, "must leave something to the alias's main version"),
            ({"shares": {3: 10_000}}, "less than 10000"),
            ({"shares": {3: 0}}, "greater than or equal to 1"),
            ({"shares": {0: 5}}, "greater than or equal to 1"),
            ({"shares": {"x": 5}}, "valid integer"),
            ({"shares": dict.fromkeys(range(1, 12), 1)}, "at most 8"),
            ({"shadows": (1, 1)}, "named once"),
            ({"shares": {1: 5}, "shadows": (1,)}, "have no share"),
            ({"shadows": range(1, 12)}, "at most 8"),
            ({"bounds": Bounds(error_rate=0.1)}, "there is none"),
            ({"shares": {3: 5}, "bounds": {"error_rate": float("nan")}}, "bounds.error_rate"),
            ({"shares": {3: 5}, "bounds": {"latency": float("inf")}}, "bounds.latency"),
            ({"shares": {3: 5}, "bounds": {"latency": 0.5}}, "bounds.latency"),
            ({"shares": {3: 5}, "bounds": {"min_rows": 0}}, "bounds.min_rows"),
            ({"shares": {3: 5}, "bounds": {"errors": 0.1}}, "unknown field 'errors'; use error_rate, latency"),
            ({"shadow": (3,)}, "unknown field 'shadow'; use shares, shadows, bounds"),
        ],
    )
    def test_each_fault_is_told_in_one_line(self, fields: dict, why: str):
        with pytest.raises(InvalidRoute, match=why) as caught:
            checked_route("sst2", "production", fields)
        assert str(caught.value).startswith("production of task 'sst2' cannot be routed so: ")
        assert "\n" not in str(caught.value)

    def test_a_misspelt_field_is_not_a_plain_route(self, routed: Registry):
        generation = routed.set_route("sst2", "production", CANARY)
        with pytest.raises(InvalidRoute, match="unknown field 'weights'"):
            routed.set_route("sst2", "production", Route.model_validate({"weights": {3: 500}}))
        assert (route(routed), routed.state().generation) == (CANARY, generation)

    def test_the_state_does_not_hold_what_the_caller_handed_in(self, routed: Registry):
        handed = Route(shares={3: 500})
        routed.set_route("sst2", "production", handed)
        handed.shares[3] = 900  # pyright: ignore[reportIndexIssue]
        assert route(routed).shares == {3: 500}

    def test_an_unchecked_route_never_reaches_the_log(self, routed: Registry):
        """Copies of documents are not checked by who makes them."""
        before = routed.state()
        with pytest.raises(InvalidRoute, match="less than 10000"):
            routed.set_route("sst2", "production", CANARY.model_copy(update={"shares": {3: 20_000}}))
        assert routed.state() == before


class TestWhatEndsARoute:
    def test_rollback_takes_the_shares_away_first(self, routed: Registry):
        routed.set_route("sst2", "production", BOTH)
        rolled = routed.rollback("sst2")
        assert (rolled.version_from, rolled.version_to) == (4, 2)
        assert (own(routed), route(routed), rolled.canary_ended) == (2, PLAIN, True)
        rolled = routed.rollback("sst2", to=1)
        assert (rolled.version_from, rolled.version_to, rolled.canary_ended) == (2, 1, False)

    def test_a_rollback_after_shares_went_must_say_where_to(self, routed: Registry):
        """A server and a person react to the same alarm: the alias must not move too."""
        routed.set_route("sst2", "production", BOTH)
        ended = routed.end_route("sst2", "production", BOTH)
        routed.set_route("sst2", "production", Route(shadows=(5,)))  # changes nothing of who answers
        before = routed.state()
        with pytest.raises(
            RollbackUnclear, match=rf"shares away \(generation {ended}\): version 2 .* where to: --to 1"
        ):
            routed.rollback("sst2")
        assert routed.state() == before
        assert routed.rollback("sst2", to=1).version_to == 1
        assert routed.state().task("sst2").ended == {}

    def test_rollback_to_where_it_is_takes_the_shares_away(self, routed: Registry):
        routed.set_route("sst2", "production", CANARY)
        rolled = routed.rollback("sst2", to=2)
        assert (rolled.version_from, rolled.version_to, rolled.canary_ended) == (3, 2, True)
        assert (own(routed), route(routed)) == (2, PLAIN)
        with pytest.raises(NothingToRollBack, match="is version 2 already"):
            routed.rollback("sst2", to=2)


class TestEndRoute:
    def test_shares_go_and_shadows_stay(self, routed: Registry):
        before = routed.set_route("sst2", "production", BOTH)
        generation = routed.end_route(
            "sst2", "production", BOTH, author="sidecast serve@a:1", message="version 3 fails"
        )
        assert generation == before + 1
        assert (own(routed), route(routed)) == (2, SHADOW)
        assert routed.history()[-1].author == "sidecast serve@a:1"
        assert routed.state().task("sst2").routed == {"production": generation}

    def test_a_route_that_changed_is_left_alone(self, routed: Registry):
        routed.set_route("sst2", "production", CANARY)
        for changed in (BOTH, SHADOW, PLAIN, Route(shares={3: 501}, bounds=CANARY.bounds), Route(shares={3: 500})):
            generation = routed.set_route("sst2", "production", changed)
            assert routed.end_route("sst2", "production", CANARY) is None
            assert (route(routed), routed.state().generation) == (changed, generation)

    def test_the_same_route_set_anew_is_another_one(self, routed: Registry):
        judged = routed.set_route("sst2", "production", CANARY)
        routed.rollback("sst2")
        again = routed.set_route("sst2", "production", CANARY)
        assert routed.end_route("sst2", "production", CANARY, since=judged) is None
        moved = routed.set_route("sst2", "production", CANARY, version=5)
        assert routed.end_route("sst2", "production", CANARY, since=again) is None
        assert (route(routed), routed.state().generation) == (CANARY, moved)
        assert routed.end_route("sst2", "production", CANARY, since=moved) == moved + 1
        assert route(routed) == PLAIN

    def test_a_promotion_that_comes_first_wins(self, routed: Registry, monkeypatch: pytest.MonkeyPatch):
        routed.set_route("sst2", "production", CANARY)
        rival = Registry.open(routed.store)
        before_next_commit(monkeypatch, routed, lambda: rival.set_alias("sst2", "production", 3))
        assert routed.end_route("sst2", "production", CANARY) is None
        assert own(routed) == 3


class TestRetire:
    @pytest.mark.parametrize("version", [1, 3, 4])
    def test_a_version_that_a_route_names_stays(self, routed: Registry, version: int):
        routed.set_route("sst2", "production", BOTH)
        with pytest.raises(VersionInUse, match=f"version {version} .* a share or is a shadow of production"):
            routed.retire("sst2", version)
        routed.rollback("sst2")
        routed.retire("sst2", version)

    def test_both_kinds_of_use_are_known(self, routed: Registry):
        routed.set_alias("sst2", "beta", 3)
        routed.set_route("sst2", "production", CANARY)
        with pytest.raises(VersionInUse, match="in use as beta") as caught:
            routed.retire("sst2", 3)
        assert (caught.value.aliases, caught.value.routed) == (("beta",), ("production",))
        assert routed.state().task("sst2").used == {2, 3}


PUBLISH = {"type": "publish", "task": "t", "manifest_sha256": "a" * 64, "kind": "text", "backbone": "sha256:b"}
PUBLISHES = [PUBLISH | {"version": number} for number in (1, 2, 3)]
ALIAS = {"type": "set_alias", "task": "t", "alias": "production", "version": 1}
SET_ROUTE = {"type": "set_route", "task": "t", "alias": "production", "route": {"shares": {"2": 500}}}


def commit(generation: int, *actions: dict) -> Commit:
    return Commit.model_validate_json(
        json.dumps({"generation": generation, "id": f"id-{generation}", "time": "", "actions": actions})
    )


class TestInTheLog:
    def test_it_lies_there_as_plain_json(self, routed: Registry):
        generation = routed.set_route("sst2", "production", CANARY)
        stored = json.loads(routed.store.read(log_path(generation), 1 << 20) or b"")
        assert stored["schema_version"] == 1  # the action's name is what an older program refuses
        assert [action["type"] for action in stored["actions"]] == ["set_route"]
        assert stored["actions"][0]["route"]["shares"] == {"3": 500}

    def test_every_reader_folds_the_same(self, routed: Registry, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("side_registry.registry.EVERY", 1)
        routed.set_route("sst2", "production", BOTH.model_copy(update={"bounds": CANARY.bounds}))
        assert len(routed.store.list("checkpoints")) == 1
        from_checkpoint = Registry.open(routed.store).state()
        assert from_checkpoint == routed.state() == fold(routed.history())
        assert pickle.loads(pickle.dumps(from_checkpoint)) == from_checkpoint

    @pytest.mark.parametrize(
        ("actions", "why"),
        [
            ([*PUBLISHES, SET_ROUTE], "no alias production"),
            ([*PUBLISHES, ALIAS, SET_ROUTE | {"route": {"shares": {"9": 1}}}], "no version 9"),
            ([*PUBLISHES, ALIAS, SET_ROUTE | {"route": {"shadows": [1]}}], "version 1 is production's own"),
            ([*PUBLISHES, ALIAS, SET_ROUTE, {"type": "retire", "task": "t", "version": 2}], "in use"),
            ([*PUBLISHES, ALIAS, {"type": "retire", "task": "t", "version": 2}, SET_ROUTE], "no version 2"),
        ],
    )
    def test_a_route_that_does_not_follow_is_refused_whole(self, actions: list[dict], why: str):
        with pytest.raises(UnreadableCommit, match=why):
            fold([commit(1, *actions)])

    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            ({"shares": {"2": 10_000}}, "less than 10000"),
            ({"shares": {"two": 1}}, "integer"),
            ({"shadows": [2, 2]}, "named once"),
            ([], "route"),
            (None, "route"),
        ],
    )
    def test_a_damaged_route_is_named(self, routed: Registry, wrong: object, why: str):
        good = routed.state()
        document = json.loads(commit(good.generation + 1, SET_ROUTE).to_json())
        document["actions"][0]["route"] = wrong
        routed.store.overwrite(log_path(good.generation + 1), json.dumps(document).encode())
        with pytest.raises(UnreadableCommit, match=why) as caught:
            routed.state()
        assert caught.value.path == log_path(good.generation + 1)
        assert routed.state(refresh=False) == good

    def test_what_a_newer_program_adds_to_a_route_is_kept(self):
        added = commit(1, *PUBLISHES, ALIAS, SET_ROUTE | {"route": {"shares": {"2": 500}, "sticky": True}})
        assert json.loads(added.to_json())["actions"][-1]["route"]["sticky"]
        assert fold([added]).task("t").route("production").shares == {2: 500}
