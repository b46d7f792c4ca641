"""How a call ends whose caller went in the moment it is told its error."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc.aio import AbortError, InternalError

from serving.errors import DeadlineExpired, Draining
from serving.gate import Drain, abort


class Gone:
    """A call's context whose caller has gone."""

    async def abort(self, *_: Any) -> None:
        raise InternalError('Failed "execute_batch"')


async def test_a_caller_that_went_meanwhile_is_no_fault_of_ours() -> None:
    context: Any = Gone()
    with pytest.raises(asyncio.CancelledError):  # an abort in place of gRPC's own is logged as a fault
        await abort(context, DeadlineExpired())
    with pytest.raises(AbortError, match="told already"):
        await abort(context, AbortError("told already"))


async def test_what_lasts_ends_where_the_server_leaves_and_calls_do_not() -> None:
    drain = Drain()
    drain.leave()
    with drain.call(), pytest.raises(Draining):
        await drain.pause(60)
    with pytest.raises(Draining):
        _ = [each async for each in drain.arriving(_silent(), patience_s=0)]
    assert not drain.draining
    drain.stay()
    await drain.pause(0.001)
    drain.begin()
    drain.stay()
    with pytest.raises(Draining):
        await drain.pause(60)


async def _silent() -> AsyncIterator[object]:
    await asyncio.Event().wait()
    yield
