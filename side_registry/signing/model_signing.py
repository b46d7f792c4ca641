"""Makes and checks signatures with the library model-signing, offline: elliptic-curve keys, or certificates.

What is signed are the names and digests of all files of a version, its manifest among them. The manifest names the
task, so that a signature of one task's version says nothing about another's. The library is imported where it is used.
"""

import copy
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_registry.errors import InvalidSignature, SigningFailed
from side_registry.manifest import MANIFEST, Manifest, read_artifact
from side_registry.signing.signatures import check_signature

INSTALL = "the library model-signing is not installed; run: pip install 'sidecast[signing]'"


def signed_digests(manifest: Manifest, manifest_sha256: str) -> dict[str, str]:
    """The SHA-256 of each file of a version by name: what a signature is about."""
    return {name: blob.sha256 for name, blob in manifest.files.items()} | {MANIFEST: manifest_sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key, and the certificate of its public key where callers trust an authority."""

    key: Path
    """PEM file of an elliptic-curve key (P-256, P-384 or P-521), without a password."""
    certificate: Path | None = None
    """PEM file of the key's certificate; None: verifiers know the public key."""
    chain: tuple[Path, ...] = ()
    """PEM files of the authorities between the certificate and the one that verifiers know."""

    def sign_run(self, folder: str | Path) -> bytes:
        """A signature of a run folder, for `Registry.publish`. Raises ArtifactError, SigningFailed."""
        artifact = read_artifact(folder)
        return self.sign(artifact.manifest.task, signed_digests(artifact.manifest, artifact.manifest_sha256))

    def sign(self, name: str, digests: Mapping[str, str]) -> bytes:
        """A signature of files by their digests. `name` is for people.

        Raises:
            SigningFailed: the key or a certificate cannot be used, or the library is not installed.
        """
        try:
            from model_signing.signing import Config
        except ImportError:
            raise SigningFailed(str(self.key), INSTALL) from None
        try:
            config = Config().set_hashing_config(_known(name, digests))
            if self.certificate is None:
                config.use_elliptic_key_signer(private_key=self.key)
            else:
                config.use_certificate_signer(
                    private_key=self.key,
                    signing_certificate=self.certificate,
                    certificate_chain=self.chain or (self.certificate,),  # the library refuses an empty chain
                )
            with tempfile.TemporaryDirectory(prefix="sidecast-sign-") as folder:
                file = Path(folder) / "signature.json"
                config.sign(folder, file)
                return file.read_bytes()
        except Exception as error:  # the library and OpenSSL have no common error
            raise SigningFailed(str(self.key), _why(error)) from error


class TrustedKeys:
    """Public keys and authorities, read once. Any thread may ask.

    Args:
        keys: PEM files of elliptic-curve public keys.
        certificates: PEM files of authorities. A certificate they signed is trusted; when it expired is not looked at.

    Raises:
        ValueError: a file cannot be used, or the library is not installed; the message says which and why.
    """

    def __init__(self, keys: Sequence[Path], certificates: Sequence[Path] = ()) -> None:
        try:
            from model_signing.verifying import Config
        except ImportError:
            raise ValueError(INSTALL) from None
        self._keys: dict[str, Any] = {}
        for path in keys:
            try:
                self._keys[_key_id(path)] = Config().use_elliptic_key_verifier(public_key=path)
            except Exception as error:
                raise ValueError(f"the public key {path} cannot be used: {_why(error)}") from error
        self._authorities: Any = None
        if certificates:
            try:
                self._authorities = Config().use_certificate_verifier(certificate_chain=certificates)
            except Exception as error:
                raise ValueError(f"a certificate of {', '.join(map(str, certificates))}: {_why(error)}") from error

    def check(self, bundle: bytes, name: str, digests: Mapping[str, str]) -> str:
        """Check that somebody trusted signed exactly these files. Returns the id of the key.

        Raises:
            InvalidSignature: nobody trusted did, or it was for other files.
        """
        key_id = check_signature(bundle)
        config = self._keys.get(key_id) or (self._authorities if b'"x509CertificateChain"' in bundle else None)
        if config is None:
            raise InvalidSignature(f"its key {key_id[:16]} is not trusted for this task")
        try:
            with tempfile.TemporaryDirectory(prefix="sidecast-verify-") as folder:
                file = Path(folder) / "signature.json"
                file.write_bytes(bundle)
                copy.copy(config).set_hashing_config(_known(name, digests)).verify(folder, file)
        except Exception as error:  # the bundle may be anything; the library and OpenSSL have no common error
            raise InvalidSignature(f"its key is {key_id[:16]}, but {_why(error)}") from error
        return key_id


def _known(name: str, digests: Mapping[str, str]) -> Any:
    """In place of the library's hashing of a folder: files whose digests are known."""
    from model_signing.manifest import Manifest as SignedManifest
    from model_signing.manifest import SerializationType, hashing

    files = SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    items = [files.new_item(file, hashing.Digest("sha256", bytes.fromhex(digest))) for file, digest in digests.items()]
    return _KnownDigests(SignedManifest(name, items, files))


class _KnownDigests:
    def __init__(self, manifest: Any) -> None:
        self._manifest = manifest

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """The digests of all files, whatever is in the folder."""
        return self._manifest

    def add_ignored_paths(self, *, model_path: object, paths: object) -> None:
        """A signature cannot take files out of the comparison."""


def _key_id(path: Path) -> str:
    """SHA-256 of a public key in PEM, as the format names keys."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_public_key(path.read_bytes())
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _why(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line[:300] or type(error).__name__
