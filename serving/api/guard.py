"""Asks `serving.access` about every call of a method, and writes the audit log."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from serving.access import ADMIN, ANYBODY, READ, Access, Caller, request_id_of
from serving.api.call_context import CallContext
from serving.api.permissions import RULES, Charges, Rule
from serving.api.status import code_of
from serving.errors import AccessError, NotThisPort, PermissionDenied, RateLimited
from serving.logs import request_id
from side_registry.errors import UnknownGroup
from side_registry.groups import GroupVersion

RECHECK_S = 1.0
"""Longest that a stream of events goes on without another look at its caller's token, in seconds."""

_call: ContextVar["GuardedCall | None"] = ContextVar("guarded_call", default=None)
"""The call that is being answered."""


class Guard:
    """Guards the calls of one method.

    Args:
        path: gRPC's name of the method.
        allows_changes: whether the port may change the registry.
    """

    def __init__(self, access: Access, path: str, allows_changes: bool = True) -> None:
        self.allows_changes = allows_changes
        self.access = access
        self.path = path
        self.rule = RULES.get(path)
        rule = self.rule or Rule(verb=ADMIN)
        is_open = rule.verb is None or not (access.asks or rule.is_change or (rule.is_limited and access.limits))
        self._is_idle = is_open and (self.rule is not None or not access.asks)

    async def begin(self, context: CallContext) -> "GuardedCall | None":
        """A call of the method by a caller who is known; None where there is nothing to check.

        Raises:
            Unauthenticated, PermissionDenied, NotThisPort.
        """
        if self._is_idle:
            _call.set(None)
            return None
        call = GuardedCall(self, context)
        await call.identify()
        _call.set(call)
        return call


class Guards:
    """Guards of all methods, for a port that calls the servicers itself and whose context has the caller's headers.

    Args:
        allows_changes: whether the port may change the registry.
    """

    def __init__(self, access: Access, allows_changes: bool = True) -> None:
        self._access = access
        self._allows_changes = allows_changes
        self._guards: dict[str, Guard] = {}

    async def admit(self, context: Any, path: str, request: Any) -> "GuardedCall | None":
        """Let one request of a method in; None where there is nothing to check.

        The call's `show` takes out of the response what the caller may not read, and `end` logs a change.

        Args:
            context: has `invocation_metadata()`, with names in lower case, and may have `peer()`, as gRPC's.
            path: gRPC's name of the method.

        Raises:
            Unauthenticated, PermissionDenied, NotThisPort, RateLimited.
        """
        guard = self._guards.get(path) or self._guards.setdefault(path, Guard(self._access, path, self._allows_changes))
        call = await guard.begin(context)
        if call:
            await call.check(request)
        return call


class GuardedCall:
    """One call: who makes it, and what became of it."""

    def __init__(self, guard: Guard, context: CallContext) -> None:
        self.caller: Caller = ANYBODY
        self._access = guard.access
        self._guard = guard
        self._rule = guard.rule or Rule(verb=ADMIN)
        self._headers = headers_of(context)
        self._peer = peer_of(context)
        self._tasks: tuple[str, ...] = ()
        self._is_change_begun = False
        self._verb = str(self._rule.verb)
        self._identified_at = 0.0

    @property
    def is_checked_singly(self) -> bool:
        """Whether the servicer checks each request of the call."""
        return self._rule.is_checked_singly

    async def identify(self) -> None:
        """Find out who calls, by the token's present meaning.

        Raises:
            Unauthenticated, PermissionDenied, NotThisPort.
        """
        try:
            self.caller = await self._access.authenticate(self._headers)
            self._identified_at = time.monotonic()
            if self._guard.rule is None and self._access.asks:
                raise PermissionDenied(self.caller.name, f"call {self._guard.path}", ADMIN)
            if self._rule.is_change and not self._guard.allows_changes:
                raise NotThisPort(self._guard.path.rpartition("/")[2])
        except AccessError as error:
            self._refuse(error, ())
            raise

    async def check(self, request: Any) -> None:
        """Check one request of the call, and name its caller as the author of a change.

        Raises:
            Unauthenticated, PermissionDenied, RateLimited.
        """
        charges = await self._charges(request)
        if charges is None:
            return
        verb = self._rule.verb_of(request) if self._rule.verb_of else self._verb
        await self._allow(verb, charges)
        if self._rule.is_change:
            self._is_change_begun = True
            self._tasks = tuple(task for task, _ in charges)
            if self._access.asks:
                (request.header if hasattr(request, "header") else request).change.author = self.caller.name

    async def check_group(self, name: str, tasks: Iterable[str] | None, rows: int) -> None:
        """Check a request that names a group.

        Args:
            tasks: of the group; None: there is no such group, which only a caller who may ask every task is told.
            rows: of the request.

        Raises:
            Unauthenticated, RateLimited.
            PermissionDenied: it does not name the group's tasks.
        """
        try:
            await self._allow(self._verb, None if tasks is None else tuple((task, rows) for task in tasks))
        except PermissionDenied as error:
            raise PermissionDenied(error.caller, f"{self._verb} all tasks of group {name[:80]}", self._verb) from None

    async def _allow(self, verb: str, charges: Charges | None) -> None:
        """Check a request for these tasks; None: for all that there are."""
        tasks = None if charges is None else tuple(task for task, _ in charges)
        try:
            if self._rule.is_checked_singly:
                self.caller = await self._access.authenticate(self._headers)
            self._access.authorize(self.caller, verb, tasks)
            if self._rule.is_limited and charges:
                self._access.charge(self.caller, self._peer, charges)
        except (AccessError, RateLimited) as error:
            self._refuse(error, tasks or ())
            raise

    async def _charges(self, request: Any) -> Charges | None:
        """The request's tasks and their rows. An upload's manifest may be large, so it is read on a thread."""
        if self._rule.is_change:
            return await asyncio.to_thread(self._rule.tasks, request)
        return self._rule.tasks(request)

    async def show(self, response: Any) -> None:
        """Take out of a response what the caller may not read. Raises Unauthenticated: the token holds no longer."""
        hide = self._rule.hide
        if hide is None or not self._access.asks:
            return
        if time.monotonic() - self._identified_at > RECHECK_S:
            await self.identify()
        scopes = self.caller.scopes
        if not scopes.allow_every_task(READ):
            hide(response, lambda task: scopes.allow(READ, task))

    def end(self, error: BaseException | None = None) -> None:
        """Write what became of a change that the caller may make."""
        if self._is_change_begun:
            self._access.audit.change(**self._line(self._tasks, _result(error)))

    def _refuse(self, error: AccessError | RateLimited, tasks: tuple[str, ...]) -> None:
        self._access.audit.refusal(**self._line(tasks, error.reason))

    def _line(self, tasks: tuple[str, ...], result: str) -> dict[str, Any]:
        is_known = self.caller is not ANYBODY
        return {
            "caller": self.caller.name if is_known else "",
            "tenant": self.caller.tenant,
            "peer": self._peer,
            "verb": self._verb,
            "method": self._guard.path,
            "tasks": tasks,
            "result": result,
            "request_id": request_id.get() or request_id_of(self._headers),
        }


def _result(error: BaseException | None) -> str:
    if error is None:
        return "OK"
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else code_of(error).name


async def check_request(request: Any) -> None:
    """Check one request of a stream whose rule is `is_checked_singly`.

    Raises:
        Unauthenticated, PermissionDenied, RateLimited.
    """
    call = _call.get()
    if call is not None:
        await call.check(request)


async def checked_group(find: Callable[[str], GroupVersion], name: str, rows: int = 0) -> GroupVersion:
    """The tasks of a group that the call which is being answered names: its caller needs the verb for each of them.

    The rules of the table check no call that names a group, since only the servicer knows its tasks.

    Args:
        find: gives a group, or raises UnknownGroup.
        rows: of the request.

    Raises:
        UnknownGroup, Unauthenticated, PermissionDenied, RateLimited.
    """
    call = _call.get()
    try:
        group = find(name)
    except UnknownGroup:
        if call is not None:
            await call.check_group(name, None, rows)
        raise
    if call is not None:
        await call.check_group(name, (ref.task for ref in group.refs), rows)
    return group


def may_read(task: str) -> bool:
    """Whether who makes the call that is being answered may see a task."""
    call = _call.get()
    return call is None or call.caller.scopes.allow(READ, task)


def known_caller() -> Caller | None:
    """Who makes the call that is being answered; None where callers have no tokens."""
    call = _call.get()
    return None if call is None or call.caller is ANYBODY else call.caller


def peer_of(context: Any) -> str:
    """The caller's address without its port; "" where it is not known, as on Ray Serve."""
    peer = context.peer() if hasattr(context, "peer") else ""
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else peer


def headers_of(context: CallContext) -> Mapping[str, str]:
    """The caller's metadata that is text, or the headers of its HTTP request."""
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}
