"""Loads one version: from the registry's bytes to a verified side network on the device, or a typed error.

Blocks on the store, the disk and the device, so it runs on the reconciler's thread, never on the event loop or the
device thread. Knows no pool and no aliases.
"""

import logging
import math
import tempfile
from collections.abc import Sequence

from ladder.answering import Answerer, build_answerer
from ladder.answers import Answer
from ladder.backbone import Backbone, Tokenizer
from ladder.config import SideConfig
from ladder.decoding import Generation
from ladder.errors import LadderError
from ladder.side import SideNetwork, as_served, load_side
from ladder.stacked import Side, SideBank
from serving.config import EngineConfig, LoadConfig
from serving.engine import Engine, EngineRow, Resident, trim_heaps
from serving.errors import (
    CorruptSide,
    GoldenMismatch,
    IncompatibleSide,
    LoadError,
    LoadFailed,
    OutOfMemory,
    SideTooLarge,
)
from serving.versions.golden import difference, tolerance_for
from side_registry.blobs import StoredArtifact
from side_registry.errors import ArtifactError, CorruptBlob, InvalidRow, RegistryError
from side_registry.manifest import SIDE_NETWORK, Manifest
from side_registry.registry import Registry
from side_registry.task import TaskSpec
from side_registry.weights import frame_fault

MAX_WHY = 500
"""Most characters of an error's text: a file may hold names and lists of any length."""

log = logging.getLogger(__name__)


class Loader:
    """Makes residents for one backbone and its tokenizer. One load at a time.

    Golden examples are answered by a separate engine: they are no traffic, so they appear neither in the server's
    metrics nor in its cache. That engine's cache keeps the backbone's activations for later versions, which often have
    the same examples.

    Args:
        bank: storage for the weights of residents; None makes a new one.
    """

    def __init__(
        self,
        registry: Registry,
        backbone: Backbone,
        tokenizer: Tokenizer,
        config: LoadConfig,
        bank: SideBank | None = None,
    ) -> None:
        self._registry = registry
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._config = config
        self.bank = bank or SideBank(backbone)
        self.engine = Engine(backbone, config=EngineConfig(cache_bytes=config.replay_bytes, side_timeout_s=math.inf))

    def load(self, task: str, version: int) -> Resident:
        """Download, verify and replay one version.

        Raises:
            IncompatibleSide: another backbone or tokenizer, or a side network that reads images.
            SideTooLarge: more bytes than `max_side_bytes`.
            CorruptSide: damaged, not what its manifest says, or not finite.
            GoldenMismatch: it answers otherwise than where it was trained, also after a fresh backbone pass.
            LoadFailed: anything else; `transient` where a later try may succeed.
        """
        try:
            stored = self._registry.artifact(task, version)
            self._check_manifest(task, version, stored.manifest)
            side = self._place(self._fetch(task, version, stored))
            resident = Resident(
                task=task,
                version=version,
                spec=stored.manifest.spec,
                side=side,
                answerer=self._answerer(stored.manifest, side),
                manifest=stored.manifest,
                bytes=_bytes_of(side),
            )
            if self._config.replay_examples:
                self._replay_twice(resident)
            return resident
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

    def tidy(self) -> None:
        """Return the memory of evicted versions to the operating system. Takes milliseconds."""
        self.bank.trim()
        trim_heaps()

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
        if SIDE_NETWORK not in manifest.files:
            raise CorruptSide(task, version, f"its manifest names no {SIDE_NETWORK}")
        size = sum(blob.size for blob in manifest.files.values())
        if size > self._config.max_side_bytes:
            raise SideTooLarge(task, version, size, self._config.max_side_bytes)

    def _fetch(self, task: str, version: int, stored: StoredArtifact) -> SideNetwork:
        """Download and read the side network; check it against its manifest."""
        settings = self._settings(task, version, stored.manifest)
        _check_outputs(task, version, stored.manifest.spec, settings)
        with tempfile.TemporaryDirectory(prefix="sidecast-load-") as folder:
            file = stored.download(folder).side_network
            if fault := frame_fault(file):
                raise CorruptSide(task, version, f"its {SIDE_NETWORK} is no whole safetensors file: {fault}")
            side = load_side(file, self._backbone.config)
        if side.config != settings:
            raise CorruptSide(task, version, f"its {SIDE_NETWORK} has another shape than its manifest says")
        return side

    def _settings(self, task: str, version: int, manifest: Manifest) -> SideConfig:
        try:
            settings = SideConfig.from_dict(manifest.side).resolve(self._backbone.config)
        except (TypeError, ValueError) as error:  # ValueError also: a list of layers with something else in it
            raise CorruptSide(task, version, f"its settings do not read: {_first_line(error)}") from error
        if settings.visual is not None:
            remedy = "images are not served yet: publish a version that reads text alone"
            raise IncompatibleSide(task, "text and images", "text alone", remedy)
        return settings

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
            generation=Generation(**spec.generation.settings),
        )

    def _replay_twice(self, resident: Resident) -> None:
        """Replay again without the cache before refusing: one wrong cached pass would refuse all later versions too."""
        try:
            self._replay(resident)
        except GoldenMismatch:
            self.engine.cache.clear()
            self._replay(resident)

    def _replay(self, resident: Resident) -> None:
        task, version = resident.key
        manifest = resident.manifest
        here = str(self._backbone.dtype).removeprefix("torch.")
        dtypes = {here, str(manifest.provenance.get("dtype", here))}
        tolerance = tolerance_for(manifest.tolerance, dtypes)
        exact_text = dtypes == {"float32"} and not manifest.spec.generation.do_sample
        for index, outcome in enumerate(self._answers(resident)):
            if isinstance(outcome, OutOfMemory):
                raise LoadFailed(task, version, str(outcome), transient=True) from outcome
            if isinstance(outcome, Exception):
                raise GoldenMismatch(task, version, index, str(outcome)) from outcome
            expected = manifest.examples[index].expected
            if why := difference(outcome, expected, tolerance, exact_text=exact_text):
                raise GoldenMismatch(task, version, index, why)

    def _answers(self, resident: Resident) -> Sequence[Answer | Exception]:
        """What this server answers to the golden examples. One batch: an answer does not depend on its batch."""
        spec = resident.spec
        try:
            prompts = [spec.render(example.fields) for example in resident.manifest.examples]
        except InvalidRow as error:
            raise CorruptSide(resident.task, resident.version, f"a golden example's {error}") from error
        tokens = self._tokenizer.encode_batch(prompts, spec.max_source_tokens)
        return self.engine.predict([EngineRow(ids=tuple(ids), resident=resident) for ids in tokens])


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
