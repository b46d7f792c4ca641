"""Runs of tasks that read images, trained in a few steps, and what they answer in this process, without a server."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ladder import Backbone, Tokenizer
from ladder.answers import Answer
from side_registry import Manifest, TaskSpec, write_manifest
from tests.training import pictures
from training.loaded_run import load_run
from training.trainer import train
from vision import load_encoder

COLOURS, EQUAL, SAYS = pictures.TASK, pictures.PAIR, pictures.SAYS
VISUAL_SPECS = (COLOURS, EQUAL, SAYS)
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 100_000, 250_000
RED, BLUE = pictures.png("red", 100), pictures.png("blue", 101)


class VisualRuns:
    """Makes the runs of one backbone and one encoder, each in a few steps of training."""

    def __init__(self, folder: Path, backbone: Backbone, tokenizer: Tokenizer) -> None:
        folder.mkdir(parents=True)
        self.encoder_folder = pictures.encoder_folder(folder / "encoder")
        self.settings = {
            "vision": str(self.encoder_folder),
            "max_image_bytes": MAX_IMAGE_BYTES,
            "max_image_pixels": MAX_IMAGE_PIXELS,
        }
        self._folder = folder
        self._backbone = backbone
        self._tokenizer = tokenizer
        self._encoder = load_encoder(self.encoder_folder)
        self._runs: dict[tuple[str, int], Path] = {}

    def run(
        self, spec: TaskSpec, seed: int = 1, edit: Callable[[Manifest], Manifest] = lambda manifest: manifest
    ) -> Path:
        """Make a run folder to publish.

        Args:
            edit: returns the manifest to write.
        """
        folder = self._folder / f"{spec.name}-{seed}"
        folder.mkdir()
        job = pictures.job(
            folder,
            self.encoder_folder,
            self._backbone,
            self._tokenizer,
            spec,
            count=16,
            epochs=1,
            seed=seed,
            learning_rate=0.02,
        )
        artifact = train(job, folder / "run")
        write_manifest(artifact.folder, edit(artifact.manifest), files=artifact.manifest.files)
        self._runs[spec.name, seed] = artifact.folder
        return artifact.folder

    def local(self, spec: TaskSpec, rows: Sequence[dict[str, Any]], seed: int = 1) -> list[Answer]:
        """The answers of the run of `run(spec, seed)`, by `LoadedRun`."""
        run = load_run(self._runs[spec.name, seed], self._backbone, self._tokenizer, self._encoder)
        return run.predict(rows)
