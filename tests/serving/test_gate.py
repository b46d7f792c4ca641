"""How a call ends whose caller went in the moment it is told its error."""

import asyncio
from typing import Any

import pytest
from grpc.aio import AbortError, InternalError

from serving.errors import DeadlineExpired
from serving.gate import abort


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
