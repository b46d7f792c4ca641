"""docs/reading-order.md names every file that a Predict enters."""

import asyncio
import re
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from ladder import load_backbone, load_tokenizer
from serving.client import AsyncClient
from serving.config import EngineConfig, ServeConfig
from serving.server import Server
from side_registry import Registry
from tests.serving.kit import make_run, make_spec

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("serving", "ladder", "side_registry")


class Recorder:
    """Notes the project's files that are entered, in the order of the first time, on all threads."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.is_on = False
        self._names: dict[CodeType, str] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self.is_on and event == "call" and (name := self._name(frame.f_code)):
            self.files.setdefault(name)

    def _name(self, code: CodeType) -> str:
        if code not in self._names:
            path = Path(code.co_filename)
            ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES
            self._names[code] = str(path.relative_to(ROOT)) if ours else ""
        return self._names[code]


@pytest.fixture(scope="module")
def entered(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of one classification Predict over gRPC, client apart, in the order in which they are entered."""
    folder = tmp_path_factory.mktemp("predict")
    registry = Registry.open(folder / "registry", create=True)
    run = make_run(folder / "run", load_backbone(str(tiny_t5)), load_tokenizer(str(tiny_t5)), make_spec())
    registry.publish(run)
    recorder = Recorder()

    async def predict() -> None:
        config = ServeConfig(
            backbone=str(tiny_t5),
            registry=str(folder / "registry"),
            port=0,
            metrics_port=0,
            dtype="float32",
            threads=1,
            engine=EngineConfig(warmup_s=0),
        )
        server = Server(config)
        await server.start()
        try:
            async with AsyncClient(f"127.0.0.1:{server.port}") as client:
                await client.predict("sst2", ["warm"])
                recorder.is_on = True
                await client.predict("sst2", ["a gripping film"])
                recorder.is_on = False
        finally:
            await server.stop()

    threading.setprofile(recorder)
    sys.setprofile(recorder)
    try:
        asyncio.run(predict())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    watchers = ("serving/client", "serving/versions/reconciler.py", "serving/versions/presence.py")
    return [name for name in recorder.files if not name.startswith(watchers) and "side_registry/" not in name]


def test_names_every_file_that_a_predict_enters(entered: list[str]) -> None:
    page = (ROOT / "docs" / "reading-order.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:serving|ladder|side_registry)/[\w/]+\.py)`", page))
    print(len(entered), *entered, sep="\n")
    assert entered
    assert [name for name in entered if name not in named] == []


def test_every_file_that_it_names_is_there() -> None:
    page = (ROOT / "docs" / "reading-order.md").read_text(encoding="utf-8")
    assert [
        name for name in re.findall(r"`([\w/]+/[\w/]*\.(?:py|proto|toml))`", page) if not (ROOT / name).exists()
    ] == []
