"""How long does a registry take to open, to poll and to publish to, with one task and with 10,000 of three versions?

    python -m benchmarks.server.bench_registry

On a local folder, and on a server on this machine with S3's API (moto, in a process of its own). A real bucket adds
network latency, so the settings also have the number of requests of each operation. `open` is a new reader's first
state, from the newest checkpoint or from the whole log; `poll` looks for new commits when there are none; `publish` is
the call with a new side network of 1 MiB. The folder's log has one commit for each version; the bucket's has one for a
thousand versions, which is faster to prepare. Torch is needed only for its version.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import click
import numpy as np
from safetensors.numpy import save_file

from benchmarks.harness.cli import QUICK_S, How
from benchmarks.harness.machine import look
from benchmarks.harness.samples import BenchmarkError, Column, Report, Spread, Variant, options, plain_errors
from side_registry import SIDE_NETWORK, BackboneRef, Manifest, Registry, Store, TaskSpec, fold, write_manifest
from side_registry.checkpoints import save_checkpoint
from side_registry.log import Commit, Log, Publish, SetAlias

TASKS, VERSIONS = 10_000, 3
SIDE_BYTES = 1 << 20
COLUMNS = (Column(figure="ms", heading="ms", digits=2),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A store of registries."""

    name: str
    url: str
    """URL of a folder of registries."""
    per_commit: int
    """Versions in one commit of the large registry."""


def fill(url: str, tasks: int, per_commit: int) -> Registry:
    """Make a registry with a log and a checkpoint of `tasks` tasks, without artifact files, which are not read."""
    registry = Registry.open(url, create=True)
    store = Store.open(url)
    log, actions = Log(store), [action for number in range(tasks) for action in _task(number)]
    for generation, start in enumerate(range(0, len(actions), per_commit), 1):
        log.append(_commit(generation, actions[start : start + per_commit]))
    save_checkpoint(store, registry.state())
    return registry


def variants(location: Location, folder: Path, how: How) -> list[Variant]:
    """Return what is measured on one store."""
    large = fill(f"{location.url}/large", how.size(TASKS, 20), location.per_commit)
    small = fill(f"{location.url}/small", 1, 1)
    runs = (_run(folder / location.name / str(number)) for number in count())
    name, nothing = location.name, lambda: None

    def opened(_: None) -> None:
        Registry.open(large.url).state()

    def replayed(_: None) -> None:
        fold(Log(Store.open(large.url)).after(0))

    return [
        how.timed(f"{name}: open, by a checkpoint", opened, nothing, 1, unit="calls"),
        how.timed(f"{name}: open, by the log", replayed, nothing, 1, unit="calls"),
        how.timed(f"{name}: poll", lambda _: large.state(), nothing, 1, unit="calls"),
        how.timed(f"{name}: publish, 1 task", small.publish, lambda: next(runs), 1, unit="calls"),
        how.timed(f"{name}: publish, many tasks", large.publish, lambda: next(runs), 1, unit="calls"),
    ]


@contextmanager
def bucket(folder: Path) -> Iterator[str]:
    """Start a server with S3's API; yield the URL of an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    before = dict(os.environ)
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_REGION="us-east-1")
    os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_ALLOW_HTTP="true")
    with (folder / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-p", endpoint.rpartition(":")[2]]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _make_bucket(endpoint, server)
        yield "s3://bench"
    finally:
        server.terminate()
        server.wait()
        os.environ.clear()
        os.environ.update(before)


def _make_bucket(endpoint: str, server: subprocess.Popen[bytes], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until and server.poll() is None:
        try:
            urlopen(Request(f"{endpoint}/bench", method="PUT"), timeout=10).close()
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise BenchmarkError("moto's server does not start; install moto[server], or give --no-s3")


def _task(number: int) -> list[Publish | SetAlias]:
    name = f"task-{number}"
    publishes = [
        Publish(
            task=name,
            version=version,
            manifest_sha256=f"{number * VERSIONS + version:064x}",
            kind="classification",
            backbone="sha256:" + "b" * 64,
            run_id=f"{name}-run-{version}",
        )
        for version in range(1, VERSIONS + 1)
    ]
    return [*publishes, SetAlias(task=name, alias="production", version=VERSIONS)]


def _commit(generation: int, actions: list[Publish | SetAlias]) -> Commit:
    time_, id_ = "2026-01-01T00:00:00.000Z", f"{generation:032x}"
    return Commit(generation=generation, id=id_, time=time_, author="bench", actions=tuple(actions))


def _run(folder: Path) -> Path:
    """Write a run folder for a publish."""
    folder.mkdir(parents=True)
    save_file({"w": np.frombuffer(os.urandom(SIDE_BYTES), np.uint8)}, folder / SIDE_NETWORK)
    spec = TaskSpec(name="published", kind="classification", template="{text}", labels=("no", "yes"))
    manifest = Manifest(
        task=spec.name,
        spec=spec,
        backbone=BackboneRef(name="bench", fingerprint="sha256:" + "b" * 64),
        tokenizer_fingerprint="sha256:" + "c" * 64,
        side={},
    )
    write_manifest(folder, manifest)
    return folder


def ask(how: How, s3: bool) -> Any:
    """Measure all variants."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as name:
        folder = Path(name)
        folder_variants = variants(Location(name="folder", url=str(folder / "registries"), per_commit=1), folder, how)
        if not s3:
            return how.turns(folder_variants)
        with bucket(folder) as url:
            return how.turns(folder_variants + variants(Location(name="S3", url=url, per_commit=1000), folder, how))


@click.command()
@click.option("--s3/--no-s3", default=True, show_default=True, help="Also on a server that speaks S3's API (moto).")
@click.option("--quick", is_flag=True, help="See whether it works; the figures mean nothing.")
@click.option("--seconds", type=click.FloatRange(0.001, 600), default=0.5, show_default=True, help="Of a measurement.")
@options
def main(s3: bool, quick: bool, seconds: float, rounds: int, seed: int, as_json: bool, save: bool) -> None:
    """Measure how long a registry takes to open, to poll and to publish to."""
    with plain_errors():
        rounds, seconds = (1, QUICK_S) if quick else (rounds, seconds)
        how = How(rounds=rounds, seconds=seconds, seed=seed, threads=0, quick=quick, quiet=as_json)
        machine, samples = look(), ask(how, s3)
        ratios: dict[str, Spread] = {
            f"{name}: publish, many tasks / 1": samples.ratio(
                "ms", f"{name}: publish, many tasks", f"{name}: publish, 1 task"
            )
            for name in (["folder", "S3"] if s3 else ["folder"])
        }
        settings = {"tasks": how.size(TASKS, 20), "versions": VERSIONS, "side_bytes": SIDE_BYTES}
        settings |= {"requests": {"open": 5, "poll": 1}, "rounds": rounds, "seconds": seconds, "quick": quick}
        report = Report(
            name="registry", title="A registry", machine=machine, settings=settings, samples=samples, ratios=ratios
        )
        if save:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
