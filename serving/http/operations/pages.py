"""`/healthz`, `/readyz` and `/metrics` on the HTTP port: the same pages as on the metrics port."""

import asyncio
from collections.abc import Iterator
from http import HTTPMethod

from starlette.responses import Response

from serving.http.call import HttpCall
from serving.http.operation import Operation, Reply
from serving.ports import MAX_SCRAPES, Allow, Answer, StatusPages

TEXT = "text/plain"


class Pages:
    """The operations for probes and Prometheus. They answer while the server shuts down.

    Args:
        allow: decides who may read the metrics.
    """

    def __init__(self, pages: StatusPages, allow: Allow) -> None:
        self._pages = pages
        self._allow = allow
        self._scrapes = asyncio.Semaphore(MAX_SCRAPES)

    def operations(self) -> Iterator[Operation]:
        """The pages."""
        for name, path, summary, handler in (
            ("health", "/healthz", "Say whether this process should be replaced (503)", self.health),
            ("readiness", "/readyz", "Say whether requests should be sent here", self.health),
            ("metrics", "/metrics", "Prometheus's metrics", self.metrics),
        ):
            yield Operation(
                name=name,
                method=HTTPMethod.GET,
                path=path,
                summary=summary,
                handler=handler,
                responses={TEXT: str},
                negative={} if handler == self.metrics else {503: str},
                lasting=True,
                tag="operation",
            )

    async def health(self, call: HttpCall) -> Reply:
        """The answer to a health check."""
        return _response(self._pages.health(call.path))

    async def metrics(self, call: HttpCall) -> Reply:
        """Prometheus's metrics, made on a thread."""
        await self._allow(call.headers, call.peer())
        async with self._scrapes:
            answer = await asyncio.to_thread(self._pages.metrics, call.query, call.headers)
        return _response(answer)


def _response(answer: Answer) -> Response:
    return Response(answer.body, int(answer.status[:3]), dict(answer.headers))
