"""Webhooks: what is posted, how it is signed, and that nothing is lost or reordered over failures and restarts."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from side_registry import Registry, Route
from side_registry.maintenance.webhooks import InvalidWebhook, WebhookGone, Webhooks, read_secrets
from tests.side_registry.maintenance.webhook_kit import SECRET, Receiver
from tests.side_registry.runs import make_run


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    yield opened
    opened.close()


class House:
    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder = folder
        self.registry = Registry.open(folder / "registry", create=True)
        self.pauses: list[float] = []
        self.receiver = receiver

    def webhooks(self) -> Webhooks:
        file = self.folder / "position.json"
        return Webhooks(self.registry, self.receiver.url, [SECRET], file, pause=self.pauses.append)

    def publish(self, number: int) -> None:
        self.registry.publish(make_run(self.folder / str(number), payload=f"weights {number}".encode()))


@pytest.fixture
def house(tmp_path: Path, receiver: Receiver) -> House:
    return House(tmp_path, receiver)


def test_every_change_is_an_event_that_is_signed(house: House, receiver: Receiver) -> None:
    house.publish(1)
    webhooks = house.webhooks()
    assert webhooks.deliver() == 0, "what was there before the first start is not sent"
    house.publish(2)
    house.registry.set_alias("sst2", "production", 2, author="ann", message="better")
    house.registry.set_route("sst2", "production", Route(shares={1: 500}))
    house.registry.rollback("sst2")
    house.registry.rollback("sst2", to=1)
    house.registry.retire("sst2", 2)
    house.registry.delete_task("sst2")
    assert webhooks.deliver() == 7
    headers, bodies = zip(*((headers, body) for headers, body in receiver.events), strict=True)
    events = [document for _, document in receiver.take()]
    assert [event["type"] for event in events] == [
        "version.published",
        "alias.promoted",
        "route.changed",
        "route.changed",
        "alias.rolled_back",
        "version.retired",
        "task.deleted",
    ]
    told = events[1]["data"]
    assert told["registry"] == house.registry.id
    assert (told["task"], told["alias"], told["version"], told["author"]) == ("sst2", "production", 2, "ann")
    assert (told["generation"], told["message"]) == (3, "better")
    assert (events[4]["data"]["version_from"], events[4]["data"]["version_to"]) == (2, 1)
    assert len({each["webhook-id"] for each in headers}) == 7
    for each, body in zip(headers, bodies, strict=True):
        content = f"{each['webhook-id']}.{each['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET, content, hashlib.sha256).digest()).decode()
        assert each["webhook-signature"] == f"v1,{expected}"


def test_an_event_is_tried_until_it_is_accepted_and_keeps_its_id(house: House, receiver: Receiver) -> None:
    webhooks = house.webhooks()
    receiver.statuses = [500, 302, 404]
    house.publish(1)
    webhooks.deliver()
    ids = [headers["webhook-id"] for headers, _ in receiver.take()]
    assert len(ids) == 5, "a first publish also moves production: two events, the first of them four times"
    assert len(set(ids)) == 2
    assert len(set(ids[:4])) == 1
    assert [round(pause / 2**power, 9) for power, pause in enumerate(house.pauses)] == [
        pytest.approx(0.75, abs=0.25)
    ] * 3


def test_a_restart_goes_on_within_a_commit_and_repeats_what_was_not_kept(
    house: House, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.webhooks()
    house.publish(1)
    killed = house.webhooks()
    writes = 0
    write = killed._write

    def die(position: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == 2:
            raise KeyboardInterrupt
        return write(position)

    monkeypatch.setattr(killed, "_write", die)
    with pytest.raises(KeyboardInterrupt):
        killed.deliver()
    before = [headers["webhook-id"] for headers, _ in receiver.take()]
    house.publish(2)
    assert house.webhooks().deliver() == 2
    after = [(headers["webhook-id"], event["type"]) for headers, event in receiver.take()]
    assert len(before) == 2
    assert after[0] == (before[1], "alias.promoted"), "sent, but not kept: once more"
    assert [kind for _, kind in after] == ["alias.promoted", "version.published"]
    assert house.webhooks().deliver() == 0


def test_a_receiver_that_is_gone_ends_it(house: House, receiver: Receiver) -> None:
    webhooks = house.webhooks()
    receiver.statuses = [410]
    house.publish(1)
    with pytest.raises(WebhookGone, match="wants no more"):
        webhooks.deliver()


def test_mistakes_are_told(house: House, tmp_path: Path) -> None:
    house.webhooks()
    other = Registry.open(tmp_path / "other", create=True)
    with pytest.raises(InvalidWebhook, match="of another registry"):
        Webhooks(other, house.receiver.url, [SECRET], tmp_path / "position.json")
    with pytest.raises(InvalidWebhook, match="http or https URL"):
        Webhooks(other, "ftp://host", [SECRET], tmp_path / "new.json")
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{base64.b64encode(SECRET).decode()}\n")
    assert read_secrets(secret) == [SECRET]
    for bad in ("", "whsec_c2hvcnQ=", "whsec_***"):
        secret.write_text(bad)
        with pytest.raises(InvalidWebhook, match="secret"):
            read_secrets(secret)
