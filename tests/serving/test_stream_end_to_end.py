"""Streams with all real parts: a tiny random T5 behind both doors tells in pieces what it tells at once."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from ladder import Backbone, Tokenizer
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc
from serving.api.open_inference_stream import FINAL
from serving.client.client import Client
from serving.components import assemble
from serving.config import EngineConfig, LoadConfig, ServeConfig
from serving.server import Server
from side_registry import Manifest, Registry
from tests.marks import slow
from tests.serving.api_kit import serving
from tests.serving.kit import TEXTS, make_run, make_spec

TITLES = make_spec("titles", kind="text", max_new_tokens=24)
SHORT = make_spec("sayings", kind="text", max_new_tokens=2)
LONG = SHORT.model_copy(update={"max_new_tokens": 500})
TASKS = (TITLES, SHORT, make_spec("sst2"))
BEAMS = {"num_beams": 3}
SAMPLED = {"do_sample": True, "temperature": 1.5, "seed": 4}
FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param"}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_t5: Any, backbone: Backbone, tokenizer: Tokenizer
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("streams")
    registry = Registry.open(folder / "registry", create=True)
    for seed, spec in enumerate(TASKS):
        registry.publish(make_run(folder / spec.name, backbone, tokenizer, spec, seed, edit=lengthen))
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=str(folder / "registry"),
        port=0,
        metrics_port=0,
        dtype="float32",
        threads=1,
        load=LoadConfig(poll_s=0.05, replay_examples=False),
        engine=EngineConfig(warmup_s=0),
    )
    with serving(config, assemble) as (server, _):
        yield server


def lengthen(manifest: Manifest) -> Manifest:
    """Sayings may be long, only their golden examples are not: those would take their time."""
    return manifest.model_copy(update={"spec": LONG}) if manifest.spec == SHORT else manifest


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize(
    "generation", [{}, BEAMS, slow(SAMPLED), slow({"max_new_tokens": 3})], ids=["greedy", "beams", "sampled", "short"]
)
def test_streamed_equals_unary_at_both_doors(client: Client, server: Server, generation: dict[str, Any]) -> None:
    for text in TEXTS:
        whole: Any = client.predict("titles", [text], generation=generation)[0]
        stream = client.stream("titles", text, generation=generation)
        pieces, result = list(stream), stream.result()
        assert "".join(piece.text for piece in pieces) == result.text == whole.text
        assert sum(len(piece.tokens) for piece in pieces) == result.token_count
        assert result.token_count <= generation.get("max_new_tokens", TITLES.max_new_tokens)
        assert in_tensors(server, text, generation) == result.text


def in_tensors(server: Server, text: str, generation: dict[str, Any]) -> str:
    request = oip.ModelInferRequest(model_name="titles")
    request.inputs.add(name="sentence", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    for name, value in generation.items():
        setattr(request.parameters[name], FIELDS[type(value)], value)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = [each.infer_response for each in stub.ModelStreamInfer(iter([request]))]
    assert [each.parameters[FINAL].bool_param for each in found] == [False] * (len(found) - 1) + [True]
    return b"".join(each.outputs[0].contents.bytes_contents[0] for each in found).decode()


def test_many_streams_at_once_equal_each_alone(client: Client) -> None:
    rows = [(task, f"{text} {number}") for task in ("titles", "sayings") for number, text in enumerate(TEXTS)]
    settings = {"max_new_tokens": 20}
    alone = [client.stream(task, row, generation=settings).result().text for task, row in rows]
    together: dict[int, str] = {}

    def listen(number: int, task: str, row: str) -> None:
        together[number] = "".join(piece.text for piece in client.stream(task, row, generation=settings))

    callers = [threading.Thread(target=listen, args=(number, *row)) for number, row in enumerate(rows)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [together[number] for number in range(len(rows))] == alone


def test_a_stream_that_is_left_frees_its_slot(client: Client, server: Server) -> None:
    with client.stream("sayings", TEXTS[0], generation={"min_new_tokens": 500}) as stream:
        next(stream)
        assert running(server) == 1
    deadline = time.monotonic() + 10
    while running(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(server) == 0
    assert len(client.predict("sst2", ["still here"])) == 1


def running(server: Server) -> int:
    """Texts on the device."""
    parts: Any = server._components
    return parts.service._batcher.running_rows
