"""Options of `train` and `evaluate` that say where images are, and what reads them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.options import Command

if TYPE_CHECKING:
    from side_registry import TaskSpec
    from side_registry.manifest import Artifact
    from table_files import ImageSource
    from training.images import EncoderSource, ImageFeatures
    from vision import FeatureFile


MEMORY_BYTES = 4 * 10**9
"""Most memory for features in an evaluation; those beyond it are read from the cache folder."""


def image_options(command: Command) -> Command:
    """Add `--images`, `--features`, `--vision` and what belongs to them; `ImageArguments` takes their values."""
    return _image_options(command, multiple=False)


def image_options_by_task(command: Command) -> Command:
    """Add the same options; `--images` and `--features` can be given for each task, as `PerTask` takes them."""
    return _image_options(command, multiple=True)


def _image_options(command: Command, *, multiple: bool) -> Command:
    task = "[TASK=]" if multiple else ""
    made: list[Callable[[Command], Command]] = [
        click.option(
            "--images",
            metavar=f"{task}I",
            multiple=multiple,
            help="Images that the rows name: a folder of files, or a .parquet file with image_id and image.",
        ),
        click.option(
            "--features",
            metavar=f"{task}FILE",
            multiple=multiple,
            help="Instead of --images: features extracted before, a .safetensors or .h5 file, by image id.",
        ),
        options.option("--vision", metavar="V", help="The vision encoder: a Hugging Face folder."),
        options.option(
            "--vision-layer", type=int, metavar="N", help="Its hidden layer that is read.  [default: its last state]"
        ),
        options.option(
            "--vision-size", type=int, metavar="N", help="Height and width of its input.  [default: the folder's]"
        ),
        click.option(
            "--cache-dir",
            metavar="FOLDER",
            help="Where features of images are kept for later runs, or none.  [default: the user's cache folder]",
        ),
    ]
    for add in reversed(made):
        command = add(command)
    return command


@dataclass(frozen=True)
class ImageArguments:
    """The values of these options."""

    images: str | None
    features: str | None
    vision: str | None
    vision_layer: int | None
    vision_size: int | None
    cache_dir: str | None

    @property
    def cache_folder(self) -> Path | None:
        """Where features are kept; None: nowhere."""
        from training.images.disk_cache import default_cache_dir

        if self.cache_dir == "none":
            return None
        return default_cache_dir() if self.cache_dir is None else Path(self.cache_dir)

    @property
    def encoder_source(self) -> "EncoderSource | None":
        """The encoder that the command line names; None where it names none."""
        from training.images import EncoderSource

        if self.vision is None:
            if self.vision_layer is not None or self.vision_size is not None:
                raise UserError("--vision-layer and --vision-size need --vision V, the encoder's folder")
            return None
        return EncoderSource.of(self.vision, self.vision_layer, self.vision_size)

    def check_used(self, specs: Sequence["TaskSpec"]) -> None:
        """Check that one of the tasks has images, if there are some."""
        given = self.images or self.features
        if given and not any(spec.images for spec in specs):
            name = "images" if self.images else "features"
            raise UserError(f"--{name} is for tasks with images, and {specs[0].name} has none")

    def check(self, spec: "TaskSpec", *, has_encoder: bool) -> None:
        """Check that a task with images has what reads them.

        Args:
            has_encoder: an encoder is known, from the command line or a run.
        """
        if not spec.images:
            return
        if (self.images is None) == (self.features is None):
            raise UserError(
                f"task {spec.name} reads images: give either --images, a folder or .parquet file, or --features FILE"
            )
        if self.images is not None and not has_encoder:
            raise UserError(f"task {spec.name} reads images: give --vision V, the folder of a vision encoder")

    def open_source(self) -> "ImageSource | FeatureFile":
        """Open the images or features."""
        from training.images import open_images
        from vision import FeatureFile

        if self.images is not None:
            return open_images(self.images)
        assert self.features is not None
        return FeatureFile(self.features)

    def send_bytes(
        self, spec: "TaskSpec", rows: Sequence[Mapping[str, str]], source: "ImageSource | FeatureFile"
    ) -> Sequence[dict[str, Any]]:
        """The rows as a server takes them; images are read when a row is."""
        from training.images.inputs import RowsWithBytes
        from vision import FeatureFile

        if isinstance(source, FeatureFile):
            raise UserError("a server takes images, not features: give --images instead of --features")
        return RowsWithBytes(spec, rows, source)

    def features_of(
        self,
        artifact: "Artifact",
        source: "ImageSource | FeatureFile",
        encoder_source: "EncoderSource | None",
        device: Any,
        rows: Sequence[Mapping[str, str]],
        step: Callable[[int, int], None],
    ) -> "ImageFeatures":
        """The features of the rows' images for a side network that is loaded, computed or found in the cache.

        Args:
            encoder_source: None where there are features instead of images, and nobody named their encoder.
            step: called with images done and images in all.

        Raises:
            RunError: another encoder than that of its training, or one whose folder is gone.
        """
        from training.errors import RunError
        from training.evaluation import check_vision
        from training.images import ImageFeatures, ImageInputs
        from training.images.inputs import image_ids

        encoder = None
        if encoder_source is not None and (self.vision is not None or self.images is not None):
            if self.vision is None and not Path(encoder_source.folder).is_dir():
                why = f"its vision encoder was in {encoder_source.folder}, and there is no such folder now"
                raise RunError(artifact.folder, f"{why}; give it with --vision V")
            encoder = encoder_source.load(device)
            check_vision(artifact, encoder.fingerprint, encoder.name)
        inputs = ImageInputs(source=source, encoder=encoder, encoder_source=encoder_source, cache_dir=self.cache_folder)
        features = ImageFeatures(inputs, artifact.manifest.side["visual"]["tokens"], MEMORY_BYTES)
        features.prepare((one for ids in image_ids(artifact.manifest.spec, rows) for one in ids), step)
        return features
