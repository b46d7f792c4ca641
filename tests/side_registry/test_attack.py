"""Many writers at once, and writers that die at any moment: every version lands exactly once, in order, and whole."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from side_registry import Registry, Store
from side_registry.maintenance.verify import verify
from tests.side_registry.races.test_races import published_versions
from tests.side_registry.races.writers import Writers
from tests.side_registry.runs import make_run
from tests.side_registry.store.s3_kit import s3_server

LARGE = 1 << 18
"""Bytes of a side network that takes a while to write."""


def runs(folder: Path, count: int, size: int = 100) -> list[Path]:
    return [
        make_run(folder / str(n), "sst2", random.Random(str(folder / str(n))).randbytes(size), f"{folder.name}-{n}")
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def processes() -> Iterator[Writers]:
    with Writers() as writers:
        yield writers


def all_publish(processes: Writers, url: str, folder: Path, writers: int, count: int) -> None:
    """So many processes create the registry and publish `count` runs at once, each moving one alias to its version."""
    for writer in range(writers):
        processes.start(url, runs(folder / f"writer-{writer}", count), "canary")
    outcomes = processes.finish(writers)
    assert [outcome["failure"] for outcome in outcomes if "failure" in outcome] == []
    published, registry = [outcome["versions"] for outcome in outcomes], Registry.open(url)
    assert sorted(version for versions in published for version in versions) == list(range(1, writers * count + 1))
    assert all(versions == sorted(versions) for versions in published)
    assert published_versions(registry, "sst2") == list(range(1, writers * count + 1))
    moves = [a.version for c in registry.history() for a in c.actions if a.type == "set_alias" and a.alias == "canary"]
    assert sorted(moves) == list(range(1, writers * count + 1))
    assert registry.state().task("sst2").serving == {"production": 1, "canary": moves[-1]}
    assert verify(Store.open(url)).findings == ()


@pytest.mark.parametrize("count", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_eight_processes_share_a_folder(processes: Writers, tmp_path: Path, count: int):
    all_publish(processes, str(tmp_path / "registry"), tmp_path, 8, count)


@pytest.mark.parametrize(("writers", "count"), [(3, 2), pytest.param(5, 6, marks=pytest.mark.slow)])
def test_processes_share_a_bucket(tmp_path: Path, writers: int, count: int):
    with s3_server(), Writers() as processes:  # which take the server's address from the environment
        all_publish(processes, "s3://bucket/shared", tmp_path, writers, count)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_publisher_may_die_at_any_moment(processes: Writers, tmp_path: Path, kills: int):
    """It is killed at a random point of its publish. The registry reads whole, and the next try is the same version."""
    url, moment, survived = str(tmp_path / "registry"), random.Random(kills), 0
    registry = Registry.open(url, create=True)
    first, *others = runs(tmp_path / "runs", kills + 1, LARGE)
    started = time.monotonic()
    processes.start(url, [first])
    assert processes.finish(1) == [{"versions": [1]}]
    usual = time.monotonic() - started
    for number, folder in enumerate(others, 2):
        pid = processes.start(url, [folder])
        time.sleep(moment.uniform(0, 1.2 * usual))
        processes.kill(pid)
        there = Registry.open(url).state()
        published = registry.publish(folder)
        assert published.version == number
        assert published.already == (there.task("sst2").last_version == number)
        survived += published.already
    assert published_versions(registry, "sst2") == list(range(1, kills + 2))
    assert [finding for finding in verify(Store.open(url)).findings if finding.level == "damage"] == []
    if kills >= 200:  # it was killed before its commit, and after
        assert 0 < survived < kills
