"""Addresses, and what is said where one cannot be used. What only an account at Google or Azure shows is not here."""

import os
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from side_registry import NotARegistry, Registry, RegistryNotFound, Store, StoreFailed


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch):
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        ["file://./x", "file://~/x", "file://registry", "file://registry/x", "file:///x?y=1", "file:///x#y", "file://"],
    )
    def test_a_file_url_that_names_no_absolute_folder_is_refused(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(NotARegistry, match="file:///ABSOLUTE/PATH"):
            Store.open(url, create=True)
        assert list(tmp_path.iterdir()) == []

    def test_localhost_is_this_machine(self, tmp_path: Path):
        assert Store.open(f"file://localhost{tmp_path}").url == str(tmp_path)

    def test_memory_is_empty_and_forgotten(self):
        assert Registry.open("memory://", create=True).state().generation == 0
        with pytest.raises(RegistryNotFound):
            Registry.open("memory://")

    @pytest.mark.parametrize(
        "url",
        [
            "s3://bucket",
            "S3://bucket/a/b/",
            "s3a://bucket/a",
            "gs://bucket/a",
            "abfss://box@account.dfs.core.windows.net/a",
        ],
    )
    def test_remote_addresses_open_without_a_request(self, url: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert Store.open(url).url == url

    def test_an_azure_container_needs_its_account(self, monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(StoreFailed, match="set AZURE_STORAGE_ACCOUNT_NAME"):
            Store.open("az://container/a")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        assert Store.open("az://container/a").url == "az://container/a"

    def test_google_credentials_that_are_not_there_are_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
        with pytest.raises(StoreFailed, match=r"key\.json"):
            Store.open("gs://bucket/a")

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("s3://", "use s3://BUCKET"),
            ("ftp://host/a", "use s3://BUCKET"),
            ("gopher://hole", "use s3://BUCKET"),
            ("://", "use s3://BUCKET"),
            ("https://example.com/a", "a web server keeps no objects"),
            ("", "empty"),
            ("  ", "empty"),
            ("a\0b", "NUL"),
            ("~nobody-of-this-name/x", "home directory"),
        ],
    )
    def test_what_is_no_address(self, url: str, why: str):
        with pytest.raises(NotARegistry, match=why):
            Store.open(url, create=True)

    @pytest.mark.parametrize("url", ["s3://ada:secret@bucket/a", "https://x.blob.core.windows.net/c?sig=secret"])
    def test_secrets_in_an_address_are_refused_and_not_repeated(self, url: str):
        with pytest.raises(NotARegistry, match="set them as environment") as caught:
            Store.open(url)
        assert "secret" not in str(caught.value)


class TestFolder:
    def test_a_draft_is_no_object(self, tmp_path: Path):
        store = Store.open(tmp_path, create=True)
        store.put_new("log/1", b"one")
        (tmp_path / "log" / "2#1").write_bytes(b"hal")
        assert store.list("log") == ["log/1"]
        assert [(draft.path, draft.size) for draft in store.drafts()] == [("log/2#1", 3)]
        store.remove("log/2#1")
        assert store.drafts() == []

    def test_a_file_in_the_way_is_told(self, tmp_path: Path):
        store = Store.open(tmp_path, create=True)
        (tmp_path / "log").write_text("a file, not a folder")
        with pytest.raises(StoreFailed, match="log"):
            store.put_new("log/1", b"one")


def test_a_store_without_put_if_absent_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Some stores only look like S3 and overwrite all the same: two writers would both think that they had won."""
    store = Store("memory://", MemoryStore())

    def overwrite(path: str, data: bytes) -> bool:
        store.overwrite(path, data)
        return True

    monkeypatch.setattr(store, "put_new", overwrite)
    for _ in range(2):  # what the first attempt leaves is no registry
        with pytest.raises(NotARegistry, match="overwrites what it was told not to"):
            Registry.open(store, create=True)
        assert store.is_empty()
    with pytest.raises(RegistryNotFound):
        Registry.open(store)
