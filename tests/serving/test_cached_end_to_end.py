"""A real server with its activation cache: through both doors a cached answer is the uncached one."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import CollectorRegistry

from ladder import Backbone, Tokenizer
from ladder.backbone.compiled import CompiledEncoder
from protos import open_inference_pb2, open_inference_pb2_grpc
from serving import components as assembly
from serving.client.client import Client
from serving.components import assemble
from serving.config import EngineConfig, ServeConfig
from serving.server import Server
from side_registry import Registry
from tests.ladder.counting import Counting
from tests.marks import slow
from tests.serving.api_kit import serving
from tests.serving.kit import TEXTS, make_run, make_spec

TASKS = {
    "sst2": make_spec("sst2"),
    "cola": make_spec("cola", labels=("unacceptable", "acceptable")),
    "stars": make_spec("stars", kind="regression"),
    "titles": make_spec("titles", kind="text", max_new_tokens=4),
    "meaning": make_spec("meaning", kind="embedding", dimensions=5),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    registry = Registry.open(folder / "registry", create=True)
    for seed, spec in enumerate(TASKS.values()):
        registry.publish(make_run(folder / spec.name, backbone, tokenizer, spec, seed))
    return folder / "registry"


def serve(published: Path, tiny_t5: Path, **engine: Any) -> Iterator[Server]:
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=str(published),
        port=0,
        metrics_port=0,
        dtype="float32",
        threads=1,
        engine=EngineConfig(**engine),
    )
    with serving(config, assemble) as (server, _):
        yield server


@pytest.fixture
def caching(published: Path, tiny_t5: Path) -> Iterator[Server]:
    yield from serve(published, tiny_t5)


@pytest.fixture
def forgetful(published: Path, tiny_t5: Path) -> Iterator[Server]:
    yield from serve(published, tiny_t5, cache_bytes=0, warmup_s=0)


def address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def natively(server: Server, task: str) -> list[Any]:
    with Client(address(server)) as client:
        answers = client.predict(task, TEXTS)
    return [value for answer in answers for value in flat(answer)]


def flat(answer: Any) -> list[Any]:
    """Its numbers, or its text."""
    if hasattr(answer, "scores"):
        return [*answer.scores.values()]
    if hasattr(answer, "values"):
        return [*answer.values]
    return [answer.value if hasattr(answer, "value") else answer.text]


def by_tensors(server: Server, task: str) -> list[Any]:
    request = open_inference_pb2.ModelInferRequest(model_name=task)
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[len(TEXTS)])
    tensor.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    with grpc.insecure_channel(address(server)) as channel:
        response = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    return [
        value
        for output in response.outputs
        for value in (*output.contents.bytes_contents, *output.contents.fp32_contents)
    ]


def read(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(f"sidecast_cache_{name}") or 0.0


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other)


@pytest.mark.parametrize("ask", [natively, slow(by_tensors)])
def test_cached_answers_are_the_uncached_ones(caching: Server, forgetful: Server, ask: Any) -> None:
    metrics = caching.metrics.registry
    assert (read(metrics, "misses_total"), read(metrics, "entries")) == (0, 0), "a warm-up is no traffic"
    for known, task in enumerate([*TASKS, *TASKS]):
        assert_same(ask(caching, task), ask(forgetful, task))
        assert read(metrics, "misses_total") == len(TEXTS)
        assert read(metrics, "hits_total") == known * len(TEXTS)
    assert read(metrics, "bytes") > 0
    assert read(forgetful.metrics.registry, "hits_total") == read(forgetful.metrics.registry, "bytes") == 0


@pytest.mark.slow
def test_many_tasks_on_one_input_cost_one_row_of_the_backbone(caching: Server) -> None:
    with Client(address(caching)) as client:
        found = client.predict_tasks([*TASKS], ["one input that nobody has asked"])
    assert not any(isinstance(each, Exception) for each in found.values())
    registry = caching.metrics.registry
    assert registry.get_sample_value("sidecast_batch_rows_sum") == 1
    assert registry.get_sample_value("sidecast_batch_rows_count") == 1


@pytest.mark.slow
def test_a_server_with_a_compiled_encoder_answers_as_the_others_and_compiles_no_more(
    published: Path, tiny_t5: Path, forgetful: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Counting()
    monkeypatch.setattr(assembly, "CompiledEncoder", partial(CompiledEncoder, backend=backend))
    for server in serve(published, tiny_t5, compile=True, cache_bytes=0):
        compiled, calls = backend.compiled, backend.calls
        assert compiled > 0
        for task in TASKS:
            assert_same(natively(server, task), natively(forgetful, task))
        assert backend.calls >= calls + len(TASKS), "on the device thread the compiled code is at hand"
        assert backend.compiled == compiled
    torch.compiler.reset()
