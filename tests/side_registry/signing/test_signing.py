"""Signatures of versions: made, kept beside the version, checked; and read by the format's own tool."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from model_signing.verifying import Config

from benchmarks.harness.authority import Authority
from side_registry import InvalidSignature, Registry, SigningFailed, StoredArtifact
from side_registry.maintenance import collect, export_task, import_task
from side_registry.signing import SigningKey, TrustedKeys, check_signature, signed_digests
from side_registry.specs.task import TaskRef
from tests.side_registry.runs import memory_store
from tests.side_registry.signing.signing_kit import KeyPair, make_key


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path)


def publish(registry: Registry, run: Path, key: SigningKey) -> tuple[StoredArtifact, bytes]:
    """Publish a run with a signature; the version, and the signature that the registry has."""
    done = registry.publish(run, signature=key.sign_run(run))
    stored = registry.artifact(done.task, done.version)
    [signature] = registry.signatures(stored.manifest_sha256)
    return stored, signature


def digests_of(stored: StoredArtifact) -> dict[str, str]:
    return signed_digests(stored.manifest, stored.manifest_sha256)


def test_a_signed_version_is_verified_here_and_by_the_formats_own_tool(
    registry: Registry, run: Callable[..., Path], pair: KeyPair, tmp_path: Path
) -> None:
    stored, signature = publish(registry, run(), SigningKey(key=pair.private))
    assert TrustedKeys([pair.public]).check(signature, "sst2", digests_of(stored)) == check_signature(signature)
    stored.download(tmp_path / "version")
    (tmp_path / "signature").write_bytes(signature)
    config = Config().use_elliptic_key_verifier(public_key=pair.public)
    config.verify(tmp_path / "version", tmp_path / "signature")
    (tmp_path / "version" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="mismatch"):
        config.verify(tmp_path / "version", tmp_path / "signature")


def test_other_files_another_key_and_a_changed_signature_do_not_hold(
    registry: Registry, run: Callable[..., Path], pair: KeyPair, tmp_path: Path
) -> None:
    stored, signature = publish(registry, run(), SigningKey(key=pair.private))
    trusted, digests = TrustedKeys([pair.public]), digests_of(stored)
    for other in (
        digests | {"manifest.json": "0" * 64},
        digests | {"more.bin": "0" * 64},
        {"manifest.json": digests["manifest.json"]},
    ):
        with pytest.raises(InvalidSignature, match=check_signature(signature)[:16]):
            trusted.check(signature, "sst2", other)
    with pytest.raises(InvalidSignature, match="not trusted for this task"):
        TrustedKeys([make_key(tmp_path, "other").public]).check(signature, "sst2", digests)
    bundle = json.loads(signature)
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    envelope["payload"] = base64.b64encode(payload.replace(b"manifest.json", b"manifest.jsox")).decode()
    with pytest.raises(InvalidSignature):
        trusted.check(json.dumps(bundle).encode(), "sst2", digests)


def test_a_certificate_of_a_trusted_authority_signs(
    registry: Registry, run: Callable[..., Path], tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path / "tls"), Authority(tmp_path / "tls", "stranger")
    certificate, private = authority.issue("signer", signs=True)
    stored, signature = publish(registry, run(), SigningKey(key=private, certificate=certificate))
    TrustedKeys([], [authority.ca]).check(signature, "sst2", digests_of(stored))
    with pytest.raises(InvalidSignature):
        TrustedKeys([], [stranger.ca]).check(signature, "sst2", digests_of(stored))


def test_a_key_that_signs_again_replaces_its_signature_and_another_key_adds_one(
    registry: Registry, run: Callable[..., Path], pair: KeyPair, tmp_path: Path
) -> None:
    key = SigningKey(key=pair.private)
    stored, first = publish(registry, run(), key)
    registry.add_signature(stored.manifest_sha256, again := key.sign("sst2", digests_of(stored)))
    assert again != first
    assert registry.signatures(stored.manifest_sha256) == [again]
    other = SigningKey(key=make_key(tmp_path, "other").private)
    registry.add_signature(stored.manifest_sha256, other.sign("sst2", digests_of(stored)))
    assert len(registry.signatures(stored.manifest_sha256)) == 2


@pytest.mark.parametrize(
    "bundle",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"verificationMaterial": {"publicKey": {"hint": "../../log"}}}',
        b'{"verificationMaterial": {"x509CertificateChain": {"certificates": []}}}',
        b" " * (2**20 + 1),
    ],
    ids=["nothing", "a list", "deep", "a path", "no certificate", "large"],
)
def test_what_is_no_signature_is_not_kept(registry: Registry, run: Callable[..., Path], bundle: bytes) -> None:
    with pytest.raises(InvalidSignature):
        registry.add_signature("0" * 64, bundle)
    assert registry.store.list("signatures") == []


def test_signatures_survive_a_collection_and_go_with_an_export(
    registry: Registry, run: Callable[..., Path], pair: KeyPair, tmp_path: Path
) -> None:
    stored, signature = publish(registry, run(), SigningKey(key=pair.private))
    collect(registry.store, delete=True)
    assert registry.signatures(stored.manifest_sha256) == [signature]
    export_task(registry.store, TaskRef("sst2"), tmp_path / "export")
    target = memory_store()
    import_task(tmp_path / "export", target)
    assert Registry.open(target).signatures(stored.manifest_sha256) == [signature]


def test_a_key_that_cannot_sign_or_verify_is_named(run: Callable[..., Path], pair: KeyPair, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pem", pair.public):
        with pytest.raises(SigningFailed, match=path.name):
            SigningKey(key=path).sign_run(run())
    for path in (tmp_path / "none.pem", pair.private):
        with pytest.raises(ValueError, match=path.name):
            TrustedKeys([path])
