"""The registry on S3: a server that speaks its API, asked over HTTP through obstore, as any bucket would be."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from side_registry import SIDE_NETWORK, NotARegistry, Registry, RegistryNotFound, Store, StoreFailed
from side_registry.maintenance.gc import collect
from side_registry.maintenance.verify import verify
from side_registry.store import RETRY
from tests.side_registry.runs import memory_store
from tests.side_registry.store.s3_kit import s3_server, send

MakeRun = Callable[..., Path]
CREATORS = 64


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def url(endpoint: str, request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://bucket/team/{request.node.name}"


def gather(jobs: list[Callable[[], object]]) -> list[object]:
    """All at once; each one's result."""
    results, gate = [], threading.Barrier(len(jobs))

    def do(job: Callable[[], object]) -> None:
        gate.wait()
        results.append(job())

    threads = [threading.Thread(target=do, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that the server is asked for from now on."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication

    asked, answer = [], DomainDispatcherApplication.__call__

    def counted(self: object, environ: dict, start_response: Callable) -> object:
        asked.append(environ["PATH_INFO"])
        return answer(self, environ, start_response)

    monkeypatch.setattr(DomainDispatcherApplication, "__call__", counted)
    return asked


class TestVerbs:
    def test_of_64_racing_creators_one_wins(self, url: str):
        stores = [Store.open(url) for _ in range(4)]
        jobs = [lambda n=n: stores[n % 4].put_new("log/1", b"%d" % n) and n for n in range(CREATORS)]
        won = [result for result in gather(jobs) if result is not False]
        assert len(won) == 1
        assert stores[0].read("log/1", 100) == b"%d" % won[0]

    def test_objects_lie_below_the_prefix(self, url: str):
        Store.open(url).put_new("log/1", b"one")
        whole = Store.open("s3://bucket")
        assert whole.read(url.removeprefix("s3://bucket/") + "/log/1", 100) == b"one"
        assert Store.open(url).list("log") == ["log/1"]

    def test_each_verb(self, url: str):
        store = Store.open(url + "/")
        assert store.is_empty()
        assert store.read("a", 10) is None
        assert store.stream("a") is None
        assert store.find("a") is None
        assert store.put_new("a/b", b"12345")
        assert not store.put_new("a/b", b"other")
        found = store.find("a/b")
        assert found is not None
        assert (found.path, found.size) == ("a/b", 5)
        assert store.move("a/b", "a/c")
        assert not store.move("a/b", "a/c")
        assert [entry.path for entry in store.entries("a")] == ["a/c"]
        store.overwrite("a/c", b"new")
        assert store.read("a/c", 10) == b"new"
        store.remove("a/c")
        store.remove("a/c")
        assert store.is_empty()

    def test_an_object_of_many_parts_is_whole(self, url: str):
        store, data = Store.open(url), bytes(range(256)) * 48 * 1024
        store.overwrite("big", data)
        assert b"".join(store.stream("big") or ()) == data

    @pytest.mark.slow
    def test_more_objects_than_a_page_lists(self, url: str):
        store = Store.open(url)
        gather([lambda n=n: [store.put_new(f"x/{n}-{m}", b"") for m in range(64)] for n in range(16)])
        assert len(store.list("x")) == 1024


class TestRegistry:
    def test_publish_promote_roll_back_and_download(self, url: str, run: MakeRun, tmp_path: Path):
        registry = Registry.open(url, create=True)
        assert registry.publish(run(1)).aliases == {"production": 1}
        assert registry.publish(run(2)).version == 2
        registry.set_alias("sst2", "production", 2)
        server = Registry.open(url)
        assert server.state().task("sst2").serving == {"production": 2}
        artifact = server.download("sst2", 2, tmp_path / "cache")
        assert artifact.side_network.read_bytes() == (run(2) / SIDE_NETWORK).read_bytes()
        registry.rollback("sst2")
        assert server.wait(3, timeout_s=5) == registry.state()
        assert server.state().task("sst2").serving == {"production": 1}
        assert registry.publish(run(1)).already
        assert verify(Store.open(url)).findings == ()

    def test_memory_a_folder_and_a_bucket_hold_the_same(self, url: str, local: Registry, run: MakeRun):
        memory, remote = Registry.open(memory_store(), create=True), Registry.open(url, create=True)
        for registry in (memory, local, remote):
            registry.publish(run(1))
            registry.publish(run(2), alias="production")
            registry.rollback("sst2")
        for registry in (memory, remote):
            for path in local.store.list("blobs"):
                assert registry.store.read(path, 1 << 20) == local.store.read(path, 1 << 20)
            assert [commit.actions for commit in registry.history()] == [commit.actions for commit in local.history()]

    def test_garbage_is_collected(self, url: str, run: MakeRun):
        registry = Registry.open(url, create=True)
        registry.publish(run(1))
        store = Store.open(url)
        store.overwrite("blobs/sha256/" + "a" * 64, b"left behind")
        done = collect(store, grace=timedelta(seconds=-2), delete=True)  # S3 dates objects to the second
        assert [entry.size for entry in done.removed] == [11]
        assert verify(store).findings == ()

    def test_a_poll_is_one_request(self, url: str, run: MakeRun, monkeypatch: pytest.MonkeyPatch):
        registry = Registry.open(url, create=True)
        registry.publish(run(1))
        registry.state()
        asked = count_requests(monkeypatch)
        assert registry.wait(after=1, timeout_s=0) is None
        assert [path.rpartition("/log/")[2] for path in asked] == ["00000000000000000002.json"]


class TestFaults:
    """Each is one sentence that names the address and the remedy."""

    @pytest.fixture(autouse=True)
    def short_pauses(self, monkeypatch: pytest.MonkeyPatch):
        """As many tries as ever, with less time between them."""
        pauses = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=10), "base": 2}
        monkeypatch.setattr("side_registry.store.RETRY", {**RETRY, "backoff": pauses})

    def refused(self, url: str, kind: type[Exception] = StoreFailed) -> str:
        with pytest.raises(kind) as caught:
            Registry.open(url, create=True)
        assert "\n" not in str(caught.value)
        assert "<?xml" not in str(caught.value)
        return str(caught.value)

    def test_a_missing_bucket(self, endpoint: str):
        assert "s3://nobody" in self.refused("s3://nobody/r")
        assert "there is no such bucket or container; make it first" in self.refused("s3://nobody/r")

    def test_nothing_there(self, url: str):
        with pytest.raises(RegistryNotFound, match="s3://bucket/team"):
            Registry.open(url)

    def test_something_else_there(self, url: str):
        Store.open(url).put_new("photo.jpg", b"")
        assert "it holds other files" in self.refused(url, NotARegistry)

    def test_wrong_credentials(self, endpoint: str, url: str):
        send(f"{endpoint}/moto-api/reset-auth", data=b"0")
        try:
            assert "access is denied (InvalidAccessKeyId)" in self.refused(url)
        finally:
            send(f"{endpoint}/moto-api/reset-auth", data=b"inf")

    def test_no_credentials(self, url: str, monkeypatch: pytest.MonkeyPatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
        assert "no credentials were found; set them in the environment" in self.refused(url)

    def test_half_the_credentials(self, url: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "Missing SecretAccessKey" in self.refused(url)

    def test_an_endpoint_that_cannot_be_reached(self, url: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "127.0.0.1:9 cannot be reached" in self.refused(url)

    def test_plain_http_must_be_allowed(self, url: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("AWS_ALLOW_HTTP")
        assert "set AWS_ALLOW_HTTP=true" in self.refused(url)

    def test_a_store_that_goes_away_leaves_the_last_state(
        self, url: str, run: MakeRun, monkeypatch: pytest.MonkeyPatch
    ):
        Registry.open(url, create=True).publish(run(1))
        reader = Registry.open(url)
        before = reader.state()
        monkeypatch.setattr(reader.store, "read", lambda *_: (_ for _ in ()).throw(StoreFailed(url, "log", "gone")))
        with pytest.raises(StoreFailed):
            reader.state()
        assert reader.state(refresh=False) == before
