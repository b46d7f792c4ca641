"""The clients: `Client` blocks, `AsyncClient` awaits; otherwise they are the same.

    with Client("localhost:8001") as client:
        print(client.predict("sst2", ["a gripping film"])[0].label)

Retries: a call that ends with UNAVAILABLE before any answer (no connection, a server that drains or is lost, a version
that still loads), or with UNKNOWN, which is how a proxy's error page arrives, is tried up to 5 times in all, after
random pauses of at most 0.1, 0.2, 0.4 and 0.8 s, within its timeout. Calls that must not be done twice are not retried:
promote, set_route, set_group, delete_group, rollbacks and publish, which may have succeeded although the answer is
lost; nor is watch. `retry=False` turns retries off.

Needs gRPC and the protos only: no torch, no registry.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from serving.client import requests as calls
from serving.client.arguments import RERANK_ROWS, check_timeout, read_decoding, split_passages
from serving.client.channel import CONNECT_S, READY_POLL_S, Outcomes, Result, _Caller, make_stubs
from serving.client.errors import UnreachableError
from serving.client.requests import Call
from serving.client.responses import joined_rankings
from serving.client.results import (
    Commit,
    Event,
    Group,
    GroupChanged,
    Predictions,
    Promoted,
    Published,
    Ranking,
    Residents,
    Retired,
    Rolled,
    Row,
    TaskInfo,
)
from serving.client.routes import Awaited, Bounds, Comparisons, Route, Routed
from serving.client.streams import TextStream


class Client(_Caller):
    """A client that blocks. Safe to share between threads.

    Processes do not share it: pickling copies its settings, and the copy has a connection of its own.
    """

    def _connect(self) -> None:
        target, options = self._settings.target, self._settings.options()
        credentials = self._settings.credentials.channel_credentials()
        if credentials:
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._stubs = make_stubs(self._channel)

    def predict(
        self,
        task: str,
        rows: Sequence[Row],
        *,
        version: int | None = None,
        alias: str | None = None,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> Predictions:
        """Answer rows of one task. `task` is `sst2` (its production version), `sst2@canary` or `sst2:7`.

        Args:
            rows: texts, for a task of one field; or values by name, texts and images: `{"question": "what is this?",
                "image": Path("cat.jpg")}`. An image is the bytes of a JPEG, PNG or WebP file, a path, whose file is
                read, or a PIL.Image, which is sent as PNG. A str is a text, and never opened or fetched. Or whole
                prompts, `Prompt(text)`.
            timeout: seconds; None: the client's.
            decoding: settings of texts that replace the task's: `{"num_beams": 4}`, `{"do_sample": True,
                "temperature": 0.7, "seed": 1}`. Named as in Hugging Face's GenerationConfig.
            priority: 1, served first, to 4; 0: the server's default.
            route_key: requests with the same key get the same version, where the alias's traffic is split; "": a random
                one.
            generation: the old name of `decoding`.
        Raises:
            SidecastError: each subclass has its `reason`; see `serving.client.errors`.
        """
        timeout = self._timeout(timeout)
        decoding = read_decoding(decoding, generation)
        return self._do(calls.predict(task, rows, version, alias, timeout, decoding, priority, route_key), timeout)

    def predict_tasks(
        self,
        tasks: Sequence[str],
        rows: Sequence[Row],
        *,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> Outcomes:
        """Answer the same rows for many tasks; the backbone runs once for all of them.

        Args:
            decoding: as of `predict`; only text tasks use it.
            rows, priority, route_key, generation: as of `predict`.
        Returns:
            By task as asked: its answers, or the SidecastError with which it failed.
        Raises:
            SidecastError: the whole request failed.
        """
        timeout = self._timeout(timeout)
        decoding = read_decoding(decoding, generation)
        return self._do(calls.predict_tasks(tasks, rows, timeout, decoding, priority, route_key), timeout)

    def predict_group(
        self,
        group: str,
        rows: Sequence[Row],
        *,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> Outcomes:
        """Answer the same rows for the tasks of a group, as `predict_tasks`.

        Returns:
            By task, without alias or version: its answers, or the SidecastError with which it failed.
        Raises:
            UnknownGroupError: there is no such group.
            SidecastError: the whole request failed.
        """
        timeout = self._timeout(timeout)
        return self._do(calls.predict_group(group, rows, timeout, decoding, priority, route_key), timeout)

    def rerank(
        self,
        task: str,
        query: str,
        passages: Sequence[str],
        *,
        version: int | None = None,
        top: int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> Ranking:
        """Sort passages by their relevance for a query, by a task of the kind ranking.

        A long list goes in parts of RERANK_ROWS passages, one after the other, all to the version that answered the
        first; the timeout is that of each part.

        Args:
            top: only so many of the best; None: all.
            timeout, priority, route_key: as of `predict`.
        Raises:
            InvalidInputError: the task is of another kind; there is no passage, or one is empty or no text.
        """
        timeout = self._timeout(timeout)
        parts: list[Ranking] = []
        for part in split_passages(passages):
            call = calls.rank(task, query, part, version, top or 0, timeout, priority, route_key)
            parts.append(self._do(call, timeout))
            task, version = parts[0].task, parts[0].version
        return joined_rankings(parts, RERANK_ROWS, top or 0)

    def stream(
        self,
        task: str,
        row: Row,
        *,
        version: int | None = None,
        alias: str | None = None,
        timeout: float | None = None,
        decoding: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
        generation: Mapping[str, Any] | None = None,
    ) -> TextStream:
        """Stream the text of a text task for one row while it is generated. Arguments as of `predict`.

        stream = client.stream("titles", "a long article")
        for piece in stream:
            print(piece.text, end="")
        print(stream.result().version)
        """
        timeout = self._timeout(timeout)
        decoding = read_decoding(decoding, generation)
        call = calls.stream(task, row, version, alias, timeout, decoding, priority, route_key)
        return TextStream(self._start(call, timeout), self._settings.target)

    def tasks(self) -> list[TaskInfo]:
        """All tasks, sorted by name."""
        return self._do(calls.tasks(), self._settings.timeout)

    def task(self, name: str) -> TaskInfo:
        """One task. Its `spec` is that of the named version: production's, or that of `sst2@canary` or `sst2:7`."""
        return self._do(calls.task(name), self._settings.timeout)

    def history(self, task: str | None = None, *, limit: int = 0, group: str | None = None) -> list[Commit]:
        """The registry's commits, or those about one task or one group, oldest first.

        Args:
            limit: only the newest `limit` commits; 0: all.
        """
        return self._do(calls.history(task, limit, group), self._settings.timeout)

    def residents(self, task: str | None = None) -> Residents:
        """The versions that this one server has loaded, of one task or of all: where, how large, since when, and when
        they last answered. On Ray Serve it is one replica, any of them."""
        return self._do(calls.residents(task), self._settings.timeout)

    def groups(self) -> list[Group]:
        """All groups, sorted by name."""
        return self._do(calls.groups(), self._settings.timeout)

    def set_group(self, group: str, tasks: Sequence[str], *, message: str = "") -> GroupChanged:
        """Give a group its tasks, or make it. A task with a version (`sst2:7`) stays there until the group changes.

        Raises:
            InvalidGroupError: no task, or one twice.
        """
        return self._do(calls.set_group(group, tasks, message), self._settings.timeout)

    def rollback_group(self, group: str, *, to: int | None = None, message: str = "") -> GroupChanged:
        """Give a group the tasks that it had in the version before, or in `to`, an earlier one.

        Raises:
            NoEarlierGroupError: there is no such version, or one of its tasks cannot be used any more.
        """
        return self._do(calls.rollback_group(group, to, message), self._settings.timeout)

    def delete_group(self, group: str, *, message: str = "") -> int:
        """Remove a group; its tasks stay. Returns the registry's generation."""
        return self._do(calls.delete_group(group, message), self._settings.timeout)

    def promote(self, task: str, version: int, *, alias: str | None = None, message: str = "") -> Promoted:
        """Move an alias to a version; None: `production`. Ends the alias's route."""
        return self._do(calls.promote(task, version, alias, message), self._settings.timeout)

    def set_route(
        self,
        task: str,
        *,
        alias: str | None = None,
        version: int | None = None,
        shares: Mapping[int, float | str] | None = None,
        shadows: Sequence[int] = (),
        bounds: Mapping[str, Any] | Bounds | None = None,
        seen: Route | None = None,
        message: str = "",
    ) -> Routed:
        """Set how an alias's traffic is split. Replaces the route that it has.

        Args:
            version: the alias's main version, which gets the rest of the traffic; None: unchanged.
            shares: version to its share, as a fraction or a percentage: `{7: 0.05}` or `{7: "5%"}`.
            shadows: versions that answer the same inputs; their answers are compared, never returned.
            bounds: limits for versions with a share; beyond them servers end the shares: `{"disagreement": 0.05,
                "error_rate": "1%", "latency": 1.2, "min_rows": 200}`, all of them optional.
            seen: the route that the caller has read before (from `task(...).routes`, or `Route()` for none).
        Raises:
            RouteChangedError: the alias's route is no longer `seen`. Nothing was changed.
        """
        call = calls.set_route(task, alias, version, shares, shadows, bounds, seen, message)
        return self._do(call, self._settings.timeout)

    def comparison(self, task: str, *, alias: str | None = None, disagreements: int = 0) -> Comparisons:
        """Compare the versions of an alias's route with its main version, by the requests of this one server.

        Args:
            disagreements: most disagreements to return, the newest.
        """
        return self._do(calls.comparison(task, alias, disagreements), self._settings.timeout)

    def await_generation(self, generation: int = 0, *, timeout: float = 45.0) -> Awaited:
        """Wait until every server that follows the registry serves a generation, or the timeout passes.

        Args:
            generation: as `publish`, `promote` and the other changes return it; 0: the registry's newest.
            timeout: seconds, at most 300; 0: check once. A server that was killed counts for another 30 to 40 seconds.
        """
        return self._do(calls.await_generation(generation, timeout), timeout + CONNECT_S)

    def rollback(self, task: str, *, alias: str | None = None, to: int | None = None, message: str = "") -> Rolled:
        """Move an alias back to its previous version, or to `to`, an earlier one.

        If versions have shares of the alias's traffic, it ends these instead, unless `to` names an earlier version.

        Raises:
            RollbackUnclearError: the newest change took shares away; pass `to`.
            NothingToRollBackError: there is no earlier version.
        """
        return self._do(calls.rollback(task, alias, to, message), self._settings.timeout)

    def retire(self, task: str, version: int, *, message: str = "") -> Retired:
        """Take a version out of service for good."""
        return self._do(calls.retire(task, version, message), self._settings.timeout)

    def publish(
        self,
        folder: str | Path,
        *,
        alias: str | None = None,
        message: str = "",
        allow_untrained: bool = False,
        signature: bytes = b"",
        timeout: float | None = None,
    ) -> Published:
        """Upload a finished run as its task's next version.

        Args:
            folder: the run's folder.
            alias: the alias to move to the version; None: `production` if the task is new, else none.
            allow_untrained: publish a run that `sidecast init` made, whose weights no training has changed.
            signature: of the run, in the OpenSSF model-signing format; empty: none.
            timeout: seconds; None: no limit.
        Raises:
            InvalidArtifactError: the folder is no complete run, or an untrained one.
        """
        return self._do(calls.publish(folder, alias, message, allow_untrained, signature), timeout)

    def watch(self, *, timeout: float | None = None) -> Iterator[Event]:
        """Yield what the server serves: at once, then at every change, until the loop or the server ends."""
        call = calls.watch()
        watching = self._start(call, timeout)
        try:
            with self._errors():
                for response in watching:
                    yield call.parse(response)
        finally:
            watching.cancel()

    def wait_served(self, generation: int, *, timeout: float = 30.0) -> Event:
        """Wait until the server serves a generation of the registry, as `promote` and the other changes return it.

        Raises:
            UnreachableError: the server ended first.
            DeadlineExceededError: the timeout passed first.
        """
        for event in self.watch(timeout=timeout):
            if event.served >= generation:
                return event
        raise UnreachableError(f"{self._settings.target} ended before it served generation {generation}")

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the server has loaded its tasks and accepts requests. Waits for that at most `wait_s` seconds."""
        check_timeout(wait_s, "wait_s")
        deadline = time.monotonic() + wait_s
        while not self._is_serving(max(deadline - time.monotonic(), 1.0)):
            if time.monotonic() >= deadline:
                return False
            time.sleep(READY_POLL_S)
        return True

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, call: Call[Result], timeout: float | None) -> Result:
        with self._errors():
            response = self._start(call, timeout)
        return call.parse(response)

    def _start(self, call: Call[Any], timeout: float | None) -> Any:
        check_timeout(timeout)
        method = getattr(self._stubs[call.service], call.method)
        return method(call.request, timeout=timeout, metadata=self._metadata(call))

    def _is_serving(self, timeout: float) -> bool:
        request = health_pb2.HealthCheckRequest()
        try:
            response = self._stubs["health"].Check(request, timeout=timeout)
        except grpc.RpcError:
            return False
        return response.status == health_pb2.HealthCheckResponse.SERVING
