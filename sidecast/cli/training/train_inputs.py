"""What `sidecast train` is given, as its jobs need it: recipes, rows and images of each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecast.cli.app import UserError
from sidecast.cli.training.image_options import ImageArguments
from sidecast.cli.training.task_files import PLACEHOLDER, PerTask
from training.recipes.named_recipes import named_recipe
from training.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from ladder.config import BackboneConfig
    from side_registry import TaskSpec
    from table_files import ImageSource
    from training.data import Labelled
    from training.images import ImageInputs
    from vision import FeatureFile


def check(
    specs: Sequence["TaskSpec"], output: str, validation: Sequence[str], share: int | None, *, shared: bool
) -> None:
    """Check what is wrong whatever the files hold. Raises UserError.

    Args:
        validation: the values of `--validation`.
        share: that of `--validation-share`.
    """
    if bool(validation) == (share is not None):
        raise UserError(
            "give either --validation FILE, or --validation-share S to validate on a share of the training rows"
        )
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"task {twice[0]} is named twice; name it once")
    if shared and len(specs) < 2:
        raise UserError("--shared needs two tasks or more")
    if shared and PLACEHOLDER in output:
        raise UserError(f"--output {output}: with --shared, name one folder; each task's run is a folder in it")
    if len(specs) > 1 and not shared and PLACEHOLDER not in output:
        needed = f"{len(specs)} tasks need {PLACEHOLDER} in --output, such as runs/{PLACEHOLDER}: a run each"
        raise UserError(f"{needed}; or --shared, for one side network of all")


@dataclass(frozen=True)
class Recipes:
    """The recipe that was named, with the settings that were given."""

    name: str
    given: dict[str, Any]
    shared: bool

    def of(
        self,
        specs: Sequence["TaskSpec"],
        rows: Sequence[int] | None = None,
        backbone: "BackboneConfig | None" = None,
    ) -> list[Recipe]:
        """Each task's; one for all where they share a side network. Raises RecipeError."""
        if not self.shared:
            counts = [None] * len(specs) if rows is None else [[count] for count in rows]
            return [
                named_recipe(self.name, [spec], self.given, count, backbone)
                for spec, count in zip(specs, counts, strict=True)
            ]
        from training.multitask.shared import shared_recipe

        recipe = named_recipe(self.name, specs, self.given, rows, backbone)
        return [shared_recipe(recipe, specs)] * len(specs)


@dataclass(frozen=True)
class Rows:
    """One task's."""

    training: "Labelled"
    validation: "Labelled"
    reading: dict[str, Any]
    """As `Job.reading`."""
    images: "ImageSource | FeatureFile | None" = None
    """Of a task with images."""


@dataclass(frozen=True)
class Files:
    """Where rows come from, and how."""

    train: PerTask
    validation: PerTask
    share: float | None
    renames: dict[str, str]

    def read(self, spec: "TaskSpec", seed: int, arguments: ImageArguments) -> Rows:
        """The rows of one task. Raises DataError, or RecipeError for a file that cannot be split."""
        from training.data import kept_together, known_names, share_reading, split

        renames = {name: column for name, column in self.renames.items() if name in known_names(spec)}
        reading: dict[str, Any] = {"renames": renames} if renames else {}
        images = arguments.open_source() if spec.images else None
        training = self._labelled(self.train.required("--train", spec.name), spec, renames, images)
        if self.share is None:
            path = self.validation.required("--validation", spec.name)
            return Rows(training, self._labelled(path, spec, renames, images), reading, images)
        training, validation = split(training, self.share, seed, by=kept_together(spec))
        return Rows(training, validation, {**reading, **share_reading(self.share)}, images)

    def _labelled(
        self, path: str, spec: "TaskSpec", renames: dict[str, str], images: "ImageSource | FeatureFile | None"
    ) -> "Labelled":
        """The rows of a file, whose images are all there."""
        from training.data import read_labelled
        from training.images import check_images

        labelled = read_labelled(path, spec, renames)
        if images is not None:
            check_images(spec, path, labelled.examples, images)
        return labelled


def arguments_of(
    specs: Sequence["TaskSpec"], images: Sequence[str], features: Sequence[str], others: tuple[Any, ...]
) -> list[ImageArguments]:
    """Each task's, checked. Raises UserError.

    Args:
        images, features: the values of `--images` and `--features`.
        others: vision, layer, size and cache folder, as of `ImageArguments`.
    """
    names = [spec.name for spec in specs]
    pictures = PerTask.parse("--images", images, names)
    extracted = PerTask.parse("--features", features, names)
    arguments = [ImageArguments(pictures.of(name), extracted.of(name), *others) for name in names]
    for spec, given in zip(specs, arguments, strict=True):
        by_name = spec.name in pictures.named or spec.name in extracted.named
        given.check_used([spec] if by_name else specs)
        given.check(spec, has_encoder=given.encoder_source is not None)
    return arguments


def image_inputs(
    data: Sequence[Rows], arguments: Sequence[ImageArguments], device: "torch.device"
) -> list["ImageInputs | None"]:
    """Each task's images and the encoder, which they share; None for a task without images."""
    from training.images import ImageInputs

    source = arguments[0].encoder_source
    encoder = None if source is None else source.load(device)
    return [
        None
        if rows.images is None
        else ImageInputs(source=rows.images, encoder=encoder, encoder_source=source, cache_dir=given.cache_folder)
        for rows, given in zip(data, arguments, strict=True)
    ]
