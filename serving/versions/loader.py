"""Loads one version: from the registry's bytes to a verified side network on the device, or a typed error.

Blocks on the store, the disk and the device, so it runs on the reconciler's thread, never on the event loop or the
device thread. Knows no pool and no aliases.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ladder.answering import Answerer, build_answerer
from ladder.backbone import Backbone, Tokenizer
from ladder.config import SideConfig
from ladder.decoding import Generation
from ladder.errors import LadderError
from ladder.heaps import trim_heaps
from ladder.side import SideNetwork, as_served, load_side
from ladder.stacked import Side, SideBank
from serving.access import TrustPolicy, refuse_version
from serving.config import BatchConfig, LoadConfig
from serving.engine import Key, Resident
from serving.errors import (
    CorruptSide,
    IncompatibleSide,
    LoadError,
    LoadFailed,
    SideTooLarge,
    TextsTooLong,
    UntrustedSide,
)
from serving.versions.replay import Replayer
from serving.versions.visual import GoldenImages, ImageEncoder, check_visual
from side_registry.blobs import StoredArtifact
from side_registry.errors import ArtifactError, CorruptBlob, RegistryError
from side_registry.manifest import SIDE_NETWORK, Manifest
from side_registry.registry import Registry
from side_registry.signing import signed_digests
from side_registry.specs.task import TaskSpec
from side_registry.weights import frame_fault

MAX_WHY = 500
"""Most characters of an error's text: a file may hold names and lists of any length."""

log = logging.getLogger(__name__)


class Loader:
    """Makes residents for one backbone and its tokenizer. One call at a time.

    Args:
        bank: storage for the weights of residents; None makes a new one.
        batch: limits of a batch of golden examples; None: the defaults.
        images: the server's vision encoder; None: versions that read images are refused.
        trust: whose signatures a version needs; None: none is looked at.
    """

    def __init__(
        self,
        registry: Registry,
        backbone: Backbone,
        tokenizer: Tokenizer,
        config: LoadConfig,
        bank: SideBank | None = None,
        batch: BatchConfig | None = None,
        images: ImageEncoder | None = None,
        trust: TrustPolicy | None = None,
    ) -> None:
        self._registry = registry
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._config = config
        self._images = images
        self._trust = trust
        self._distrusted: dict[Key, str] = {}
        """Why versions are not trusted, as the audit log has it."""
        self.bank = bank or SideBank(backbone)
        self.replayer = Replayer(backbone, tokenizer, config, batch or BatchConfig())

    def load(self, task: str, version: int) -> Resident:
        """Download, verify and replay one version. Raises what `fetch` and `replay` raise."""
        resident = self.fetch(task, version)
        for _ in self.replay(resident):
            pass
        return resident

    def fetch(self, task: str, version: int) -> Resident:
        """Download and verify one version. It must not serve before `replay` has ended.

        Raises:
            UntrustedSide: the trust policy wants another signature. Nothing but the manifest was downloaded.
            IncompatibleSide: another backbone, tokenizer or vision encoder.
            SideTooLarge: more bytes than `max_side_bytes`.
            TextsTooLong: more tokens in a row than `max_row_tokens`.
            CorruptSide: damaged, not what its manifest says, or not finite.
            LoadFailed: anything else; `transient` where a later try may succeed.
        """
        with _load_errors(task, version):
            stored = self._registry.artifact(task, version)
            self._check_trust(task, version, stored)
            self._check_manifest(task, version, stored.manifest)
            side = self._place(self._fetch(task, version, stored))
            return Resident(
                task=task,
                version=version,
                spec=stored.manifest.spec,
                side=side,
                answerer=self._answerer(stored.manifest, side),
                manifest=stored.manifest,
                bytes=_bytes_of(side),
            )

    def replay(self, resident: Resident) -> Iterator[None]:
        """Replay a version's golden examples in turns: yields between two of them, as `Replayer.replay`.

        Raises:
            GoldenMismatch: it answers otherwise than where it was trained, also after a fresh backbone pass.
            ReplayTooLong: its golden examples are more work than the settings allow.
            CorruptSide, LoadFailed: as `fetch`.
        """
        if self._config.replay_examples:
            with _load_errors(*resident.key):
                yield from self.replayer.replay(resident, self._golden_images(resident))

    def _golden_images(self, resident: Resident) -> GoldenImages | None:
        """The images of its golden examples; None where its task has none."""
        if self._images is None or not resident.spec.images:
            return None
        return GoldenImages(self._registry.artifact(*resident.key), resident.key, self._images)

    def tidy(self) -> None:
        """Return the memory of evicted versions to the operating system. Takes milliseconds."""
        self.bank.trim()
        trim_heaps()

    def _check_trust(self, task: str, version: int, stored: StoredArtifact) -> None:
        """The signature covers the digests of all files; that the files have them is checked when they are read."""
        if self._trust is None:
            return
        digest = stored.manifest_sha256
        digests = signed_digests(stored.manifest, digest)
        why = self._trust.fault(task, digests, self._registry.signatures(digest))
        if not why:
            self._distrusted.pop((task, version), None)
            return
        error = UntrustedSide(task, version, why)
        if self._distrusted.get((task, version)) != why:
            self._distrusted[task, version] = why
            refuse_version(task, version, error.reason, why)
        raise error

    def _check_manifest(self, task: str, version: int, manifest: Manifest) -> None:
        if manifest.task != task:
            raise CorruptSide(task, version, f"its manifest is of task {manifest.task!r}")
        backbone = self._backbone
        if manifest.backbone.fingerprint != backbone.fingerprint:
            wants = f"backbone {manifest.backbone.name} ({manifest.backbone.fingerprint})"
            remedy = ""
            if manifest.backbone.quantization != backbone.quantization:
                remedy = f"serve with --quantize {manifest.backbone.quantization}, or retrain it on this backbone"
            raise IncompatibleSide(task, wants, f"{backbone.name} ({backbone.fingerprint})", remedy)
        if manifest.tokenizer_fingerprint != self._tokenizer.fingerprint:
            raise IncompatibleSide(task, f"tokenizer {manifest.tokenizer_fingerprint}", self._tokenizer.fingerprint)
        if (tokens := manifest.spec.max_source_tokens) > self._config.max_row_tokens:
            raise TextsTooLong(task, version, tokens, self._config.max_row_tokens)
        if SIDE_NETWORK not in manifest.files:
            raise CorruptSide(task, version, f"its manifest names no {SIDE_NETWORK}")
        size = sum(blob.size for blob in manifest.files.values())
        if size > self._config.max_side_bytes:
            raise SideTooLarge(task, version, size, self._config.max_side_bytes)

    def _fetch(self, task: str, version: int, stored: StoredArtifact) -> SideNetwork:
        """Download and read the side network; check it against its manifest. Images are downloaded for the replay."""
        manifest = stored.manifest
        settings = self._settings(task, version, manifest)
        _check_outputs(task, version, manifest.spec, settings)
        check_visual(manifest, version, settings, self._images)
        with tempfile.TemporaryDirectory(prefix="sidecast-load-") as folder:
            file = Path(folder) / SIDE_NETWORK
            stored.blobs.fetch(manifest.files[SIDE_NETWORK], file)
            if fault := frame_fault(file):
                raise CorruptSide(task, version, f"its {SIDE_NETWORK} is no whole safetensors file: {fault}")
            side = load_side(file, self._backbone.config)
        if side.config != settings:
            raise CorruptSide(task, version, f"its {SIDE_NETWORK} has another shape than its manifest says")
        return side

    def _settings(self, task: str, version: int, manifest: Manifest) -> SideConfig:
        try:
            return SideConfig.from_dict(manifest.side).resolve(self._backbone.config)
        except (TypeError, ValueError) as error:  # ValueError also: a list of layers with something else in it
            raise CorruptSide(task, version, f"its settings do not read: {_first_line(error)}") from error

    def _place(self, side: SideNetwork) -> Side:
        """Copy the weights to a slot of the bank; a side network that cannot be stacked stays a module of its own."""
        stacked = self.bank.add(side)
        if isinstance(stacked, SideNetwork):
            return as_served(stacked, self._backbone.dtype).to(self._backbone.device)
        return stacked

    def _answerer(self, manifest: Manifest, side: Side) -> Answerer:
        spec = manifest.spec
        return build_answerer(
            kind=spec.kind,
            labels=spec.labels,
            low=spec.low,
            high=spec.high,
            max_new_tokens=spec.max_new_tokens,
            head=side.config.head,
            tokenizer=self._tokenizer,
            temperature=manifest.temperature,
            generation=Generation(**spec.generation.settings),
            thresholds=manifest.label_thresholds,
        )


@contextmanager
def _load_errors(task: str, version: int) -> Iterator[None]:
    """Turn every error into a LoadError."""
    try:
        yield
    except LoadError:
        raise
    except CorruptBlob as error:  # publishing again repairs a blob without a commit: try again later
        raise CorruptSide(task, version, str(error), transient=True) from error
    except (ArtifactError, LadderError) as error:
        raise CorruptSide(task, version, _first_line(error)) from error
    except (RegistryError, OSError) as error:
        raise LoadFailed(task, version, str(error), transient=True) from error
    except Exception as error:
        log.exception("unexpected error while loading %s:%d", task, version)
        raise LoadFailed(task, version, f"{type(error).__name__}: {_first_line(error)}") from error


def _bytes_of(side: Side) -> int:
    if isinstance(side, SideNetwork):
        return sum(tensor.nbytes for tensor in side.state_dict().values())
    return side.bytes


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if len(line) <= MAX_WHY else f"{line[: MAX_WHY - 3]}..."


def _check_outputs(task: str, version: int, spec: TaskSpec, side: SideConfig) -> None:
    if side.head != "text" and side.outputs != spec.outputs:
        why = f"its head has {side.outputs} outputs, its {spec.kind} spec needs {spec.outputs}"
        raise CorruptSide(task, version, why)
    if side.reads_two_texts and not spec.has_pair:
        why = f"its head reads two texts apart, its template has the fields {', '.join(spec.fields) or 'none'}"
        raise CorruptSide(task, version, why)
