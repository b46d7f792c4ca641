"""Loads one version: from the registry's bytes to a verified side network on the device, or a typed refusal.

Blocks on the store, the disk and the device, so it runs on the reconciler's thread: never on the event loop, nor on the
device thread. Knows no pool and no aliases.
"""

import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
from side_registry.errors import ArtifactError, CorruptBlob, InvalidRow, RegistryError
from side_registry.manifest import SIDE_NETWORK, Manifest
from side_registry.registry import Registry
from side_registry.weights import frame_fault

MAX_WHY = 500
"""Characters of what a file is told to be wrong with: it may hold names and lists of any length."""

log = logging.getLogger(__name__)


class Loader:
    """Makes residents for one backbone and its tokenizer. Their weights are in `bank` (None: one of its own).

    Golden examples are answered by an engine of its own: they are no traffic, so neither the server's metrics nor its
    cache know of them. What the backbone makes of them is kept for later versions, which often have the same ones. One
    load at a time.
    """

    def __init__(
        self,
        registry: Registry,
        backbone: Backbone,
        tokenizer: Tokenizer,
        config: LoadConfig,
        bank: SideBank | None = None,
    ) -> None:
        self._registry, self._backbone, self._tokenizer, self._config = registry, backbone, tokenizer, config
        self.bank = bank or SideBank(backbone)
        self.engine = Engine(backbone, config=EngineConfig(cache_bytes=config.replay_bytes, side_timeout_s=math.inf))

    def load(self, task: str, version: int) -> Resident:
        """Download, verify and replay one version.

        Raises:
            IncompatibleSide: another backbone or tokenizer.
            SideTooLarge: more bytes than `max_side_bytes`.
            CorruptSide: damaged, not what its manifest says, or not finite.
            GoldenMismatch: it answers otherwise than where it was trained, on a fresh pass of the backbone too.
            LoadFailed: anything else; `transient` where a later try may succeed.
        """
        try:
            manifest = self._registry.manifest(task, version)
            self._check_manifest(task, version, manifest)
            side = self._settle(self._fetch(task, version, manifest))
            resident = self._assemble(task, version, manifest, side)
            if self._config.replay_examples:
                self._replay_twice(resident)
            return resident
        except LoadError:
            raise
        except CorruptBlob as error:  # publishing again mends a blob without a commit, so it is worth another look
            raise CorruptSide(task, version, str(error), transient=True) from error
        except (ArtifactError, LadderError) as error:
            raise CorruptSide(task, version, _first_line(error)) from error
        except (RegistryError, OSError) as error:
            raise LoadFailed(task, version, str(error), transient=True) from error
        except Exception as error:
            log.exception("loading %s:%d failed in an unforeseen way", task, version)
            raise LoadFailed(task, version, f"{type(error).__name__}: {_first_line(error)}") from error

    def tidy(self) -> None:
        """Give back to the system the memory that versions left which are gone. Takes milliseconds."""
        self.bank.trim()
        trim_heaps()

    def _check_manifest(self, task: str, version: int, manifest: Manifest) -> None:
        if manifest.task != task:
            raise CorruptSide(task, version, f"its manifest is of task {manifest.task!r}")
        backbone, tokenizer = self._backbone, self._tokenizer
        if manifest.backbone.fingerprint != backbone.fingerprint:
            wants, remedy = f"backbone {manifest.backbone.name} ({manifest.backbone.fingerprint})", ""
            if manifest.backbone.quantization != backbone.quantization:
                remedy = f"serve with --quantize {manifest.backbone.quantization}, or retrain it on this backbone"
            raise IncompatibleSide(task, wants, f"{backbone.name} ({backbone.fingerprint})", remedy)
        if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
            raise IncompatibleSide(task, f"tokenizer {manifest.tokenizer_fingerprint}", tokenizer.fingerprint)
        if SIDE_NETWORK not in manifest.files:
            raise CorruptSide(task, version, f"its manifest names no {SIDE_NETWORK}")
        size = sum(blob.size for blob in manifest.files.values())
        if size > self._config.max_side_bytes:
            raise SideTooLarge(task, version, size, self._config.max_side_bytes)

    def _fetch(self, task: str, version: int, manifest: Manifest) -> SideNetwork:
        backbone = self._backbone
        wanted = self._settings(task, version, manifest)
        _check_outputs(task, version, manifest, wanted)
        with tempfile.TemporaryDirectory(prefix="sidecast-load-") as folder:
            artifact = self._registry.download(task, version, Path(folder))
            if fault := frame_fault(artifact.side_network):
                raise CorruptSide(task, version, f"its {SIDE_NETWORK} is no whole safetensors file: {fault}")
            side = load_side(artifact.side_network, backbone.config)
        if side.config != wanted:
            raise CorruptSide(task, version, f"its {SIDE_NETWORK} has another shape than its manifest says")
        return side

    def _settings(self, task: str, version: int, manifest: Manifest) -> SideConfig:
        try:
            return SideConfig.from_dict(manifest.side).resolve(self._backbone.config)
        except (TypeError, ValueError) as error:  # of a list that holds what no layer is
            raise CorruptSide(task, version, f"its settings do not read: {_first_line(error)}") from error

    def _settle(self, side: SideNetwork) -> Side:
        """In a slot of the bank, folded from float32 weights; a module of its own where it has no place there."""
        stacked = self.bank.add(side)
        if isinstance(stacked, SideNetwork):
            return as_served(stacked, self._backbone.dtype).to(self._backbone.device)
        return stacked

    def _assemble(self, task: str, version: int, manifest: Manifest, side: Side) -> Resident:
        return Resident(
            task=task,
            version=version,
            spec=manifest.spec,
            side=side,
            answerer=self._answerer(manifest, side),
            manifest=manifest,
            bytes=_bytes_of(side),
        )

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
        """A pass that went wrong and was kept would refuse every version with the same examples."""
        try:
            self._replay(resident)
        except GoldenMismatch:
            self.engine.cache.clear()
            self._replay(resident)

    def _replay(self, resident: Resident) -> None:
        task, version, manifest = resident.task, resident.version, resident.manifest
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
            if found := difference(outcome, expected, tolerance, exact_text=exact_text):
                raise GoldenMismatch(task, version, index, found)

    def _answers(self, resident: Resident) -> Sequence[Answer | Exception]:
        """The golden examples, all in one batch: an answer does not depend on it, so the trainer's need not be ours."""
        spec = resident.spec
        try:
            prompts = [spec.render(example.fields) for example in resident.manifest.examples]
        except InvalidRow as error:
            raise CorruptSide(resident.task, resident.version, f"a golden example's {error}") from error
        tokens = self._tokenizer.encode_batch(prompts, spec.max_source_tokens)
        return self.engine.predict([EngineRow(ids=tuple(ids), resident=resident) for ids in tokens])


def _bytes_of(side: Side) -> int:
    return sum(each.nbytes for each in side.state_dict().values()) if isinstance(side, SideNetwork) else side.bytes


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if len(line) <= MAX_WHY else f"{line[: MAX_WHY - 3]}..."


def _check_outputs(task: str, version: int, manifest: Manifest, side: SideConfig) -> None:
    spec = manifest.spec
    if side.head != "text" and side.outputs != spec.outputs:
        why = f"its head has {side.outputs} outputs, its {spec.kind} spec needs {spec.outputs}"
        raise CorruptSide(task, version, why)
