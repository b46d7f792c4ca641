"""`sidecast batch` with Ray: killed and gone on with, and where its replicas cannot work."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from ladder import load_backbone, load_tokenizer
from side_registry import Registry
from sidecast import Client
from tests.cluster.kit import SOON_S, Fleet
from tests.conformance.cluster import wait_until
from tests.sidecast.batch_kit import ROWS, TASKS, Bench, make_bench
from tests.sidecast.cli_kit import ROOT, Serving, plain_environment
from tests.training import pictures, toy
from tests.visual_runs import COLOURS, VisualRuns

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

IMAGES = pictures.pictures(6)
GONE_S = 20.0
"""Longest time for the processes of a killed command's Ray to end."""


@dataclass(frozen=True)
class VisualBench(Bench):
    """A bench with one more task, `colours`, which reads images that the rows name."""

    images: Path
    encoder: Path

    def words(self, output: Path, *more: object) -> list[str]:
        where = ("--images", self.images, "--vision", self.encoder)
        return super().words(output, "--task", "colours", *where, *more)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> VisualBench:
    folder = tmp_path_factory.mktemp("batch")
    plain = make_bench(folder, tiny_t5)
    runs = VisualRuns(folder / "runs", load_backbone(tiny_t5, dtype="float32"), load_tokenizer(tiny_t5))
    Registry.open(plain.registry).publish(runs.run(COLOURS))
    images = pictures.folder_of(folder / "images", IMAGES)
    rows = [json.loads(line) for line in plain.rows.read_text().splitlines()]
    for row in rows:
        row |= {"question": "what", "image_id": f"p/{row['id'] % len(IMAGES)}"}
    path = toy.write(folder / "visual.jsonl", rows)
    return VisualBench(plain.backbone, plain.registry, path, images, runs.encoder_folder)


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a command that starts its own Ray; after it no process of that Ray is left."""
    folder = tmp_path_factory.mktemp("r")  # short: sockets have names there
    yield plain_environment() | {"RAY_TMPDIR": str(folder), "RAY_raylet_start_wait_time_s": "50"}
    wait_until(lambda: not rays(folder), GONE_S)


def rays(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words):
            found.append(process)
    return found


FATAL = """
import os, sys
from serving.offline import run as offline
from sidecast.cli.app import main

class Fatal(offline.Replica):
    def {method}(self, argument):
        {does}

offline.Replica = Fatal
main(sys.argv[1:])
"""


def start(words: list[str], environment: dict[str, str], lines: str = "") -> "subprocess.Popen[str]":
    """The command; or `lines` of Python that call it."""
    command = [sys.executable, *(("-c", lines) if lines else ("-m", "sidecast.cli")), *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    code, out, err = end(words, environment)
    assert (code, err) == (0, "")
    return json.loads(out)


def end(words: list[str], environment: dict[str, str], lines: str = "") -> tuple[int, str, str]:
    """The exit code and both outputs. A command that does not end in time is killed."""
    process = start(words, environment, lines)
    try:
        out, err = process.communicate(timeout=SOON_S)
        return process.returncode, out, err
    finally:
        process.kill()
        process.communicate()


def test_killed_and_gone_on_with_on_a_cluster_it_has_a_servers_answers(
    bench: VisualBench, fleet_of_all: Fleet, tmp_path: Path, alone: dict[str, str]
) -> None:
    """The first run has a Ray of its own, which ends with it. No part is made twice."""
    output = tmp_path / "out"
    words = bench.words(output, "--json", "--shard-rows", 3, "--batch-rows", 1)
    process = start(words, alone)
    try:
        wait_until(lambda: len(list(output.glob("part-*"))) > 1 or process.poll() is not None, SOON_S)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not rays(Path(alone["RAY_TMPDIR"])), GONE_S)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 1 < len(before) < ROWS // 3
    document = finish([*words, "--address", fleet_of_all.cluster.gcs], fleet_of_all.cluster.environment)
    assert document["done_before"] >= 3 * len(before)  # a replica may finish its part while it dies
    assert document["answered"] == ROWS - document["done_before"]
    assert {name: (output / name).stat().st_mtime_ns for name in before} == before
    assert pq.read_table(output)["id"].to_pylist() == list(range(ROWS))
    assert not (output / "_unfinished").exists()

    rows = [row for row in pq.read_table(output).to_pylist() if row["id"] != 3]
    assert document["images"] > 0
    where = ("--backbone", bench.backbone, "--registry", bench.registry, "--dtype", "float32", "--device", "cpu")
    with Serving(tmp_path, *where, "--vision", bench.encoder) as serving, Client(serving.address) as client:
        texts = [row["sentence"] for row in rows]
        classes, values, titles = (client.predict(task, texts, version=1) for task in TASKS)
        asked = [{"question": row["question"], "image": IMAGES[row["image_id"]]} for row in rows]
        colours = client.predict("colours", asked, version=1)
    assert [row["colours.score"] for row in rows] == pytest.approx([each.score for each in colours], abs=1e-4)
    assert [row["sst2.label"] for row in rows] == [each.label for each in classes]
    assert [row["sst2.score"] for row in rows] == pytest.approx([each.score for each in classes], abs=1e-4)
    assert [row["stars.value"] for row in rows] == pytest.approx([each.value for each in values], abs=1e-4)
    assert [row["title.text"] for row in rows] == [each.text for each in titles]


def test_a_replica_that_gives_up_is_one_line(bench: VisualBench, fleet_of_all: Fleet, tmp_path: Path) -> None:
    registry = Path(bench.registry)
    copy = tmp_path / "registry"
    subprocess.run(["cp", "-r", registry, copy], check=True)
    [weights] = Registry.open(copy).manifest("stars", 1).files.values()
    (copy / "blobs/sha256" / weights.sha256).write_bytes(b"?")
    words = bench.words(tmp_path / "out", "--registry", str(copy), "--address", fleet_of_all.cluster.gcs)
    code, _, err = end(words, fleet_of_all.cluster.environment)
    assert code == 2
    assert "Error: stars:1 cannot be used" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("method", "does", "why"),
    [("__call__", "os._exit(1)", "The actor"), ("__init__", "raise OSError('no such disk')", "no such disk")],
)
def test_replicas_that_die_are_not_tried_for_ever(
    bench: VisualBench, fleet_of_all: Fleet, tmp_path: Path, method: str, does: str, why: str
) -> None:
    lines = FATAL.format(method=method, does=does)
    words = bench.words(tmp_path / "out", "--address", fleet_of_all.cluster.gcs)
    code, _, err = end(words, fleet_of_all.cluster.environment, lines)
    assert code == 2, err
    assert "Error: replicas do not start or do not last" in err.splitlines()[-1]
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err
