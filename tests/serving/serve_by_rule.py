"""A process that serves by rule until it is signalled: argument, a folder. Not a test: run by some.

Prints a line when it loads, one when it is ready, and one for each request. Answers take SLOW seconds; loading a
version takes LOADING. With HANG its registry's store hangs once it is ready, and a line tells when a history is read.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import obstore

from serving.server import Server, run_server
from side_registry.registry import Registry
from tests.serving.api_kit import SST2, Parlour


def hang(*_: Any, **__: Any) -> Any:
    time.sleep(3600)


def report_and_hang(*_: Any, **__: Any) -> Any:
    print("history", flush=True)
    hang()


def ready(server: Server) -> None:
    if "HANG" in os.environ:
        for verb in ("get", "put", "head", "list", "delete"):
            setattr(obstore, verb, hang)
        Registry.history = report_and_hang  # type: ignore[method-assign]
    print(f"ready {server.port} {server.task_count} {server.generation}", flush=True)


def main(folder: Path) -> int:
    parlour = Parlour(folder, [SST2], grace_s=float(os.environ.get("GRACE", "20")))
    parlour.publish(SST2, 1)
    parlour.service.slow = float(os.environ.get("SLOW", "0"))
    load = parlour._load

    def slow_load(task: str, version: int) -> Any:
        print("loading", flush=True)
        time.sleep(float(os.environ.get("LOADING", "0")))
        return load(task, version)

    take_time = parlour.service.batcher.take_time

    async def report_and_wait() -> None:
        print("asked", flush=True)
        await take_time()

    parlour._load = slow_load  # type: ignore[method-assign]
    parlour.service.batcher.take_time = report_and_wait  # type: ignore[method-assign]
    return run_server(parlour.config, ready, assemble=parlour.assemble)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
