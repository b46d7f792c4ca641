"""Where signatures are kept: `signatures/sha256/<digest of the manifest>/<id of the key>.json` in the store.

A version may have several, one of each key. A key that signs again replaces its own. Nothing here says whom to trust.
"""

import base64
import hashlib
import json
import re

from side_registry.errors import InvalidSignature
from side_registry.store import BadObject, Store

FOLDER = "signatures"
MAX_SIGNATURE_BYTES = 1 << 20
"""A bundle names the files of a version, at most 64, and has a few certificates."""
MAX_SIGNATURES = 16
"""Most signatures of one version that are read."""
KEY_ID = re.compile(r"[0-9a-f]{64}")


class Signatures:
    """The signatures in one store. Each call blocks on the store and may raise StoreFailed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, manifest_sha256: str, bundle: bytes) -> None:
        """Keep a signature of the version with this manifest. Raises InvalidSignature as `check_signature`."""
        self._store.overwrite(f"{_folder(manifest_sha256)}/{check_signature(bundle)}.json", bundle)

    def of(self, manifest_sha256: str) -> list[bytes]:
        """The signatures of the version with this manifest, as they are in the store; larger ones are left out."""
        paths = self._store.list(_folder(manifest_sha256))[:MAX_SIGNATURES]
        return [data for path in paths if (data := self._read(path)) is not None]

    def _read(self, path: str) -> bytes | None:
        try:
            return self._store.read(path, MAX_SIGNATURE_BYTES)
        except BadObject:
            return None


def check_signature(bundle: bytes) -> str:
    """The id of the key that a signature says it is of: SHA-256 of its public key in PEM, or of its certificate.

    Raises:
        InvalidSignature: it is no Sigstore bundle that was signed with a key or a certificate.
    """
    if len(bundle) > MAX_SIGNATURE_BYTES:
        raise InvalidSignature(f"it has {len(bundle):,} bytes, at most {MAX_SIGNATURE_BYTES:,} are allowed")
    try:
        material = json.loads(bundle)["verificationMaterial"]
        if "publicKey" in material:
            key_id = material["publicKey"]["hint"]
        else:
            chain = material["x509CertificateChain"]["certificates"]
            key_id = hashlib.sha256(base64.b64decode(chain[0]["rawBytes"], validate=True)).hexdigest()
    except (ValueError, TypeError, LookupError, RecursionError):
        key_id = None
    if not isinstance(key_id, str) or not KEY_ID.fullmatch(key_id):
        raise InvalidSignature("it is no bundle that was signed with a key or a certificate")
    return key_id


def _folder(manifest_sha256: str) -> str:
    return f"{FOLDER}/sha256/{manifest_sha256}"
