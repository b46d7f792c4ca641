"""The servicer of `sidecast.v1.Sidecast`, called with messages, and with bytes that are none."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_status import rpc_status

from ladder.decoding.settings import Generation
from protos import open_inference_pb2, open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.api.call import counting
from serving.api.native import NativeServicer
from serving.client.errors import from_status
from serving.errors import Overloaded, SideFailed
from serving.metrics import Metrics
from tests.serving.api_kit import RTE, SST2, TWEETS, Parlour, rule


@pytest.fixture(scope="module")
def stub(parlour: Parlour) -> Iterator[Any]:
    with grpc.insecure_channel(parlour.address) as channel:
        yield sidecast_pb2_grpc.SidecastStub(channel)


def text_rows(*texts: str) -> list[pb.Row]:
    return [pb.Row(text=text) for text in texts]


def refusal(call: Any) -> tuple[str, str, str]:
    """Code, reason and message of a failed call."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code().name, from_status(rpc_status.from_call(error)).reason, error.details()


def test_answers_come_in_the_rows_order_with_their_version_and_labels_once(stub: Any) -> None:
    response = stub.Predict(pb.PredictRequest(task="sst2", rows=text_rows("short", "x" * 80)))
    assert (response.task, response.version, response.generation, response.alias) == ("sst2", 1, 4, "production")
    assert list(response.labels) == ["negative", "positive"]
    for answer, text in zip(response.answers, ("short", "x" * 80), strict=True):
        expected = rule(SST2, text)
        assert answer.classification.label == expected.label
        assert answer.classification.score == expected.score
        assert tuple(answer.classification.scores) == expected.scores


def test_each_kind_has_its_answer(stub: Any) -> None:
    value = stub.Predict(pb.PredictRequest(task="tweets", rows=text_rows("fine")))
    assert value.answers[0].regression.value == rule(TWEETS, "rate: fine").value
    assert not value.labels
    text = stub.Predict(pb.PredictRequest(task="titles", rows=text_rows("fine")))
    assert text.answers[0].text.text == "TITLE: FINE"


def test_a_row_is_fields_or_a_text_or_a_whole_prompt(stub: Any) -> None:
    rows = [
        pb.Row(fields={"body": "same"}),
        pb.Row(text="same"),
        pb.Row(prompt="title: same"),
        pb.Row(prompt="same"),
    ]
    response = stub.Predict(pb.PredictRequest(task="titles", rows=rows))
    assert [answer.text.text for answer in response.answers] == ["TITLE: SAME"] * 3 + ["SAME"]


def test_each_task_takes_its_own_fields_of_a_row(stub: Any) -> None:
    row = pb.Row(fields={"sentence": "s", "sentence1": "a", "sentence2": "b" * 9, "body": "t", "id": "7"})
    tasks = [pb.TaskRef(task=name) for name in ("sst2", "rte", "titles", "tweets")]
    *answered, refused = stub.PredictTasks(pb.PredictTasksRequest(tasks=tasks, rows=[row])).results
    sentence, pair, title = (result.prediction.answers[0] for result in answered)
    assert sentence.classification.score == pytest.approx(rule(SST2, "s").score)  # type: ignore[union-attr]
    assert pair.classification.scores[1] == pytest.approx(len("a / " + "b" * 9) / 100)
    assert title.text.text == "TITLE: T"
    assert "rows[0].text: is missing; task 'tweets' needs text, the row has" in refused.error.message


def test_both_services_answer_the_same(stub: Any, parlour: Parlour) -> None:
    native = stub.Predict(
        pb.PredictRequest(task="rte", rows=[pb.Row(fields={"sentence1": "a", "sentence2": "b" * 50})])
    )
    request = open_inference_pb2.ModelInferRequest(model_name="rte")
    for name, text in (("sentence1", b"a"), ("sentence2", b"b" * 50)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text)
    with grpc.insecure_channel(parlour.address) as channel:
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    native_answer = native.answers[0].classification
    assert tensors.outputs[0].contents.bytes_contents[0].decode() == native_answer.label
    np.testing.assert_array_equal(
        np.float32(native_answer.scores), np.float32(tensors.outputs[2].contents.fp32_contents)
    )
    assert native_answer.label == rule(RTE, "a / " + "b" * 50).label  # type: ignore[union-attr]


WRONG_GENERATION: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 17}, "generation.num_beams: Input should be less than or equal to 16"),
    ({"num_beams": 2, "do_sample": True}, "generation.num_beams: must be 1 where do_sample is on, got 2"),
    ({"do_sample": True, "temperature": 0.0}, "generation.temperature: Input should be greater than or equal to 0.001"),
    ({"do_sample": True, "temperature": float("nan")}, "generation.temperature: "),
    ({"temperature": 0.5}, "generation.temperature: is for sampling; set do_sample too"),
    ({"length_penalty": 2.0}, "generation.length_penalty: is for beams; set num_beams above 1 too"),
    ({"num_beams": 2, "early_stopping": "soon"}, "generation.early_stopping: must be true, false or 'never'"),
    ({"max_new_tokens": 65}, "generation.max_new_tokens: must be 1 to 64, the task's own limit, got 65"),
    ({"max_new_tokens": 0}, "generation.max_new_tokens: must be 1 to 64"),
]


def test_a_request_chooses_how_texts_are_made_field_by_field(stub: Any, parlour: Parlour) -> None:
    how = pb.Generation(num_beams=4, early_stopping="never", length_penalty=0.5, max_new_tokens=7)
    stub.Predict(pb.PredictRequest(task="titles", rows=text_rows("a"), generation=how))
    answerer = parlour.service.answerers[-1]
    assert answerer.max_new_tokens == 7
    assert answerer.generation == Generation(num_beams=4, early_stopping="never", length_penalty=0.5)
    stub.Predict(pb.PredictRequest(task="titles", rows=text_rows("a")))
    assert parlour.service.answerers[-1].generation == Generation()


@pytest.mark.parametrize(
    ("request_", "code", "reason", "says"),
    [
        (pb.PredictRequest(task="sst3", rows=text_rows("a")), "NOT_FOUND", "UNKNOWN_TASK", "did you mean 'sst2'"),
        (pb.PredictRequest(rows=text_rows("a")), "NOT_FOUND", "UNKNOWN_TASK", "there is no task ''"),
        (
            pb.PredictRequest(task="sst2", version=9, rows=text_rows("a")),
            "NOT_FOUND",
            "UNKNOWN_VERSION",
            "use one of 1",
        ),
        (pb.PredictRequest(task="sst2", version=-1, rows=text_rows("a")), "NOT_FOUND", "UNKNOWN_VERSION", "-1"),
        (pb.PredictRequest(task="sst2", alias="x", rows=text_rows("a")), "NOT_FOUND", "UNKNOWN_ALIAS", "production"),
        (pb.PredictRequest(task="sst2"), "INVALID_ARGUMENT", "INVALID_INPUT", "rows"),
        (pb.PredictRequest(task="sst2", rows=[pb.Row()]), "INVALID_ARGUMENT", "INVALID_INPUT", "rows[0]: is empty"),
        (
            pb.PredictRequest(task="sst2", rows=[pb.Row(text="a"), pb.Row(text="a", fields={"sentence": "a"})]),
            "INVALID_ARGUMENT",
            "INVALID_INPUT",
            "rows[1]: has more than one of fields, text and prompt",
        ),
        (
            pb.PredictRequest(task="rte", rows=[pb.Row(fields={"sentence1": "a"})]),
            "INVALID_ARGUMENT",
            "INVALID_INPUT",
            "rows[0].sentence2: is missing",
        ),
        (
            pb.PredictRequest(task="rte", rows=[pb.Row(fields={"sentence1": "a", "sentence2": "b"})] * 6),
            "INVALID_ARGUMENT",
            "TOO_MANY_ROWS",
            "6 rows in one request",
        ),
        (
            pb.PredictRequest(task="titles", rows=text_rows("fine", "x" * 301)),
            "INVALID_ARGUMENT",
            "INVALID_INPUT",
            "rows[1].body: has 301 characters",
        ),
        (
            pb.PredictRequest(task="sst2", rows=text_rows("a"), timeout=Duration(seconds=-1)),
            "INVALID_ARGUMENT",
            "INVALID_INPUT",
            "timeout: must be above 0 s",
        ),
        *[
            (
                pb.PredictRequest(task="titles", rows=text_rows("a"), generation=pb.Generation(**wrong)),
                "INVALID_ARGUMENT",
                "INVALID_INPUT",
                says,
            )
            for wrong, says in WRONG_GENERATION
        ],
        (
            pb.PredictRequest(task="sst2", rows=text_rows("a"), generation=pb.Generation(num_beams=2)),
            "INVALID_ARGUMENT",
            "INVALID_INPUT",
            "generation.num_beams: is for text; task 'sst2' is classification",
        ),
    ],
)
def test_bad_input_is_refused(stub: Any, request_: pb.PredictRequest, code: str, reason: str, says: str) -> None:
    found_code, found_reason, message = refusal(lambda: stub.Predict(request_))
    assert (found_code, found_reason) == (code, reason)
    assert says in message


@pytest.mark.parametrize(
    "data",
    [
        pb.PredictRequest(task="sst2", rows=text_rows("caf?")).SerializeToString().replace(b"caf?", b"caf\xe9"),
        b"\xff\xff\xff",
    ],
    ids=["not UTF-8", "no message"],
)
def test_bytes_that_are_no_request_are_invalid_argument(parlour: Parlour, data: bytes) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        code, reason, message = refusal(lambda: channel.unary_unary("/sidecast.v1.Sidecast/Predict")(data))
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")
    assert "UTF-8" in message


def test_the_nearer_of_both_deadlines_holds(stub: Any, parlour: Parlour) -> None:
    def left(timeout: float | None, field_timeout: int | None) -> float | None:
        request = pb.PredictRequest(
            task="sst2", rows=text_rows("a"), timeout=Duration(seconds=field_timeout) if field_timeout else None
        )
        stub.Predict(request, timeout=timeout)
        deadline = parlour.service.deadlines[-1]
        return None if deadline is None else deadline - time.monotonic()

    assert left(None, None) is None
    assert left(None, 500) == pytest.approx(500, abs=100)
    assert left(5000, 500) == pytest.approx(500, abs=100)
    assert left(500, 5000) == pytest.approx(500, abs=100)


def test_many_tasks_answer_at_once_and_fail_alone(stub: Any, parlour: Parlour) -> None:
    parlour.service.trouble["tweets"] = SideFailed("tweets", 1, "NaN")
    refs = [
        pb.TaskRef(task="sst2", version=1),
        pb.TaskRef(task="nope"),
        pb.TaskRef(task="sst2", alias="canary"),
        pb.TaskRef(task="tweets"),
        pb.TaskRef(task="titles", alias="production"),
    ]
    try:
        response = stub.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=text_rows("a", "b")))
    finally:
        parlour.service.trouble.clear()
    assert [result.task for result in response.results] == refs
    assert [result.WhichOneof("outcome") for result in response.results] == [
        "prediction",
        "error",
        "error",
        "error",
        "prediction",
    ]
    errors = [from_status(result.error) for result in response.results if result.HasField("error")]
    assert [error.reason for error in errors] == ["UNKNOWN_TASK", "UNKNOWN_ALIAS", "SIDE_FAILED"]
    assert errors[2].request_id
    assert response.results[0].prediction.alias == ""
    assert len(response.results[4].prediction.answers) == 2


def test_a_rejected_call_has_a_retry_delay(stub: Any, parlour: Parlour) -> None:
    parlour.service.trouble["sst2"] = Overloaded(9, 8, 0.5)
    try:
        found = refusal(lambda: stub.Predict(pb.PredictRequest(task="sst2", rows=text_rows("a"))))
    finally:
        parlour.service.trouble.clear()
    assert found[:2] == ("RESOURCE_EXHAUSTED", "OVERLOADED")


def test_an_unexpected_error_hides_its_details(stub: Any, parlour: Parlour) -> None:
    parlour.service.trouble["sst2"] = RuntimeError("secret")
    try:
        code, reason, message = refusal(lambda: stub.Predict(pb.PredictRequest(task="sst2", rows=text_rows("a"))))
    finally:
        parlour.service.trouble.clear()
    assert (code, reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in message


@pytest.mark.parametrize(("deadline", "code"), [(None, "CANCELLED"), (1e9, "CANCELLED"), (-1.0, "DEADLINE_EXCEEDED")])
@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_a_call_that_is_cancelled_at_its_deadline_is_counted_as_late(
    error: type[BaseException], deadline: float | None, code: str
) -> None:
    metrics = Metrics()
    metrics.know(["sst2"])

    def call() -> None:
        with counting(metrics, "sst2") as counted:
            counted.deadline = None if deadline is None else time.monotonic() + deadline
            raise error

    with pytest.raises(error):
        call()
    labels = {"task": "sst2", "version": "unknown", "code": code}
    assert metrics.registry.get_sample_value("sidecast_requests_total", labels) == 1


async def test_each_task_of_a_call_that_is_cancelled_is_counted() -> None:
    class Slow:
        def check_counts(self, tasks: int, rows: int) -> None:
            pass

        async def find_tasks(self, refs: Any, options: Any) -> Any:
            return refs

        async def predict_tasks(self, request: Any) -> None:
            await asyncio.Event().wait()

    class Context:
        def time_remaining(self) -> float | None:
            return 0.0

    metrics, refs = Metrics(), [pb.TaskRef(task=task) for task in ("sst2", "tweets")]
    metrics.know(["sst2", "tweets"])
    servicer: Any = NativeServicer(Slow(), metrics)  # type: ignore[arg-type]
    call = asyncio.create_task(
        servicer.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=text_rows("a")), Context())
    )
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for task in ("sst2", "tweets"):
        labels = {"task": task, "version": "unknown", "code": "DEADLINE_EXCEEDED"}
        assert metrics.registry.get_sample_value("sidecast_requests_total", labels) == 1


def test_every_task_of_a_call_is_counted(stub: Any, parlour: Parlour) -> None:
    def count(task: str, version: str, code: str) -> float:
        labels = {"task": task, "version": version, "code": code}
        return parlour.server.metrics.registry.get_sample_value("sidecast_requests_total", labels) or 0.0

    series = [("sst2", "1", "OK"), ("tweets", "1", "OK"), ("unknown", "unknown", "NOT_FOUND")]
    before = [count(*labels) for labels in series]
    refs = [pb.TaskRef(task=task) for task in ("sst2", "tweets", "made up")]
    stub.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=text_rows("a")))
    assert [count(*labels) for labels in series] == [value + 1 for value in before]
    refused = count("sst2", "unknown", "INVALID_ARGUMENT")
    refusal(lambda: stub.PredictTasks(pb.PredictTasksRequest(tasks=refs[:1], rows=[pb.Row()])))
    assert count("sst2", "unknown", "INVALID_ARGUMENT") == refused + 1


def test_too_many_tasks_or_rows_are_refused_and_counted_once_before_any_is_read(stub: Any, parlour: Parlour) -> None:
    def count(task: str) -> float:
        labels = {"task": task, "version": "unknown", "code": "INVALID_ARGUMENT"}
        return parlour.server.metrics.registry.get_sample_value("sidecast_requests_total", labels) or 0.0

    resolved = len(parlour.service.deadlines)
    before = count("unknown"), count("sst2")
    tasks = [pb.TaskRef(task="sst2")] * 257
    many = [pb.Row()] * 8193  # not one of them could be read
    for request, why in (
        (pb.PredictTasksRequest(tasks=tasks, rows=text_rows("a")), ("INVALID_INPUT", "tasks: 257 in one request")),
        (pb.PredictTasksRequest(tasks=tasks[:2], rows=many[:4097]), ("TOO_MANY_ROWS", "8194 rows in one request")),
    ):
        code, reason, message = refusal(lambda request=request: stub.PredictTasks(request))
        assert (code, reason) == ("INVALID_ARGUMENT", why[0])
        assert why[1] in message
    assert (count("unknown"), count("sst2")) == (before[0] + 2, before[1])
    assert refusal(lambda: stub.Predict(pb.PredictRequest(task="sst2", rows=many)))[1] == "TOO_MANY_ROWS"
    assert (count("unknown"), count("sst2")) == (before[0] + 2, before[1] + 1)
    assert len(parlour.service.deadlines) == resolved


def test_a_row_whose_text_is_cut_says_so(stub: Any) -> None:
    long = "x" * (SST2.max_source_tokens + 1)
    rows = text_rows("short", long, long[1:], long)
    response = stub.Predict(pb.PredictRequest(task="sst2", rows=rows))
    assert [answer.truncated for answer in response.answers] == [False, True, False, True]
    [result] = stub.PredictTasks(pb.PredictTasksRequest(tasks=[pb.TaskRef(task="sst2")], rows=rows[:2])).results
    assert [answer.truncated for answer in result.prediction.answers] == [False, True]
    for text, is_cut in (("short", False), (long, True)):
        *_, last = stub.Generate(pb.GenerateRequest(task="titles", row=pb.Row(text=text)))
        assert last.generated.truncated is is_cut
