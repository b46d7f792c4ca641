"""The registry's verbs over either, and what every server of a target makes of them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from protos import sidecast_pb2 as pb
from serving.client.client import Client
from serving.client.errors import RollbackUnclearError, SidecastError
from side_registry import MANIFEST, SIDE_NETWORK
from tests.conformance.targets import Target, World, outcome
from tests.serving.kit import TEXTS
from tests.sidecast.cli_kit import callers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ACKNOWLEDGED_S = 45.0
ARRIVES_S = 0.5
"""What was sent has arrived, and what comes of it is to be seen."""


def acknowledged(target: Target, generation: int) -> None:
    """By all servers that follow the registry, those of other targets too."""
    awaited = target.client.await_generation(generation, timeout=ACKNOWLEDGED_S)
    assert awaited.served, awaited
    assert len(awaited.servers) >= target.followers
    assert all(server.generation >= generation for server in awaited.servers)


def versions(target: Target, task: str, calls: int = 24, **how: Any) -> set[int]:
    """That answer so many calls on connections of their own."""
    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(lambda _: _version(target.address, task, how), range(calls)))


def _version(address: str, task: str, how: dict[str, Any]) -> int:
    with Client(address) as client:
        return client.predict(task, TEXTS[:1], **how).version


def test_a_life_of_a_task(target: Target, world: World) -> None:
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
    assert spec.name in [each.task for each in client.tasks()]


def test_shares_split_traffic_and_are_compared(target: Target, world: World) -> None:
    client, spec = target.client, target.own("split")
    for seed in (1, 2):
        client.publish(world.run(spec, seed))
    acknowledged(target, client.promote(spec.name, 2).generation)
    routed = client.set_route(spec.name, shares={1: 5000})
    acknowledged(target, routed.generation)
    assert versions(target, spec.name, calls=64) == {1, 2}
    assert len(versions(target, spec.name, route_key="somebody")) == 1
    compared = client.comparison(spec.name)
    assert [each.version for each in compared.versions] == [2, 1]
    ended = client.rollback(spec.name)
    assert ended.canary_ended
    acknowledged(target, ended.generation)
    assert versions(target, spec.name) == {2}
    with pytest.raises(RollbackUnclearError):
        client.rollback(spec.name)


def test_a_watcher_is_told_of_a_change(target: Target, world: World) -> None:
    client, spec = target.client, target.own("watched")
    watching = target.admin.Watch(pb.WatchRequest(), timeout=ACKNOWLEDGED_S)
    first = next(watching)
    assert "sst2" in {each.task for each in first.changed}
    client.publish(world.run(spec))
    served = [dict(each.serving) for event in _until(watching, spec.name) for each in event.changed]
    assert {"production": 1} in served
    watching.cancel()


def _until(events: Any, task: str) -> list[pb.WatchEvent]:
    """The events up to one that tells of the task."""
    found: list[pb.WatchEvent] = []
    for event in events:
        found.append(event)
        if any(each.task == task and each.serving for each in event.changed):
            break
    return found


def test_during_a_swap_every_answer_is_of_the_old_version_or_the_new(target: Target, world: World) -> None:
    spec = target.own("swapped")
    acknowledged(target, target.client.publish(world.run(spec, 1)).generation)
    with Client(target.address) as client, callers(2, lambda: client.predict(spec.name, TEXTS)) as seen:
        published = target.client.publish(world.run(spec, 2), alias="production")
        acknowledged(target, published.generation)
        later = versions(target, spec.name)
    assert later == {2}, "a server that acknowledged the new version answers with it"
    expected = {version: world.expected(spec.name, version) for version in (1, 2)}
    assert {each.version for each in seen} == {1, 2}
    for found in seen:
        for answer, example in zip(found, expected[found.version], strict=True):
            assert list(answer.scores.values()) == pytest.approx(example.expected["scores"], abs=1e-5)


def test_an_upload_whose_caller_goes_before_its_end_publishes_nothing(target: Target, world: World) -> None:
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
