"""From labelled rows to a served answer, by command: train, publish, evaluate; then the end of a server."""

import json
from pathlib import Path

import pytest

from serving.client.client import Client
from side_registry import TaskSpec
from tests.conformance.targets import Target, World
from tests.serving.kit import TEXTS
from tests.sidecast.cli_kit import Serving, done
from tests.training import toy

pytestmark = pytest.mark.timeout(300)

ROWS = 40
LEARNED = {"letters": 0.7, "echo": 0.5}
"""The least score after a short training."""
TOKENS = 300
"""Tokens of a stream that is being read when its server is told to end."""


@pytest.fixture(scope="session", params=[toy.CLASSES, toy.TEXTS], ids=lambda spec: spec.name)
def trained(request: pytest.FixtureRequest, world: World) -> Path:
    """A folder with a task's file, its data and a run of `sidecast train`."""
    spec: TaskSpec = request.param
    folder = world.folder / f"trained-{spec.name}"
    folder.mkdir()
    values = spec.model_dump(exclude_defaults=True, exclude_none=True)
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
    (folder / "task.toml").write_text("".join(lines), encoding="utf-8")
    toy.write(folder / "train.jsonl", toy.rows(spec, 96))
    toy.write(folder / "held_out.jsonl", toy.rows(spec, ROWS, seed=1))
    files = ["--train", folder / "train.jsonl", "--validation", folder / "held_out.jsonl", "--output", folder / "run"]
    settings = ["--epochs", 2, "--batch-rows", 8, "--reduction", 4, "--seed", 1]
    done("train", folder / "task.toml", "--backbone", world.backbone_folder, *files, *settings, "--json")
    return folder


def test_a_run_its_published_version_and_a_server_answer_alike(
    target: Target, world: World, trained: Path, tmp_path: Path
) -> None:
    done("publish", trained / "run", "--server", target.address)
    assert target.client.await_generation().served
    sources = {
        "run": ["--run", trained / "run"],
        "registry": ["--registry", world.folder / "registry", "--backbone", world.backbone_folder],
        "server": ["--server", target.address],
    }
    documents = {}
    answers = {}
    for source, options in sources.items():
        file = tmp_path / source
        words = ["--data", trained / "held_out.jsonl", *options, "--predictions", file, "--json"]
        documents[source] = done("evaluate", trained / "task.toml", *words).document
        answers[source] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for source, document in documents.items():
        assert (document["source"], document["rows"]) == (source, ROWS)
        assert document["version"] == (None if source == "run" else 1)
        assert document["metrics"] == pytest.approx(documents["run"]["metrics"], abs=1e-4)
        for found, expected in zip(answers[source], answers["run"], strict=True):
            assert found == {
                name: value if isinstance(value, str) else pytest.approx(value, abs=1e-4)
                for name, value in expected.items()
            }
    assert documents["run"]["score"] > LEARNED[documents["run"]["task"]]


@pytest.mark.slow
def test_sigterm_lets_a_stream_end_whole(world: World, one_process: Target, tmp_path: Path) -> None:
    """New calls are refused meanwhile: tests/serving/test_server_lifecycle.py."""
    options = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
    with (
        Serving(tmp_path, "--config", world.folder / "serve.toml", "--grace-s", 200) as server,
        Client(server.address, retry=False) as client,
        client.stream("story", TEXTS[0], decoding=options) as stream,
    ):
        first = next(stream)
        server.process.terminate()
        text = first.text + "".join(piece.text for piece in stream)
        result = stream.result()
        assert (result.text, result.token_count) == (text, TOKENS)
        assert server.process.wait(200) == 0
        assert server.process.stdout
        assert server.process.stdout.read() == ""
        assert "Traceback" not in server.log
