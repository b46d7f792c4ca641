"""The Open Inference service: with tritonclient unmodified, and with messages no client would make."""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from ladder.decoding.settings import Generation
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc, sidecast_pb2, sidecast_pb2_grpc
from serving.client.errors import from_status
from side_registry.specs.task import TaskSpec
from tests.serving.api_kit import SST2, TITLES, Parlour, rule

TEXTS = ["a gripping film", "dull ünicode 🙂", "x" * 90]


@pytest.fixture(scope="module")
def stub(parlour: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(parlour.address) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def typed(name: str, values: list[str] | list[bytes], **changes: Any) -> pb.ModelInferRequest.InferInputTensor:
    elements = [value.encode() if isinstance(value, str) else value for value in values]
    fields: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(values)]}
    fields["contents"] = pb.InferTensorContents(bytes_contents=elements)
    return pb.ModelInferRequest.InferInputTensor(**fields | changes)


def raw(name: str, rows: int, **changes: Any) -> pb.ModelInferRequest.InferInputTensor:
    fields: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [rows]}
    return pb.ModelInferRequest.InferInputTensor(**fields | changes)


def packed(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def infer(task: str = "sst2", **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=task, **fields)


def prompt(spec: TaskSpec, text: str) -> str:
    return spec.render({spec.fields[0]: text})


def test_typed_contents_are_answered_typed(stub: Any) -> None:
    response = stub.ModelInfer(infer(inputs=[typed("sentence", TEXTS)], id="mine"))
    answers = [rule(SST2, prompt(SST2, text)) for text in TEXTS]
    label, score, scores = response.outputs
    assert (response.id, response.model_name, response.model_version) == ("mine", "sst2", "1")
    assert response.parameters["generation"].int64_param == 4
    assert not response.raw_output_contents
    assert [output.name for output in response.outputs] == ["label", "score", "scores"]
    assert [list(output.shape) for output in response.outputs] == [[3], [3], [3, 2]]
    assert [output.datatype for output in response.outputs] == ["BYTES", "FP32", "FP32"]
    assert [value.decode() for value in label.contents.bytes_contents] == [answer.label for answer in answers]
    np.testing.assert_allclose(score.contents.fp32_contents, [answer.score for answer in answers], rtol=1e-6)
    np.testing.assert_allclose(
        scores.contents.fp32_contents, np.ravel([answer.scores for answer in answers]), rtol=1e-6
    )


def test_rows_whose_texts_are_cut_are_listed_on_every_output(stub: Any) -> None:
    long = "x" * (SST2.max_source_tokens + 1)
    response = stub.ModelInfer(infer(inputs=[typed("sentence", ["short", long, "short", long])]))
    assert [output.parameters["truncated_rows"].string_param for output in response.outputs] == ["[1, 3]"] * 3
    for output in stub.ModelInfer(infer(inputs=[typed("sentence", TEXTS)])).outputs:
        assert "truncated_rows" not in output.parameters


def test_raw_contents_are_answered_raw_and_the_same(stub: Any) -> None:
    data = packed(*[text.encode() for text in TEXTS])
    response = stub.ModelInfer(infer(inputs=[raw("sentence", 3, shape=[3, 1])], raw_input_contents=[data]))
    other = stub.ModelInfer(infer(inputs=[typed("sentence", TEXTS)]))
    assert all(not output.HasField("contents") for output in response.outputs)
    labels, _, scores = response.raw_output_contents
    assert labels == packed(*other.outputs[0].contents.bytes_contents)
    np.testing.assert_array_equal(np.frombuffer(scores, "<f4"), other.outputs[2].contents.fp32_contents)


def test_fields_may_come_in_any_order_and_the_outputs_as_asked(stub: Any) -> None:
    asked = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("scores", "label")]
    inputs = [typed("sentence2", ["b"]), typed("sentence1", ["a" * 40])]
    response = stub.ModelInfer(infer("rte", inputs=inputs, outputs=asked))
    assert [output.name for output in response.outputs] == ["scores", "label"]
    assert list(response.outputs[0].shape) == [1, 3]
    np.testing.assert_allclose(response.outputs[0].contents.fp32_contents, [0.56, 0.44, 0], rtol=1e-6)


def test_tensors_that_are_no_field_are_ignored(stub: Any) -> None:
    others = [typed("idx", ["7"] * 9, datatype="INT64", shape=[9, 3]), typed("text", ["a prompt"])]
    inputs = [others[0], typed("sentence2", ["b"]), others[1], typed("sentence1", ["a" * 40])]
    assert stub.ModelInfer(infer("rte", inputs=inputs)).outputs[2].contents.fp32_contents[0] == pytest.approx(0.56)
    contents = [b"junk", packed(b"b"), b"", packed(b"a" * 40)]
    bare = [raw(tensor.name, tensor.shape[0], datatype=tensor.datatype) for tensor in inputs]
    response = stub.ModelInfer(infer("rte", inputs=bare, raw_input_contents=contents))
    np.testing.assert_allclose(np.frombuffer(response.raw_output_contents[2], "<f4"), [0.56, 0.44, 0], rtol=1e-6)


def test_a_single_text_is_the_whole_prompt_unless_the_template_has_that_field(stub: Any) -> None:
    title = stub.ModelInfer(infer("titles", inputs=[typed("text", ["as it is"])]))
    assert title.outputs[0].contents.bytes_contents[:] == [b"AS IT IS"]
    tweet = stub.ModelInfer(infer("tweets", inputs=[typed("text", ["x"])]))
    np.testing.assert_allclose(tweet.outputs[0].contents.fp32_contents, [len("rate: x") * 0.08 - 4], rtol=1e-6)


def test_parameters_choose_how_texts_are_made(stub: Any, parlour: Parlour) -> None:
    parameters = {
        "do_sample": pb.InferParameter(bool_param=True),
        "temperature": pb.InferParameter(double_param=0.5),
        "top_k": pb.InferParameter(uint64_param=5),
        "seed": pb.InferParameter(int64_param=3),
        "max_new_tokens": pb.InferParameter(int64_param=9),
    }
    stub.ModelInfer(infer("titles", inputs=[typed("body", ["a"])], parameters=parameters))
    answerer = parlour.service.answerers[-1]
    assert answerer.max_new_tokens == 9
    assert answerer.generation == Generation(do_sample=True, temperature=0.5, top_k=5, seed=3)


REFUSED: list[tuple[str, pb.ModelInferRequest, str]] = [
    ("no inputs", infer(), "got none"),
    ("wrong name", infer(inputs=[typed("sentense", ["a"])]), "template (sentence), or a single 'text'"),
    ("field missing", infer("rte", inputs=[typed("sentence1", ["a"])]), "(sentence1, sentence2)"),
    ("field twice", infer(inputs=[typed("sentence", ["a"])] * 2), "got sentence, sentence"),
    ("datatype", infer(inputs=[typed("sentence", ["a"], datatype="FP32")]), "inputs.sentence: datatype must be BYTES"),
    ("no datatype", infer(inputs=[typed("sentence", ["a"], datatype="")]), "datatype must be BYTES, got none"),
    ("no shape", infer(inputs=[typed("sentence", ["a"], shape=[])]), "shape must be [rows] or [rows, 1]"),
    ("wide shape", infer(inputs=[typed("sentence", ["a", "b"], shape=[1, 2])]), "got [1, 2]"),
    ("negative shape", infer(inputs=[typed("sentence", ["a"], shape=[-1])]), "got [-1]"),
    ("no rows", infer(inputs=[typed("sentence", [], shape=[0])]), "at least one row"),
    ("fewer elements", infer(inputs=[typed("sentence", ["a"], shape=[2])]), "has 1 elements, its shape says 2"),
    ("huge shape", infer(inputs=[typed("sentence", ["a"], shape=[2**62])]), "the limit is 1024"),
    ("too many rows", infer("rte", inputs=[typed(f"sentence{n}", ["a"] * 6) for n in (1, 2)]), "6 rows in one request"),
    (
        "rows differ",
        infer("rte", inputs=[typed("sentence1", ["a"]), typed("sentence2", ["a", "b"])]),
        "inputs.sentence2: has 2 rows, sentence1 has 1",
    ),
    (
        "other contents",
        infer(inputs=[typed("sentence", ["a"], contents=pb.InferTensorContents(fp32_contents=[1.0]))]),
        "has fp32_contents",
    ),
    (
        "not UTF-8",
        infer(inputs=[typed("sentence", [b"fine", b"caf\xe9!"])]),
        "row 1 is not UTF-8 (byte 0xe9 at position 3)",
    ),
    (
        "both contents",
        infer(inputs=[typed("sentence", ["a"])], raw_input_contents=[packed(b"a")]),
        "inputs.sentence: has contents beside raw_input_contents",
    ),
    (
        "raw for two",
        infer(inputs=[raw("sentence", 1)], raw_input_contents=[packed(b"a")] * 2),
        "raw_input_contents: has 2 items for 1 inputs",
    ),
    (
        "raw cut in text",
        infer(inputs=[raw("sentence", 2)], raw_input_contents=[packed(b"fine", b"cut")[:-1]]),
        "end in row 1, which has 2 of 3 bytes",
    ),
    (
        "raw cut in length",
        infer(inputs=[raw("sentence", 2)], raw_input_contents=[packed(b"fine") + b"\0\0"]),
        "end in row 1, before that row's 4-byte length",
    ),
    (
        "raw huge length",
        infer(inputs=[raw("sentence", 1)], raw_input_contents=[b"\xff\xff\xff\xffabc"]),
        "has 3 of 4294967295 bytes",
    ),
    (
        "raw goes on",
        infer(inputs=[raw("sentence", 1)], raw_input_contents=[packed(b"a", b"b")]),
        "go on for 5 bytes after the 1 rows",
    ),
    (
        "shared memory",
        infer(
            inputs=[raw("sentence", 1, parameters={"shared_memory_region": pb.InferParameter(string_param="r")})],
        ),
        "shared memory is not supported",
    ),
    ("empty text", infer(inputs=[typed("sentence", ["a", " "])]), "rows[1].sentence: is empty"),
    ("enormous text", infer("titles", inputs=[typed("body", ["x" * 301])]), "rows[0].body: has 301 characters"),
    (
        "unknown output",
        infer(
            inputs=[typed("sentence", ["a"])],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="logits")],
        ),
        "outputs.logits: is none of task 'sst2'; use label, score, scores",
    ),
    (
        "timeout",
        infer(inputs=[typed("sentence", ["a"])], parameters={"timeout": pb.InferParameter(string_param="1")}),
        "parameters.timeout: must be an int64_param",
    ),
    (
        "priority",
        infer(inputs=[typed("sentence", ["a"])], parameters={"priority": pb.InferParameter(int64_param=-1)}),
        "parameters.priority",
    ),
    (
        "route key",
        infer(inputs=[typed("sentence", ["a"])], parameters={"route_key": pb.InferParameter(int64_param=7)}),
        "parameters.route_key: must be a string_param",
    ),
    (
        "long route key",
        infer(inputs=[typed("sentence", ["a"])], parameters={"route_key": pb.InferParameter(string_param="k" * 1001)}),
        "parameters.route_key: has 1001 characters, at most 1000",
    ),
    (
        "beams",
        infer("titles", inputs=[typed("body", ["a"])], parameters={"num_beams": pb.InferParameter(int64_param=0)}),
        "parameters.num_beams: Input should be greater than or equal to 1",
    ),
    (
        "beams of another kind",
        infer("titles", inputs=[typed("body", ["a"])], parameters={"num_beams": pb.InferParameter(string_param="x")}),
        "parameters.num_beams: Input should be a valid integer",
    ),
    (
        "nothing of a seed",
        infer("titles", inputs=[typed("body", ["a"])], parameters={"seed": pb.InferParameter()}),
        "parameters.seed: ",
    ),
    (
        "too long",
        infer("titles", inputs=[typed("body", ["a"])], parameters={"max_new_tokens": pb.InferParameter(int64_param=0)}),
        "parameters.max_new_tokens: must be 1 to 64",
    ),
    (
        "no text task",
        infer(inputs=[typed("sentence", ["a"])], parameters={"top_p": pb.InferParameter(double_param=0.5)}),
        "parameters.top_p: is for text; task 'sst2' is classification",
    ),
]


@pytest.mark.parametrize(("request_", "says"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_bad_input_is_refused_with_what_was_expected(stub: Any, request_: pb.ModelInferRequest, says: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in caught.value.details()
    status = rpc_status.from_call(caught.value)
    assert any(detail.Is(BadRequest.DESCRIPTOR) for detail in status.details)


@pytest.mark.parametrize(
    ("task", "version", "reason"),
    [
        ("nope", "", "UNKNOWN_TASK"),
        ("", "", "UNKNOWN_TASK"),
        ("sst2", "9", "UNKNOWN_VERSION"),
        ("sst2", "99999999999", "UNKNOWN_ALIAS"),
        ("sst2", "canary", "UNKNOWN_ALIAS"),
        ("sst2", "-1", "UNKNOWN_ALIAS"),
    ],
)
@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata"])
def test_missing_tasks_and_versions_are_not_found(stub: Any, method: str, task: str, version: str, reason: str) -> None:
    request: Any = pb.ModelMetadataRequest(name=task, version=version)
    if method == "ModelInfer":
        request = infer(task, model_version=version, inputs=[typed("sentence", ["a"])])
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert from_status(rpc_status.from_call(caught.value)).reason == reason


def test_the_timeout_parameter_is_a_deadline(stub: Any, parlour: Parlour) -> None:
    request = infer(inputs=[typed("sentence", ["a"])])
    stub.ModelInfer(request)
    request.parameters["timeout"].int64_param = 0
    stub.ModelInfer(request)
    assert parlour.service.deadlines[-2:] == [None, None]
    request.parameters["timeout"].uint64_param = 500_000_000
    stub.ModelInfer(request, timeout=6000)
    stub.ModelInfer(request, timeout=100)
    of_parameter, of_grpc = parlour.service.deadlines[-2:]
    assert of_parameter is not None
    assert of_grpc is not None
    assert 300 < of_parameter - of_grpc < 500  # 400 s less the time between both calls


def test_metadata_is_complete(stub: Any) -> None:
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="rte"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("rte", ["1"], "sidecast")
    inputs = [(input_.name, input_.datatype, list(input_.shape)) for input_ in metadata.inputs]
    outputs = [(output.name, output.datatype, list(output.shape)) for output in metadata.outputs]
    assert inputs == [("sentence1", "BYTES", [-1]), ("sentence2", "BYTES", [-1])]
    assert outputs == [("label", "BYTES", [-1]), ("score", "FP32", [-1]), ("scores", "FP32", [-1, 3])]
    assert json.loads(metadata.parameters["labels"].string_param) == ["yes", "no", "maybe"]
    assert metadata.parameters["template"].string_param == "{sentence1} / {sentence2}"
    assert (metadata.parameters["version"].int64_param, metadata.parameters["max_rows"].int64_param) == (1, 5)
    server = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, list(server.extensions)) == (
        "sidecast",
        ["model_repository", "model_configuration", "schedule_policy", "parameters", "statistics"],
    )


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("sst2", "", True),
        ("sst2", "1", True),
        ("sst2", "production", True),
        ("sst2", "2", False),
        ("sst2", "canary", False),
        ("nope", "", False),
    ],
)
def test_readiness_is_per_task_and_version(stub: Any, name: str, version: str, ready: bool) -> None:
    assert stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready is ready
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready


def test_the_repository_index_has_versions_states_and_reasons(tmp_path: Path) -> None:
    parlour = Parlour(tmp_path, [SST2])
    parlour.publish(SST2, 1)
    parlour.publish(SST2, 2, backbone="other")
    with parlour.open(), grpc.insecure_channel(parlour.address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
        assert [(item.name, item.version, item.state) for item in found] == [
            ("sst2", "1", "READY"),
            ("sst2", "2", "READY"),
            ("sst2", "3", "UNAVAILABLE"),
        ]
        assert "trained on sha256:other" in found[2].reason
        assert [model.version for model in ready] == ["1", "2"]


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="sst2"), None),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nope"), "NOT_FOUND"),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(
                model_name="sst2", parameters={"config": pb.ModelRepositoryParameter(string_param="{}")}
            ),
            "INVALID_ARGUMENT",
        ),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="sst2"), "INVALID_ARGUMENT"),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nope"), "NOT_FOUND"),
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="other"), "INVALID_ARGUMENT"),
    ],
)
def test_the_repository_follows_the_registry(stub: Any, method: str, request_: Any, code: str | None) -> None:
    call = getattr(stub, method).future(request_)
    assert call.code().name == (code or "OK")


def test_statistics_count_what_each_version_has_answered(tmp_path: Path) -> None:
    parlour = Parlour(tmp_path, [SST2])
    parlour.publish(SST2, 1)
    parlour.publish(TITLES)
    with parlour.open(), grpc.insecure_channel(parlour.address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        began = time.time() * 1000 - 1
        for texts in (TEXTS, TEXTS[:1]):
            stub.ModelInfer(infer(inputs=[typed("sentence", texts)]))
        native = sidecast_pb2_grpc.SidecastStub(channel)
        native.PredictTasks(
            sidecast_pb2.PredictTasksRequest(
                tasks=[sidecast_pb2.TaskRef(task="sst2", version=2)],
                rows=[sidecast_pb2.Row(text=text) for text in TEXTS],
            )
        )
        list(native.Generate(sidecast_pb2.GenerateRequest(task="titles", row=sidecast_pb2.Row(text="a b"))))
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(infer(inputs=[typed("wrong", TEXTS)]))

        def counted(**named: str) -> list[tuple[str, str, int, int]]:
            statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(**named)).model_stats
            return [(s.name, s.version, s.inference_stats.success.count, s.inference_count) for s in statistics]

        first, second, titles = ("sst2", "1", 2, 4), ("sst2", "2", 1, 3), ("titles", "1", 1, 1)
        assert counted() == [first, second, titles]
        assert counted(name="sst2") == [first, second]
        assert counted(name="sst2", version="2") == [second]
        assert counted(name="sst2", version="production") == [first]
        [statistics] = stub.ModelStatistics(pb.ModelStatisticsRequest(name="titles")).model_stats
        assert began < statistics.last_inference < time.time() * 1000 + 1
        assert statistics.inference_stats.success.ns > 0
        for named in ({"name": "nope"}, {"name": "sst2", "version": "9"}, {"version": "1"}):
            with pytest.raises(grpc.RpcError) as caught:
                counted(**named)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_missing_methods_are_unimplemented(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        for method in ("LogSettings", "TraceSetting"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_requests_are_counted_by_task_version_and_code(stub: Any, parlour: Parlour) -> None:
    def count(*labels: str) -> float:
        names = ("task", "version", "code")
        value = parlour.server.metrics.registry.get_sample_value(
            "sidecast_requests_total", dict(zip(names, labels, strict=True))
        )
        return value or 0.0

    series = [("sst2", "1", "OK"), ("sst2", "unknown", "INVALID_ARGUMENT"), ("unknown", "unknown", "NOT_FOUND")]
    before = [count(*labels) for labels in series]
    stub.ModelInfer(infer(inputs=[typed("sentence", ["a"])]))
    for request in (infer(), infer("made up by a caller")):
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(request)
    assert [count(*labels) for labels in series] == [value + 1 for value in before]


@pytest.fixture(scope="module")
def triton(parlour: Parlour) -> dict[str, Any]:
    """Results of tritonclient, in a process of its own: its protos and ours cannot be loaded together."""
    probe = Path(__file__).with_name("triton_probe.py")
    result = subprocess.run(
        [sys.executable, str(probe), parlour.address], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_tritonclient_infers(triton: dict[str, Any]) -> None:
    answers = [rule(SST2, text) for text in ("a gripping film", "x" * 90)]
    for way in ("sync", "async", "callback"):
        found = triton[way]
        assert (found["id"], found["version"]) == ("7", "1")
        assert found["label"] == [answer.label for answer in answers]
        np.testing.assert_allclose(found["scores"], [answer.scores for answer in answers], rtol=1e-6)
        assert np.shape(found["score"]) == (2,)
    assert triton["score only"] == [["score"], pytest.approx([answer.score for answer in answers])]
    assert triton["text"] == ["TITLE: ABOUT", "TITLE: ÜBER"]


def test_tritonclient_sees_server_and_tasks(triton: dict[str, Any]) -> None:
    assert triton["live"] == triton["ready"] == [True, True, False]
    assert triton["metadata"]["versions"] == ["1"]
    assert [output["name"] for output in triton["metadata"]["outputs"]] == ["label", "score", "scores"]
    assert [entry["name"] for entry in triton["index"]["models"]] == ["rte", "sst2", "titles", "tweets"]
    assert triton["server"]["name"] == "sidecast"
    config = triton["config"]["config"]
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("rte", "sidecast", 5)
    assert [tensor["name"] for tensor in config["input"]] == ["sentence1", "sentence2"]
    assert [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config["output"]] == [
        ("label", "TYPE_STRING", ["1"]),
        ("score", "TYPE_FP32", ["1"]),
        ("scores", "TYPE_FP32", ["3"]),
    ]
    assert not config["model_transaction_policy"].get("decoupled")
    [statistics] = triton["statistics"]["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("titles", "1")
    assert int(statistics["inference_count"]) >= int(statistics["inference_stats"]["success"]["count"]) > 0


def test_tritonclient_gets_the_error(triton: dict[str, Any]) -> None:
    assert triton["errors"] == {
        "config": ["StatusCode.NOT_FOUND", "there is no task 'sst3'; did you mean 'sst2'? (4 tasks are published)"],
        "datatype": ["StatusCode.INVALID_ARGUMENT", "inputs.sentence: datatype must be BYTES, got FP32"],
        "task": [
            "StatusCode.NOT_FOUND",
            "there is no task 'sst3'; did you mean 'sst2'? (4 tasks are published)",
        ],
        "unload": [
            "StatusCode.INVALID_ARGUMENT",
            "model_name: cannot be unloaded here: what is served follows the registry; retire its versions there",
        ],
    }


def test_tritonclient_streams(triton: dict[str, Any]) -> None:
    words = ["TITLE:", " ONE", " TWO", " THREE"]
    seen = triton["streams"]
    for way in ("sync", "async"):
        assert seen[way]["a"] == [[word, "1", False] for word in words] + [["", "1", True]]
        assert seen[way]["b"][:-1] == [["TITLE:", "1", False], [" FOUR", "1", False]]
        assert seen[way]["b"][-1] == [None if way == "sync" else "", "1", True]
        assert seen[way]["labels"] == [["negative", "positive"]]
        assert seen[way]["errors"] == ["there is no task 'nope'; there are 4: rte, sst2, titles, tweets"]
    assert seen["cancelled"] == "StatusCode.CANCELLED"
