"""Many writers, one registry: every version lands exactly once, in order."""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from side_registry import Contended, Publish, Registry
from side_registry.log import Log
from tests.side_registry.runs import make_run

PUBLISHER = """
import sys
from pathlib import Path
from side_registry import Registry
registry = Registry.open(sys.argv[1], create=True)
print("ready", flush=True)
sys.stdin.readline()
for folder in sys.argv[2:]:
    print(registry.publish(folder).version, flush=True)
"""


def published_versions(registry: Registry, task: str) -> list[int]:
    """In the log's order."""
    actions = [action for commit in registry.history() for action in commit.actions]
    return [action.version for action in actions if isinstance(action, Publish) and action.task == task]


def in_threads(jobs: Sequence[Callable[[], object]]) -> None:
    failures: list[Exception] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("shared", [True, False], ids=["one registry object", "one each"])
def test_four_threads_publish_at_once(tmp_path: Path, shared: bool):
    url = tmp_path / "registry"
    registry = Registry.open(url, create=True)
    runs = [[make_run(tmp_path / f"{t}-{n}", "sst2", b"%d %d" % (t, n)) for n in range(6)] for t in range(4)]
    numbers: list[int] = []

    def publish(folders: list[Path]) -> None:
        mine = registry if shared else Registry.open(url)
        numbers.extend(mine.publish(folder, alias="canary").version for folder in folders)

    in_threads([lambda folders=folders: publish(folders) for folders in runs])
    assert sorted(numbers) == list(range(1, 25))
    assert published_versions(registry, "sst2") == list(range(1, 25))
    state = Registry.open(url).state()
    assert state == registry.state()
    assert state.task("sst2").serving == {"canary": 24}
    assert state.generation == 24


def test_the_same_run_published_by_all_is_one_version(tmp_path: Path):
    registry = Registry.open(tmp_path / "registry", create=True)
    folder = make_run(tmp_path / "run")
    in_threads([lambda: registry.publish(folder)] * 4)
    assert published_versions(registry, "sst2") == [1]
    assert registry.state().generation == 1


def test_two_processes_create_and_publish_at_once(tmp_path: Path):
    url = tmp_path / "registry"
    runs = [[str(make_run(tmp_path / f"{p}-{n}", "sst2", b"%d %d" % (p, n))) for n in range(5)] for p in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(url), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for folders in runs
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(int(line) for output in outputs for line in output.split()) == list(range(1, 11))
    assert published_versions(Registry.open(url), "sst2") == list(range(1, 11))


def test_a_loser_decides_again(local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody else publishes between our look and our commit: we get the next number, and production stays theirs."""
    rival, ours, theirs = Registry.open(local.url), make_run(tmp_path / "a"), make_run(tmp_path / "b", payload=b"other")
    append, lost = Log.append, []

    def append_late(log: Log, commit: object) -> bool:
        if log is local._log and not lost:
            lost.append(rival.publish(theirs))
        return append(log, commit)  # type: ignore[arg-type]

    monkeypatch.setattr(Log, "append", append_late)
    published = local.publish(ours)
    assert (published.version, published.generation, published.aliases) == (2, 2, {})


def test_a_writer_that_always_loses_says_so(local: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Log, "append", lambda *_: False)
    monkeypatch.setattr("side_registry.registry.LONGEST_PAUSE_S", 0)
    with pytest.raises(Contended, match="64 times"):
        local.publish(make_run(tmp_path / "run"))
