"""`sidecast sign` and `sidecast verify`: signatures of versions, in the OpenSSF model-signing format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from side_registry import InvalidSignature, Registry, StoredArtifact, TaskRef
from side_registry.signing import SigningKey, TrustedKeys, signed_digests
from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import say
from sidecast.cli.registry.views import Document

NOT_VERIFIED = 1
"""Exit code of `verify` where no trusted signature holds."""

FILE = click.Path(path_type=Path)


def signing_options(name: str, *, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a signing key; `name` is that of the key's own."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--chain", multiple=True, type=FILE, metavar="FILE", help="With --certificate: an authority between. Again."
        )(command)
        command = click.option(
            "--certificate", type=FILE, metavar="FILE", help="PEM certificate of the key, for verifiers with --ca."
        )(command)
        text = "PEM private key that signs the version: P-256, P-384 or P-521, without a password."
        return click.option(name, "key", type=FILE, metavar="KEY", required=required, help=text)(command)

    return add


def signing_key(key: Path | None, certificate: Path | None, chain: tuple[Path, ...]) -> SigningKey | None:
    """The key that the options name; None where they name none."""
    if key is None:
        if certificate is not None or chain:
            raise UserError("--certificate and --chain are about the key of --sign; give it, too")
        return None
    return SigningKey(key=key, certificate=certificate, chain=chain)


@click.command(short_help="Sign a version that is in the registry.")
@click.argument("version", metavar="TASK:VERSION")
@signing_options("--key", required=True)
@options.registry
@options.as_json
def sign(
    version: str, key: Path, certificate: Path | None, chain: tuple[Path, ...], registry: str | None, as_json: bool
) -> None:
    """Sign a version that is in the registry: TASK:VERSION, or TASK for its production version.

    The signature is in the OpenSSF model-signing format, and is kept in the registry. Servers that refused the version
    try it again by themselves.
    """
    opened, name, stored = _stored(registry, version)
    signer = SigningKey(key=key, certificate=certificate, chain=chain)
    signature = signer.sign(stored.manifest.task, signed_digests(stored.manifest, stored.manifest_sha256))
    opened.add_signature(stored.manifest_sha256, signature)
    say(as_json, {"version": name, "key": str(key)}, f"signed {name} with {key}")


@click.command(short_help="Check the signatures of a version.")
@click.argument("version", metavar="TASK:VERSION")
@click.option("--key", "keys", multiple=True, type=FILE, metavar="FILE", help="PEM public key that you trust. Again.")
@click.option("--ca", "authorities", multiple=True, type=FILE, metavar="FILE", help="PEM authority that you trust.")
@click.option("--trust", type=FILE, metavar="FILE", help="Instead: a server's trust policy.")
@options.registry
@options.as_json
def verify(
    version: str,
    keys: tuple[Path, ...],
    authorities: tuple[Path, ...],
    trust: Path | None,
    registry: str | None,
    as_json: bool,
) -> None:
    """Check the signatures of TASK:VERSION, or of TASK's production version, and the digests of all of its files.

    Exits with 1 where nobody that you trust signed exactly these files.
    """
    if bool(keys or authorities) == (trust is not None):
        raise UserError("say whom you trust: --key or --ca, or the --trust policy of a server")
    opened, name, stored = _stored(registry, version)
    fault = _fault(stored, opened.signatures(stored.manifest_sha256), keys, authorities, trust)
    if not fault:
        fault = _damage(stored)
    document: Document = {"version": name, "verified": not fault, "why": fault or None}
    say(as_json, document, f"{name} is not verified: {fault}" if fault else f"{name} is verified")
    if fault:
        raise click.exceptions.Exit(NOT_VERIFIED)


def _stored(registry: str | None, version: str) -> tuple[Registry, str, StoredArtifact]:
    if registry is None:
        raise UserError("give --registry, or set SIDECAST_REGISTRY")
    opened = Registry.open(registry)
    ref = TaskRef.parse(version)
    number = opened.state().resolve(ref)
    return opened, f"{ref.task}:{number}", opened.artifact(ref.task, number)


def _fault(
    stored: StoredArtifact,
    signatures: list[bytes],
    keys: tuple[Path, ...],
    authorities: tuple[Path, ...],
    trust: Path | None,
) -> str:
    """Why no signature counts; empty where one does."""
    task = stored.manifest.task
    digests = signed_digests(stored.manifest, stored.manifest_sha256)
    if trust is not None:
        from serving.access.trust import TrustPolicy

        return TrustPolicy(trust).fault(task, digests, signatures)
    try:
        trusted = TrustedKeys(keys, authorities)
    except ValueError as error:
        raise UserError(str(error)) from None
    why = "it has no signature"
    for signature in signatures:
        try:
            trusted.check(signature, task, digests)
        except InvalidSignature as error:
            why = error.why
        else:
            return ""
    return why


def _damage(stored: StoredArtifact) -> str:
    """Which file has not the digest that was signed; empty where all have."""
    for name, blob in stored.manifest.files.items():
        if stored.blobs.measure(blob.sha256) != blob:
            return f"{name} is damaged or missing"
    return ""
