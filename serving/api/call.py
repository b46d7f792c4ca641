"""What the servicers share about one call: its deadline, its tenant, and its count in the metrics.

Knows no messages.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

import grpc

from serving.api.call_context import CallContext
from serving.api.guard import known_caller
from serving.api.status import code_of
from serving.errors import InvalidInput
from serving.metrics import Metrics
from serving.pipeline import Prediction
from serving.tracing import current_trace
from side_registry.specs.task import TaskRef

MAX_TENANT = 256
"""Characters of a tenant's name."""
CLOCK_SKEW_S = 0.02
"""A cancellation this close to the deadline counts as the deadline: the clocks of gRPC and of the caller differ."""


def deadline_of(context: CallContext, timeout_s: float | None = None) -> float | None:
    """The earlier of the call's deadline and the request's timeout, in monotonic seconds; None without either."""
    limits = [seconds for seconds in (context.time_remaining(), timeout_s) if seconds is not None]
    return time.monotonic() + min(limits) if limits else None


class Tenants:
    """Reads a call's tenant: from its caller's token; where callers have none, from the call's metadata.

    Args:
        header: the metadata key that names the tenant; empty where there are no tenants.
    """

    def __init__(self, header: str = "") -> None:
        self._header = header

    def of(self, context: CallContext) -> str:
        """The tenant; "" where the call names none.

        Raises:
            InvalidInput: the name is too long.
        """
        caller = known_caller()
        if caller is not None:
            return caller.tenant
        if not self._header:
            return ""
        tenant = next((value for key, value in context.invocation_metadata() or () if key == self._header), "")
        if len(tenant) > MAX_TENANT:
            raise InvalidInput(self._header, f"has {len(tenant)} characters, at most {MAX_TENANT} name a tenant")
        return tenant if isinstance(tenant, str) else tenant.decode(errors="replace")


class CountedCall:
    """What is known of one call; its servicer fills it in while the call runs."""

    version: int | None = None
    rows: int = 0
    """Answered rows."""
    deadline: float | None = None
    """time.monotonic() seconds."""


def code_name(error: BaseException, deadline: float | None) -> str:
    """The code that a call is counted with. gRPC also cancels a call at its deadline: that is DEADLINE_EXCEEDED."""
    if not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return code_of(error).name
    is_late = deadline is not None and time.monotonic() >= deadline - CLOCK_SKEW_S
    return (grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED).name


class CountedTasks:
    """What is known of one call about several tasks; its servicer fills it in while the call runs."""

    refs: Sequence[TaskRef] = ()
    outcomes: Sequence[Prediction | BaseException] = ()
    """In the order of `refs`."""
    deadline: float | None = None
    """time.monotonic() seconds."""


@contextlib.contextmanager
def counting_tasks(metrics: Metrics) -> Iterator[CountedTasks]:
    """Count the block as one request of each task, with the code of the task's outcome, or of the call's error.

    A call that fails before its tasks are known is one request of no task.
    """
    start = time.perf_counter()
    counted = CountedTasks()
    try:
        yield counted
    except (Exception, asyncio.CancelledError) as error:
        if not counted.refs:
            metrics.request(None, None, code_name(error, counted.deadline))
        if len(counted.outcomes) < len(counted.refs):
            counted.outcomes = [error] * len(counted.refs)
        raise
    finally:
        seconds = time.perf_counter() - start
        trace = current_trace.get()
        for ref, outcome in zip(counted.refs, counted.outcomes, strict=True):
            version, code, rows = None, "OK", 0
            if isinstance(outcome, BaseException):
                code = code_name(outcome, counted.deadline)
            else:
                version, rows = outcome.version, len(outcome.answers)
            metrics.request(ref.task, version, code, seconds, rows)
            if trace is not None:
                trace.answered(ref.task, version, code, rows)


@contextlib.contextmanager
def counting(metrics: Metrics, task: str) -> Iterator[CountedCall]:
    """Count the block as one request of the task, with the status code of its outcome."""
    start = time.perf_counter()
    counted = CountedCall()
    code = "OK"
    try:
        yield counted
    except (Exception, asyncio.CancelledError, GeneratorExit) as error:
        code = code_name(error, counted.deadline)
        raise
    finally:
        metrics.request(task, counted.version, code, time.perf_counter() - start, counted.rows)
        if (trace := current_trace.get()) is not None:
            trace.answered(task, counted.version, code, counted.rows)
