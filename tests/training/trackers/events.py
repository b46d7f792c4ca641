"""Reads event files as TensorBoard does."""

from pathlib import Path


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The values by name and step; fails where a step has two."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0})
    events.Reload()
    found: dict[str, dict[int, float]] = {}
    for name in events.Tags()[TENSORS]:
        points = events.Tensors(name)
        found[name] = {point.step: float(tensor_util.make_ndarray(point.tensor_proto)) for point in points}
        assert len(found[name]) == len(points), name
    return found
