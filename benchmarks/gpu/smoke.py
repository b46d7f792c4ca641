"""A real server on this device: it starts, replays golden examples, answers over gRPC and swaps a version."""

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from benchmarks.harness.models import GOLDEN, HEADS, Loaded, make_run, make_spec, publish_tasks
from benchmarks.harness.samples import BenchmarkError, time_calls
from benchmarks.harness.served import serve_here
from serving.client import Client

TASKS = 4
TEXT = "text-task"
CALLS_S = 1.0
ROWS = 32
SWAP_S = 60.0


def serve_some(loaded: Loaded, seconds: float = CALLS_S) -> dict[str, Any]:
    """Start a server of a few tasks; call it; publish a version. Its loader replays golden examples of each task.

    Raises:
        BenchmarkError: it answers something else than it should.
    """
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as name:
        folder = Path(name)
        registry = publish_tasks(folder, loaded, TASKS, HEADS["mixed"])
        registry.publish(
            make_run(
                folder / TEXT, loaded, make_spec(TASKS, "generate").model_copy(update={"name": TEXT}), "generate", 9
            ),
            author="benchmark",
        )
        tasks = sorted(set(registry.state().tasks) - {TEXT})
        settings = {**loaded.settings(), "registry": folder / "registry", "warmup_s": 1.0, "first_loads_s": SWAP_S}
        with serve_here(**settings) as served, Client(served.address) as client:
            for task in tasks:
                _check(len(client.predict(task, list(GOLDEN))) == len(GOLDEN), f"{task} did not answer both rows")
            _check(len(client.predict(TEXT, GOLDEN[:1], timeout=SWAP_S)) == 1, f"{TEXT} made no text")
            again = make_run(folder / "again", loaded, make_spec(0, "linear"), "linear", 77)
            published = client.publish(again, alias="production", timeout=SWAP_S)
            client.wait_served(published.generation, timeout=SWAP_S)
            answered = client.predict(tasks[0], list(GOLDEN))
            _check(answered.version == published.version == 2, f"version {answered.version} answers after a publish")
            durations = time_calls(
                lambda rows: client.predict(tasks[1], rows), seconds=seconds, prepare=partial(_new_rows, count())
            )
        middle = sorted(durations)[len(durations) // 2]
        return {"tasks": served.tasks, "same": True, "calls": len(durations), "rows_per_s": ROWS / middle}


def _new_rows(numbers: Iterator[int]) -> list[str]:
    """Texts that never come again, so that the cache knows none."""
    return [f"{number} a film that is neither good nor bad" for number in islice(numbers, ROWS)]


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BenchmarkError(otherwise)
