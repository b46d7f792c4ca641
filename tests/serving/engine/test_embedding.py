"""Embeddings through both doors and the clients, one published version and many tasks at once."""

import asyncio
import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from ladder.answers import VectorAnswer
from protos import open_inference_pb2, open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.client.aio import AsyncClient
from serving.client.client import Client
from serving.client.results import Classification, Embedding, Predictions
from sidecast import Embedding as PublicEmbedding
from tests.serving.api_kit import MEANING, SST2, Parlour, rule
from tests.sidecast.cli_kit import ROOT, done, python
from tests.training import toy

TEXTS = ["a gripping film", "dull", "x" * 90]


def vector(text: str) -> tuple[float, ...]:
    answer = rule(MEANING, text)
    assert isinstance(answer, VectorAnswer)
    return answer.values


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    with Parlour(tmp_path_factory.mktemp("parlour"), specs=(SST2, MEANING)).open() as opened:
        yield opened


def infer(parlour: Parlour, request: open_inference_pb2.ModelInferRequest) -> open_inference_pb2.ModelInferResponse:
    with grpc.insecure_channel(parlour.address) as channel:
        return open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)


def test_the_native_service_answers_with_the_vector(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        stub = sidecast_pb2_grpc.SidecastStub(channel)
        response = stub.Predict(pb.PredictRequest(task="meaning", rows=[pb.Row(text=text) for text in TEXTS]))
    assert [answer.WhichOneof("answer") for answer in response.answers] == ["embedding"] * 3
    assert [tuple(answer.embedding.values) for answer in response.answers] == [vector(text) for text in TEXTS]
    assert not response.labels


def test_clients_return_embeddings_of_the_specs_length(parlour: Parlour) -> None:
    with Client(parlour.address) as client:
        found = client.predict("meaning", TEXTS)
        both = client.predict_tasks(["sst2", "meaning"], TEXTS)
        spec, other = client.task("meaning").spec, client.task("sst2").spec
    assert isinstance(found, Predictions)
    assert list(found) == [PublicEmbedding(vector(text)) for text in TEXTS]
    assert isinstance(both["sst2"][0], Classification)  # type: ignore[index]
    assert both["meaning"] == found
    assert spec is not None
    assert other is not None
    assert (spec.kind, spec.dimensions, spec.target, other.dimensions) == ("embedding", 3, "positive", 0)

    async def ask() -> Predictions:
        async with AsyncClient(parlour.address) as client:
            return await client.predict("meaning", TEXTS)

    assert asyncio.run(ask()) == found


def test_open_inference_answers_with_one_tensor_raw_or_typed(parlour: Parlour) -> None:
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(name="sentence", datatype="BYTES", shape=[3])
    tensor.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    [output] = infer(parlour, open_inference_pb2.ModelInferRequest(model_name="meaning", inputs=[tensor])).outputs
    assert (output.name, output.datatype, list(output.shape)) == ("embedding", "FP32", [3, 3])
    np.testing.assert_array_equal(np.reshape(output.contents.fp32_contents, (3, 3)), [vector(text) for text in TEXTS])


def test_triton_reads_it_as_a_matrix(parlour: Parlour) -> None:
    asked = {"address": parlour.address, "task": "meaning", "texts": TEXTS}
    ran = python(ROOT / "tests" / "triton_rows.py", text_input=json.dumps(asked))
    assert ran.returncode == 0, ran.stderr
    found = np.array(json.loads(ran.stdout)["outputs"]["embedding"], np.float32)
    np.testing.assert_array_equal(found, np.array([vector(text) for text in TEXTS], np.float32))


def test_metadata_has_the_dimensions(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(open_inference_pb2.ModelMetadataRequest(name="meaning"))
        other = stub.ModelMetadata(open_inference_pb2.ModelMetadataRequest(name="sst2"))
    [output] = metadata.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("embedding", "FP32", [-1, 3])
    assert metadata.parameters["kind"].string_param == "embedding"
    assert metadata.parameters["dimensions"].int64_param == 3
    assert "dimensions" not in other.parameters


def test_predict_shows_the_first_numbers_and_all_as_json(parlour: Parlour) -> None:
    words = ["predict", "meaning", "dull", "--server", parlour.address]
    assert done(*words).out.splitlines()[2].split() == [*(f"{value:.4f}" for value in vector("dull")), "dull"]
    assert done(*words, "--json").document["answers"] == [
        {"embedding": pytest.approx(vector("dull")), "truncated": False}
    ]


def test_evaluate_on_a_server_ranks_each_target_among_all(parlour: Parlour, tmp_path) -> None:
    """The rule's vectors turn with a text's length: a target of the same length is nearest."""
    pairs = [("a" * 10, "b" * 10), ("a" * 50, "b" * 50), ("a" * 90, "b" * 70), ("c" * 70, "b" * 90)]
    data = toy.write(tmp_path / "rows.jsonl", [{"sentence": a, "positive": b} for a, b in pairs])
    file = tmp_path / "answers"
    words = ["evaluate", "meaning", "--data", data, "--server", parlour.address, "--predictions", file]
    document = done(*words, "--json").document
    assert document["metrics"] == {"recall_at_1": 0.5, "mrr": (1 + 1 + 1 / 2 + 1 / 3) / 4}
    assert (document["rows"], document["score"]) == (4, 0.5)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["embedding"] for line in lines] == [pytest.approx(vector(a)) for a, _ in pairs]
    assert [(line["inputs"], line["target"]) for line in lines] == [({"sentence": a}, b) for a, b in pairs]
    assert document["baseline"] is None
    scores = "recall_at_1 0.5000 [0.0000, 1.0000], mrr 0.7083 [0.4167, 1.0000]"
    assert done(*words).out == f"meaning version 1: {scores} on 4 rows\n"


def test_a_table_shows_no_more_than_four_numbers() -> None:
    from sidecast.cli.serving.predict import _cells

    assert _cells(Embedding((0.5, -0.5, 0.5, 0.5))) == ("0.5000 -0.5000 0.5000 0.5000", "")
    assert _cells(Embedding((1.0, 0.0, 0.0, 0.0, 0.0))) == ("1.0000 0.0000 0.0000 0.0000 ...", "")
