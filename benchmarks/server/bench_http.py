"""Measures HTTP compared with gRPC: rows a second of the same requests.

    python -m benchmarks.server.bench_http

A real `sidecast serve` in a process of its own, with its defaults; this process is the callers. Eight callers, or two
where a request has 64 rows, each keep one request in flight: Predict over gRPC, `POST /v1/tasks/{task}:predict` over
HTTP, and the Open Inference Protocol's REST, with 1, 8 and 64 rows of one task. Both clients make each request of its
texts and read each answer to numbers; that of HTTP keeps its connections. A text has about 32 tokens and is never sent
twice. Server and callers share the cores. Rows a second are the rows in flight over the mean time of a request
(Little's law): of long requests too few end within a measurement to count them.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Loaded, publish_tasks
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Samples, Spread, Variant, quantile
from benchmarks.harness.secured import Credentials
from benchmarks.harness.served import Served, free_port, serve
from serving.client import AsyncClient
from sidecast.loadtest.loops import closed_loop

CALLERS = {1: 8, 8: 8, 64: 2}
"""Callers by the rows of a request. More rows in flight than these take longer to answer than they are measured."""
ROWS = tuple(CALLERS)
LEAD = 0.25
"""Part of a measurement that is not counted, at its beginning."""
WORDS = (
    "the film that my daughter and I saw on Sunday was neither good nor bad, and far too long for what it has to say"
)
COLUMNS = (
    Column(figure="rows_per_s", heading="rows/s"),
    Column(figure="p50_ms", heading="p50 ms", digits=2),
    Column(figure="p99_ms", heading="p99 ms", digits=2),
)

Ask = Callable[[Sequence[str]], Awaitable[None]]
"""Has one caller ask for the answers to these texts."""


class HttpCaller:
    """One connection that stays open, on asyncio's streams; with credentials it has TLS and sends the token."""

    def __init__(self, host: str, port: int, task: str, credentials: Credentials | None = None) -> None:
        self._host, self._port, self._task, self._credentials = host, port, task, credentials
        self._authorization = f"Authorization: Bearer {credentials.token()}\r\n" if credentials else ""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> "HttpCaller":
        self._reader, self._writer = await asyncio.open_connection(
            self._host, self._port, limit=2**24, ssl=self._credentials.context() if self._credentials else None
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()

    async def predict(self, texts: Sequence[str]) -> None:
        """Ask in the short form."""
        found = await self._post(f"/v1/tasks/{self._task}:predict", {"inputs": list(texts)})
        _check(len(found["answers"]), texts)

    async def infer(self, texts: Sequence[str]) -> None:
        """Ask as the Open Inference Protocol has it."""
        tensor = {"name": "sentence", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
        found = await self._post(f"/v2/models/{self._task}/infer", {"inputs": [tensor]})
        _check(found["outputs"][0]["shape"][0], texts)

    async def _post(self, path: str, body: Any) -> Any:
        """The document of the answer. Raises BenchmarkError: there is none."""
        assert self._reader
        assert self._writer
        data = json.dumps(body).encode()
        headers = f"Host: {self._host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        self._writer.write(f"POST {path} HTTP/1.1\r\n{headers}{self._authorization}\r\n".encode() + data)
        line, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        length = next(int(each.split(":")[1]) for each in lines if each.lower().startswith("content-length:"))
        answer = await self._reader.readexactly(length)
        if line.split()[1] != "200":
            raise BenchmarkError(f"the server answers {line}: {answer.decode()[:200]}")
        return json.loads(answer)


def _check(answers: int, texts: Sequence[str]) -> None:
    if answers != len(texts):
        raise BenchmarkError(f"{answers} answers to {len(texts)} rows")


class Callers:
    """Variants with several callers of one task."""

    def __init__(
        self,
        served: Served,
        http_port: int,
        task: str,
        how: How,
        numbers: Iterator[int],
        credentials: Credentials | None = None,
    ) -> None:
        self._served, self._http_port, self._task, self._how, self._numbers = served, http_port, task, how, numbers
        self._credentials = credentials

    def variants(self, ways: Sequence[str] = ("gRPC", "HTTP", "HTTP tensors"), more: str = "") -> list[Variant]:
        """What is measured; `more` ends their names."""
        return [
            Variant(name=f"{way}, {rows} rows{more}", measure=partial(self._measure, way, rows))
            for rows in ROWS
            for way in ways
        ]

    def _measure(self, way: str, rows: int) -> Figures:
        return asyncio.run(self._run(way, rows))

    async def _run(self, way: str, rows: int) -> Figures:
        """Have every caller ask until the time is up."""
        durations: list[float] = []
        async with AsyncExitStack() as opened:
            callers = asyncio.Queue[Ask]()
            for _ in range(self._how.size(CALLERS[rows], 2)):
                callers.put_nowait(await self._open(way, opened))
            begun = time.perf_counter()
            counted_from = begun + (0.0 if self._how.quick else LEAD * self._how.seconds)
            end = counted_from + self._how.seconds

            async def ask(sent: float) -> bool:
                texts = [f"{next(self._numbers)} {WORDS}" for _ in range(rows)]
                caller = callers.get_nowait()
                await caller(texts)
                callers.put_nowait(caller)
                if sent >= counted_from:
                    durations.append(time.perf_counter() - sent)
                return True

            in_flight = callers.qsize()
            await closed_loop(ask, in_flight, time.perf_counter, lambda: time.perf_counter() < end)
        if not durations:
            raise BenchmarkError(f"no request of {rows} rows ended in {self._how.seconds:g} s; give more --seconds")
        milliseconds = [1e3 * seconds for seconds in durations]
        return {
            "rows_per_s": in_flight * rows / fmean(durations),
            "p50_ms": quantile(milliseconds, 0.5),
            "p99_ms": quantile(milliseconds, 0.99),
        }

    async def _open(self, way: str, opened: AsyncExitStack) -> Ask:
        if way == "gRPC":
            client = await opened.enter_async_context(
                AsyncClient(
                    self._served.address, retry=False, **(self._credentials.client() if self._credentials else {})
                )
            )

            async def predict(texts: Sequence[str]) -> None:
                _check(len(await client.predict(self._task, texts)), texts)

            return predict
        host = self._served.address.rpartition(":")[0]
        caller = await opened.enter_async_context(HttpCaller(host, self._http_port, self._task, self._credentials))
        return caller.predict if way == "HTTP" else caller.infer


def ratios(samples: Samples) -> dict[str, Spread]:
    """The ratios of the report."""
    return {
        f"{way} / gRPC, {rows} rows": samples.ratio("rows_per_s", f"{way}, {rows} rows", f"gRPC, {rows} rows")
        for rows in ROWS
        for way in ("HTTP", "HTTP tensors")
    }


def ask(loaded: Loaded, how: How) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    http_port = free_port()
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, 1, ["linear"], how.seed)
        [task] = registry.state().tasks
        with serve(registry=Path(folder) / "registry", http_port=http_port, **loaded.settings(how.threads)) as served:
            samples = how.turns(Callers(served, http_port, task, how, count(10_000_000)).variants())
    return (
        samples,
        ratios(samples),
        {"callers": {rows: how.size(callers, 2) for rows, callers in CALLERS.items()}, "head": "linear"},
    )


@click.command()
@measuring(rounds=5, seconds=5.0)
def main(**arguments: Any) -> None:
    """Rows a second over HTTP, compared with gRPC."""
    answer(ask, name="http", title="HTTP and gRPC", columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
