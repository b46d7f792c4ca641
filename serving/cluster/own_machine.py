"""Keeps calls of other machines from a replica, whose ports Ray opens on all addresses, without TLS.

Ray's proxies on this machine ask it over loopback; so do callers here. With the setting `insecure` every machine may.
"""

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from serving.access import Access
from serving.errors import NotThisMachine

if TYPE_CHECKING:
    from serving.http.app import App

MAX_PATH = 200
"""Characters of a path in the audit log."""


def is_own(address: str) -> bool:
    """Whether an IP address is loopback's."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def is_own_peer(peer: str | None) -> bool:
    """Whether gRPC's name of a peer, such as ipv4:127.0.0.1:4242, is of this machine. None: Ray itself calls."""
    kind, _, rest = unquote(peer or "unix:").partition(":")
    return kind == "unix" or (kind in ("ipv4", "ipv6") and is_own(rest.rpartition(":")[0].strip("[]")))


def refusal(access: Access, peer: str, method: str, request_id: str) -> NotThisMachine:
    """The error for a call of another machine; the audit log has it."""
    error = NotThisMachine()
    access.audit.refusal(
        caller="",
        tenant="",
        peer=peer,
        verb="",
        method=method,
        tasks=(),
        result=error.reason,
        request_id=request_id,
    )
    return error


def own_machine_alone(app: "App", access: Access) -> "App":
    """An ASGI application that refuses HTTP requests of other machines, and hands `app` the others."""
    from serving.http.call import HttpCall
    from serving.http.problem import problem_response

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        # not the caller's address: a proxy may have put another one there, which it read in a header
        here = scope.get("server") if scope["type"] == "http" else None
        if here is None or is_own(here[0]):
            await app(scope, receive, send)
            return
        call = HttpCall(scope)
        error = refusal(access, call.peer(), f"{scope['method']} {call.path[:MAX_PATH]}", call.request_id)
        await problem_response(error, call.request_id, call.path)(scope, receive, send)

    return answer
