"""A stand-in for Ray, and helpers for tests of whole runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.offline.inputs import Shard
from serving.offline.placing import Placed, Replicas
from serving.offline.plan import Wanted
from serving.offline.run import Summary, run_batch
from serving.offline.worker import Replica, ReplicaConfig, as_row

ROWS = 23
"""Rows of the dataset."""


class Ray:
    """A stand-in for Ray: the replica runs in this process."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.dies_at: int | None = None

    def reports(self, config: ReplicaConfig, shards: Sequence[Shard], placed: Placed) -> Iterator[dict[str, Any]]:
        replica = Replica(config)
        for shard in shards:
            if shard.index == self.dies_at:
                raise KeyboardInterrupt
            report = replica({name: [value] for name, value in as_row(shard).items()})  # type: ignore[dict-item]
            self.ran.append(shard.index)
            yield {name: value for name, [value] in report.items()}


def run(wanted: Wanted, **how: Any) -> Summary:
    return run_batch(wanted, Replicas(), **how)


def parts(wanted: Wanted) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(wanted.output).glob("part-*")}


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def refused(wanted: Wanted, kind: type[Exception]) -> str:
    """Run, expect an error of this kind, and return its one line."""
    with pytest.raises(kind) as caught:
        run(wanted)
    [line] = str(caught.value).splitlines()
    return line
