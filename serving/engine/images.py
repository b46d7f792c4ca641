"""The images of a batch: their features as one tensor, which side networks read. Device thread only."""

from collections import Counter
from collections.abc import Sequence

import torch

from ladder.backbone import Backbone, Images
from serving.engine.rows import EngineRow
from serving.errors import SideFailed


def stack_images(backbone: Backbone, rows: Sequence[EngineRow], images: Sequence[tuple[str, str]]) -> Images:
    """Stack the features of distinct images, on the backbone's device and in its dtype.

    Args:
        rows: they hold the features.
        images: salt and name of each, as `Plan.images`.
    """
    features = {(row.salt, image.name): image.features for row in rows for image in row.images}
    stacked = torch.stack([features[image] for image in images])
    own = [(index,) for index in range(len(images))]
    return Images(features=stacked.to(backbone.device, backbone.dtype), rows=own)


def odd_rows(rows: Sequence[EngineRow]) -> dict[EngineRow, SideFailed]:
    """The rows whose features have another shape than most, and so cannot be stacked with them; each with its error."""
    shapes = Counter(image.features.shape for row in rows for image in row.images)
    if len(shapes) < 2:
        return {}
    [(usual, _)] = shapes.most_common(1)
    odd: dict[EngineRow, SideFailed] = {}
    for row in rows:
        shape = next((image.features.shape for image in row.images if image.features.shape != usual), None)
        if shape is not None:
            why = f"its image has features of shape {tuple(shape)}, those of others have {tuple(usual)}"
            odd[row] = SideFailed(row.task, row.resident.version, why)
    return odd
