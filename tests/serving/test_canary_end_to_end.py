"""A canary and a shadow before real servers: a tiny random T5, the command line, callers at both doors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest

from ladder import Backbone, Tokenizer
from protos import open_inference_pb2, open_inference_pb2_grpc
from serving.client.client import Client
from serving.client.errors import SidecastError
from serving.client.results import Event
from serving.components import assemble
from serving.config import EngineConfig, LoadConfig, ServeConfig, ShadowConfig
from tests.serving.api_kit import serving
from tests.serving.test_end_to_end import SPECS, House
from tests.sidecast.cli_kit import callers, done, wait_until

SST2 = SPECS[0]


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer
) -> Iterator[House]:
    """A real server with three versions of a task, random ones, so that they disagree; the first is production."""
    folder = tmp_path_factory.mktemp("house")
    house = House(folder, backbone, tokenizer)
    for seed in (1, 2, 3):
        house.registry.publish(house.run(SST2, seed))
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=str(folder / "registry"),
        port=0,
        metrics_port=0,
        dtype="float32",
        threads=1,
        load=LoadConfig(poll_s=0.05),
        engine=EngineConfig(warmup_s=0),
        shadow=ShadowConfig(keep_inputs=True),
    )
    with serving(config, assemble) as (house.server, _):
        house.address = f"127.0.0.1:{house.server.port}"
        yield house


@pytest.fixture
def house(opened: House) -> House:
    """With all traffic the first version's."""
    done("promote", "sst2", 1, "--server", opened.address, "--wait")
    return opened


@contextmanager
def watching(address: str) -> Iterator[list[Event]]:
    """What a watcher is told meanwhile."""
    seen: list[Event] = []
    client = Client(address)

    def watch() -> None:
        with suppress(SidecastError):
            for event in client.watch():
                seen.append(event)

    thread = threading.Thread(target=watch)
    thread.start()
    wait_until(lambda: bool(seen))
    yield seen
    client.close()
    thread.join(10)


def tensors(address: str, text: str) -> int:
    """The version that answers at the other door."""
    request = open_inference_pb2.ModelInferRequest(model_name="sst2")
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(text.encode())
    with grpc.insecure_channel(address) as channel:
        return int(open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request).model_version)


def test_a_bad_canary_is_rolled_back_by_the_server_and_everybody_is_told(house: House) -> None:
    where, numbers = ["--server", house.address], count()
    with Client(house.address) as client, watching(house.address) as events:
        bounds = ["--max-disagreement", "10%", "--min-rows", "20"]
        done("promote", "sst2", 2, "--canary", "20%", *bounds, *where, "--wait", "-m", "try the second")
        with callers(2, lambda: client.predict("sst2", [f"a film, number {next(numbers)}"])) as answers:
            wait_until(lambda: house.registry.state().tasks["sst2"].routes == {}, 30)
            generation = house.registry.state().generation
            wait_until(lambda: events[-1].served >= generation)
        newest = client.history("sst2")[-1]
        assert newest.message.startswith("automatic rollback: version 2: disagreement ")
        assert newest.author.startswith("sidecast serve@")
        assert [(each.verb, each.alias, each.route and each.route.shares) for each in newest.actions] == [
            ("set_route", "production", {})
        ]
        told = [event.routes.get("sst2", {}) for event in events if "sst2" in event.changed]
        shares = [routes["production"].shares if routes else None for routes in told]
        assert shares == [None, {2: 2000}, None]
        assert [answer for answer in answers if isinstance(answer, Exception)] == []
        assert {answer.version for answer in answers} == {1, 2}
        assert {client.predict("sst2", ["a film"]).version for _ in range(30)} == {1}
    assert "automatic rollback: version 2" in done("history", "sst2", *where).out


def test_a_shadow_sees_what_callers_ask_at_both_doors_and_answers_none_of_it(house: House) -> None:
    where, numbers = ["--server", house.address], count()
    done("promote", "sst2", "--shadow", 3, *where, "--wait")
    with Client(house.address) as client:
        answered = {client.predict("sst2", [f"native {next(numbers)}"] * 2).version for _ in range(10)}
        answered |= {tensors(house.address, f"tensors {next(numbers)}") for _ in range(10)}
        assert answered == {1}

        def compared() -> int:
            return {each.version: each.compared for each in client.comparison("sst2").versions}.get(3, 0)

        wait_until(lambda: compared() >= 20)
        document: dict[str, Any] = done("shadow", "sst2", "--disagreements", 5, *where, "--json").document
        own, shadow = document["versions"]
        assert (own["version"], own["answers"], shadow["version"], shadow["answers"]) == (1, True, 3, False)
        assert own["latency_seconds"] > 0
        assert shadow["cost_seconds"] > 0
        assert document["keeps_inputs"]
        assert len(document["disagreements"]) == min(5, shadow["compared"] - shadow["agreed"])
        heading, columns, first, second, *_ = done("shadow", "sst2", *where).out.splitlines()
        assert heading.strip() == f"sst2@production, since generation {document['since']}"
        assert columns.split()[:3] == ["version", "role", "rows"]
        assert (first.split()[:2], second.split()[:2]) == (["1", "own"], ["3", "shadow"])


def test_a_canary_within_its_bounds_stays(house: House) -> None:
    """The same weights under another number agree."""
    same = house.run(SST2, 1)
    manifest = (same / "manifest.json").read_text(encoding="utf-8")
    (same / "manifest.json").write_text(manifest.replace('"seed": 1', '"seed": 99'), encoding="utf-8")
    where, numbers = ["--server", house.address], count()
    version = done("publish", same, *where, "--json").document["version"]
    assert version == 4
    done("promote", "sst2", 4, "--canary", "50%", "--max-disagreement", "1%", "--min-rows", 10, *where, "--wait")
    with Client(house.address) as client:
        with callers(2, lambda: client.predict("sst2", [f"a film, number {next(numbers)}"])):
            wait_until(lambda: all(each.compared >= 30 for each in client.comparison("sst2").versions[1:]), 30)
        [own, canary] = client.comparison("sst2").versions
        assert canary.agreed == canary.compared
        assert {own.version, canary.version} == {1, 4}
        assert client.task("sst2").routes["production"].shares == {4: 5000}
