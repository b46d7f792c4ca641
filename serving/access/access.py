"""Decides who calls and whether they may: the one place that every port of the server asks.

Knows neither gRPC nor HTTP: a call is its headers, the caller's address, a verb and tasks.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from serving.access.audit import Audit
from serving.access.caller import ANYBODY, Caller
from serving.access.jwt_tokens import JwtVerifier
from serving.access.rate_limits import RateLimits
from serving.access.scopes import READ
from serving.access.tokens import PREFIX, TokenFile
from serving.config import AccessConfig
from serving.errors import AccessError, Exposed, PermissionDenied, Unauthenticated

AUTHORIZATION = "authorization"
REQUEST_ID = "x-request-id"
REQUEST_ID_RULE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
MAX_TASKS_NAMED = 5
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1|\[::1\]")


class Access:
    """Who calls, and what may they do. Use it on one event loop.

    Without tokens and without JWTs every caller is ANYBODY, who may do everything; limits of a caller are then those of
    its address.

    Raises:
        UnusableFile: a file of the settings cannot be used now.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._tokens = TokenFile(Path(config.tokens)) if config.tokens else None
        self._jwt = JwtVerifier(config) if config.jwt_keys else None
        self._limits = RateLimits(config)
        self.audit = Audit()

    @property
    def asks(self) -> bool:
        """Whether callers must say who they are."""
        return bool(self._tokens or self._jwt)

    @property
    def limits(self) -> bool:
        """Whether callers have limits of requests or rows a second."""
        return self._limits.has_any

    async def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Who calls.

        Args:
            headers: of the call, names in lower case.

        Raises:
            Unauthenticated.
        """
        if not self.asks:
            return ANYBODY
        kind, _, token = headers.get(AUTHORIZATION, "").partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated("send a token as 'authorization: Bearer TOKEN'")
        if not token.isascii():
            raise Unauthenticated("the token is damaged")
        if self._tokens and (self._jwt is None or token.startswith(PREFIX) or token.count(".") != 2):
            return self._tokens.caller(token)
        if self._jwt is None:
            raise Unauthenticated("the token is not one that this server knows")
        return await self._jwt.caller(token)

    def authorize(self, caller: Caller, verb: str, tasks: Sequence[str] | None = None) -> None:
        """Check that a caller may do this with each of the tasks.

        Args:
            tasks: None: with all tasks that there are; empty: with any task at all.

        Raises:
            PermissionDenied: it names the tasks that are not allowed.
        """
        if tasks is None:
            if not caller.scopes.allow_every_task(verb):
                raise PermissionDenied(caller.name, f"{verb} all tasks", verb)
            return
        if not tasks:
            if not caller.scopes.allow_some_task(verb):
                raise PermissionDenied(caller.name, verb, verb)
            return
        denied = [task for task in dict.fromkeys(tasks) if not caller.scopes.allow(verb, task)]
        if denied:
            named = ", ".join(task[:80] for task in denied[:MAX_TASKS_NAMED])
            more = f" and {len(denied) - MAX_TASKS_NAMED} more" if len(denied) > MAX_TASKS_NAMED else ""
            raise PermissionDenied(caller.name, f"{verb} {named}{more}", f"{verb}:{denied[0][:80]}")

    def charge(self, caller: Caller, peer: str, charges: Sequence[tuple[str, int]]) -> None:
        """Count a request and its rows against the caller's limits for each task.

        Raises:
            RateLimited: a limit is reached; nothing is counted.
        """
        self._limits.take(f"{ANYBODY.name} at {peer}" if caller is ANYBODY else caller.name, charges)

    async def check(
        self,
        headers: Mapping[str, str],
        peer: str,
        verb: str,
        tasks: Sequence[str] | None = None,
        rows: int | None = None,
    ) -> Caller:
        """Who calls, where they may do this now; what an HTTP middleware asks.

        Args:
            headers: of the call, names in lower case.
            peer: the caller's address, without a port.
            tasks: as `authorize` takes them.
            rows: rows of each task, to be counted against the caller's limits; None: nothing is counted.

        Raises:
            Unauthenticated, PermissionDenied, RateLimited.
        """
        caller = await self.authenticate(headers)
        self.authorize(caller, verb, tasks)
        if rows is not None:
            self.charge(caller, peer, [(task, rows) for task in tasks or ()])
        return caller


def request_id_of(headers: Mapping[str, str]) -> str:
    """The id that the caller gave its request, or a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if REQUEST_ID_RULE.fullmatch(given) else secrets.token_hex(8)


def scrape_guard(
    access: Access, loop: asyncio.AbstractEventLoop
) -> Callable[[Mapping[str, str], str], Awaitable[None]]:
    """Decides on another event loop who may read the metrics: callers who may read every task.

    Args:
        loop: the event loop on which `access` is used.
    """

    async def check(headers: Mapping[str, str], peer: str) -> None:
        caller = ANYBODY
        try:
            caller = await access.authenticate(headers)
            access.authorize(caller, READ, None)
        except AccessError as error:
            name = caller.name if caller is not ANYBODY else ""
            access.audit.refusal(
                caller=name,
                tenant=caller.tenant,
                peer=peer,
                verb=READ,
                method="GET /metrics",
                tasks=(),
                result=error.reason,
                request_id=request_id_of(headers),
            )
            raise

    async def check_there(headers: Mapping[str, str], peer: str) -> None:
        if access.asks:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(check(headers, peer), loop))

    return check_there


def check_exposure(host: str, config: AccessConfig) -> None:
    """Check that other machines reach a server only if it has TLS and knows its callers, or is meant to be open.

    Raises:
        Exposed.
    """
    if config.insecure or LOOPBACK.fullmatch(host):
        return
    needs = (("TLS", bool(config.tls_cert)), ("callers' tokens", config.names_callers))
    missing = [what for what, there in needs if not there]
    if missing:
        raise Exposed(host, " and no ".join(missing))
