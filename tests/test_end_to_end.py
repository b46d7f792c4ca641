"""The main job, end to end, on a tiny random backbone: train, publish, serve in a process of its own, swap it live."""

import asyncio
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.client.errors import DrainingError, SidecastError, UnavailableError
from side_registry import SIDE_NETWORK, TaskSpec, read_artifact
from sidecast import AsyncClient, Classification, Client, Embedding, Regression
from tests import tiny
from tests.sidecast.cli_kit import ROOT, Ran, Serving, callers, done, python, sidecast, wait_until
from tests.training import toy

pytestmark = pytest.mark.slow

LETTERS = "letters"
SPECS = (toy.CLASSES, toy.VALUES, toy.TEXTS, toy.PAIRS)
ROWS = 40
SWAP_S = 5.0
"""Far above the second that is promised: these tests share their machine."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A backbone, four tasks' rows, and finished runs: two of letters, one of each other task."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def data(self, task: str) -> Path:
        return self / f"{task}.jsonl"

    def texts(self, task: str) -> list[str]:
        return [json.loads(line)["sentence"] for line in self.data(task).read_text(encoding="utf-8").splitlines()]

    def answers(self, run: str) -> list[Answer]:
        """What a run folder answers, row by row."""
        task = read_artifact(self / run).manifest.task
        file = self / f"{run}.answers"
        if not file.exists():
            done("evaluate", task, "--data", self.data(task), "--run", self / run, "--predictions", file, "--json")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    shutil.copytree(tiny_t5, bench / "t5")
    for spec in SPECS:
        toy.write(bench / f"{spec.name}.train.jsonl", toy.rows(spec, 96))
        toy.write(bench.data(spec.name), toy.rows(spec, ROWS, seed=1))
        (bench / f"{spec.name}.toml").write_text(as_toml(spec), encoding="utf-8")
    for run, task, seed in (("letters-1", LETTERS, 1), ("letters-2", LETTERS, 2), ("share", "share", 1)):
        train(bench, task, run, seed)
    train(bench, "echo", "echo", 1)
    train(bench, "capitals", "capitals", 1, "--lr", 0.02)
    return bench


def as_toml(spec: TaskSpec) -> str:
    values = spec.model_dump(exclude_defaults=True, exclude_none=True)
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def train(bench: Bench, task: str, run: str, seed: int, *more: object) -> None:
    files = ["--train", bench / f"{task}.train.jsonl", "--validation", bench.data(task), "--output", bench / run]
    settings = ["--epochs", 2, "--batch-rows", 8, "--reduction", 4, "--seed", seed]
    done("train", bench / f"{task}.toml", "--backbone", bench / "t5", *files, *settings, *more, "--json")


def serve(bench: Bench, folder: Path, *words: object) -> Serving:
    where = ["--backbone", bench / "t5", "--registry", folder / "registry", "--threads", 1]
    return Serving(folder, *where, *words)


@pytest.fixture(scope="module")
def server(bench: Bench) -> Iterator[Serving]:
    """Serves the first run of every task. No test changes it."""
    for run in ("letters-1", "share", "echo", "capitals"):
        done("publish", bench / run, "--registry", bench / "registry")
    with serve(bench, bench.folder) as serving:
        yield serving


# --- one answer, whoever asks


def assert_same(found: list[Answer], expected: list[Answer], atol: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        numbers = {name: pytest.approx(value, abs=atol) for name, value in theirs.items() if not is_text(value)}
        assert ours == theirs | numbers


def is_text(value: object) -> bool:
    return isinstance(value, str)


def as_answer(given: Any) -> Answer:
    """A client's typed result as `evaluate --predictions` writes it."""
    if isinstance(given, Classification):
        return {"label": given.label, "score": given.score, "scores": list(given.scores.values())}
    if isinstance(given, Embedding):
        return {"embedding": list(given.values)}
    return {"value": given.value} if isinstance(given, Regression) else {"text": given.text}


def ask_command_line(server: Serving, task: str, texts: list[str]) -> list[Answer]:
    document = done("predict", task, *texts, "--server", server.address, "--json").document
    assert (document["task"], document["version"]) == (task, 1)
    return [
        each | {"scores": list(each["scores"].values())} if "scores" in each else each for each in document["answers"]
    ]


def ask_client(server: Serving, task: str, texts: list[str]) -> list[Answer]:
    with Client(server.address) as client:
        return [as_answer(each) for each in client.predict(task, texts)]


def ask_async_client(server: Serving, task: str, texts: list[str]) -> list[Answer]:
    async def ask() -> list[Answer]:
        async with AsyncClient(server.address) as client:
            halves = await asyncio.gather(client.predict(task, texts[:17]), client.predict(task, texts[17:]))
        return [as_answer(each) for half in halves for each in half]

    return asyncio.run(ask())


def ask_for_all_tasks(server: Serving, task: str, texts: list[str]) -> list[Answer]:
    with Client(server.address) as client:
        outcomes = client.predict_tasks([LETTERS, "share", "echo", "capitals"], texts)
    predictions = outcomes[task]
    assert not isinstance(predictions, SidecastError)
    return [as_answer(each) for each in predictions]


def ask_triton(server: Serving, task: str, texts: list[str]) -> list[Answer]:
    asked = {"address": server.address, "task": task, "texts": texts}
    ran = python(ROOT / "tests" / "triton_rows.py", given=json.dumps(asked))
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["version"] == "1"
    names, columns = list(told["outputs"]), told["outputs"].values()
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


@pytest.mark.parametrize("ask", [ask_command_line, ask_client, ask_async_client, ask_for_all_tasks, ask_triton])
@pytest.mark.parametrize(
    ("task", "run"), [(LETTERS, "letters-1"), ("share", "share"), ("echo", "echo"), ("capitals", "capitals")]
)
def test_a_server_answers_each_row_as_the_run_folder_does(
    bench: Bench, server: Serving, ask: Any, task: str, run: str
) -> None:
    assert_same(ask(server, task, bench.texts(task)), bench.answers(run))


@pytest.mark.parametrize("task", [LETTERS, "share", "echo", "capitals"])
def test_run_registry_and_server_score_the_same(bench: Bench, server: Serving, tmp_path: Path, task: str) -> None:
    run = "letters-1" if task == LETTERS else task
    sources = {
        "run": ["--run", bench / run],
        "registry": ["--registry", bench / "registry", "--backbone", bench / "t5"],
        "server": ["--server", server.address],
    }
    documents = {}
    for source, words in sources.items():
        file = tmp_path / source
        ran = done("evaluate", task, "--data", bench.data(task), *words, "--predictions", file, "--json")
        documents[source] = ran.document
        assert_same([json.loads(line) for line in file.read_text().splitlines()], bench.answers(run))
    for source, document in documents.items():
        assert (document["source"], document["rows"]) == (source, ROWS)
        assert document["version"] == (None if source == "run" else 1)
        assert document["metrics"] == pytest.approx(documents["run"]["metrics"], abs=1e-4)
    assert documents["run"]["score"] > (0.1 if task == "capitals" else 0.5)  # the one of 40 that is nearest


def test_ready_line_and_doctor(bench: Bench, server: Serving) -> None:
    assert (server.ready["ready"], server.ready["tasks"], server.ready["generation"]) == (True, 4, 4)
    where = ["--backbone", bench / "t5", "--registry", bench / "registry", "--server", server.address]
    assert done("doctor", *where, "--json").document["healthy"]


def test_a_port_in_use_ends_the_second_server(bench: Bench, server: Serving) -> None:
    port = server.address.partition(":")[2]
    ran = sidecast("serve", "--backbone", bench / "t5", "--registry", bench / "registry", "--port", port)
    assert f"port {port} is in use" in ran.mistake


# --- metrics

DOCUMENTED = {
    "sidecast_requests": "counter",
    "sidecast_request_seconds": "histogram",
    "sidecast_stage_seconds": "histogram",
    "sidecast_batch_rows": "histogram",
    "sidecast_batch_tokens": "histogram",
    "sidecast_padding_tokens": "counter",
    "sidecast_queue_rows": "gauge",
    "sidecast_queue_tokens": "gauge",
    "sidecast_task_queue_rows": "gauge",
    "sidecast_running_rows": "gauge",
    "sidecast_expired_rows": "counter",
    "sidecast_shed_requests": "counter",
    "sidecast_cache_hits": "counter",
    "sidecast_cache_misses": "counter",
    "sidecast_cache_evictions": "counter",
    "sidecast_cache_bytes": "gauge",
    "sidecast_cache_entries": "gauge",
    "sidecast_resident_side_networks": "gauge",
    "sidecast_resident_bytes": "gauge",
    "sidecast_generation_wanted": "gauge",
    "sidecast_generation_served": "gauge",
    "sidecast_swap_seconds": "histogram",
    "sidecast_load_failures": "counter",
}


def metrics_of(server: Serving) -> dict[str, Any]:
    """Families by name."""
    with urllib.request.urlopen(server.ready["metrics"], timeout=10) as response:
        return {family.name: family for family in text_string_to_metric_families(response.read().decode())}


def value_of(families: dict[str, Any], sample: str, **labels: str) -> float:
    """Of all samples of that name and these labels together."""
    return sum(
        each.value
        for family in families.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    )


def test_metrics_tell_what_was_asked_and_what_is_served(bench: Bench, server: Serving) -> None:
    before = metrics_of(server)
    texts = bench.texts(LETTERS)
    with Client(server.address) as client:
        client.predict(LETTERS, texts)
        for unknown in ("nobody", f"{LETTERS}@nobody"):
            with pytest.raises(SidecastError):
                client.predict(unknown, texts)
    families = metrics_of(server)
    assert {name: families[name].type for name in DOCUMENTED} == DOCUMENTED

    asked, asked_before = (
        value_of(each, "sidecast_requests_total", task=LETTERS, version="1", code="OK") for each in (families, before)
    )
    assert asked - asked_before == 1
    assert value_of(families, "sidecast_requests_total", task="unknown", code="NOT_FOUND") >= 1
    assert value_of(families, "sidecast_requests_total", task=LETTERS, code="NOT_FOUND") >= 1
    for stage in ("queue", "tokenize", "backbone", "side"):
        assert value_of(families, "sidecast_stage_seconds_count", stage=stage) >= 1
    assert value_of(families, "sidecast_batch_rows_sum") >= len(set(texts))
    assert value_of(families, "sidecast_resident_side_networks") == 4
    assert value_of(families, "sidecast_resident_bytes") > 10_000
    assert value_of(families, "sidecast_generation_wanted") == value_of(families, "sidecast_generation_served") == 4


# --- versions, live


@dataclass(frozen=True)
class Stored:
    """The answers that each version must give."""

    texts: list[str]
    by_version: dict[int, list[Answer]]

    def check(self, predictions: Any) -> None:
        assert_same([as_answer(each) for each in predictions], self.by_version[predictions.version], atol=1e-5)


def test_publish_roll_back_and_retire_under_load(bench: Bench, tmp_path: Path) -> None:
    where = ["--registry", tmp_path / "registry"]
    done("publish", bench / "letters-1", *where)
    stored = Stored(bench.texts(LETTERS), {1: bench.answers("letters-1"), 2: bench.answers("letters-2")})
    assert stored.by_version[1] != stored.by_version[2]
    with serve(bench, tmp_path) as server, Client(server.address, retry=False) as client:
        on_server = ["--server", server.address]
        with callers(4, lambda: client.predict(LETTERS, stored.texts)) as seen:

            def answered_by(version: int) -> bool:
                return bool(seen) and not isinstance(seen[-1], Exception) and seen[-1].version == version

            wait_until(lambda: len(seen) >= 8)
            told = done("publish", bench / "letters-2", *where, "--alias", "production", "--json").document
            assert told["aliases"] == {"production": 2}
            assert wait_until(lambda: answered_by(2)) < SWAP_S
            assert done("rollback", LETTERS, *where).out.startswith("letters@production is version 1 again, was 2")
            assert wait_until(lambda: answered_by(1)) < SWAP_S
            done("promote", LETTERS, 2, *on_server)
            assert wait_until(lambda: answered_by(2)) < SWAP_S
            assert "is in use as production" in sidecast("retire", LETTERS, 2, *on_server).mistake
            done("retire", LETTERS, 1, *on_server)
            wait_until(lambda: sidecast("predict", f"{LETTERS}:1", "a", *on_server).code == 2)
        failed = [each for each in seen if isinstance(each, Exception)]
        assert failed == []
        for each in seen:
            stored.check(each)
        assert {each.version for each in seen} == {1, 2}
        assert "is retired" in sidecast("predict", f"{LETTERS}:1", "a", *on_server).mistake
        assert value_of(metrics_of(server), "sidecast_resident_side_networks") == 1
        history = done("history", LETTERS, *on_server, "--json").document
        verbs = [action["verb"] for change in history for action in change["actions"]]
        assert verbs == ["publish", "set_alias", "publish", "set_alias", "rollback", "set_alias", "retire"]
        assert server.stop() == 0


# --- damage


def flip(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 0b100
    return bytes(changed)


def cut(data: bytes) -> bytes:
    return data[:-100]


def damage(registry: Path, run: Path, how: Any) -> None:
    blob = registry / "blobs" / "sha256" / read_artifact(run).manifest.files[SIDE_NETWORK].sha256
    blob.write_bytes(how(blob.read_bytes()))


def publish_damaged(bench: Bench, registry: Path, run: Path, how: Any) -> None:
    """Publish to a store that damages the file before anybody can read it: the blobs arrive first, then the commit."""
    elsewhere = Path(shutil.copytree(registry, registry.with_name("elsewhere")))
    done("publish", run, "--registry", elsewhere, "--alias", "production")
    damage(elsewhere, run, how)
    for part in ("blobs", "log"):
        shutil.copytree(elsewhere / part, registry / part, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("when", "how", "why"),
    [
        ("before the server starts", flip, "its content does not match its name"),
        ("while it serves", flip, "its content does not match its name"),
        ("while it serves", cut, "bytes"),
    ],
)
def test_a_damaged_version_leaves_the_old_one_serving(
    bench: Bench, tmp_path: Path, when: str, how: Any, why: str
) -> None:
    registry, run = tmp_path / "registry", bench / "letters-2"
    stored = Stored(bench.texts(LETTERS), {1: bench.answers("letters-1"), 2: bench.answers("letters-2")})
    done("publish", bench / "letters-1", "--registry", registry)
    if when == "before the server starts":
        publish_damaged(bench, registry, run, how)
    with serve(bench, tmp_path) as server, Client(server.address, retry=False) as client:
        on_server = ["--server", server.address]
        with callers(1, lambda: client.predict(LETTERS, stored.texts)) as seen:
            if when == "while it serves":
                publish_damaged(bench, registry, run, how)
            wait_until(lambda: "version 2 does not load" in done("tasks", *on_server).out)
            time.sleep(0.3)
        for each in seen:
            assert not isinstance(each, Exception), each
            assert each.version == 1
            stored.check(each)
        [task] = done("tasks", *on_server, "--json").document["tasks"]
        assert (task["aliases"], task["serving"]) == ({"production": 2}, {"production": 1})
        failures = {each["version"]: each["failure"] for each in task["versions"]}
        assert failures[1] is None
        assert why in failures[2]
        assert "production is still served by version 1" in done("tasks", *on_server).out
        told = sidecast("predict", f"{LETTERS}:2", "a", *on_server).mistake
        assert why in told
        assert "versions of letters do not load" in checks(sidecast("doctor", *on_server, "--json"))["server"]
        assert value_of(metrics_of(server), "sidecast_load_failures_total", task=LETTERS, reason="CORRUPT_SIDE") >= 1

        done("publish", run, "--registry", registry)  # which the error tells to do: it mends the file
        wait_until(lambda: client.predict(LETTERS, stored.texts).version == 2, timeout_s=20)
        stored.check(client.predict(LETTERS, stored.texts))
        assert server.stop() == 0


def checks(ran: Ran) -> dict[str, str]:
    return {each["check"]: each["detail"] for each in ran.document["checks"]}


def test_a_version_of_another_backbone_leaves_the_old_one_serving(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path / "other")
    shutil.copytree(bench.folder, other.folder, ignore=shutil.ignore_patterns("registry", "t5", "letters-*"))
    tiny.make_t5(other / "t5", seed=5)
    train(other, LETTERS, "letters-3", 3)
    where = ["--registry", tmp_path / "registry"]
    done("publish", bench / "letters-1", *where)
    with serve(bench, tmp_path) as server:
        on_server = ["--server", server.address]
        done("publish", other / "letters-3", *on_server, "--alias", "production")
        wait_until(lambda: "version 2 does not load: letters: trained on backbone" in done("tasks", *on_server).out)
        assert done("predict", LETTERS, "a", *on_server, "--json").document["version"] == 1
        assert "retrain it on this backbone" in sidecast("predict", f"{LETTERS}:2", "a", *on_server).mistake
        fit = checks(sidecast("doctor", *where, "--backbone", bench / "t5", "--json"))["fit"]
        assert fit == "trained on another backbone, or with another --quantize: letters@production"
        assert server.stop() == 0


# --- the end


def test_sigterm_answers_what_it_has_and_takes_no_more(bench: Bench, tmp_path: Path) -> None:
    done("publish", bench / "letters-1", "--registry", tmp_path / "registry")
    stored = Stored(bench.texts(LETTERS), {1: bench.answers("letters-1")})
    answers: list[Any] = []
    with (
        serve(
            bench, tmp_path, "--max-wait-s", 2, "--max-batch-rows", 1000
        ) as server,  # rows wait for company: long in flight
        Client(server.address, retry=False) as client,
    ):

        def ask() -> None:
            answers.append(client.predict(LETTERS, stored.texts))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert answers == []
        server.process.terminate()
        time.sleep(0.2)
        refused = time.monotonic()
        with pytest.raises(DrainingError):
            client.predict(LETTERS, stored.texts)
        assert time.monotonic() - refused < 1
        assert answers == []
        for thread in threads:
            thread.join()
        assert len(answers) == 4
        for each in answers:
            stored.check(each)
        assert server.process.wait(20) == 0
        with pytest.raises(UnavailableError):
            client.predict(LETTERS, stored.texts)
        assert server.process.stdout
        assert server.process.stdout.read() == ""
        assert "Traceback" not in server.log
