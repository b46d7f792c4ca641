"""What both doors share: the seam to the service behind them, deadlines, and counting answers per task.

Knows gRPC's context and nothing of messages.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Protocol

import grpc
from grpc.aio import ServicerContext

from serving.api.status import code_of
from serving.engine import Piece
from serving.errors import InvalidInput, ServingError
from serving.metrics import Metrics
from serving.pipeline import DecodingOverrides, Generated, InputRow, Prediction, Target
from side_registry.errors import RegistryError
from side_registry.task import TaskRef

MAX_TENANT = 256
"""Characters of a tenant's name."""
CLOCKS_APART_S = 0.02
"""gRPC's clock and that of the caller who gives up may be so much ahead of ours at a deadline."""


class Service(Protocol):
    """What a door needs of `serving.pipeline.service.PredictService`; tests have a small one."""

    @property
    def ready(self) -> bool: ...

    async def predict(
        self,
        task: str,
        rows: Sequence[InputRow],
        *,
        version: int | None = None,
        alias: str | None = None,
        target: Target | None = None,
        deadline: float | None = None,
        generation: DecodingOverrides | None = None,
        priority: int = 0,
        tenant: str = "",
        route_key: str = "",
    ) -> Prediction: ...

    async def predict_tasks(
        self,
        refs: Sequence[TaskRef],
        rows: Sequence[InputRow],
        *,
        deadline: float | None = None,
        generation: DecodingOverrides | None = None,
        priority: int = 0,
        tenant: str = "",
        route_key: str = "",
    ) -> list[Prediction | ServingError | RegistryError]: ...

    def stream(
        self,
        task: str,
        row: InputRow,
        *,
        version: int | None = None,
        alias: str | None = None,
        target: Target | None = None,
        deadline: float | None = None,
        generation: DecodingOverrides | None = None,
        priority: int = 0,
        tenant: str = "",
        route_key: str = "",
    ) -> AsyncGenerator[Piece | Generated, None]: ...

    async def close(self) -> None: ...


def deadline_of(context: ServicerContext, timeout_s: float | None = None) -> float | None:
    """The nearer of gRPC's deadline and the request's own timeout, in time.monotonic() seconds."""
    left = [each for each in (context.time_remaining(), timeout_s) if each is not None]
    return time.monotonic() + min(left) if left else None


class Tenants:
    """Tells a call's tenant by its metadata.

    Args:
        header: the key that names it; empty where there are no tenants.
    """

    def __init__(self, header: str = "") -> None:
        self._header = header

    def of(self, context: ServicerContext) -> str:
        """The tenant; "" where the call names none.

        Raises:
            InvalidInput: too long a name.
        """
        if not self._header:
            return ""
        tenant = next((value for key, value in context.invocation_metadata() or () if key == self._header), "")
        if len(tenant) > MAX_TENANT:
            raise InvalidInput(self._header, f"has {len(tenant)} characters, at most {MAX_TENANT} name a tenant")
        return tenant if isinstance(tenant, str) else tenant.decode(errors="replace")


class Counted:
    """What a call turned out to be; filled in while it runs."""

    version: int | None = None
    deadline: float | None = None
    """time.monotonic() seconds."""


def code_name(error: BaseException, deadline: float | None) -> str:
    """The code that a call is counted with. gRPC cancels a call at its deadline too: then it is the deadline's."""
    if not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return code_of(error).name
    is_late = deadline is not None and time.monotonic() >= deadline - CLOCKS_APART_S
    return (grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED).name


@contextlib.contextmanager
def counting(metrics: Metrics, task: str) -> Iterator[Counted]:
    """Count the block as one request of the task, with the code its outcome has."""
    start, counted, code = time.perf_counter(), Counted(), "OK"
    try:
        yield counted
    except (Exception, asyncio.CancelledError, GeneratorExit) as error:
        code = code_name(error, counted.deadline)
        raise
    finally:
        metrics.request(task, counted.version, code, time.perf_counter() - start)
