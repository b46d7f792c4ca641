"""Groups go with the exports of their tasks, and name the same versions in the other registry."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from side_registry import ArtifactError, Registry, Store, TaskRef
from side_registry.maintenance.transfer import export_task, import_task
from tests.side_registry.runs import make_run, memory_store

MakeRun = Callable[..., Path]


@pytest.fixture
def source(local: Registry, tmp_path: Path) -> Registry:
    """Tasks sst2 (versions 1 retired, 2, 3) and rte (1); guard: sst2:1, then sst2:2 and rte, then sst2:3 and rte."""
    for task, number in (("sst2", 1), ("sst2", 2), ("sst2", 3), ("rte", 1)):
        local.publish(make_run(tmp_path / f"{task}{number}", task, b"%d" % number, f"{task}-{number}"))
    local.set_alias("sst2", "production", 2)
    for members in (["sst2:1"], ["sst2:2", "rte"], ["sst2:3", "rte"]):
        local.set_group("guard", members)
    local.retire("sst2", 1)
    return local


def export(source: Registry, task: str, folder: Path) -> Path:
    export_task(source.store, TaskRef.parse(task), folder / f"{task}.tar")
    return folder / f"{task}.tar"


def members(store: Store, group: str = "guard") -> list[tuple[str, ...]]:
    """The tasks of each version of a group's past."""
    return [version.members for version in Registry.open(store).state().group(group).past]


@pytest.mark.parametrize("order", [("sst2", "rte"), ("rte", "sst2")])
def test_a_group_arrives_with_the_last_of_its_tasks(source: Registry, tmp_path: Path, order: tuple[str, str]) -> None:
    store = memory_store()
    first = import_task(export(source, order[0], tmp_path), store)
    lacking = {"sst2": ("rte",), "rte": ("sst2:3",)}
    assert (first.groups, first.waiting) == ({}, {"guard": lacking[order[0]]})
    last = import_task(export(source, order[1], tmp_path), store)
    assert (last.groups, last.waiting) == ({"guard": 2}, {})
    assert members(store) == [("sst2:1", "rte"), ("sst2:2", "rte")]  # the version that was retired is not there
    assert Registry.open(store).rollback_group("guard").members == ("sst2:1", "rte")


def test_imported_again_or_where_it_came_from_changes_nothing(source: Registry, tmp_path: Path) -> None:
    exports = [export(source, task, tmp_path) for task in ("sst2", "rte")]
    store = memory_store()
    for where in (store, Store.open(source.url)):
        for path in exports:
            import_task(path, where)
        before = Registry.open(where).state()
        for path in exports:
            again = import_task(path, where, aliases="all")
            assert (again.groups, again.waiting) == ({}, {})
        assert Registry.open(where).state() == before


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        ("missing", [("sst2:1",)]),
        ("none", [("sst2:1",)]),
        ("all", [("sst2:1",), ("sst2:3", "rte")]),
    ],
)
def test_a_group_that_is_there_changes_only_if_all_do(
    source: Registry, tmp_path: Path, aliases: str, expected: list[tuple[str, ...]]
) -> None:
    store = memory_store()
    target = Registry.open(store, create=True)
    target.publish(make_run(tmp_path / "own", "sst2", b"own", "own"))
    target.set_group("guard", ["sst2:1"])
    for task in ("rte", "sst2"):
        import_task(export(source, task, tmp_path), store, aliases=aliases)  # type: ignore[arg-type]
    assert members(store) == expected


def test_an_export_from_before_groups_is_read(source: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    export_task(source.store, TaskRef.parse("rte"), folder)
    listing = json.loads((folder / "export.json").read_text())
    del listing["groups"]
    (folder / "export.json").write_text(json.dumps(listing))
    done = import_task(folder, memory_store())
    assert (done.new, done.groups, done.waiting) == ((1,), {}, {})


@pytest.mark.parametrize(
    ("versions", "why"),
    [
        ([[{"ref": "rte"}, {"ref": "rte@canary"}]], "it would have task 'rte' twice"),
        ([[{"ref": "sst2:3"}]], "group guard names a version without its manifest"),
        ([[{"ref": "../x"}]], "ref"),
        ([[]], "it would have no task"),
        ([], "versions"),
    ],
)
def test_groups_that_lie_are_refused(source: Registry, tmp_path: Path, versions: list[object], why: str) -> None:
    folder = tmp_path / "x"
    export_task(source.store, TaskRef.parse("rte"), folder)
    listing = json.loads((folder / "export.json").read_text())
    listing["groups"] = [{"name": "guard", "versions": versions}]
    (folder / "export.json").write_text(json.dumps(listing))
    store = memory_store()
    with pytest.raises(ArtifactError, match=why):
        import_task(folder, store)
    assert store.is_empty()
