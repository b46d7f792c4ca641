"""The registry's verbs over the wire, and how every server of a target follows them."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from protos import sidecast_pb2 as pb
from serving.client import Predictions
from serving.client.client import Client
from serving.client.errors import RollbackUnclearError, SidecastError
from side_registry import MANIFEST, SIDE_NETWORK
from tests.conformance.targets import Target, World, outcome
from tests.conformance.test_calls import infer
from tests.serving.kit import TEXTS
from tests.sidecast.cli_kit import callers, done, wait_until

pytestmark = pytest.mark.timeout(300)

ACKNOWLEDGED_S = 45.0
ARRIVES_S = 0.5
"""Time for what was sent to arrive and take effect. A slower machine only makes the test weaker."""


def acknowledged(target: Target, generation: int) -> None:
    """Wait until all servers that follow the registry serve the generation, those of other targets too."""
    awaited = target.client.await_generation(generation, timeout=ACKNOWLEDGED_S)
    assert awaited.served, awaited
    assert len(awaited.servers) >= target.followers
    assert all(server.generation >= generation for server in awaited.servers)


def versions(target: Target, task: str, calls: int = 24, **how: Any) -> set[int]:
    """The versions that answer `calls` calls, each on its own connection."""
    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(lambda _: _version(target.address, task, how), range(calls)))


def _version(address: str, task: str, how: dict[str, Any]) -> int:
    with Client(address) as client:
        return client.predict(task, TEXTS[:1], **how).version


def test_the_life_of_a_task(target: Target, world: World) -> None:
    client, spec = target.client, target.own("life")
    first = client.publish(world.run(spec, 1), message="the first")
    assert (first.version, first.already) == (1, False)
    again = client.publish(world.run(spec, 1))
    assert (again.version, again.already) == (1, True)
    acknowledged(target, first.generation)
    assert versions(target, spec.name) == {1}
    second = client.publish(world.run(spec, 2), alias="canary")
    acknowledged(target, second.generation)
    assert versions(target, spec.name) == {1}
    assert versions(target, spec.name, alias="canary") == {2}
    acknowledged(target, client.promote(spec.name, 2).generation)
    assert versions(target, spec.name) == {2}
    rolled = client.rollback(spec.name)
    assert (rolled.version_from, rolled.version_to) == (2, 1)
    acknowledged(target, rolled.generation)
    assert versions(target, spec.name) == {1}
    acknowledged(target, client.promote(spec.name, 1, alias="canary").generation)
    acknowledged(target, client.retire(spec.name, 2).generation)
    with pytest.raises(SidecastError):
        client.predict(spec.name, TEXTS, version=2)
    verbs = [action.verb for commit in client.history(spec.name) for action in commit.actions]
    assert verbs.count("publish") == 2
    assert {"rollback", "retire"} <= set(verbs)
    assert client.task(spec.name).task == spec.name
    assert spec.name in [task.task for task in client.tasks()]


def test_shares_split_traffic_and_are_compared(target: Target, world: World) -> None:
    client, spec = target.client, target.own("split")
    for seed in (1, 2):
        client.publish(world.run(spec, seed))
    acknowledged(target, client.promote(spec.name, 2).generation)
    routed = client.set_route(spec.name, shares={1: 0.5})
    acknowledged(target, routed.generation)
    assert versions(target, spec.name, calls=64) == {1, 2}
    assert len(versions(target, spec.name, route_key="somebody")) == 1
    compared = client.comparison(spec.name)
    assert [version.version for version in compared.versions] == [2, 1]
    ended = client.rollback(spec.name)
    assert ended.canary_ended
    acknowledged(target, ended.generation)
    assert versions(target, spec.name) == {2}
    with pytest.raises(RollbackUnclearError):
        client.rollback(spec.name)


def test_a_watcher_sees_a_change(target: Target, world: World) -> None:
    client, spec = target.client, target.own("watched")
    watching = target.admin.Watch(pb.WatchRequest(), timeout=ACKNOWLEDGED_S)
    first = next(watching)
    assert "sst2" in {task.task for task in first.changed}
    client.publish(world.run(spec))
    served = [dict(task.serving) for event in _until(watching, spec.name) for task in event.changed]
    assert {"production": 1} in served
    watching.cancel()


def _until(events: Any, task: str) -> list[pb.WatchEvent]:
    """The events up to the first one in which the task is served."""
    seen: list[pb.WatchEvent] = []
    for event in events:
        seen.append(event)
        if any(changed.task == task and changed.serving for changed in event.changed):
            break
    return seen


def test_during_swaps_every_answer_is_of_the_version_that_it_names(target: Target, world: World) -> None:
    spec = target.own("swapped")
    acknowledged(target, target.client.publish(world.run(spec, 1)).generation)
    with (
        Client(target.address, retry=False) as client,
        callers(3, lambda: client.predict(spec.name, TEXTS)) as answers,
    ):
        acknowledged(target, target.client.publish(world.run(spec, 2), alias="production").generation)
        assert versions(target, spec.name) == {2}, "a server that acknowledged a version answers with it"
        acknowledged(target, target.client.rollback(spec.name).generation)
        assert versions(target, spec.name) == {1}
        acknowledged(target, target.client.promote(spec.name, 2).generation)
        assert versions(target, spec.name) == {2}
        acknowledged(target, target.client.retire(spec.name, 1).generation)
        with pytest.raises(SidecastError, match="is retired"):
            client.predict(f"{spec.name}:1", TEXTS)
    expected = {version: world.expected(spec.name, version) for version in (1, 2)}
    assert {predictions.version for predictions in answers} == {1, 2}
    for predictions in answers:
        for answer, example in zip(predictions, expected[predictions.version], strict=True):
            assert list(answer.scores.values()) == pytest.approx(example.expected["scores"], abs=1e-5)


def test_a_version_that_does_not_load_leaves_the_old_one_serving(target: Target, world: World) -> None:
    client = target.client
    spec = target.own("damaged")
    acknowledged(target, client.publish(world.run(spec, 1)).generation)
    published = client.publish(world.run(spec, 2, change=_not_a_number), alias="production")
    acknowledged(target, published.generation)
    assert versions(target, spec.name) == {1}
    task = client.task(spec.name)
    assert (task.aliases, task.serving) == ({"production": 2}, {"production": 1})
    [good, bad] = task.versions
    assert good.failure == ""
    assert bad.failure
    with pytest.raises(SidecastError, match="not finite"):
        client.predict(f"{spec.name}:2", TEXTS)
    lines = done("tasks", "--server", target.address).out.splitlines()
    [row] = [line for line in lines if line.split()[:1] == [spec.name]]
    assert "production is still served by version 1" in row
    for failures in target.counted("sidecast_load_failures_total", task=spec.name, reason="CORRUPT_SIDE"):
        assert failures >= 1
    acknowledged(target, client.publish(world.run(spec, 3), alias="production").generation)
    assert versions(target, spec.name) == {3}


def _not_a_number(side: Any) -> None:
    next(side.parameters()).fill_(float("nan"))


def test_a_canary_that_disagrees_loses_its_share_and_watchers_see_it(target: Target, world: World) -> None:
    spec = target.own("canary")
    client = target.client
    number = count()
    client.publish(world.run(spec, 1))
    acknowledged(target, client.publish(world.run(spec, 2), alias="other").generation)
    with (
        Client(target.address, retry=False) as caller,
        callers(2, lambda: caller.predict(spec.name, [f"a film, number {next(number)}"])) as answers,
    ):
        bounds = {"disagreement": 0.1, "min_rows": 20}
        routed = client.set_route(spec.name, shares={2: "50%"}, bounds=bounds)
        wait_until(lambda: world.registry.state().generation > routed.generation, ACKNOWLEDGED_S)
        acknowledged(target, world.registry.state().generation)
    newest = client.history(spec.name)[-1]
    assert newest.message.startswith("automatic rollback: version 2: disagreement ")
    assert [(action.verb, action.route and action.route.shares) for action in newest.actions] == [("set_route", {})]
    assert client.task(spec.name).routes == {}
    assert versions(target, spec.name) == {1}
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert {predictions.version for predictions in answers} == {1, 2}


def test_a_shadow_sees_the_rows_of_every_service_and_answers_none(target: Target, world: World) -> None:
    spec = target.own("shadow")
    client = target.client
    client.publish(world.run(spec, 1))
    client.publish(world.run(spec, 2), alias="other")
    acknowledged(target, client.set_route(spec.name, shadows=[2]).generation)
    number = count()
    answered: set[int] = set()

    def compared() -> bool:
        """Whether the server that answers has seen disagreements over rows of both services. Sends more rows."""
        answered.add(client.predict(spec.name, [f"native {next(number)}"]).version)
        answered.add(int(target.oip.ModelInfer(infer(spec.name, (f"tensor {next(number)}",))).model_version))
        disagreements = client.comparison(spec.name, disagreements=200).disagreements
        return {disagreement.prompt.split()[0] for disagreement in disagreements} == {"native", "tensor"}

    wait_until(compared, ACKNOWLEDGED_S)
    assert answered == {1}
    comparison = client.comparison(spec.name)
    assert [(version.version, version.answers) for version in comparison.versions] == [(1, True), (2, False)]
    assert comparison.keeps_inputs


def test_an_upload_whose_caller_leaves_before_its_end_publishes_nothing(target: Target, world: World) -> None:
    spec, sent, over = target.own("aborted"), threading.Event(), threading.Event()
    folder = world.run(spec)
    header = pb.PublishRequest.Header(manifest=(folder / MANIFEST).read_bytes())
    chunk = pb.PublishRequest.Chunk(file=SIDE_NETWORK, data=(folder / SIDE_NETWORK).read_bytes())

    def parts() -> Iterator[pb.PublishRequest]:
        yield pb.PublishRequest(header=header)
        yield pb.PublishRequest(chunk=chunk)
        sent.set()  # every byte, but not that it was the last
        over.wait(ACKNOWLEDGED_S)

    call = target.admin.Publish.future(parts())
    assert sent.wait(ACKNOWLEDGED_S)
    time.sleep(ARRIVES_S)
    call.cancel()
    over.set()
    time.sleep(ARRIVES_S)
    assert outcome(lambda: target.admin.GetTask(pb.GetTaskRequest(task=spec.name))).reason == "UNKNOWN_TASK"


def test_a_group_is_set_asked_as_one_and_rolled_back(target: Target, world: World) -> None:
    group = target.own("group").name
    acknowledged(target, target.client.set_group(group, ["sst2:1"]).generation)
    acknowledged(target, target.client.set_group(group, ["tags", "sst2"]).generation)
    answers = target.client.predict_group(group, TEXTS)
    assert {task: len(one) for task, one in answers.items() if isinstance(one, Predictions)} == {
        "tags": len(TEXTS),
        "sst2": len(TEXTS),
    }
    request = infer(f"group/{group}")
    labels, classes = target.oip.ModelInfer(request).outputs
    assert [json.loads(row) for row in labels.contents.bytes_contents] == [
        example.expected["labels"] for example in world.expected("tags")
    ]
    assert [label.decode() for label in classes.contents.bytes_contents] == [
        example.expected["label"] for example in world.expected("sst2")
    ]
    acknowledged(target, target.client.rollback_group(group).generation)
    assert list(target.client.predict_group(group, TEXTS)) == ["sst2"]
    assert target.client.residents("tags").residents[0].requests >= 0
    target.client.delete_group(group)
