"""`sidecast publish --sign`, `sign` and `verify` as users run them."""

from pathlib import Path

import pytest

from side_registry import Registry
from tests.side_registry.runs import make_run
from tests.side_registry.signing.signing_kit import KeyPair, make_key
from tests.sidecast.cli_kit import done, sidecast


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path)


def test_a_version_is_signed_when_it_is_published_or_later(tmp_path: Path, pair: KeyPair) -> None:
    url = str(tmp_path / "registry")
    first, second = (make_run(tmp_path / f"run-{n}", "sst2", b"%d" % n, f"run-{n}") for n in (1, 2))
    done("publish", first, "--registry", url, "--sign", pair.private)
    done("publish", second, "--registry", url)
    assert done("verify", "sst2", "--key", pair.public, "--registry", url).out == "sst2:1 is verified\n"
    ran = sidecast("verify", "sst2:2", "--key", pair.public, "--registry", url)
    assert (ran.code, ran.out) == (1, "sst2:2 is not verified: it has no signature\n")
    assert "signed sst2:2" in done("sign", "sst2:2", "--key", pair.private, "--registry", url).out
    assert done("verify", "sst2:2", "--key", pair.public, "--registry", url, "--json").document["verified"]
    stranger = make_key(tmp_path, "stranger").public
    ran = sidecast("verify", "sst2:2", "--key", stranger, "--registry", url)
    assert (ran.code, "not trusted" in ran.out) == (1, True)


def test_a_policy_and_damage_decide_too(tmp_path: Path, pair: KeyPair) -> None:
    url = str(tmp_path / "registry")
    done("publish", make_run(tmp_path / "run"), "--registry", url, "--sign", pair.private)
    policy = tmp_path / "trust.toml"
    policy.write_text('[[trust]]\ntasks = "sst2"\nkeys = ["key.pub.pem"]\n')
    assert done("verify", "sst2", "--trust", policy, "--registry", url).out.endswith("is verified\n")
    [blob] = Registry.open(url).manifest("sst2", 1).files.values()
    Path(url, "blobs/sha256", blob.sha256).write_bytes(b"?")
    ran = sidecast("verify", "sst2", "--trust", policy, "--registry", url)
    assert (ran.code, "side_network.safetensors is damaged" in ran.out) == (1, True)


def test_mistakes_are_one_line(tmp_path: Path, pair: KeyPair) -> None:
    run = make_run(tmp_path / "run")
    url = tmp_path / "registry"
    assert "none.pem" in sidecast("publish", run, "--registry", url, "--sign", tmp_path / "none.pem").mistake
    assert not url.exists() or not Registry.open(url).state().tasks
    assert "--sign" in sidecast("publish", run, "--registry", url, "--certificate", pair.public).mistake
    done("publish", run, "--registry", url)
    assert "whom you trust" in sidecast("verify", "sst2", "--registry", url).mistake
    assert "--registry" in sidecast("sign", "sst2", "--key", pair.private).mistake
