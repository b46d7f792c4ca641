"""The log's documents, and the state that they fold to."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import Registry, Route, SetAlias, State, StoreFailed, UnreadableCommit, fold
from side_registry.log import Commit, Log, log_path
from side_registry.state import ALIAS_MEMORY, Fold
from tests.side_registry.runs import memory_store, move_aliases

DIGEST = "a" * 64

PUBLISH = {
    "type": "publish",
    "task": "t",
    "version": 1,
    "manifest_sha256": DIGEST,
    "kind": "text",
    "backbone": "sha256:b",
}


def commit(generation: int, *actions: dict) -> Commit:
    document = {"schema_version": 1, "generation": generation, "id": f"id-{generation}", "time": "", "actions": actions}
    return Commit.model_validate_json(json.dumps(document))


def alias(version: int, name: str = "production") -> dict:
    return {"type": "set_alias", "task": "t", "alias": name, "version": version}


def write(registry: Registry, generation: int, content: bytes) -> None:
    registry.store.overwrite(log_path(generation), content)


class TestFold:
    def test_generation_zero_is_empty(self):
        assert fold([]) == State()
        assert State().live == {}

    def test_unknown_fields_are_kept_in_a_commit_and_ignored_in_the_state(self):
        one = commit(1, PUBLISH | {"signed_by": "ada"})
        assert json.loads(one.to_json())["actions"][0]["signed_by"] == "ada"
        assert fold([one]) == fold([commit(1, PUBLISH)])

    @pytest.mark.parametrize(
        "actions",
        [
            [PUBLISH | {"version": 2}],
            [alias(1)],
            [PUBLISH, alias(2)],
            [PUBLISH, alias(1), {"type": "retire", "task": "t", "version": 1}],
            [
                PUBLISH,
                alias(1),
                {"type": "rollback", "task": "t", "alias": "production", "version_from": 1, "version_to": 1},
            ],
            [{"type": "delete_task", "task": "t"}],
            [{"type": "retire", "task": "t", "version": 1}],
        ],
    )
    def test_a_commit_that_does_not_follow_is_refused_whole(self, actions: list[dict]):
        with pytest.raises(UnreadableCommit, match=r"log/0{19}1\.json"):
            fold([commit(1, *actions)])

    def test_commits_follow_one_another(self):
        with pytest.raises(UnreadableCommit, match="cannot follow generation 0"):
            fold([commit(2, PUBLISH)])

    def test_an_alias_remembers_a_bounded_past(self):
        commits = [commit(1, PUBLISH, PUBLISH | {"version": 2})]
        commits += [commit(2 + n, alias(1 + n % 2)) for n in range(3 * ALIAS_MEMORY)]
        assert len(fold(commits).task("t").aliases["production"]) == ALIAS_MEMORY

    def test_an_alias_set_to_where_it_is_stays(self):
        assert fold([commit(1, PUBLISH, alias(1)), commit(2, alias(1))]).task("t").aliases == {"production": (1,)}

    def test_a_state_taken_from_a_fold_does_not_follow_it(self):
        folding = Fold(State())
        folding.add(commit(1, PUBLISH))
        held = folding.state()
        folding.add(commit(2, alias(1)))
        assert held == fold([commit(1, PUBLISH)])

    def test_a_state_pickles(self):
        state = fold([commit(1, PUBLISH, alias(1))])
        assert pickle.loads(pickle.dumps(state)) == state


class TestDamage:
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "JSON"),
            (b'{"generation": 2', "JSON"),
            (b"\x00\xff", "JSON"),
            (b"{}", "generation"),
            (commit(7, PUBLISH).to_json(), "generation 7"),
            (commit(2, alias(9)).to_json(), "no version 9"),
            (commit(2, PUBLISH).to_json().replace(b"publish", b"set_limit"), "action 'set_limit', upgrade"),
            (commit(2, PUBLISH).to_json().replace(b'"schema_version":1', b'"schema_version":2'), "upgrade"),
            (commit(2, PUBLISH).to_json().replace(b'"t"', b'"../t"'), "task"),
            (commit(2, PUBLISH, alias(1)).to_json().replace(b'"production"', b'"7"'), "alias"),
            (b" " * (5 << 20), "at most"),
            (commit(2, alias(1)).to_json().replace(b'"version":1', b'"version":1' + b"0" * 30), "version"),
            (commit(2, alias(1)).to_json().replace(b'"generation":2', b'"generation":2' + b"0" * 30), "generation"),
        ],
    )
    def test_a_bad_commit_is_named_and_stops_nothing_before_it(
        self, registry: Registry, run: Callable[..., Path], content: bytes, why: str
    ):
        registry.publish(run(1))
        good = registry.state()
        write(registry, 2, content)
        for reader in (registry, Registry.open(registry.store)):
            with pytest.raises(UnreadableCommit, match=why) as caught:
                reader.state()
            assert caught.value.path == log_path(2)
            assert reader.state(refresh=False).tasks == good.tasks

    def test_numbers_past_64_bits_reach_no_reader_of_the_history(self, registry: Registry, run: Callable[..., Path]):
        registry.publish(run(1))
        shares = {"type": "set_route", "task": "t", "alias": "production", "route": {"shares": {"7": 500}}}
        content = commit(2, shares).to_json().replace(b'"7"', b'"1' + b"0" * 30 + b'"')
        write(registry, 2, content)
        with pytest.raises(UnreadableCommit, match="shares"):
            registry.history()

    def test_foreign_objects_are_not_looked_at(self, local: Registry, run: Callable[..., Path]):
        local.publish(run(1))
        for name in ("README", "00000000000000000002.json#1", ".00000000000000000002.json.swp", "2.json"):
            (Path(local.url) / "log" / name).write_text("?")
        assert Registry.open(local.url).state() == local.state()
        assert local.publish(run(2)).generation == 2


OLD_COMMITS = (
    (PUBLISH | {"run_id": "r1"}, alias(1)),
    (PUBLISH | {"version": 2, "run_id": ""}, alias(2)),
    ({"type": "rollback", "task": "t", "alias": "production", "version_from": 2, "version_to": 1},),
)
OLD_VERSION = {name: value for name, value in PUBLISH.items() if name not in ("type", "task")} | {
    "run_id": "r1",
    "published_at": "2026-01-01T00:00:00.000Z",
    "author": "ada@lab",
    "message": "first",
    "generation": 1,
    "retired": False,
}
OLD_CHECKPOINT = {
    "schema_version": 1,
    "state": {
        "generation": 1,
        "head": "id-1",
        "tasks": {"t": {"name": "t", "versions": {"1": OLD_VERSION}, "aliases": {"production": [1]}, "deleted": False}},
    },
}


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_registry_from_before_there_were_routes_opens(checkpoint: bool):
    store = memory_store()
    store.overwrite("registry.json", b'{"schema_version": 1, "id": "5f0c"}')
    for generation, actions in enumerate(OLD_COMMITS, 1):
        store.overwrite(log_path(generation), commit(generation, *actions).to_json())
    if checkpoint:
        data = json.dumps(OLD_CHECKPOINT).encode()
        store.overwrite(f"checkpoints/{1:020d}-{hashlib.sha256(data).hexdigest()}.json", data)
    registry = Registry.open(store)
    state = registry.state()
    assert (state.generation, state.task("t").serving, state.task("t").routes) == (3, {"production": 1}, {})
    assert state.task("t").versions[1].run_id == "r1"
    assert registry.set_route("t", "production", Route(shares={2: 500})) == 4
    assert Registry.open(store).state().task("t").route("production").shares == {2: 500}


class TestAppend:
    @pytest.fixture
    def log(self, registry: Registry) -> Log:
        log = Log(registry.store)
        log.append(commit(1, PUBLISH))
        return log

    def test_the_commit_that_is_comes_back(self, log: Log):
        ours, theirs = commit(2, alias(1)), commit(2, alias(1, "canary")).model_copy(update={"id": "theirs"})
        assert log.append(ours) == ours
        assert log.append(ours) == ours
        assert log.append(theirs) == ours

    def test_a_lost_answer_is_looked_for(self, registry: Registry, log: Log, monkeypatch: pytest.MonkeyPatch):
        put = registry.store.put_new

        def fail_after(path: str, data: bytes) -> bool:
            put(path, data)
            raise StoreFailed("memory://", path, "timed out")

        monkeypatch.setattr(registry.store, "put_new", fail_after)
        ours = commit(2, alias(1))
        assert log.append(ours) == ours
        with pytest.raises(StoreFailed, match="timed out"):
            log.append(ours.model_copy(update={"id": "theirs"}))

    def test_a_store_that_takes_nothing_says_so(self, registry: Registry, log: Log, monkeypatch: pytest.MonkeyPatch):
        def fail(path: str, *_: object) -> bool:
            raise StoreFailed("memory://", path, "read-only")

        monkeypatch.setattr(registry.store, "put_new", fail)
        with pytest.raises(StoreFailed, match="read-only"):
            log.append(commit(2, alias(1)))
        monkeypatch.setattr(registry.store, "read", fail)
        with pytest.raises(StoreFailed, match="read-only"):
            log.append(commit(2, alias(1)))

    @pytest.mark.parametrize(
        "bad",
        [
            commit(2, alias(1)).model_copy(update={"message": "x" * (5 << 20)}),
            commit(2, alias(1)).model_copy(update={"actions": ()}),
            commit(2, alias(1)).model_copy(
                update={"actions": (SetAlias(task="t", alias="b", version=1),) * 2, "id": 7}
            ),
        ],
        ids=["too large", "no actions", "an id that is none"],
    )
    @pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
    def test_what_could_not_be_read_back_is_not_written(self, log: Log, bad: Commit):
        with pytest.raises(UnreadableCommit, match=log_path(2)):
            log.append(bad)
        assert log.read(2) is None


class TestFarStore:
    """Several commits are asked for at once."""

    @pytest.fixture
    def log(self, local: Registry, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Log:
        monkeypatch.setattr("side_registry.log.FAR_S", -1)
        local.publish(run(1))
        local.publish(run(2))
        move_aliases(local, 40)
        return Log(local.store)

    @pytest.mark.parametrize("after", [0, 1, 2, 10, 38, 41, 42, 99])
    def test_the_rest_of_the_log_comes_in_order(self, log: Log, after: int):
        assert [commit.generation for commit in log.after(after)] == list(range(after + 1, 43))

    @pytest.mark.parametrize("place", [1, 2, 5, 42, 43])
    def test_what_precedes_an_unreadable_commit_comes_first(self, local: Registry, log: Log, place: int):
        local.store.overwrite(log_path(place), b"?")
        reader, commits = Registry.open(local.store), log.after(0)
        assert [next(commits).generation for _ in range(place - 1)] == list(range(1, place))
        with pytest.raises(UnreadableCommit, match=log_path(place)):
            next(commits)
        with pytest.raises(UnreadableCommit, match=log_path(place)):
            reader.state()
        assert reader.state(refresh=False).generation == place - 1

    def test_a_reader_may_stop_early(self, log: Log):
        reading = log.after(0)
        assert [next(reading).generation for _ in range(9)] == list(range(1, 10))
        del reading
