"""`sidecast.train`: train from Python objects in one call. `training.train` has every part of it apart."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ladder import Answer, SideNetwork
from side_registry import Registry, TaskSpec
from side_registry.registry import Published
from training import Job, LoadedRun, Recipe, Sweep, load_run, load_task, split, sweep_jobs, train_many
from training import train as train_job
from training.data import Labelled, kept_together, read_labelled, share_reading
from training.errors import DataError, RecipeError
from training.job import Progress
from training.recipes.recipe import SWEPT

Rows = Any
"""A list of dicts, a pandas DataFrame, a Dataset of the library datasets, or the path of a file of rows."""


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run: its scores, its side network ready to answer, and its folder, which a registry takes."""

    folder: Path
    """The run folder; of several runs, that of the best."""
    run: LoadedRun
    sweep: Sweep | None = None
    """Of several runs: all of them, and mean and deviation by setting."""

    @property
    def metrics(self) -> dict[str, float]:
        """Scores on the validation rows, and the loss."""
        return self.run.manifest.metrics

    @property
    def score(self) -> float:
        """The task's metric on the validation rows."""
        return self.metrics[self.run.spec.metric]

    @property
    def side(self) -> SideNetwork:
        """The side network: a `torch.nn.Module` in evaluation mode."""
        return self.run.side

    def predict(self, rows: Sequence[str | Mapping[str, str | bytes]]) -> list[Answer]:
        """As `training.LoadedRun.predict`."""
        return self.run.predict(rows)

    def publish(self, registry: Registry | str | Path, *, alias: str | None = None, message: str = "") -> Published:
        """Publish the run as the task's next version.

        Args:
            registry: open, or its address; a registry that does not exist is made.
            alias: set it to this version in the same commit; `production` is what callers get.
            message: for the registry's history.

        Raises:
            RegistryError: as `Registry.publish`.
        """
        opened = registry if isinstance(registry, Registry) else Registry.open(registry, create=True)
        return opened.publish(self.folder, alias=alias, message=message)


def train(
    task: str | TaskSpec,
    rows: Rows,
    validation: Rows | None = None,
    *,
    backbone: str | Path,
    output: str | Path,
    validation_share: float = 0.1,
    renames: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> TrainedRun:
    """Train a side network on rows that are in memory or in a file; a finished run in `output` is loaded.

        result = sidecast.train("sst2", frame, backbone="google/flan-t5-small", output="runs/sst2", epochs=5)
        result.publish("registry", alias="production")

    Args:
        task: a built-in task's name, the path of a task's TOML file, or a spec. Its rows have no images.
        rows: training rows: a list of dicts, a pandas DataFrame, a Dataset of the library datasets, or a file's path.
            Columns are the template's fields and the spec's target; others are ignored.
        validation: validation rows, likewise; None: `validation_share` of the training rows, drawn by the seed.
        backbone: a Hugging Face folder, or a hub id.
        output: the run folder to make, or to go on with.
        validation_share: between 0 and 1.
        renames: the column that a field or the target is read from, by its name, where they differ.
        device: auto, cpu, cuda, cuda:1 ...
        dtype: auto, float32 or bfloat16.
        settings: fields of `training.Recipe`. A list of learning rates, seeds, reductions, dropouts or heads trains a
            run for each combination at once; the result is the best of them.

    Raises:
        DataError: rows that do not fit the task.
        RecipeError: an unknown setting, or one out of its range.
        RunError: the folder holds another run, or training diverged.
    """
    import ladder
    from sidecast.cli.options import backbone_source, pick_device

    spec = task if isinstance(task, TaskSpec) else load_task(task)
    if spec.images:
        raise RecipeError("task", spec.name, "one without images; train those with training.train or `sidecast train`")
    if unknown := [name for name in settings if name not in Recipe.names()]:
        raise RecipeError(unknown[0], settings[unknown[0]], f"one of the settings {', '.join(Recipe.names())}")
    several = {name: tuple(settings[name]) for name in SWEPT if isinstance(settings.get(name), list | tuple)}
    recipe = Recipe(**{name: value for name, value in settings.items() if name not in several})
    if several:
        recipe = replace(recipe, **{name: values[0] for name, values in several.items() if values})
    names = dict(renames or {})
    reading: dict[str, Any] = {"renames": names} if names else {}
    training = _labelled("training rows", rows, spec, names)
    if validation is None:
        training, held_out = split(training, validation_share, recipe.seed, by=kept_together(spec))
        reading |= share_reading(validation_share)
    else:
        held_out = _labelled("validation rows", validation, spec, names)
    source = str(backbone)
    job = Job(
        spec=spec,
        backbone=ladder.load_backbone(source, device=pick_device(device), dtype=dtype),
        backbone_source=backbone_source(source),
        tokenizer=ladder.load_tokenizer(source),
        training=training,
        validation=held_out,
        recipe=recipe,
        reading=reading,
    )
    sweep = None
    if several:
        sweep = train_many(sweep_jobs(job, **several), output, progress)
        folder = sweep.folder / sweep.best.name
    else:
        folder = train_job(job, output, progress).folder
    run = load_run(folder, job.backbone, job.tokenizer)
    return TrainedRun(folder=Path(folder), run=run, sweep=sweep)


def _labelled(what: str, rows: Rows, spec: TaskSpec, renames: Mapping[str, str]) -> Labelled:
    """Rows checked as those of a file. Raises DataError with `what` in place of the file's name."""
    if isinstance(rows, str | Path):
        return read_labelled(rows, spec, renames)
    with tempfile.TemporaryDirectory(prefix="sidecast-") as folder:
        path = Path(folder) / "rows.jsonl"
        try:
            with path.open("w", encoding="utf-8") as file:
                for row in _dicts(what, rows):
                    file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
            return read_labelled(path, spec, renames)
        except DataError as error:
            raise DataError(what if error.path == path else error.path, error.line, error.why) from None


def _dicts(what: str, rows: Rows) -> Iterable[dict[str, Any]]:
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a pandas DataFrame
        rows = rows.to_dict("records")
    names = _class_names(rows)
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        why = (
            f"are a {type(rows).__name__}; give a list of dicts, a DataFrame, one split of a dataset, or a file's path"
        )
        raise DataError(what, None, why)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(what, number, f"is a {type(row).__name__}; give a dict of the task's fields and its target")
        yield {str(name): _value(value, names.get(name)) for name, value in row.items()}


def _class_names(rows: Rows) -> dict[Any, Sequence[str]]:
    """The names of classes by column, of a Dataset of the library datasets, whose rows have their numbers."""
    features = getattr(rows, "features", None)
    if not isinstance(features, Mapping):
        return {}
    return {name: feature.names for name, feature in features.items() if hasattr(feature, "names")}


def _value(value: Any, names: Sequence[str] | None) -> Any:
    """A value for JSON: a class's name for its number, null where a table has no value."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # numpy's numbers and arrays
    if isinstance(value, float) and math.isnan(value):
        return None
    if names is not None and type(value) is int and 0 <= value < len(names):
        return names[value]
    return value


def _plain(value: object) -> object:
    """What JSON has no form for; the reader says that it is no text."""
    return list(value) if isinstance(value, tuple | set) else {"type": type(value).__name__}
