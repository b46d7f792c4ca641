"""The servicer of `sidecast.v1.Sidecast`: Predict, PredictTasks, Rank and Generate.

Turns messages into requests of the service, and its answers into messages. Errors are raised: the interceptor makes
statuses of them.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from grpc.aio import ServicerContext

from ladder.answers import (
    Answer,
    ClassAnswer,
    LabelsAnswer,
    RelevanceAnswer,
    SpansAnswer,
    TextAnswer,
    ValueAnswer,
    VectorAnswer,
)
from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.api.call import CallContext, Tenants, counting, counting_tasks, deadline_of
from serving.api.guard import checked_group
from serving.api.status import status_of
from serving.engine import Piece
from serving.errors import InvalidInput
from serving.metrics import Metrics
from serving.pipeline import (
    DecodingOverrides,
    Generated,
    InputRow,
    Prediction,
    PredictRequest,
    PredictService,
    Prompt,
    Refused,
    RequestOptions,
    Target,
)
from side_registry.specs.task import TaskRef
from side_registry.specs.task_kinds import KINDS

PAUSE_ROWS = 256
"""Rows of a message that are read, or numbers of an answer that are written, before other calls go on."""
SHOWN_NAME = 80
"""Characters of a row's name in an error."""
GIVE_ONE = "give exactly one of fields, text and prompt"
RANKINGS = tuple(kind.name for kind in KINDS.values() if kind.ranks)
"""Kinds of task that Rank asks."""
ROW_FIELD = re.compile(r"rows\[(\d+)\]\.(.*)")


@dataclass(frozen=True, slots=True)
class AnsweredTasks:
    """What many tasks answer."""

    refs: Sequence[TaskRef]
    outcomes: Sequence[Prediction | Refused]
    """In the order of `refs`; the fault of a task stands in its place."""
    group_version: int
    """Of the group that named the tasks; 0: there was none."""


class NativeServicer(sidecast_pb2_grpc.SidecastServicer):
    """Answers calls of `sidecast.v1.Sidecast`, and counts each of their tasks as one request."""

    def __init__(self, service: PredictService, metrics: Metrics, tenants: Tenants | None = None) -> None:
        self._service = service
        self._metrics = metrics
        self._tenants = tenants or Tenants()

    async def Predict(self, request: pb.PredictRequest, context: ServicerContext) -> pb.PredictResponse:
        """Answer rows of one task."""
        response = pb.PredictResponse()
        await write_prediction(await self.predict(request, context), response)
        return response

    async def PredictTasks(self, request: pb.PredictTasksRequest, context: ServicerContext) -> pb.PredictTasksResponse:
        """Answer the same rows for many tasks, or for those of a group; the fault of a task stands in its place."""
        answered = await self.predict_tasks(request, context)
        response = pb.PredictTasksResponse(group_version=answered.group_version)
        for task, outcome in zip(request.tasks or map(write_ref, answered.refs), answered.outcomes, strict=True):
            result = response.results.add(task=task)
            if isinstance(outcome, Exception):
                result.error.CopyFrom(status_of(outcome))
            else:
                await write_prediction(outcome, result.prediction)
        return response

    async def Generate(
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Answer one row of a text task piece by piece, and last with the whole text."""
        async with aclosing(self.generate(request, context)) as events:
            async for event in events:
                yield _write_event(event)

    async def Rank(self, request: pb.RankRequest, context: ServicerContext) -> pb.RankResponse:
        """Score passages for a query and sort them."""
        prediction = await self.rank(request, context)
        response = pb.RankResponse(
            task=prediction.task,
            version=prediction.version,
            generation=prediction.generation,
            alias=prediction.alias or "",
        )
        for index in ranked(prediction)[: request.top or None]:
            score = relevance(prediction.answers[index])
            response.results.add(index=index, score=score, truncated=prediction.truncated[index])
        return response

    async def rank(self, request: pb.RankRequest, context: CallContext) -> Prediction:
        """Score passages for a query, for any protocol; the answers are in the passages' order.

        Raises:
            what `PredictService.predict` raises, and InvalidInput: the task is of another kind.
        """
        with counting(self._metrics, request.task) as counted:
            self._service.check_counts(1, len(request.passages))
            if request.top < 0:
                raise InvalidInput("top", f"must be at least 0, got {request.top}")
            if not request.passages:
                raise InvalidInput("passages", "there are none; send at least one")
            options = self._options(request, context)
            counted.deadline = options.deadline
            target = await self._service.find(read_ref(request), options)
            _check_kind(target, RANKINGS)
            query, passage = target.resident.spec.fields
            rows = [{query: request.query, passage: text} for text in request.passages]
            size = target.resident.spec.max_rows
            parts: list[Prediction] = []
            for start in range(0, len(rows), size):
                part = PredictRequest(targets=(target,), rows=rows[start : start + size], options=options)
                try:
                    parts.append(await self._service.predict(part))
                except InvalidInput as error:
                    raise _of_passages(error, start, query) from None
            counted.version = parts[0].version
            counted.rows = len(rows)
            return replace(
                parts[0],
                answers=tuple(answer for part in parts for answer in part.answers),
                truncated=tuple(cut for part in parts for cut in part.truncated),
                input_tokens=sum(part.input_tokens for part in parts),
            )

    async def predict(
        self, request: pb.PredictRequest, context: CallContext, kinds: Collection[str] = ()
    ) -> Prediction:
        """Answer rows of one task, for any protocol.

        Args:
            kinds: of task that may be asked; empty: any.

        Raises:
            what `PredictService.predict` raises, and InvalidInput: the task is of another kind.
        """
        with counting(self._metrics, request.task) as counted:
            self._service.check_counts(1, len(request.rows))
            options = self._options(request, context)
            counted.deadline = options.deadline
            target = await self._service.find(read_ref(request), options)
            _check_kind(target, kinds)
            asked = PredictRequest(targets=(target,), rows=await read_rows(request.rows), options=options)
            prediction = await self._service.predict(asked)
            counted.version = prediction.version
            counted.rows = len(prediction.answers)
            return prediction

    async def predict_tasks(self, request: pb.PredictTasksRequest, context: CallContext) -> AnsweredTasks:
        """Answer the same rows for many tasks, or for those of a group, for any protocol."""
        with counting_tasks(self._metrics) as counted:
            if request.group and request.tasks:
                raise InvalidInput("group", "is given with tasks; give one of the two")
            version = 0
            refs: Sequence[TaskRef] = [read_ref(task) for task in request.tasks]
            if request.group:
                group = await checked_group(self._service.group, request.group, len(request.rows))
                refs = group.refs
                version = group.version
            self._service.check_counts(len(refs), len(request.rows))
            counted.refs = refs
            options = self._options(request, context)
            counted.deadline = options.deadline
            targets = await self._service.find_tasks(refs, options)
            asked = PredictRequest(targets=targets, rows=await read_rows(request.rows), options=options)
            counted.outcomes = outcomes = await self._service.predict_tasks(asked)
        return AnsweredTasks(refs, outcomes, version)

    async def generate(
        self, request: pb.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[Piece | Generated, None]:
        """Answer one row of a text task piece by piece, and last with the whole text, for any protocol."""
        with counting(self._metrics, request.task) as counted:
            options = self._options(request, context)
            counted.deadline = options.deadline
            target = await self._service.find(read_ref(request), options)
            asked = PredictRequest(targets=(target,), rows=[_read_row(request.row, "row")], options=options)
            async with aclosing(self._service.stream(asked)) as events:
                async for event in events:
                    if isinstance(event, Generated):
                        counted.version = event.prediction.version
                        counted.rows = 1
                    yield event

    def _options(
        self,
        request: pb.PredictRequest | pb.PredictTasksRequest | pb.RankRequest | pb.GenerateRequest,
        context: CallContext,
    ) -> RequestOptions:
        none = pb.Generation()
        return RequestOptions(
            deadline=deadline_of(context, _timeout(request)),
            decoding=read_generation(none if isinstance(request, pb.RankRequest) else request.generation),
            priority=request.priority,
            tenant=self._tenants.of(context),
            route_key=request.route_key,
            times=getattr(context, "times", None),
        )


def _of_passages(error: InvalidInput, start: int, query: str) -> InvalidInput:
    """The error with the names of a RankRequest: `passages[3]` for `rows[3].passage`.

    Args:
        start: index of the first of the rows.
        query: the field of the query.
    """
    found = ROW_FIELD.fullmatch(error.field)
    if found is None:
        return error
    index, field = found.groups()
    return InvalidInput("query" if field == query else f"passages[{start + int(index)}]", error.why)


def relevance(answer: Answer) -> float:
    """The score of a ranking's answer."""
    assert isinstance(answer, RelevanceAnswer)
    return answer.relevance


def ranked(prediction: Prediction) -> list[int]:
    """Indices of the passages, highest score first; of equal scores in the request's order."""
    scores = [relevance(answer) for answer in prediction.answers]
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def read_ref(message: pb.TaskRef | pb.PredictRequest | pb.GenerateRequest | pb.RankRequest) -> TaskRef:
    """The task that a message names. An empty alias is none."""
    if message.HasField("version"):
        return TaskRef(message.task, version=message.version)
    return TaskRef(message.task, alias=message.alias or None)


def write_ref(ref: TaskRef) -> pb.TaskRef:
    """A task's reference as a message."""
    if ref.version is not None:
        return pb.TaskRef(task=ref.task, version=ref.version)
    return pb.TaskRef(task=ref.task, alias=ref.alias) if ref.alias else pb.TaskRef(task=ref.task)


async def read_rows(rows: Sequence[pb.Row]) -> list[InputRow]:
    """The rows of a message; other calls go on meanwhile. Raises InvalidInput: a row is empty, or ambiguous."""
    inputs: list[InputRow] = []
    for index, row in enumerate(rows):
        if row.images or index % PAUSE_ROWS == PAUSE_ROWS - 1:  # an image may have megabytes, which are copied
            await asyncio.sleep(0)
        inputs.append(_read_row(row, f"rows[{index}]"))
    return inputs


def _check_kind(target: Target, kinds: Collection[str]) -> None:
    spec = target.resident.spec
    if kinds and spec.kind not in kinds:
        able = " or ".join(kinds)
        raise InvalidInput("task", f"{spec.name!r} is {spec.kind}, only tasks of kind {able} are answered here")


def _read_row(row: pb.Row, where: str) -> InputRow:
    whole = row.WhichOneof("whole")
    if row.fields and whole:
        raise InvalidInput(where, f"has more than one of fields, text and prompt; {GIVE_ONE}")
    if not (row.fields or whole or row.images):
        raise InvalidInput(where, f"is empty; {GIVE_ONE}")
    if whole == "text":
        if row.images:
            raise InvalidInput(where, "has images beside text; give the text by its name in fields")
        return row.text
    images = dict(row.images)
    if whole:
        return Prompt(row.prompt, images)
    fields = dict(row.fields)
    if both := fields.keys() & images.keys():
        raise InvalidInput(f"{where}.{min(both)[:SHOWN_NAME]}", "is in both fields and images; give it once")
    return {**fields, **images}


def read_generation(message: pb.Generation) -> DecodingOverrides:
    """The decoding settings that a message sets."""
    return DecodingOverrides({field.name: value for field, value in message.ListFields()})


def _timeout(
    request: pb.PredictRequest | pb.PredictTasksRequest | pb.RankRequest | pb.GenerateRequest,
) -> float | None:
    """Seconds."""
    if not request.HasField("timeout"):
        return None
    seconds = request.timeout.ToNanoseconds() / 1e9
    if seconds <= 0:
        raise InvalidInput("timeout", f"must be above 0 s, got {seconds} s")
    return seconds


async def write_prediction(prediction: Prediction, response: pb.PredictResponse) -> None:
    """Fill the message of one task's answers; other calls go on meanwhile."""
    response.task = prediction.task
    response.version = prediction.version
    response.generation = prediction.generation
    response.alias = prediction.alias or ""
    response.labels.extend(prediction.spec.labels)
    pause = max(PAUSE_ROWS // max(prediction.spec.outputs, 1), 1)
    for index, answer in enumerate(prediction.answers):
        if index % pause == pause - 1:
            await asyncio.sleep(0)
        _write_answer(response.answers.add(truncated=prediction.truncated[index]), answer)


def _write_event(event: Piece | Generated) -> pb.GenerateResponse:
    if isinstance(event, Piece):
        return pb.GenerateResponse(text=event.text, tokens=event.tokens)
    prediction = event.prediction
    [answer] = prediction.answers
    assert isinstance(answer, TextAnswer)
    generated = pb.Generated(
        task=prediction.task,
        version=prediction.version,
        generation=prediction.generation,
        alias=prediction.alias or "",
        text=answer.text,
        finish_reason=event.finish_reason,
        token_count=len(answer.tokens),
        truncated=prediction.truncated[0],
    )
    return pb.GenerateResponse(generated=generated)


def _write_answer(message: pb.Answer, answer: Answer) -> None:
    """Fill `message` in place: copying messages into messages takes longer."""
    match answer:
        case ClassAnswer():
            classification = message.classification
            classification.label = answer.label
            classification.score = answer.score
            classification.scores.extend(answer.scores)
        case ValueAnswer():
            message.regression.SetInParent()
            message.regression.value = answer.value
        case TextAnswer():
            message.text.SetInParent()
            message.text.text = answer.text
        case VectorAnswer():
            message.embedding.values.extend(answer.values)
        case LabelsAnswer():
            message.multilabel.labels.extend(answer.labels)
            message.multilabel.scores.extend(answer.scores)
        case RelevanceAnswer():
            message.ranking.relevance = answer.relevance
        case SpansAnswer():
            message.token_classification.SetInParent()
            for span in answer.spans:
                message.token_classification.spans.add(
                    start=span.start, end=span.end, label=span.label, score=span.score, text=span.text
                )
