"""All real parts together: a tiny random T5, a registry, both doors, swaps under load."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from ladder import Backbone, Row, Tokenizer, answer
from protos import open_inference_pb2, open_inference_pb2_grpc
from serving.client import errors as errors
from serving.client.client import Client
from serving.components import assemble
from serving.config import EngineConfig, LoadConfig, ServeConfig
from serving.server import Server
from side_registry import SIDE_NETWORK, GenerationSpec, Registry, TaskSpec
from tests.serving.api_kit import serving
from tests.serving.kit import TEXTS, ids_of, make_resident, make_run, make_spec
from tests.sidecast.cli_kit import wait_until

SPECS = (
    make_spec("sst2"),
    make_spec("stars", kind="regression", low=0.0, high=5.0),
    make_spec("titles", kind="text", max_new_tokens=4),
)


class House:
    def __init__(self, folder: Path, backbone: Backbone, tokenizer: Tokenizer) -> None:
        self.folder, self.backbone, self.tokenizer = folder, backbone, tokenizer
        self.registry = Registry.open(folder / "registry", create=True)
        self.server: Server
        self.address = ""

    def run(self, spec: TaskSpec, seed: int, **how: Any) -> Path:
        torch.manual_seed(seed)  # the side network's own start draws from torch's
        return make_run(self.folder / f"{spec.name}-{seed}", self.backbone, self.tokenizer, spec, seed, **how)

    def expected(self, spec: TaskSpec, seed: int, text: str) -> Any:
        """What the model itself answers, alone."""
        torch.manual_seed(seed)
        resident = make_resident(self.backbone, self.tokenizer, spec, seed=seed)
        ids = ids_of(self.tokenizer, spec.render({"sentence": text}))
        [found] = answer(self.backbone, [Row(ids=ids, side=resident.side, answerer=resident.answerer)])
        return found


@pytest.fixture
def house(tmp_path: Path, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer) -> Iterator[House]:
    house = House(tmp_path, backbone, tokenizer)
    for spec in SPECS:
        house.registry.publish(house.run(spec, 1))
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=str(tmp_path / "registry"),
        port=0,
        metrics_port=0,
        dtype="float32",
        threads=1,
        load=LoadConfig(poll_s=0.05),
        engine=EngineConfig(warmup_s=0),
    )
    with serving(config, assemble) as (house.server, _):
        house.address = f"127.0.0.1:{house.server.port}"
        yield house


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.address) as client:
        yield client


def test_both_doors_answer_what_the_model_does(house: House, client: Client) -> None:
    sst2, stars, titles = SPECS
    found = client.predict_tasks(["sst2", "stars", "titles", "nope"], TEXTS)
    assert isinstance(found["nope"], errors.UnknownTaskError)
    for row, text in enumerate(TEXTS):
        seen: Any = found["sst2"][row]  # type: ignore[index]
        wanted = house.expected(sst2, 1, text)
        assert seen.label == wanted.label
        np.testing.assert_allclose(list(seen.scores.values()), wanted.scores, atol=1e-5)
        np.testing.assert_allclose(found["stars"][row].value, house.expected(stars, 1, text).value, atol=1e-5)  # type: ignore
        assert found["titles"][row].text == house.expected(titles, 1, text).text  # type: ignore

    request = open_inference_pb2.ModelInferRequest(model_name="sst2")
    tensor = request.inputs.add(name="sentence", datatype="BYTES", shape=[len(TEXTS)])
    tensor.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    with grpc.insecure_channel(house.address) as channel:
        response = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    native = client.predict("sst2", TEXTS)
    labels, _, scores = (output.contents for output in response.outputs)
    assert [label.decode() for label in labels.bytes_contents] == [each.label for each in native]  # type: ignore
    flat = [score for each in native for score in each.scores.values()]  # type: ignore[union-attr]
    np.testing.assert_allclose(scores.fp32_contents, flat, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3, "length_penalty": 0.5},
        {"do_sample": True, "temperature": 2.0, "top_k": 50, "seed": 4},
        {"no_repeat_ngram_size": 1, "max_new_tokens": 3},
    ],
)
def test_texts_are_made_as_the_request_says(house: House, client: Client, how: dict[str, Any]) -> None:
    spec = SPECS[2]
    changed = {name: value for name, value in how.items() if name != "max_new_tokens"}
    limit = how.get("max_new_tokens", spec.max_new_tokens)
    wanted = spec.model_copy(update={"generation": GenerationSpec(**changed), "max_new_tokens": limit})
    expected = [house.expected(wanted, 1, text).text for text in TEXTS]
    found = client.predict("titles", TEXTS, generation=how)
    assert [answer.text for answer in found] == expected  # type: ignore[union-attr]
    assert expected != [house.expected(spec, 1, text).text for text in TEXTS]
    assert client.task("titles").spec.generation["num_beams"] == 1  # type: ignore[union-attr]


def test_without_a_seed_every_row_of_a_request_is_drawn_anew(client: Client) -> None:
    found = client.predict("titles", ["the same"] * 6, generation={"do_sample": True, "temperature": 9.0})
    assert len({answer.text for answer in found}) > 1  # type: ignore[union-attr]


def test_a_task_that_samples_is_published_served_and_not_replayed_word_for_word(house: House, client: Client) -> None:
    generation = GenerationSpec(do_sample=True, temperature=9.0)
    done = client.publish(house.run(make_spec("verses", kind="text", max_new_tokens=4, generation=generation), 1))
    client.wait_served(done.generation, timeout=60)
    assert client.task("verses").spec.generation["do_sample"] is True  # type: ignore[union-attr]
    assert len({answer.text for answer in client.predict("verses", ["the same"] * 6)}) > 1  # type: ignore[union-attr]


def test_versions_swap_under_load_and_every_answer_is_the_claimed_version_s(house: House, client: Client) -> None:
    sst2, text = SPECS[0], TEXTS[0]
    wanted = {version: house.expected(sst2, version, text).scores for version in (1, 2)}
    seen: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            seen.append(client.predict("sst2", [text]))

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        done = client.publish(house.run(sst2, 2), alias="production")
        client.wait_served(done.generation, timeout=60)
        wait_until(lambda: seen[-1].version == 2)
        back = client.rollback("sst2")
        client.wait_served(back.generation, timeout=60)
        wait_until(lambda: seen[-1].version == 1)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    versions = [each.version for each in seen]
    assert (versions[0], versions[-1], set(versions)) == (1, 1, {1, 2})
    for each in seen:
        np.testing.assert_allclose(list(each[0].scores.values()), wanted[each.version], atol=1e-5)


def test_a_damaged_version_leaves_the_old_one_serving(house: House, client: Client) -> None:
    def damage(side: Any) -> None:
        next(side.parameters()).fill_(float("nan"))

    done = client.publish(house.run(SPECS[0], 3, change=damage), alias="production")
    client.wait_served(done.generation, timeout=60)
    assert client.predict("sst2", [TEXTS[0]]).version == 1
    info = client.task("sst2")
    assert (info.aliases, info.serving) == ({"production": 2}, {"production": 1})
    assert info.versions[1].failure
    with pytest.raises(errors.SidecastError, match=r"sst2:2"):
        client.predict("sst2:2", [TEXTS[0]])


def test_a_cut_file_is_refused_before_it_is_published(house: House, client: Client) -> None:
    run = house.run(SPECS[0], 4)
    side = run / SIDE_NETWORK
    side.write_bytes(side.read_bytes()[:-1])
    with pytest.raises(errors.InvalidArtifactError, match=r"1 bytes before the end of side_network\.safetensors"):
        client.publish(run)
    assert client.task("sst2").versions[-1].version == 1


def test_a_server_starts_on_a_registry_that_is_not_there_yet(tmp_path: Path, tiny_t5: Path) -> None:
    config = ServeConfig(
        backbone=str(tiny_t5), registry=str(tmp_path / "new"), port=0, metrics_port=0, dtype="float32", threads=1
    )
    with serving(config, assemble) as (server, _), Client(f"127.0.0.1:{server.port}") as client:
        assert client.ready()
        assert client.tasks() == []
        assert (server.task_count, server.generation) == (0, 0)
        with pytest.raises(errors.UnknownTaskError, match="nothing is published yet"):
            client.predict("sst2", ["a"])
