"""`sidecast registry verify | gc | export | import` as users run them."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from side_registry import Registry
from side_registry.blobs import Blobs
from tests.side_registry.maintenance.webhook_kit import SECRET, Receiver
from tests.side_registry.runs import make_run
from tests.sidecast.cli_kit import done, sidecast


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry.open(tmp_path / "registry", create=True)
    for number in (1, 2):
        registry.publish(make_run(tmp_path / f"run-{number}", "sst2", b"%d" % number, f"run-{number}"))
    return registry


@pytest.fixture
def orphan(registry: Registry) -> Path:
    path = Path(registry.url, "blobs/sha256", Blobs(registry.store).add(b"left behind"))
    os.utime(path, (0, 0))
    return path


class TestVerify:
    def test_a_sound_registry(self, registry: Registry):
        ran = done("registry", "verify", "--registry", registry.url)
        assert ran.out.startswith("generation 2: 1 tasks, 2 versions, 4 files, ")
        assert ran.out.endswith("sound\n")
        document = done("registry", "verify", "--registry", registry.url, "--json").document
        assert (document["sound"], document["findings"]) == (True, [])

    def test_damage_is_a_table_and_exit_code_1(self, registry: Registry):
        [file] = registry.manifest("sst2", 2).files.values()
        Path(registry.url, "blobs/sha256", file.sha256).write_bytes(b"?")
        ran = sidecast("registry", "verify", "--registry", registry.url)
        assert ran.code == 1
        heading, row, summary = ran.out.splitlines()
        assert heading.split() == ["level", "object", "what"]
        assert row.split()[:2] == ["damage", f"blobs/sha256/{file.sha256}"]
        assert "side_network.safetensors of sst2:2" in row
        assert summary.endswith("1 damaged")
        ran = sidecast("registry", "verify", "--registry", registry.url, "--json")
        assert (ran.code, ran.document["sound"], len(ran.document["findings"])) == (1, False, 1)

    def test_no_registry(self, tmp_path: Path):
        assert "there is no registry" in sidecast("registry", "verify", "--registry", tmp_path / "x").mistake
        assert "--registry" in sidecast("registry", "verify").mistake


class TestGc:
    def test_it_says_and_then_does(self, registry: Registry, orphan: Path):
        ran = done("registry", "gc", "--registry", registry.url)
        assert f"blobs/sha256/{orphan.name}" in ran.out
        assert "--delete would remove 1 files, 11 B; 0 too young, 4 in use" in ran.out
        assert orphan.exists()
        ran = done("registry", "gc", "--registry", registry.url, "--delete")
        assert "removed 1 files, 11 B" in ran.out
        assert not orphan.exists()
        assert "nothing to remove" in done("registry", "gc", "--registry", registry.url).out

    def test_json(self, registry: Registry, orphan: Path):
        document = done("registry", "gc", "--registry", registry.url, "--grace", "1h", "--json").document
        assert [each["path"] for each in document.pop("removed")] == [f"blobs/sha256/{orphan.name}"]
        assert document == {"deleted": False, "bytes": 11, "restored": [], "young": 0, "used": 4}

    def test_a_very_long_time(self, registry: Registry, orphan: Path):
        ran = done("registry", "gc", "--registry", registry.url, "--grace", "999999999d", "--delete")
        assert "removed 0 files, 0 B; 1 too young" in ran.out

    @pytest.mark.parametrize("grace", ["5x", "-1d", "week", "", "9999999999d"])
    def test_no_time(self, registry: Registry, grace: str):
        assert (
            "give a time such as 12h or 7d"
            in sidecast("registry", "gc", "--registry", registry.url, "--grace", grace).mistake
        )


class TestTransfer:
    @pytest.mark.parametrize("target", ["out", "out.tar"])
    def test_there_and_back(self, registry: Registry, tmp_path: Path, target: str):
        ran = done("registry", "export", "sst2", tmp_path / target, "--registry", registry.url)
        assert ran.out == f"exported sst2 version 1, 2 to {tmp_path / target}\n"
        words = ("registry", "import", tmp_path / target, "--registry", tmp_path / "other")
        ran = done(*words)
        assert [line.split()[-1] for line in ran.out.splitlines()[2:4]] == ["new", "new"]
        assert ran.out.endswith("sst2@production is version 1\n")
        again = done(*words, "--json").document
        versions = {"versions": {"1": 1, "2": 2}, "new": [], "retired": []}
        assert again == {"task": "sst2", **versions, "aliases": {}, "groups": {}, "waiting": {}, "generation": 1}
        other = Registry.open(tmp_path / "other")
        history = other.history()
        assert history[0].message == f"import of sst2 1, 2 of registry {registry.id}"
        other.retire("sst2", 2)
        assert any(line.split() == ["2", "retired", "here"] for line in done(*words).out.splitlines())

    def test_groups_are_told(self, registry: Registry, tmp_path: Path):
        registry.set_group("guard", ["sst2:2"])
        path, where = tmp_path / "out.tar", ("--registry", tmp_path / "other")
        ran = done("registry", "export", "sst2", path, "--registry", registry.url, "--json")
        assert ran.document["groups"] == ["guard"]
        assert "group guard is version 1\n" in done("registry", "import", path, *where).out
        registry.publish(make_run(tmp_path / "rte", "rte"))
        registry.set_group("guard", ["sst2:2", "rte"])
        done("registry", "export", "sst2", path, "--registry", registry.url)
        ran = done("registry", "import", path, *where, "--aliases", "all")
        assert "group guard is not set yet: import rte too\n" in ran.out

    def test_mistakes(self, registry: Registry, tmp_path: Path):
        assert (
            "no task 'cola'"
            in sidecast("registry", "export", "cola", tmp_path / "x", "--registry", registry.url).mistake
        )
        assert (
            "no version 7"
            in sidecast("registry", "export", "sst2:7", tmp_path / "x", "--registry", registry.url).mistake
        )
        ran = sidecast("registry", "import", tmp_path / "run-1", "--registry", tmp_path / "other")
        assert "it has no export.json" in ran.mistake
        assert not (tmp_path / "other").exists()
        ran = sidecast("registry", "export", "sst2", registry.url, "--registry", registry.url)
        assert "is no export" in ran.mistake


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    yield opened
    opened.close()


class TestWebhooks:
    def test_changes_after_the_first_start_are_posted(self, registry: Registry, tmp_path: Path, receiver: Receiver):
        secret = tmp_path / "secret"
        secret.write_text(f"whsec_{base64.b64encode(SECRET).decode()}\n")
        words = ("webhooks", "--registry", registry.url, "--url", receiver.url, "--once")
        words += ("--secret-file", str(secret), "--position", str(tmp_path / "position.json"))
        assert done(*words).out == "0 events delivered\n"
        registry.set_alias("sst2", "production", 2)
        assert done(*words, "--json").document == {"delivered": 1}
        [(_, event)] = receiver.take()
        assert event["type"] == "alias.promoted"

    def test_a_secret_that_is_too_short_is_a_users_mistake(self, registry: Registry, tmp_path: Path):
        (tmp_path / "secret").write_text("whsec_c2hvcnQ=")
        ran = sidecast(
            "webhooks",
            "--registry",
            registry.url,
            "--url",
            "http://127.0.0.1:1/",
            "--once",
            "--secret-file",
            str(tmp_path / "secret"),
            "--position",
            str(tmp_path / "position.json"),
        )
        assert ran.code == 2
        assert "must have secrets of 24 bytes or more" in ran.err
