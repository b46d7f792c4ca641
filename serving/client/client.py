"""The clients: `Client` blocks, `AsyncClient` awaits; otherwise they are the same.

    with Client("localhost:8001") as client:
        print(client.predict("sst2", ["a gripping film"])[0].label)

Retries: a call that ends with UNAVAILABLE before any answer (no connection, a server that drains or is lost, a version
that still loads), or with UNKNOWN, as which a proxy's error page comes, is tried up to 5 times in all, after random
pauses of at most 0.1, 0.2, 0.4 and 0.8 s, within its timeout. That holds for what may safely be done twice: not for
promote, set_route, rollback and publish, which may be done though the answer is lost, nor for watch. `retry=False`
turns it off.

Needs gRPC and our protos only: no torch, no registry.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from serving.client import requests as calls
from serving.client.channel import CONNECT_S, READY_POLL_S, Outcomes, Result, _Caller, make_stubs
from serving.client.errors import UnreachableError
from serving.client.requests import Call
from serving.client.results import Commit, Event, Predictions, Promoted, Published, Retired, Rolled, Row, TaskInfo
from serving.client.routes import Awaited, Comparisons, Route, Routed
from serving.client.streams import TextStream


class Client(_Caller):
    """Safe to share between threads; open it again in each process (it pickles as its settings)."""

    def _connect(self) -> None:
        self._channel = grpc.insecure_channel(self._settings.target, self._settings.options())
        self._stubs = make_stubs(self._channel)

    def predict(
        self,
        task: str,
        rows: Sequence[Row],
        *,
        version: int | None = None,
        alias: str | None = None,
        timeout: float | None = None,
        generation: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> Predictions:
        """Answer rows of one task. `task` is `sst2` (its production version), `sst2@canary` or `sst2:7`.

        Args:
            generation: how texts are chosen, over the task's own settings: `{"num_beams": 4}`, `{"do_sample": True,
                "temperature": 0.7, "seed": 1}`. Named as in Hugging Face's GenerationConfig.
            priority: 1, served first, to 4; 0 for the server's default.
            route_key: where the alias's traffic is split, requests of one key get one version; without, at random.
        """
        timeout = self._timeout(timeout)
        return self._do(calls.predict(task, rows, version, alias, timeout, generation, priority, route_key), timeout)

    def predict_tasks(
        self,
        tasks: Sequence[str],
        rows: Sequence[Row],
        *,
        timeout: float | None = None,
        generation: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> Outcomes:
        """Answer the same rows for many tasks at the price of little more than one. A task's own error is its value.

        Args:
            generation, priority, route_key: as of `predict`; `generation` touches only the tasks that make texts.
        """
        timeout = self._timeout(timeout)
        return self._do(calls.predict_tasks(tasks, rows, timeout, generation, priority, route_key), timeout)

    def stream(
        self,
        task: str,
        row: Row,
        *,
        version: int | None = None,
        alias: str | None = None,
        timeout: float | None = None,
        generation: Mapping[str, Any] | None = None,
        priority: int = 0,
        route_key: str = "",
    ) -> TextStream:
        """The text that a text task makes of one row, while it is made. Arguments as of `predict`.

        stream = client.stream("titles", "a long article")
        for piece in stream:
            print(piece.text, end="")
        print(stream.result().version)
        """
        timeout = self._timeout(timeout)
        call = calls.stream(task, row, version, alias, timeout, generation, priority, route_key)
        return TextStream(self._start(call, timeout), self._settings.target)

    def tasks(self) -> list[TaskInfo]:
        return self._do(calls.tasks(), self._settings.timeout)

    def task(self, name: str) -> TaskInfo:
        """One task; `sst2@canary` or `sst2:7` tells that version's spec."""
        return self._do(calls.task(name), self._settings.timeout)

    def history(self, task: str | None = None, *, limit: int = 0) -> list[Commit]:
        """The registry's commits, or what they did to one task, oldest first; of the newest `limit` only."""
        return self._do(calls.history(task, limit), self._settings.timeout)

    def promote(self, task: str, version: int, *, alias: str | None = None, message: str = "") -> Promoted:
        """Point an alias, `production` where none is named, at a version. Ends what route it has."""
        return self._do(calls.promote(task, version, alias, message), self._settings.timeout)

    def set_route(
        self,
        task: str,
        *,
        alias: str | None = None,
        version: int | None = None,
        shares: Mapping[int, int] | None = None,
        shadows: Sequence[int] = (),
        bounds: Mapping[str, Any] | None = None,
        seen: Route | None = None,
        message: str = "",
    ) -> Routed:
        """Say how an alias's traffic is split; what it was before is replaced.

        Args:
            version: the alias's own, which gets what the shares leave; None as it is.
            shares: version to its share in hundredths of a per cent: `{7: 500}` is 5 %.
            shadows: versions that answer the same inputs, compared and told to nobody.
            bounds: what a version with a share must keep to, else servers end its share: `{"disagreement": 0.05,
                "error_rate": 0.01, "latency": 1.2, "min_rows": 200}`, each of them optional.
            seen: the route that this one was made of (of `task(...).routes`, or `Route()`). If it is another one by
                now, this is a RouteChangedError, and nothing is changed.
        """
        call = calls.set_route(task, alias, version, shares, shadows, bounds, seen, message)
        return self._do(call, self._settings.timeout)

    def comparison(self, task: str, *, alias: str | None = None, disagreements: int = 0) -> Comparisons:
        """How the versions of an alias's route compare with its own, as this server saw them."""
        return self._do(calls.comparison(task, alias, disagreements), self._settings.timeout)

    def await_generation(self, generation: int = 0, *, timeout: float = 45.0) -> Awaited:
        """Wait until every server that follows the registry serves a generation, or time is up.

        Args:
            generation: as `publish`, `promote` and their like return it; 0 for the registry's newest.
            timeout: seconds, at most 300; 0 to look once. A server that was killed counts for 30 to 40 seconds more.
        """
        return self._do(calls.await_generation(generation, timeout), timeout + CONNECT_S)

    def rollback(self, task: str, *, alias: str | None = None, to: int | None = None, message: str = "") -> Rolled:
        """Point an alias at the version it had before, or at `to`, which it had earlier. Where versions have shares of
        its traffic, that ends their shares instead, unless `to` names an earlier version.

        Raises RollbackUnclearError where shares were taken away just before: then say `to`.
        """
        return self._do(calls.rollback(task, alias, to, message), self._settings.timeout)

    def retire(self, task: str, version: int, *, message: str = "") -> Retired:
        """Take a version out of service for good."""
        return self._do(calls.retire(task, version, message), self._settings.timeout)

    def publish(
        self, folder: str | Path, *, alias: str | None = None, message: str = "", timeout: float | None = None
    ) -> Published:
        """Send a finished run as its task's next version."""
        return self._do(calls.publish(folder, alias, message), timeout)

    def watch(self, *, timeout: float | None = None) -> Iterator[Event]:
        """What the server serves: at once, then at every change, until the loop ends or the server does."""
        call, watching = calls.watch(), self._start(calls.watch(), timeout)
        try:
            with self._errors():
                for response in watching:
                    yield call.parse(response)
        finally:
            watching.cancel()

    def wait_served(self, generation: int, *, timeout: float = 30.0) -> Event:
        """Wait until the server answers with that generation of the registry, as `promote` and its like return it."""
        for event in self.watch(timeout=timeout):
            if event.served >= generation:
                return event
        raise UnreachableError(f"{self._settings.target} ended before it served generation {generation}")

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the server has loaded its tasks and takes requests; waits up to `wait_s` for it."""
        deadline = time.monotonic() + wait_s
        while not self._is_serving(max(deadline - time.monotonic(), 1.0)):
            if time.monotonic() >= deadline:
                return False
            time.sleep(READY_POLL_S)
        return True

    def close(self) -> None:
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
        method = getattr(self._stubs[call.service], call.method)
        return method(call.request, timeout=timeout, metadata=call.metadata)

    def _is_serving(self, timeout: float) -> bool:
        request = health_pb2.HealthCheckRequest()
        try:
            response = self._stubs["health"].Check(request, timeout=timeout)
        except grpc.RpcError:
            return False
        return response.status == health_pb2.HealthCheckResponse.SERVING
