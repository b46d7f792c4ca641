"""A store that hangs, and things in its folder that are no files: every call ends, and nothing is lost for later."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest

from side_registry import CorruptBlob, Registry, Store, StoreFailed, UnreadableCommit
from side_registry.blobs import blob_path
from side_registry.log import log_path
from side_registry.maintenance.verify import verify

MakeRun = Callable[..., Path]


class Hanging:
    """Requests for paths that begin with `prefix` hang until `opened` is set; `asked` is set by the first of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefix = "nothing"
        self.asked = threading.Event()
        self.opened = threading.Event()
        for verb in ("get", "put", "head", "list"):
            monkeypatch.setattr(obstore, verb, self._late(getattr(obstore, verb)))

    def _late(self, request: Callable[..., Any]) -> Callable[..., Any]:
        def ask(objects: Any, path: str | None = None, *rest: Any, **named: Any) -> Any:
            if (path or "").startswith(self.prefix):
                self.asked.set()
                self.opened.wait(60)
            return request(objects, path, *rest, **named)

        return ask


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    made = Hanging(monkeypatch)
    yield made
    made.opened.set()


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.read("log/1", 9),
        lambda store: store.stream("log/1"),
        lambda store: store.find("log/1"),
        lambda store: store.put_new("log/2", b""),
        lambda store: store.overwrite("log/1", b""),
        lambda store: store.list("log"),
    ],
)
def test_every_verb_ends(tmp_path: Path, hanging: Hanging, call: Callable[[Store], object]):
    store = Store.open(tmp_path)
    store.overwrite("log/1", b"x")
    hanging.prefix = "log"
    store.answer_s = 0.01
    with pytest.raises(StoreFailed, match=r"did not answer within 0\.01 s"):
        call(store)
    hanging.opened.set()
    store.answer_s = 60.0
    assert store.read("log/1", 9) is not None


def test_what_was_read_can_be_had_while_the_store_hangs_and_all_goes_on_after(
    local: Registry, run: MakeRun, hanging: Hanging
):
    local.publish(run(1))
    Registry.open(local.url).publish(run(2))
    hanging.prefix = log_path(3)
    local.store.answer_s = 60.0
    with ThreadPoolExecutor() as threads:
        first = threads.submit(local.state)
        assert hanging.asked.wait(60)
        assert local.state(refresh=False).generation == 1
        local.store.answer_s = 0.05
        with pytest.raises(StoreFailed):
            local.state()
        assert local.state(refresh=False).generation == 2  # all that could be read
        assert not first.done()
        hanging.opened.set()
        assert first.result(60).generation == 2
    local.store.answer_s = 60.0
    assert local.publish(run(3)).generation == 3


def make_special(path: Path, what: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()


SPECIAL = pytest.mark.parametrize(
    ("what", "why"),
    [("pipe", "it is a pipe"), ("link", "link to nowhere, which does not exist"), ("folder", "a folder")],
)


@SPECIAL
def test_at_the_next_position_of_the_log_it_stops_writers_and_verify_says_so(
    local: Registry, run: MakeRun, what: str, why: str
):
    for number in (1, 2):
        local.publish(run(number))
    path = Path(local.url, log_path(3))
    make_special(path, what)
    with pytest.raises(UnreadableCommit, match=why) as caught:
        local.set_alias("sst2", "production", 2)
    assert caught.value.path == log_path(3)
    assert local.state(refresh=False).generation == 2
    result = verify(Store.open(local.url))
    assert not result.sound
    assert [(finding.path, why in finding.what) for finding in result.findings] == [(log_path(3), True)]
    path.rmdir() if what == "folder" else path.unlink()
    assert local.set_alias("sst2", "production", 2) == 3
    assert verify(Store.open(local.url)).sound


@SPECIAL
def test_in_the_middle_of_the_log_and_of_the_files_it_is_damage(local: Registry, run: MakeRun, what: str, why: str):
    for number in (1, 2):
        local.publish(run(number))
    [blob] = local.manifest("sst2", 2).files.values()
    for path in (Path(local.url, log_path(1)), Path(local.url, blob_path(blob.sha256))):
        path.unlink()
        make_special(path, what)
    with pytest.raises(CorruptBlob, match=why):
        local.download("sst2", 2, local.url + "-copy")
    [finding, *_] = verify(Store.open(local.url)).findings
    assert finding.path == log_path(1)
    assert why in finding.what
    with pytest.raises(UnreadableCommit, match=why):
        Registry.open(local.url).state()
