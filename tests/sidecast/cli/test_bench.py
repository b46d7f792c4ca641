"""`sidecast bench` before real servers: what it prints, writes and draws, and each mistake in one line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ladder import load_backbone, load_tokenizer
from serving.components import assemble
from serving.config import ServeConfig
from serving.errors import Overloaded
from serving.server import Server
from side_registry import Registry
from sidecast.cli.serving.bench import guess_metrics_url
from tests.serving.api_kit import Parlour, serving
from tests.serving.kit import make_run, make_spec
from tests.sidecast.cli_kit import ROOT, Ran, done, plain_environment, sidecast, wait_until

SHORT = ("--duration", 0.3, "--warmup", 0.1)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("SIDECAST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    """A server that answers by rule."""
    with Parlour(tmp_path_factory.mktemp("parlour")).open() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Iterator[Server]:
    """A server with a tiny model: two classification tasks, and one that makes texts."""
    folder = tmp_path_factory.mktemp("served")
    registry = Registry.open(folder / "registry", create=True)
    backbone, tokenizer = load_backbone(tiny_t5, dtype="float32"), load_tokenizer(tiny_t5)
    for spec in (make_spec("sst2"), make_spec("cola"), make_spec("titles", kind="text", max_new_tokens=4)):
        registry.publish(make_run(folder / spec.name, backbone, tokenizer, spec, 1))
    config = ServeConfig(backbone=str(tiny_t5), registry=str(folder / "registry"), port=0, metrics_port=0, threads=1)
    with serving(config, assemble) as (opened, _):
        yield opened


def bench(server: Server | Parlour, *words: object) -> Ran:
    opened = server.server if isinstance(server, Parlour) else server
    where = ("--server", f"127.0.0.1:{opened.port}", "--metrics-url", f"http://127.0.0.1:{opened.metrics_port}/metrics")
    return sidecast("bench", *where, *SHORT, *words)


def measured(server: Server | Parlour, *words: object) -> Any:
    ran = bench(server, *words, "--json")
    assert ran.code == 0, ran.err
    return ran.document


# --- levels


def test_callers_and_the_servers_stages(server: Server) -> None:
    document = measured(server, "--concurrency", "1,6", "--seed", 3)
    assert {task["task"] for task in document["tasks"]} == {"sst2", "cola", "titles"}
    assert {task["version"] for task in document["tasks"]} == {1}
    assert (document["plan"]["seed"], document["interrupted"]) == (3, False)
    assert [level["name"] for level in document["levels"]] == ["1 caller", "6 callers"]
    for level in document["levels"]:
        assert level["requests"] == level["answered"] > 0
        assert (level["errors"], level["shed"], level["stream"]) == ([], 0, None)
        assert 0 < level["latency_ms"]["p50"] <= level["latency_ms"]["p99"] <= level["latency_ms"]["max"]
        assert level["server"]["batches"] > 0
        assert level["server"]["stages"]["backbone"]["seconds"] > 0
        assert set(level["by_task"]) <= {"sst2", "cola", "titles"}


def test_arrivals(server: Server) -> None:
    levels = ("--rate", "20,40", "--arrivals", "constant", "--warmup", 0.11, "--duration", 0.31)
    document = measured(server, "sst2", "cola@production", "titles:1", *levels)
    assert [task["task"] for task in document["tasks"]] == ["sst2", "cola@production", "titles:1"]
    assert [level["requests"] for level in document["levels"]] == [6, 12]
    assert [level["rate"] for level in document["levels"]] == [20, 40]


def test_many_tasks_in_one_request(server: Server) -> None:
    words = ("sst2", "cola", "--tasks-per-request", 2, "--rows", 3, "--concurrency", 2)
    [level] = measured(server, *words)["levels"]
    assert level["rows_per_s"] == pytest.approx(3 * level["requests_per_s"])
    assert {frozenset(task.split(", ")) for task in level["by_task"]} == {frozenset({"sst2", "cola"})}


def test_streams(server: Server) -> None:
    words = ("--stream", "--concurrency", 3, "--max-new-tokens", 3, "--min-new-tokens", 3, "--priority", 1)
    document = measured(server, *words)
    assert [task["task"] for task in document["tasks"]] == ["titles"]
    [level] = document["levels"]
    assert level["answered"] > 0
    assert level["stream"]["tokens_per_text"] == 3
    assert level["stream"]["tokens_per_s"] > 0
    assert 0 < level["stream"]["first_ms"]["p50"] <= level["latency_ms"]["max"]
    assert level["stream"]["between_ms"]["p50"] > 0


def test_a_stream_that_breaks_off_is_an_error(parlour: Parlour) -> None:
    parlour.service.trouble["titles"] = Overloaded(9, 8, 0.1)
    try:
        ran = bench(parlour, "--stream", "--concurrency", 2)
    finally:
        parlour.service.trouble.clear()
    assert ran.code == 2
    assert "OVERLOADED" in ran.err.splitlines()[-1]


def test_priorities_reach_the_server(parlour: Parlour) -> None:
    del parlour.service.priorities[:]
    measured(parlour, "sst2", "--concurrency", 2, "--priority", 3)
    assert set(parlour.service.priorities) == {3}


def test_rows_of_the_users(parlour: Parlour, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sentence1": "a", "sentence2": "b"}\n', encoding="utf-8")
    document = measured(parlour, "rte", "--prompts", tmp_path / "rows.jsonl", "--concurrency", 1)
    assert document["levels"][0]["answered"] > 0
    assert any(note.startswith("the file's 1 rows were sent more than once") for note in document["notes"])


def test_a_failing_task_is_counted_and_its_neighbour_measured(parlour: Parlour) -> None:
    parlour.service.trouble["tweets"] = Overloaded(9, 8, 0.1)
    try:
        [level] = measured(parlour, "sst2", "tweets", "--concurrency", 4)["levels"]
        lone = bench(parlour, "tweets", "--concurrency", 2)
    finally:
        parlour.service.trouble.clear()
    [error] = level["errors"]
    assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert level["shed"] == error["count"] == level["requests"] - level["answered"] > 0
    assert set(level["by_task"]) == {"sst2"}
    assert (lone.code, lone.out) == (2, "")
    assert lone.err.splitlines()[-1].startswith("Error: no request was answered: ")


def test_deadlines_are_the_servers_too(parlour: Parlour) -> None:
    parlour.service.slow = 0.2
    try:
        ran = bench(parlour, "sst2", "--concurrency", 2, "--timeout", 0.05)
    finally:
        parlour.service.slow = 0.0
    assert (ran.code, ran.out) == (2, "")
    assert "DEADLINE_EXPIRED" in ran.err.splitlines()[-1]


# --- what it prints and writes


def test_tables_for_people(server: Server, tmp_path: Path) -> None:
    ran = bench(server, "sst2", "--concurrency", "2", "--out", tmp_path / "out.json", "--plot", tmp_path / "plot.html")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith("2 callers")] == ["2", "2"]
    assert "The server's stages, means" in ran.out
    assert "goodput: answers within 60 s of when they were due" in ran.out
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["levels"][0]["answered"] > 0
    page = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "The server&#x27;s stages, means" in page
    for outward in ("src=", "@import", "<script", "<link", "<!DOCTYPE svg"):
        assert outward not in page


def test_a_server_without_metrics_is_measured_all_the_same(parlour: Parlour) -> None:
    words = ("bench", "sst2", "--server", parlour.address, "--metrics-url", "http://127.0.0.1:1/", "--concurrency", 1)
    ran = done(*words, *SHORT)
    assert "without the server's metrics, so without stages" in ran.out
    assert "The server's stages" not in ran.out


def test_where_the_metrics_of_a_server_are() -> None:
    assert guess_metrics_url("host:8001") == guess_metrics_url("host") == "http://host:8002/metrics"
    assert guess_metrics_url("[::1]:8001") == "http://[::1]:8002/metrics"


def test_an_interrupt_prints_what_was_seen(parlour: Parlour) -> None:
    words = ["bench", "sst2", "--server", parlour.address, "--concurrency", "2", "--warmup", "0", "--duration", "60"]
    command = [sys.executable, "-m", "sidecast.cli", *words, "--json", "--metrics-url", "http://127.0.0.1:1/"]
    called = len(parlour.service.deadlines)
    process = subprocess.Popen(command, cwd=ROOT, env=plain_environment(), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len(parlour.service.deadlines) >= called + 20, timeout_s=60)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    document = json.loads(out)
    assert document["interrupted"]
    assert document["levels"][0]["answered"] > 0


# --- mistakes

MISTAKES = [
    ("sst3", "there is no task 'sst3'"),
    ("sst2:9", "has no version 9"),
    ("sst2@canary", "has no alias 'canary'"),
    ("--rate 0", "--rate must be above 0, got 0"),
    ("--rate 5,x", "give numbers such as 1,4,16; got '5,x'"),
    ("--rate 5 --concurrency 5", "give --concurrency or --rate, not both"),
    ("--concurrency 0", "--concurrency must be 1 or more, got 0"),
    ("--concurrency 1.5", "--concurrency must be whole numbers, got 1.5"),
    ("--duration 0", "Invalid value for '--duration'"),
    ("--tasks-per-request 9", "--tasks-per-request 9 needs as many tasks, there are 4"),
    ("sst2 --stream", "--stream is for text tasks, and sst2 is a task of kind classification"),
    ("rte --max-new-tokens 4", "--max-new-tokens is for text tasks, and rte is a task of kind classification"),
    ("--stream --rows 2", "--stream sends one row of one task"),
    ("sst2 --prompts @/empty.txt", "holds no rows"),
    ("sst2 --prompts @/nothing.txt", "cannot be read: No such file"),
    ("sst2 --prompts @/other.jsonl", "no column 'sentence'"),
    ("--plot @/plot.gif", "use a name that ends in .png, .svg, .html"),
    ("--out @/no/where.json", "--out @/no/where.json cannot be written: No such file"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes(words: str, says: str, parlour: Parlour, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    given, says = (text.replace("@/", f"{tmp_path}/") for text in (words, says))
    assert says in bench(parlour, *given.split()).mistake


def test_nobody_there() -> None:
    assert "no answer from 127.0.0.1:1" in sidecast("bench", "--server", "127.0.0.1:1", *SHORT).mistake
    assert "Missing option '--server'" in sidecast("bench").mistake


def test_a_server_without_tasks(tmp_path: Path) -> None:
    with Parlour(tmp_path, specs=()).open() as empty:
        assert "serves no task in production" in bench(empty).mistake
        assert "serves no text task in production" in bench(empty, "--stream").mistake
