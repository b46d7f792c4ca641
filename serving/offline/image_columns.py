"""What a run with images needs before it starts: the encoder of its tasks, and columns that hold or name images.

Decides by types and names alone: no image is read.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from serving.errors import IncompatibleSide
from serving.offline.errors import WrongTask
from side_registry import Manifest, TaskSpec
from table_files import ID_SUFFIX
from vision import load_encoder


def find_encoder(manifests: Sequence[Manifest], folder: str | None, layer: int | None, size: int | None) -> str | None:
    """The fingerprint of the encoder that all tasks with images were trained with; None where no task reads any.

    Raises:
        EncoderError: it does not load.
        WrongTask: a task reads images, and there is no folder of an encoder.
        IncompatibleSide: a task was trained with another one.
    """
    readers = [manifest for manifest in manifests if manifest.spec.images]
    if not readers:
        return None
    if folder is None:
        raise WrongTask(readers[0].task, "reads images; give --vision FOLDER, the encoder that it was trained with")
    encoder = load_encoder(folder, layer=layer, size=size)
    has = f"{encoder.name} ({encoder.fingerprint})"
    for manifest in readers:
        trained = manifest.vision
        if trained is not None and trained.fingerprint == encoder.fingerprint:
            continue
        wants = f"{trained.name} ({trained.fingerprint})" if trained else "that its manifest does not name"
        remedy = "name the one that it was trained with by --vision, --vision-layer and --vision-size"
        raise IncompatibleSide(manifest.task, f"vision encoder {wants}", has, remedy)
    return encoder.fingerprint


def find_ids(
    spec: TaskSpec, columns: Mapping[str, str], schema: pa.Schema, renames: Mapping[str, str]
) -> dict[str, str]:
    """The columns of a task whose images are named by id, by field.

    A column of ids has the name of the field, or that name with `_id` after it.
    """
    found = dict(columns)
    for name in spec.images:
        has_ids = name in renames or (name in schema.names and _is_id(schema.field(name).type))
        if not has_ids and name + ID_SUFFIX in schema.names:
            found[name] = name + ID_SUFFIX
    return found


def check_images(spec: TaskSpec, columns: Mapping[str, str], schema: pa.Schema, *, has_ids: bool, form: str) -> None:
    """Check that the columns of a task's images hold the images or, with `has_ids`, their ids.

    Args:
        columns: of the schema, by field.
        form: of the output.

    Raises:
        WrongTask: a column holds something else, or images that the output cannot hold.
    """
    for name in spec.images:
        column = columns[name]
        kind = schema.field(column).type
        if has_ids and not _is_id(kind):
            how = f"leave --images away, or name the column of ids with --rename {name}=COLUMN"
            raise WrongTask(spec.name, f"column {column!r} holds {kind} and no ids of images; {how}")
        if not has_ids and not _is_image(kind):
            how = "where it names images, say with --images where they are"
            raise WrongTask(spec.name, f"column {column!r} holds {kind} and not the bytes of images; {how}")
        if not has_ids and form == "jsonl":
            raise WrongTask("--format", f"jsonl cannot hold the images of column {column!r}; use parquet")


def _is_id(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_null(kind)


def _is_image(kind: pa.DataType) -> bool:
    """Bytes, or the struct with `bytes` that `datasets` writes."""
    types = pa.types
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_image(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind)
