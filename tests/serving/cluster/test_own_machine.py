"""Which calls a replica answers whose settings are not for other machines."""

import json
from typing import Any

import grpc
import pytest

from protos import sidecast_pb2 as pb
from serving.access import Access
from serving.api.drain import Drain
from serving.api.inbox import Inbox
from serving.api.services import ADMIN, NATIVE
from serving.api.status import DETAILS_KEY
from serving.cluster.grpc_bridge import SERVICES, Calls
from serving.cluster.own_machine import is_own_peer, own_machine_alone
from serving.config import AccessConfig
from tests.serving.cluster.test_app import Context, Servicer, arrived


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("ipv4:127.0.0.1:4242", True),
        ("ipv6:%5B::1%5D:4242", True),
        ("ipv6:[::ffff:127.0.0.1]:4242", True),
        ("unix:", True),
        (None, True),  # Ray itself: the call came by a handle
        ("ipv4:10.0.0.7:4242", False),
        ("ipv6:[::ffff:10.0.0.7]:4242", False),
        ("ipv6:[fe80::1]:4242", False),
        ("127.0.0.1", False),
    ],
)
def test_own_peers_come_over_loopback(peer: str | None, own: bool) -> None:
    assert is_own_peer(peer) is own


class From(Context):
    """Of a call from this peer."""

    def __init__(self, peer: str) -> None:
        super().__init__()
        self.peer = lambda: peer


async def test_calls_of_other_machines_are_refused_and_in_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    servicers = {service: Servicer(service) for service in SERVICES}
    request = arrived(NATIVE, "Predict", pb.PredictRequest(task="sst2"))
    for own_machine, peer, code in (
        (True, "ipv4:10.0.0.7:4242", grpc.StatusCode.PERMISSION_DENIED),
        (True, "ipv4:127.0.0.1:4242", None),
        (False, "ipv4:10.0.0.7:4242", None),
    ):
        context = From(peer)
        answer = await Calls(servicers, Drain(), Inbox(), own_machine=own_machine).answer("Predict", request, context)
        assert (context.code, bool(answer.ByteSize())) == (code, code is None)
        assert (DETAILS_KEY in dict(context.trailing)) is (code is not None)
    [line] = caplog.records
    assert (line.audit["result"], line.audit["peer"]) == ("NOT_THIS_MACHINE", "ipv4:10.0.0.7:4242")  # type: ignore[attr-defined]
    context = From("ipv4:10.0.0.7:4242")
    calls = Calls(servicers, Drain(), Inbox(), own_machine=True)
    watch = arrived(ADMIN, "Watch", pb.WatchRequest())
    assert [each async for each in calls.stream("Watch", watch, context)] == []
    assert context.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(("here", "status"), [("10.0.0.7", 403), ("::ffff:127.0.0.1", 200), ("127.0.0.1", 200)])
async def test_a_request_is_let_in_by_the_address_that_it_came_to(here: str, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "method": "GET", "path": "/v1/tasks", "headers": [], "query_string": b""}
    scope |= {"server": (here, 30000), "client": ("127.0.0.1", 1)}  # the caller's may be what a header says
    await own_machine_alone(app, Access(AccessConfig()))(scope, None, send)
    assert sent[0]["status"] == status
    assert status == 200 or json.loads(sent[1]["body"])["reason"] == "NOT_THIS_MACHINE"
