"""A load's requests, sent through the client: Predict, PredictTasks or Generate."""

import time
from typing import Any

from serving.client import BY_CODE, AsyncClient, SidecastError
from side_registry import KINDS
from sidecast.loadtest.inputs import Request, Target
from sidecast.loadtest.measure import Call, Failure
from sidecast.loadtest.plan import LoadError, Plan

TEXT_KINDS = frozenset(kind.name for kind in KINDS.values() if kind.makes_text)
PRODUCTION = "production"


async def find_targets(client: AsyncClient, refs: tuple[str, ...], plan: Plan) -> list[Target]:
    """Return the named tasks as the server serves them; without names, all that read text alone and that it serves in
    production.

    With streams or decoding settings, only text tasks.

    Raises:
        SidecastError: a task does not exist, or no server answers.
        LoadError: a task is not loaded, there is no task, or a named task is no text task where only these fit.
    """
    texts_only = plan.stream or bool(plan.generation)
    if refs:
        infos = [(ref, await client.task(ref)) for ref in dict.fromkeys(refs)]
    else:
        served = [info for info in await client.tasks() if PRODUCTION in info.serving]
        infos = [(info.task, info) for info in served if info.spec is None or not info.spec.images]
    for ref, info in infos:
        if info.spec is None:
            raise LoadError(f"the server has no version of {ref} loaded")
        if refs and texts_only and info.spec.kind not in TEXT_KINDS:
            option = "--stream" if plan.stream else "--" + next(iter(plan.generation)).replace("_", "-")
            raise LoadError(f"{option} is for text tasks, and {ref} is a task of kind {info.spec.kind}")
    targets = [
        Target(ref, info.spec.kind, info.spec.inputs, _version(ref, info.serving), info.spec.images)
        for ref, info in infos
        if info.spec is not None and (info.spec.kind in TEXT_KINDS or not texts_only)
    ]
    if not targets:
        raise LoadError(f"the server serves no {'text ' * texts_only}task in production; name one, or publish one")
    return targets


def _version(ref: str, serving: dict[str, int]) -> int | None:
    task, mark, version = ref.partition(":")
    return int(version) if mark else serving.get(task.partition("@")[2] or PRODUCTION)


class ClientAsker:
    """Sends requests through a client. The client must not retry, because failures are counted."""

    def __init__(self, client: AsyncClient, plan: Plan) -> None:
        self._client = client
        self._how = {"priority": plan.priority, "decoding": plan.generation}
        self._way = (
            self._stream if plan.stream else self._predict_tasks if plan.tasks_per_request > 1 else self._predict
        )

    async def __call__(self, request: Request, call: Call, timeout: float) -> Failure | None:  # noqa: ASYNC109
        """Send a request within `timeout` seconds; return why it failed, or None. Fills the call's pieces."""
        try:
            await self._way(request, call, timeout=timeout, **self._how)
        except SidecastError as error:
            return as_failure(error)
        return None

    async def _predict(self, request: Request, call: Call, **how: Any) -> None:
        await self._client.predict(request.tasks[0], request.rows, **how)

    async def _predict_tasks(self, request: Request, call: Call, **how: Any) -> None:
        """Raises the error of its first task that failed."""
        outcomes = await self._client.predict_tasks(request.tasks, request.rows, **how)
        for outcome in outcomes.values():
            if isinstance(outcome, SidecastError):
                raise outcome

    async def _stream(self, request: Request, call: Call, **how: Any) -> None:
        async with self._client.stream(request.tasks[0], request.rows[0], **how) as stream:
            async for piece in stream:
                if piece.tokens:
                    call.pieces.append((time.perf_counter(), len(piece.tokens)))
            await stream.result()


def as_failure(error: SidecastError) -> Failure:
    """A client's error as a failure: its gRPC code, reason and message."""
    code = next((code.name for code, kind in BY_CODE.items() if isinstance(error, kind)), "UNKNOWN")
    return Failure(code, error.reason, str(error))
