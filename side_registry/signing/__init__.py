"""Signatures of versions, in the OpenSSF model-signing format: made, kept in the registry, checked. No network."""

from side_registry.signing.model_signing import SigningKey, TrustedKeys, signed_digests
from side_registry.signing.signatures import MAX_SIGNATURE_BYTES, Signatures, check_signature

__all__ = [
    "MAX_SIGNATURE_BYTES",
    "Signatures",
    "SigningKey",
    "TrustedKeys",
    "check_signature",
    "signed_digests",
]
