"""From the first port to the last answer: ports, readiness, health, reflection, draining, signals."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from protos import sidecast_pb2 as pb
from serving.client import errors as errors
from serving.client.client import Client
from serving.components import Components
from serving.config import AccessConfig, ServeConfig
from serving.errors import CannotListen, PortInUse
from serving.server import Server
from side_registry import RegistryNotFound
from tests.serving.api_kit import SST2, TITLES, Parlour
from tests.sidecast.cli_kit import wait_until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def must_not_assemble(*_: Any) -> Any:
    raise AssertionError("loaded before the ports were taken")


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
async def test_a_port_in_use_is_told_before_anything_is_loaded(tmp_path: Path, taken: int, setting: str) -> None:
    server = Server(Parlour(tmp_path, [], **{setting: taken}).config, must_not_assemble)
    with pytest.raises(PortInUse) as caught:
        await server.start()
    assert (caught.value.port, caught.value.setting) == (taken, setting)
    assert str(taken) in str(caught.value)


def test_two_servers_never_share_a_port(parlour: Parlour, tmp_path: Path) -> None:
    with pytest.raises(PortInUse), Parlour(tmp_path, [], port=parlour.server.port).open():
        pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_that_is_not_ours_is_told(tmp_path: Path, host: str) -> None:
    with pytest.raises(CannotListen, match=host):
        await Server(
            Parlour(tmp_path, [], host=host, access=AccessConfig(insecure=True)).config, must_not_assemble
        ).start()


async def test_a_failed_start_gives_its_ports_back(tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        raise RegistryNotFound("nowhere")

    server = Server(Parlour(tmp_path, []).config, fail)
    with pytest.raises(RegistryNotFound):
        await server.start()
    for port in (server.port, server.metrics_port):
        with socket.create_server(("127.0.0.1", port)):
            pass


async def test_the_parts_are_told_the_port_that_was_taken(tmp_path: Path) -> None:
    told: list[int] = []

    def fail(config: ServeConfig, *_: Any) -> Any:
        told.append(config.port)
        raise RegistryNotFound("nowhere")

    server = Server(Parlour(tmp_path, []).config, fail)
    with pytest.raises(RegistryNotFound):
        await server.start()
    assert told == [server.port]
    assert server.port


def test_health_is_told_overall_per_service_and_per_task(tmp_path: Path) -> None:
    parlour = Parlour(tmp_path, [SST2])
    parlour.publish(TITLES, backbone="other")
    with parlour.open(), grpc.insecure_channel(parlour.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ["", "inference.GRPCInferenceService", "sidecast.v1.Sidecast", "sidecast.v1.Admin", "sst2", "titles"]
        found = [stub.Check(health_pb2.HealthCheckRequest(service=name)).status for name in names]
        assert found == [SERVING] * 5 + [NOT_SERVING]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched_by_many_from_before_a_task_is_there(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour, grpc.insecure_channel(parlour.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="titles")
        first, second = stub.Watch(request), stub.Watch(request)
        assert [next(first).status, next(second).status] == [UNKNOWN] * 2
        first.cancel()
        parlour.publish(TITLES)
        told = [next(second).status]
        if told == [NOT_SERVING]:  # while it loads, for a watcher that looks in just then
            told = [next(second).status]
        assert told == [SERVING]
        parlour.registry.delete_task("titles")
        assert next(second).status == UNKNOWN
        second.cancel()


def test_reflection_lists_every_service(parlour: Parlour) -> None:
    with grpc.insecure_channel(parlour.address) as channel:
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"inference.GRPCInferenceService", "sidecast.v1.Sidecast", "sidecast.v1.Admin"} <= set(names)
    assert "grpc.health.v1.Health" in names


def test_reflection_v1_answers_as_v1alpha_does(parlour: Parlour) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="sidecast.v1.Admin"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.reflection.v1.ServerReflection"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Service"),
    ]
    with grpc.insecure_channel(parlour.address) as channel:
        old, new = (
            channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            for version in ("v1alpha", "v1")
        )
        answers = list(new(iter(requests)))
        assert answers == list(old(iter(requests)))
    listed, admin, reflection, unknown = answers
    names = [service.name for service in listed.list_services_response.service]
    assert {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} <= set(names)
    assert admin.file_descriptor_response.file_descriptor_proto
    described = FileDescriptorProto.FromString(reflection.file_descriptor_response.file_descriptor_proto[0])
    assert (described.package, described.service[0].name) == ("grpc.reflection.v1", "ServerReflection")
    assert described.service[0].method[0].input_type == ".grpc.reflection.v1.ServerReflectionRequest"
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_metrics_are_served_over_http(parlour: Parlour) -> None:
    with Client(parlour.address) as client:
        client.predict("sst2", ["a"])
    url = f"http://127.0.0.1:{parlour.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        text = response.read().decode()
    assert 'sidecast_requests_total{code="OK",task="sst2",version="1"}' in text
    assert "sidecast_generation_served 4.0" in text
    assert "sidecast_in_flight_calls 0.0" in text
    assert "process_resident_memory_bytes" in text


def health(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_health_over_http_says_when_it_loads_serves_is_broken_and_shuts_down(tmp_path: Path) -> None:
    parlour, seen, fault = Parlour(tmp_path), list[tuple[int, str]](), [""]

    def assemble(*arguments: Any) -> Components:
        seen.extend(health(server, path) for path in ("/healthz", "/readyz"))
        return replace(parlour.assemble(*arguments), fault=lambda: fault[-1])

    async def look() -> list[tuple[int, str]]:
        return [await asyncio.to_thread(health, server, path) for path in ("/healthz", "/readyz")]

    server = Server(parlour.config, assemble)
    await server.start()
    try:
        assert seen == [(200, "ok\n"), (503, "it is loading\n")]
        assert await look() == [(200, "ok\n")] * 2
        fault.append("the device fails")
        assert await look() == [(503, "the device fails\n"), (200, "ok\n")]
        server.drain.begin()
        assert (await look())[1] == (503, "it is shutting down\n")
    finally:
        await server.stop()


def test_draining_finishes_what_is_begun_and_refuses_what_is_new(tmp_path: Path) -> None:
    with Parlour(tmp_path).open() as parlour, contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(parlour.address, retry=False))
        channel = stack.enter_context(grpc.insecure_channel(parlour.address))
        health, tensors = health_pb2_grpc.HealthStub(channel), open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        events = client.watch()
        next(events)

        parlour.service.slow = 60.0
        begun: list[Any] = []
        caller = threading.Thread(target=lambda: begun.append(client.predict("sst2", ["begun"])))
        caller.start()
        while not parlour.server.drain.in_flight:
            time.sleep(0.01)
        stopped = parlour.stop(grace_s=60)

        assert next(watch).status == NOT_SERVING
        with pytest.raises(errors.DrainingError):
            client.predict("sst2", ["new"])
        with pytest.raises(grpc.RpcError, match="shutting down"):
            tensors.ModelInfer(oip.ModelInferRequest(model_name="sst2"))
        with pytest.raises(errors.DrainingError):
            list(events)
        assert health.Check(health_pb2.HealthCheckRequest(service="sst2")).status == NOT_SERVING
        assert begun == []
        parlour.service.slow = 0.0
        caller.join()
        assert [each.version for each in begun] == [1]
        assert stopped.result(60) is True
        with pytest.raises(errors.UnreachableError):
            client.predict("sst2", ["after"])


WORDS = ["TITLE:", " ONE", " TWO", " THREE"]


def tensor_request() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="titles")
    tensor = request.inputs.add(name="body", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"one two three")
    return request


def texts(responses: list[Any]) -> list[str]:
    return [response.infer_response.outputs[0].contents.bytes_contents[0].decode() for response in responses]


def endless(*requests: Any) -> Iterator[Any]:
    """The requests, and then nothing, for as long as the test takes."""
    yield from requests
    threading.Event().wait(15)


def read_into(rest: list[Any], stream: Any) -> list[Any]:
    for response in stream:
        rest.append(response)
    return []


def test_draining_finishes_running_streams_and_refuses_new_ones(tmp_path: Path) -> None:
    with Parlour(tmp_path).open() as parlour, grpc.insecure_channel(parlour.address) as channel:
        parlour.service.slow = 0.15
        native = sidecast_pb2_grpc.SidecastStub(channel)
        tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        title = pb.GenerateRequest(task="titles", row=pb.Row(text="one two three"))
        ours, theirs = native.Generate(title), tensors.ModelStreamInfer(endless(tensor_request()))
        idle = tensors.ModelStreamInfer(endless())
        begun = [next(ours).text, texts([next(theirs)])[0]]
        stopped = parlour.stop(grace_s=10)
        wait_until(lambda: parlour.server.drain.draining)
        with pytest.raises(grpc.RpcError, match="shutting down") as caught:
            list(native.Generate(title))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError, match="shutting down"):
            list(idle)
        assert begun == WORDS[:1] * 2
        assert [each.text for each in ours][:3] == WORDS[1:]
        rest = []
        with pytest.raises(grpc.RpcError, match="shutting down"):
            rest.extend(read_into(rest, theirs))
        assert texts(rest) == [*WORDS[1:], ""]
        assert stopped.result(5) is True


@pytest.mark.parametrize("begun", [False, True])
def test_an_idle_upload_does_not_hold_the_drain(tmp_path: Path, begun: bool) -> None:
    with Parlour(tmp_path, [TITLES]).open() as parlour, grpc.insecure_channel(parlour.address) as channel:
        manifest = (parlour.run(TITLES, seed=7) / "manifest.json").read_bytes()
        header = pb.PublishRequest(header=pb.PublishRequest.Header(manifest=manifest))
        upload = sidecast_pb2_grpc.AdminStub(channel).Publish.future(endless(*[header] * begun))
        wait_until(lambda: parlour.server.drain.in_flight > 0)
        assert parlour.stop(grace_s=20).result(10) is True
        assert upload.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in upload.details()


def test_what_does_not_finish_in_time_is_cut_off(tmp_path: Path) -> None:
    with Parlour(tmp_path).open() as parlour, Client(parlour.address, retry=False) as client:
        parlour.service.slow = 60.0
        failed: list[Exception] = []

        def call() -> None:
            try:
                client.predict("sst2", ["slow"])
            except errors.SidecastError as error:
                failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        while not parlour.server.drain.in_flight:
            time.sleep(0.01)
        assert parlour.stop(grace_s=0.1).result(60) is False
        caller.join(60)
        assert len(failed) == 1
        assert parlour.service.cancelled.is_set()


@contextlib.contextmanager
def process(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("serve_by_rule.py")
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | environment,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def read_ready(child: subprocess.Popen[str]) -> int:
    assert child.stdout
    for line in child.stdout:
        if line.startswith("ready"):
            assert line.split()[2:] == ["1", "2"]
            return int(line.split()[1])
    raise AssertionError("never ready")


@pytest.mark.slow
async def test_sigterm_lets_calls_finish_and_exits_with_0(tmp_path: Path) -> None:
    with process(tmp_path, SLOW="0.5") as child:
        port = await asyncio.to_thread(read_ready, child)
        with Client(f"127.0.0.1:{port}") as client:
            call = asyncio.create_task(asyncio.to_thread(client.predict, "sst2", ["a"]))
            assert await asyncio.to_thread(child.stdout.readline) == "asked\n"
            child.send_signal(signal.SIGTERM)
            assert (await call).version == 1
        assert await asyncio.to_thread(child.wait, 60) == 0
        assert child.stderr
        assert "Traceback" not in child.stderr.read()


@pytest.mark.slow
async def test_a_pipe_in_the_log_keeps_neither_the_server_from_answering_nor_the_process_from_its_end(
    tmp_path: Path,
) -> None:
    with process(tmp_path) as child:
        port = await asyncio.to_thread(read_ready, child)
        os.mkfifo(tmp_path / "registry" / "log" / f"{3:020d}.json")
        with Client(f"127.0.0.1:{port}", retry=False) as client:
            with pytest.raises(errors.RefusedError, match="it is a pipe"):
                await asyncio.to_thread(client.set_route, "sst2", version=2)
            assert (await asyncio.to_thread(client.predict, "sst2", ["a"])).version == 1
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 60) == 0


@pytest.mark.slow
async def test_a_store_that_hangs_keeps_no_process_past_its_grace(tmp_path: Path) -> None:
    with process(tmp_path, HANG="1", GRACE="0.5") as child:
        port = await asyncio.to_thread(read_ready, child)
        with Client(f"127.0.0.1:{port}", retry=False) as client:
            asked = asyncio.create_task(asyncio.to_thread(client.history))
            assert await asyncio.to_thread(child.stdout.readline) == "history\n"
            assert (await asyncio.to_thread(client.predict, "sst2", ["a"])).version == 1
            child.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(child.wait, 60) == 1
            with pytest.raises(errors.SidecastError):
                await asked


@pytest.mark.slow
async def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    with process(tmp_path, SLOW="60") as child:
        port = await asyncio.to_thread(read_ready, child)
        with Client(f"127.0.0.1:{port}", retry=False) as client:
            call = asyncio.create_task(asyncio.to_thread(client.predict, "sst2", ["a"]))
            assert await asyncio.to_thread(child.stdout.readline) == "asked\n"
            child.send_signal(signal.SIGINT)
            while await asyncio.to_thread(client.ready):  # noqa: ASYNC110 - another process makes it false
                await asyncio.sleep(0.01)
            assert child.poll() is None
            child.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(child.wait, 60) == 128 + signal.SIGINT
            with pytest.raises(errors.UnavailableError):
                await call


@pytest.mark.slow
async def test_sigterm_while_loading_exits_with_0_before_the_next_load(tmp_path: Path) -> None:
    with process(tmp_path, LOADING="0.5") as child:
        assert child.stdout
        assert await asyncio.to_thread(child.stdout.readline) == "loading\n"
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 10) == 0
        assert "ready" not in child.stdout.read()
