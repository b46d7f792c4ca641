"""Versions with and without a trusted signature: in the loader, and in a server that follows its registry."""

import logging
from pathlib import Path

import pytest

from ladder import Backbone, Tokenizer
from serving.access import TrustPolicy
from serving.client import Client
from serving.components import assemble
from serving.config import AccessConfig, EngineConfig, LoadConfig, ServeConfig
from serving.errors import CorruptSide, UntrustedSide
from serving.versions.loader import Loader
from side_registry import Registry
from side_registry.blobs import Blobs
from side_registry.signing import SigningKey, signed_digests
from tests.serving.api_kit import serving
from tests.serving.kit import make_run, make_spec
from tests.serving.versions.kit import refusal
from tests.side_registry.signing.signing_kit import KeyPair, make_key
from tests.sidecast.cli_kit import wait_until


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path)


@pytest.fixture
def policy(tmp_path: Path, pair: KeyPair) -> Path:
    path = tmp_path / "trust.toml"
    path.write_text(f'[[trust]]\ntasks = "sst2*"\nkeys = ["{pair.public.name}"]\n')
    return path


def sign(registry: Registry, version: int, pair: KeyPair) -> None:
    stored = registry.artifact("sst2", version)
    digests = signed_digests(stored.manifest, stored.manifest_sha256)
    registry.add_signature(stored.manifest_sha256, SigningKey(key=pair.private).sign("sst2", digests))


def test_a_version_is_not_downloaded_before_somebody_trusted_signed_it(
    publish,
    registry: Registry,
    backbone: Backbone,
    tokenizer: Tokenizer,
    pair: KeyPair,
    policy: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish()
    loader = Loader(registry, backbone, tokenizer, LoadConfig(), trust=TrustPolicy(policy))
    fetch = Blobs.fetch
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "sidecast.audit"):
        patch.setattr(Blobs, "fetch", lambda *_: pytest.fail("fetched"))
        error = refusal(loader, UntrustedSide)
        assert error.transient
        assert "it has no signature" in str(error)
        sign(registry, 1, make_key(tmp_path, "stranger"))
        for _ in range(2):
            assert "is not trusted for this task" in str(refusal(loader, UntrustedSide))
    lines = [record.__dict__["audit"] for record in caplog.records if record.name == "sidecast.audit"]
    assert [(line["event"], line["verb"], line["result"]) for line in lines] == [
        ("refusal", "load", "UNTRUSTED_SIDE")
    ] * 2  # one for each reason, not for each try
    assert lines[0]["tasks"] == ["sst2"]
    sign(registry, 1, pair)
    assert Blobs.fetch is fetch
    assert loader.load("sst2", 1).version == 1


def test_a_signed_file_that_was_changed_in_the_store_is_refused(
    publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer, pair: KeyPair, policy: Path
) -> None:
    digest = publish()
    sign(registry, 1, pair)
    blob = Path(registry.url, "blobs/sha256", digest)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    refusal(Loader(registry, backbone, tokenizer, LoadConfig(), trust=TrustPolicy(policy)), CorruptSide)


def test_a_server_serves_the_signed_version_until_the_new_one_is_signed(
    tmp_path: Path, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer, pair: KeyPair, policy: Path
) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    first, second = (make_run(tmp_path / f"run-{n}", backbone, tokenizer, make_spec(), seed=n) for n in (1, 2))
    registry.publish(first, signature=SigningKey(key=pair.private).sign_run(first))
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=registry.url,
        dtype="float32",
        threads=1,
        port=0,
        metrics_port=0,
        http_port=0,
        engine=EngineConfig(warmup_s=0),
        load=LoadConfig(poll_s=0.05, retry_s=0.05),
        access=AccessConfig(trust=str(policy)),
    )
    with serving(config, assemble) as (server, _), Client(f"127.0.0.1:{server.port}") as client:
        assert client.predict("sst2", ["dull"]).version == 1
        client.publish(second, alias="production")
        wait_until(lambda: "is not trusted" in client.task("sst2").versions[-1].failure)
        assert client.predict("sst2", ["dull"]).version == 1
        reader = server.metrics.registry
        assert reader.get_sample_value("sidecast_load_failures_total", {"task": "sst2", "reason": "UNTRUSTED_SIDE"})
        signed = SigningKey(key=pair.private).sign_run(second)
        assert client.publish(second, signature=signed).already
        wait_until(lambda: client.predict("sst2", ["dull"]).version == 2)
