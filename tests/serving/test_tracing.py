"""Traces: what a collector gets of calls over gRPC and HTTP, of steps on the device and of swaps."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import requests

from ladder import Backbone, Tokenizer
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.config import BatchConfig
from serving.engine.engine import Engine
from serving.errors import TracingNotInstalled
from serving.metrics import Metrics
from serving.pipeline.service import PredictService
from serving.scheduler.batcher import Batcher
from serving.tracing import ENDPOINTS, current_trace, open_tracer
from serving.versions.placement import add
from serving.versions.pool import PoolState, SidePool
from tests.serving.api_kit import SST2, Parlour
from tests.serving.kit import make_resident, make_spec, predict
from tests.serving.otlp_kit import attributes, collector
from tests.serving.versions.test_pool import task_state

TEXT = "a gripping film that nobody else may read"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
SPAN = bytes.fromhex("b7ad6b7169203331")
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENDPOINTS, "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def test_a_collector_gets_calls_with_their_callers_context_and_swaps(tmp_path: Path) -> None:
    with collector() as collected:
        parlour = Parlour(tmp_path, [SST2], otlp_endpoint=collected.endpoint, http_port=None)
        with parlour.open(), grpc.insecure_channel(parlour.address) as channel:
            stub = sidecast_pb2_grpc.SidecastStub(channel)
            request = pb.PredictRequest(task="sst2", rows=[pb.Row(text=TEXT)])
            stub.Predict(request, metadata=[("traceparent", CALLER), ("x-request-id", "job-7")])
            stub.Predict(request, metadata=[("traceparent", UNSAMPLED)])
            parlour.service.trouble["sst2"] = RuntimeError("boom")
            with pytest.raises(grpc.RpcError):
                stub.Predict(request)
            parlour.service.trouble.clear()
            url = f"http://127.0.0.1:{parlour.server.http_port}"
            body = {"inputs": [TEXT]}
            answer = requests.post(
                f"{url}/v1/tasks/sst2:predict", json=body, headers={"traceparent": CALLER}, timeout=30
            )
            assert answer.status_code == 200
            requests.get(f"{url}/healthz", timeout=30)
    method = "sidecast.v1.Sidecast/Predict"
    called = collected.one(method, TRACE)
    assert called.parent_span_id == SPAN
    told = attributes(called)
    assert told["sidecast.request_id"] == "job-7"
    assert (told["rpc.response.status_code"], told["sidecast.task"], told["sidecast.rows"]) == ("OK", "sst2", 1)
    posted = collected.one("POST /v1/tasks/{task}:predict", TRACE)
    assert posted.parent_span_id == SPAN
    assert attributes(posted)["http.response.status_code"] == 200
    parents = {span.parent_span_id for span in collected.named("tokenize", TRACE)}
    assert parents == {called.span_id, posted.span_id}
    [failed] = [span for span in collected.named(method) if span.trace_id != TRACE]
    assert attributes(failed)["rpc.response.status_code"] == "INTERNAL"
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    swap = collected.one("swap")
    assert collected.one("load").parent_span_id == swap.span_id
    assert attributes(swap) == {"sidecast.task": "sst2", "sidecast.version": 1}
    assert collected.resource["service.name"] == "sidecast"
    assert not [span for span in collected.spans if b"healthz" in span.SerializeToString()]
    assert not [span for span in collected.spans if TEXT.encode() in span.SerializeToString()]


def test_streams_have_spans_and_each_request_of_one_has_its_own_below(tmp_path: Path) -> None:
    infer, watch = "inference.GRPCInferenceService/ModelStreamInfer", "sidecast.v1.Admin/Watch"
    with collector() as collected:
        parlour = Parlour(tmp_path, [SST2], otlp_endpoint=collected.endpoint)
        with parlour.open(), grpc.insecure_channel(parlour.address) as channel:
            metadata = [("traceparent", CALLER)]
            watching = sidecast_pb2_grpc.AdminStub(channel).Watch(pb.WatchRequest(), metadata=metadata)
            next(watching)
            asked = [ask_tensor("good", "sst2"), ask_tensor("bad", "unknown")]
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert len(list(stub.ModelStreamInfer(iter(asked), metadata=metadata))) == 2
            parlour.stop(0.1).result(30)
    assert attributes(collected.one(watch, TRACE))["rpc.response.status_code"] == "UNAVAILABLE", "the server ended it"
    stream = collected.one(infer, TRACE)
    assert stream.parent_span_id == collected.one(watch).parent_span_id == SPAN
    requests = {attributes(span)["sidecast.request_id"]: span for span in collected.named("request", TRACE)}
    assert requests.keys() == {"good", "bad"}
    assert {span.parent_span_id for span in requests.values()} == {stream.span_id}
    codes = {name: attributes(span)["rpc.response.status_code"] for name, span in requests.items()}
    assert codes == {"good": "OK", "bad": "NOT_FOUND"}
    assert collected.one("tokenize", TRACE).parent_span_id == requests["good"].span_id


def ask_tensor(request_id: str, task: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=task, id=request_id)
    request.inputs.add(name="sentence", datatype="BYTES", shape=[1]).contents.bytes_contents.append(TEXT.encode())
    return request


async def test_a_request_has_a_span_for_each_stage(backbone: Backbone, tokenizer: Tokenizer) -> None:
    metrics, pool = Metrics(), SidePool()
    specs = [make_spec("sst2"), make_spec("titles", "text", max_new_tokens=5)]
    state = PoolState(generation=1, wanted=1)
    for seed, spec in enumerate(specs):
        task = task_state(1, {"production": (1,)}, name=spec.name)
        state = replace(state, tasks={**state.tasks, spec.name: task})
        state = add(state, make_resident(backbone, tokenizer, spec, seed=seed))
    pool.replace(state)
    batcher = Batcher(Engine(backbone, metrics), BatchConfig(), metrics)
    service = PredictService(pool, batcher, tokenizer, metrics=metrics)
    with collector() as collected:
        tracer = metrics.tracer = open_tracer(collected.endpoint, 1.0)
        assert tracer is not None
        for spec in specs:
            trace = tracer.request(spec.name, {}, {})
            assert trace is not None
            current_trace.set(trace)
            await predict(service, spec.name, [TEXT])
            trace.end()
        current_trace.set(None)
        await predict(service, "sst2", ["another"])
        await service.close()
        tracer.close()
    ids = {spec.name: collected.one(spec.name).trace_id for spec in specs}
    stages = {name: sorted(span.name for span in collected.spans if span.trace_id == ids[name]) for name in ids}
    assert stages["sst2"] == ["backbone", "queue", "side", "sst2", "tokenize"]
    assert stages["titles"] == ["backbone", "decode", "queue", "titles", "tokenize"]
    assert attributes(collected.one("decode"))["sidecast.decode.steps"] >= 1
    assert attributes(collected.one("backbone", ids["sst2"])) == {"sidecast.batch.rows": 1}
    assert {span.trace_id for span in collected.spans} == set(ids.values())
    for span in collected.spans:
        [root] = [each for each in collected.spans if each.trace_id == span.trace_id and not each.parent_span_id]
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano


def test_the_ratio_and_the_variables_decide_which_requests_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracer("", 1.0) is None
    tracer = open_tracer("http://127.0.0.1:1", 0.0)
    assert tracer is not None
    assert tracer.request("call", {}, {}) is None
    assert tracer.request("call", {"traceparent": CALLER}, {}) is not None
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    off = open_tracer("http://127.0.0.1:1", 1.0)
    assert off is not None
    assert off.request("call", {"traceparent": CALLER}, {}) is None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracer("http://127.0.0.1:1", 1.0) is None


def test_without_the_packages_the_setting_is_refused_and_the_variable_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(TracingNotInstalled, match="pip install 'sidecast\\[otel\\]'"):
        open_tracer("http://127.0.0.1:4317", 1.0)
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:4317")
    assert open_tracer("", 1.0) is None


def test_nothing_of_opentelemetry_is_imported_without_traces() -> None:
    code = (
        "import sys, serving.metrics; from serving.tracing import open_tracer; assert open_tracer('', 1.0) is None; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
