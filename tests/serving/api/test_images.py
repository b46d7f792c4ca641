"""Images come in by both services as bytes, and a run with image files goes through publish and download."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.client import Client, requests
from serving.pipeline import Prompt
from side_registry import SIDE_NETWORK, GoldenExample, read_artifact, write_manifest
from tests.serving.api.open_inference.test_open_inference import infer, packed, raw, typed
from tests.serving.api.test_native import refusal
from tests.serving.api_kit import CAPTIONS, SST2, VISUAL_SPECS, VQA, Parlour, rule

CAT = b"\x89PNG\r\n\x1a\n\xff\x00 cat"
SHAPES = VQA.model_copy(update={"name": "shapes"})
DOG = b"\xff\xd8\xff dog \xfe"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    with Parlour(tmp_path_factory.mktemp("gallery"), (SST2, *VISUAL_SPECS)).open() as opened:
        yield opened


@pytest.fixture(scope="module")
def channel(gallery: Parlour) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gallery.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def native(channel: grpc.Channel) -> Any:
    return sidecast_pb2_grpc.SidecastStub(channel)


@pytest.fixture(scope="module")
def oip_stub(channel: grpc.Channel) -> Any:
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def question(text: str, **images: bytes) -> pb.Row:
    return pb.Row(fields={"question": text}, images=images)


def test_a_row_has_its_texts_and_its_images(native: Any, gallery: Parlour) -> None:
    rows = [question("a cat?", image=CAT), pb.Row(prompt="is it?", images={"image": DOG})]
    response = native.Predict(pb.PredictRequest(task="vqa", rows=rows))
    assert gallery.service.rows[-1] == [{"question": "a cat?", "image": CAT}, Prompt("is it?", {"image": DOG})]
    expected = [rule(VQA, "question: a cat?"), rule(VQA, "is it?")]
    assert [answer.classification.label for answer in response.answers] == [each.label for each in expected]  # type: ignore[union-attr]


def test_text_and_visual_tasks_share_rows(native: Any, gallery: Parlour) -> None:
    row = pb.Row(fields={"sentence": "s", "question": "q"}, images={"image": CAT, "left": CAT, "right": DOG})
    tasks = [pb.TaskRef(task=name) for name in ("sst2", "vqa", "nlvr")]
    results = native.PredictTasks(pb.PredictTasksRequest(tasks=tasks, rows=[row])).results
    assert [result.WhichOneof("outcome") for result in results] == ["prediction"] * 3
    [got] = gallery.service.rows[-1]
    assert got == {"sentence": "s", "question": "q", "image": CAT, "left": CAT, "right": DOG}


def test_a_row_may_be_an_image_alone_and_its_text_a_stream(native: Any, gallery: Parlour) -> None:
    request = pb.GenerateRequest(task="captions", row=pb.Row(images={"image": CAT}))
    *_, last = native.Generate(request)
    assert last.generated.text == rule(CAPTIONS, "caption:").text  # type: ignore[union-attr]
    assert gallery.service.rows[-1] == [{"image": CAT}]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            pb.Row(text="a cat?", images={"image": CAT}),
            "rows[0]: has images beside text; give the text by its name in fields",
        ),
        (
            pb.Row(fields={"image": "a.png", "question": "q"}, images={"image": CAT}),
            "rows[0].image: is in both fields and images; give it once",
        ),
        (
            pb.Row(fields={"question": "q"}, prompt="p", images={"image": CAT}),
            "rows[0]: has more than one of fields, text and prompt",
        ),
        (pb.Row(images={"question": CAT, "image": CAT}), "rows[0].question: must be text, got bytes"),
    ],
)
def test_rows_that_are_unclear_are_refused(native: Any, row: pb.Row, says: str) -> None:
    code, reason, message = refusal(lambda: native.Predict(pb.PredictRequest(task="vqa", rows=[row])))
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")
    assert says in message


@pytest.mark.parametrize("form", ["typed", "raw"])
def test_tensors_of_images_are_bytes_that_need_not_be_text(oip_stub: Any, gallery: Parlour, form: str) -> None:
    texts, images = [b"a cat?", b"a dog?"], [CAT, DOG]
    if form == "typed":
        request = infer("vqa", inputs=[typed("image", images, shape=[2, 1]), typed("question", texts)])
    else:
        data = [packed(*images), packed(*texts)]
        request = infer("vqa", inputs=[raw("image", 2), raw("question", 2)], raw_input_contents=data)
    assert list(oip_stub.ModelInfer(request).outputs[0].shape) == [2]
    assert gallery.service.rows[-1] == [{"question": "a cat?", "image": CAT}, {"question": "a dog?", "image": DOG}]


def test_a_whole_prompt_has_its_images_beside_it(oip_stub: Any, gallery: Parlour) -> None:
    oip_stub.ModelInfer(infer("vqa", inputs=[typed("text", ["is it?"]), typed("image", [CAT])]))
    assert gallery.service.rows[-1] == [Prompt("is it?", {"image": CAT})]
    oip_stub.ModelInfer(infer("captions", inputs=[typed("image", [CAT])]))
    assert gallery.service.rows[-1] == [{"image": CAT}]


@pytest.mark.parametrize(
    ("task", "inputs", "says"),
    [
        (
            "nlvr",
            [typed("sentence", ["s"]), typed("left", [CAT])],
            "inputs: task 'nlvr' takes one BYTES tensor per field of its template (sentence), or a single 'text' with "
            "the whole prompt, and one BYTES tensor per image (left, right); got sentence, left: right is missing",
        ),
        ("captions", [typed("text", ["x"])], "one BYTES tensor per image (image); got text: image is missing"),
        ("vqa", [typed("question", ["a", "b"]), typed("image", [CAT])], "inputs.image: has 1 rows, question has 2"),
        ("vqa", [typed("question", ["a"]), typed("image", [CAT], datatype="UINT8")], "inputs.image: datatype must be"),
        ("vqa", [typed("question", ["a"]), typed("image", [CAT, DOG], shape=[1])], "inputs.image: has 2 elements"),
        ("vqa", [typed("question", [CAT]), typed("image", [CAT])], "inputs.question: row 0 is not UTF-8"),
    ],
)
def test_wrong_tensors_are_named(oip_stub: Any, task: str, inputs: list[Any], says: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        oip_stub.ModelInfer(infer(task, inputs=inputs))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()


def test_tasks_tell_their_images(oip_stub: Any, gallery: Parlour) -> None:
    metadata = oip_stub.ModelMetadata(oip.ModelMetadataRequest(name="nlvr"))
    assert [(each.name, each.datatype) for each in metadata.inputs] == [
        (name, "BYTES") for name in ("sentence", "left", "right")
    ]
    assert json.loads(metadata.parameters["images"].string_param) == ["left", "right"]
    assert "images" not in oip_stub.ModelMetadata(oip.ModelMetadataRequest(name="sst2")).parameters
    config = oip_stub.ModelConfig(oip.ModelConfigRequest(name="nlvr")).config
    assert [each.name for each in config.input] == ["sentence", "left", "right"]
    with Client(gallery.address) as client:
        spec = client.task("nlvr").spec
        assert spec is not None
        assert (spec.fields, spec.images, spec.inputs) == (
            ("sentence",),
            ("left", "right"),
            ("sentence", "left", "right"),
        )


def test_golden_images_are_published_with_their_run(
    gallery: Parlour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "CHUNK_BYTES", 1000)
    run = gallery.run(SHAPES)
    files = {"golden-0.png": CAT, "golden-1.png": DOG * 300}
    for name, data in files.items():
        (run / name).write_bytes(data)
    examples = tuple(
        GoldenExample(fields={"question": "q"}, images={"image": name}, expected={"label": "no", "score": 0.5})
        for name in files
    )
    manifest = read_artifact(run).manifest.model_copy(update={"examples": examples})
    write_manifest(run, manifest, files=(SIDE_NETWORK, *files))
    with Client(gallery.address) as client:
        published = client.publish(run)
        assert [version.failure for version in client.task("shapes").versions] == [""]
    gallery.registry.download("shapes", published.version, tmp_path / "down")
    assert {name: (tmp_path / "down" / name).read_bytes() for name in files} == files
    assert read_artifact(tmp_path / "down").manifest.examples == examples
