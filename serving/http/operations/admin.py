"""The registry's verbs and history, as `sidecast.v1.Admin` has them over gRPC: the same rules and names."""

from collections.abc import Iterator
from http import HTTPMethod
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from protos import sidecast_pb2 as pb
from serving.errors import InvalidInput
from serving.http.body import JSON, Body, Int64, Name, Version, parse_query
from serving.http.call import HttpCall
from serving.http.documents import (
    Commit,
    Comparisons,
    RouteDocument,
    VersionDetails,
    describe,
    describe_details,
)
from serving.http.operation import Operation, Reply
from serving.http.replies import json_reply
from serving.http.services import Services

TASK = {"task": "A task's name."}
Text = Annotated[str, Field(max_length=10_000)]
Share = Annotated[int, Field(ge=0, le=10_000)]
SOME_COMMITS = 100
"""Of the newest, where the query names no limit."""


class ShareBody(Body):
    """A version's part of an alias's traffic."""

    version: Version
    share: Share
    """Hundredths of a per cent: 500 is 5 %."""


class BoundsBody(Body):
    """Bounds of the versions with shares, compared with the alias's main version."""

    error_rate: float | None = None
    """How much larger its part of failed rows may be: 0 to 1."""
    latency: float | None = None
    """How many times as long its mean request may take: at least 1."""
    disagreement: float | None = None
    """Part of its answers that may differ: 0 to 1."""
    min_rows: Int64 = 0
    """Rows that must be seen before it is judged; 0: 100."""


class SplitBody(Body):
    """How an alias's traffic is split. The main version gets the rest."""

    shares: list[ShareBody] = Field(default_factory=list)
    shadows: list[Version] = Field(default_factory=list)
    """Versions that answer the same inputs, compared and told to nobody."""
    bounds: BoundsBody | None = None

    def message(self, version: int | None = None) -> pb.Route:
        """As gRPC has it, with the alias's main version."""
        route = pb.Route(version=version, shadows=self.shadows)
        for share in self.shares:
            route.shares.add(version=share.version, share=share.share)
        if self.bounds:
            route.bounds.CopyFrom(pb.Route.Bounds(**self.bounds.model_dump(exclude_none=True)))
        return route


class ChangeBody(Body):
    """Who changes the registry, and why."""

    author: Text = ""
    """For the history. Where callers have tokens, it is the token's name."""
    message: Text = ""

    def change(self) -> pb.Change:
        """As gRPC has it."""
        return pb.Change(author=self.author, message=self.message)


class RouteBody(ChangeBody):
    """The route that an alias gets."""

    alias: Name = ""
    """Empty: production."""
    version: Version | None = None
    """The alias's main version; not given: it stays."""
    route: SplitBody = Field(default_factory=SplitBody)
    """Empty: the main version answers all."""
    seen: SplitBody | None = None
    """The route that this one was made of. If it is another one by now, nothing is changed (409)."""


class RollbackBody(ChangeBody):
    """Which alias goes back."""

    alias: Name = ""
    """Empty: production."""
    to: Version | None = None
    """Not given: the shares end; where there are none, the alias goes back to the version before."""


class RetireBody(ChangeBody):
    """Which version is retired."""

    version: Version


class HistoryQuery(Body):
    """Which commits."""

    task: Name = ""
    """Only what is about this task; empty: all tasks."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = SOME_COMMITS
    """So many of the newest commits."""


class ComparisonQuery(Body):
    """Which comparison."""

    alias: Name = ""
    """Empty: production."""
    disagreements: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Newest disagreements to show: inputs of callers, for which a caller needs the scope `admin`."""


class RouteSet(TypedDict):
    """An alias's new route."""

    task: str
    alias: str
    route: RouteDocument
    generation: int


class RolledBack(TypedDict):
    """Where an alias was and is."""

    task: str
    alias: str
    version_from: int
    version_to: int
    generation: int
    canary_ended: bool
    """The alias stayed where it is, and lost its route."""


class Retired(TypedDict):
    """A version that is retired."""

    task: str
    version: int
    generation: int


class History(TypedDict):
    """Who changed what, when and why; oldest first."""

    commits: list[Commit]


class Admin:
    """The operations on versions, routes and history. A publish, which is an upload, is gRPC's alone."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """Those that read first."""
        version = {"task": TASK["task"], "version": "A version's number."}
        for name, path, summary, handler, query, response, parameters in (
            ("getVersion", "/v1/tasks/{task}/versions/{version}", "Describe one version: its scores and where it came "
             "from", self.get_version, None, VersionDetails, version),
            ("getComparison", "/v1/tasks/{task}/comparison", "Compare the versions of an alias's route, as this server "
             "saw them", self.get_comparison, ComparisonQuery, Comparisons, TASK),
            ("history", "/v1/history", "List the registry's newest commits", self.history, HistoryQuery, History, {}),
        ):  # fmt: skip
            yield Operation(
                name=name,
                method=HTTPMethod.GET,
                path=path,
                summary=summary,
                handler=handler,
                query=query,
                responses={JSON: response},
                tag="registry",
                parameters=parameters,
            )
        for name, verb, summary, handler, request, response in (
            ("setRoute", "setRoute", "Set an alias's version and route", self.set_route, RouteBody, RouteSet),
            ("rollback", "rollback", "Return an alias to an earlier version, or end its canary", self.roll_back,
             RollbackBody, RolledBack),
            ("retire", "retire", "Retire a version that no alias or route names", self.retire, RetireBody, Retired),
        ):  # fmt: skip
            yield Operation(
                name=name,
                method=HTTPMethod.POST,
                path=f"/v1/tasks/{{task}}:{verb}",
                summary=summary,
                handler=handler,
                request=request,
                responses={JSON: response},
                is_change=True,
                tag="registry",
                parameters=TASK,
            )

    async def get_version(self, call: HttpCall) -> Reply:
        """Describe one version."""
        number = call.parameters["version"]
        if not (number.isascii() and number.isdecimal() and len(number) < 19):
            raise InvalidInput("version", f"must be a number, got {number[:80]!r}")
        version, manifest = await self._services.manifest(call, call.parameters["task"], int(number))
        return json_reply(describe_details(version, manifest))

    async def get_comparison(self, call: HttpCall) -> Reply:
        """Compare the versions of an alias's route."""
        query = parse_query(call.query, ComparisonQuery)
        request = pb.GetComparisonRequest(
            task=call.parameters["task"], alias=query.alias, disagreements=query.disagreements
        )
        return json_reply(describe(await self._services.comparison(call, request)))

    async def history(self, call: HttpCall) -> Reply:
        """List the newest commits."""
        query = parse_query(call.query, HistoryQuery)
        commits = await self._services.history(call, pb.HistoryRequest(task=query.task, limit=query.limit))
        return json_reply({"commits": [describe(commit) for commit in commits]})

    async def set_route(self, call: HttpCall, body: RouteBody) -> Reply:
        """Set an alias's version and route."""
        request = pb.SetRouteRequest(
            task=call.parameters["task"],
            alias=body.alias,
            route=body.route.message(body.version),
            change=body.change(),
            seen=body.seen.message() if body.seen else None,
        )
        return _reply(await self._services.set_route(call, request))

    async def roll_back(self, call: HttpCall, body: RollbackBody) -> Reply:
        """Return an alias to an earlier version."""
        request = pb.RollbackRequest(
            task=call.parameters["task"], alias=body.alias, to=body.to or 0, change=body.change()
        )
        return _reply(await self._services.roll_back(call, request))

    async def retire(self, call: HttpCall, body: RetireBody) -> Reply:
        """Retire a version."""
        request = pb.RetireRequest(task=call.parameters["task"], version=body.version, change=body.change())
        return _reply(await self._services.retire(call, request))


def _reply(message: Any) -> Reply:
    return json_reply(describe(message))
