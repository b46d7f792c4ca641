"""Token classification through both gRPC services, clients and commands: positions in the text as it was sent."""

import asyncio
import json
import unicodedata
from collections.abc import Iterator

import grpc
import pytest

from protos import open_inference_pb2, open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.client import AsyncClient, Client, Predictions, Prompt
from sidecast import Span, TokenClassification
from tests.serving.api_kit import NAMES, SST2, Parlour
from tests.sidecast.cli_kit import done
from tests.training import toy

LONG = ", ".join(["so Ann met bob"] * 30)
TEXTS = [
    "Ann met bob.",
    unicodedata.normalize("NFD", "\u00c9va saw \U0001f469\u200d\U0001f467 and \u00c5sa\r\nLi"),
    LONG,
    "nobody",
]
FOUND = [["Ann"], [unicodedata.normalize("NFD", name) for name in ("\u00c9va", "\u00c5sa", "Li")], ["Ann"] * 30, []]
SHORT = NAMES.model_copy(update={"max_source_tokens": 100})


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    with Parlour(tmp_path_factory.mktemp("parlour"), specs=(SST2, SHORT)).open() as opened:
        yield opened


def check(spans: list[dict], text: str, found: list[str]) -> None:
    """The spans are `found`, in order, at their positions in the text."""
    assert [span["text"] for span in spans] == found
    assert [text[span["start"] : span["end"]] for span in spans] == found
    assert len({span["start"] for span in spans}) == len(found)
    assert all((span["label"], span["score"]) == ("PER", 0.75) for span in spans)


def test_the_native_service_answers_with_spans(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        stub = sidecast_pb2_grpc.SidecastStub(channel)
        response = stub.Predict(pb.PredictRequest(task="names", rows=[pb.Row(text=text) for text in TEXTS]))
    assert [answer.WhichOneof("answer") for answer in response.answers] == ["token_classification"] * 4
    assert list(response.labels) == ["PER", "LOC"]
    for answer, text, found in zip(response.answers, TEXTS, FOUND, strict=True):
        spans = answer.token_classification.spans
        check([{name: getattr(span, name) for name in Span.__slots__} for span in spans], text, found)
        assert not answer.truncated


def test_clients_return_spans_of_texts_fields_and_prompts(parlour: Parlour) -> None:
    with Client(parlour.address) as client:
        found = client.predict("names", TEXTS)
        fields, prompt = client.predict("names", [{"text": TEXTS[0], "other": "Bob"}, Prompt("find: Ann")])
        both = client.predict_tasks(["sst2", "names"], [{"sentence": "dull", "text": TEXTS[0]}])
        spec = client.task("names").spec
    assert isinstance(found, Predictions)
    assert found[0] == TokenClassification((Span(0, 3, "PER", 0.75, "Ann"),))
    assert found[3] == TokenClassification(())
    assert fields == found[0]
    assert prompt == TokenClassification((Span(6, 9, "PER", 0.75, "Ann"),))
    assert both["names"][0] == found[0]  # type: ignore[index]
    assert spec is not None
    assert (spec.kind, spec.labels, spec.target) == ("token_classification", ("PER", "LOC"), "spans")

    async def ask() -> Predictions:
        async with AsyncClient(parlour.address) as client:
            return await client.predict("names", TEXTS)

    assert asyncio.run(ask()) == found


def test_what_the_windows_cannot_hold_is_truncated(parlour: Parlour) -> None:
    with Client(parlour.address) as client:
        whole, cut = client.predict("names", [LONG, ", ".join(["so Ann met bob"] * 1000)])
    assert not whole.truncated
    assert cut.truncated
    assert isinstance(cut, TokenClassification)
    assert 30 < len(cut.spans) < 1000


def test_open_inference_answers_with_json(parlour: Parlour) -> None:
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[4])
    tensor.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    request = open_inference_pb2.ModelInferRequest(model_name="names", inputs=[tensor])
    with grpc.insecure_channel(parlour.address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        [output] = stub.ModelInfer(request).outputs
        [described] = stub.ModelMetadata(open_inference_pb2.ModelMetadataRequest(name="names")).outputs
    assert (output.name, output.datatype, list(output.shape)) == ("spans", "BYTES", [4])
    assert (described.name, described.datatype, list(described.shape)) == ("spans", "BYTES", [-1])
    for element, text, found in zip(output.contents.bytes_contents, TEXTS, FOUND, strict=True):
        check(json.loads(element), text, found)


def test_predict_shows_each_entity_and_all_of_them_as_json(parlour: Parlour) -> None:
    words = ["predict", "names", "Ann met Bob", "nobody", "--server", parlour.address]
    first, second = done(*words).out.splitlines()[2:]
    assert first.split() == ["Ann", "(PER", "0-3),", "Bob", "(PER", "8-11)", "0.7500", "0.7500", "Ann", "met", "Bob"]
    assert second.split() == ["no", "entities", "nobody"]
    answer = done(*words, "--json").document["answers"][0]
    assert answer["spans"][1] == {"start": 8, "end": 11, "label": "PER", "score": 0.75, "text": "Bob"}


def test_evaluate_on_a_server_scores_spans(parlour: Parlour, tmp_path) -> None:
    rows = [
        {"tokens": ["Ann", "met", "Bob"], "tags": ["B-PER", "O", "B-LOC"]},
        {"tokens": ["Eve", "left"], "tags": ["B-PER", "O"]},
    ]
    data = toy.write(tmp_path / "rows.jsonl", rows)
    file = tmp_path / "answers"
    words = ["evaluate", "names", "--data", data, "--server", parlour.address, "--predictions", file]
    document = done(*words, "--json", "--report").document
    assert {label: scores["f1"] for label, scores in document["classes"].items()} == {"PER": 0.8, "LOC": 0.0}
    assert document["metrics"] == dict.fromkeys(("entity_f1", "precision", "recall"), 2 / 3)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["inputs"] for line in lines] == [{"text": "Ann met Bob"}, {"text": "Eve left"}]
    assert lines[1]["target"] == [{"start": 0, "end": 3, "label": "PER"}]
    check(lines[0]["spans"], "Ann met Bob", ["Ann", "Bob"])
