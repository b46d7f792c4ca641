"""Our own door, `sidecast.v1.Sidecast`: Predict and PredictTasks. Turns messages into calls of the service, and back.

Raises what is wrong; the gate makes statuses of it. `Generate` will stand here too.
"""

import time
from collections.abc import Iterable, Sequence

from grpc.aio import ServicerContext

from ladder.answers import Answer, ClassAnswer, TextAnswer, ValueAnswer, VectorAnswer
from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.doors import Service, counting, deadline_of
from serving.errors import InvalidInput
from serving.metrics import Metrics
from serving.overrides import Overrides
from serving.service import InputRow, Prediction, Prompt
from serving.status import code_of, status_of
from side_registry.task import TaskRef, TaskSpec


class NativeDoor(sidecast_pb2_grpc.SidecastServicer):
    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service, self._metrics = service, metrics

    async def Predict(self, request: pb.PredictRequest, context: ServicerContext) -> pb.PredictResponse:
        with counting(self._metrics, request.task) as counted:
            ref = read_ref(request)
            prediction = await self._service.predict(
                ref.task,
                read_rows(request.rows),
                version=ref.version,
                alias=ref.alias,
                deadline=deadline_of(context, _timeout(request)),
                generation=read_generation(request.generation),
            )
            counted.version = prediction.version
            return write_prediction(prediction)

    async def PredictTasks(self, request: pb.PredictTasksRequest, context: ServicerContext) -> pb.PredictTasksResponse:
        start, refs = time.perf_counter(), [read_ref(task) for task in request.tasks]
        try:
            rows, deadline = read_rows(request.rows), deadline_of(context, _timeout(request))
            outcomes = await self._service.predict_tasks(refs, rows, deadline=deadline)
        except Exception as error:
            self._count(refs, [error] * len(refs), start)
            raise
        self._count(refs, outcomes, start)
        return pb.PredictTasksResponse(results=map(_write_result, request.tasks, outcomes))

    def _count(self, refs: Sequence[TaskRef], outcomes: Sequence[Prediction | Exception], start: float) -> None:
        seconds = time.perf_counter() - start
        for ref, outcome in zip(refs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._metrics.request(ref.task, None, code_of(outcome).name, seconds)
            else:
                self._metrics.request(ref.task, outcome.version, "OK", seconds)


def read_ref(message: pb.TaskRef | pb.PredictRequest) -> TaskRef:
    """An empty alias is none."""
    if message.HasField("version"):
        return TaskRef(message.task, version=message.version)
    return TaskRef(message.task, alias=message.alias or None)


def read_rows(rows: Iterable[pb.Row]) -> list[InputRow]:
    """Raises InvalidInput."""
    return [_read_row(row, number) for number, row in enumerate(rows)]


def _read_row(row: pb.Row, number: int) -> InputRow:
    whole = row.WhichOneof("whole")
    if bool(row.fields) == bool(whole):
        fault = "has more than one of fields, text and prompt" if whole else "is empty"
        raise InvalidInput(f"rows[{number}]", f"{fault}; give exactly one of fields, text and prompt")
    if whole == "text":
        return row.text
    return Prompt(row.prompt) if whole else dict(row.fields)


def read_generation(message: pb.Generation) -> Overrides:
    return Overrides({field.name: value for field, value in message.ListFields()})


def _timeout(request: pb.PredictRequest | pb.PredictTasksRequest) -> float | None:
    """Seconds."""
    if not request.HasField("timeout"):
        return None
    seconds = request.timeout.ToNanoseconds() / 1e9
    if seconds <= 0:
        raise InvalidInput("timeout", f"must be above 0 s, got {seconds} s")
    return seconds


def _write_result(task: pb.TaskRef, outcome: Prediction | Exception) -> pb.PredictTasksResponse.Result:
    if isinstance(outcome, Exception):
        return pb.PredictTasksResponse.Result(task=task, error=status_of(outcome))
    return pb.PredictTasksResponse.Result(task=task, prediction=write_prediction(outcome))


def write_prediction(prediction: Prediction) -> pb.PredictResponse:
    return pb.PredictResponse(
        task=prediction.task,
        version=prediction.version,
        generation=prediction.generation,
        alias=prediction.alias or "",
        labels=_labels(prediction.spec),
        answers=map(_write_answer, prediction.answers),
    )


def _labels(spec: TaskSpec) -> Sequence[str]:
    return spec.labels if spec.kind == "classification" else ()


def _write_answer(answer: Answer) -> pb.Answer:
    match answer:
        case ClassAnswer():
            classification = pb.Classification(label=answer.label, score=answer.score, scores=answer.scores)
            return pb.Answer(classification=classification)
        case ValueAnswer():
            return pb.Answer(regression=pb.Regression(value=answer.value))
        case TextAnswer():
            return pb.Answer(text=pb.Text(text=answer.text))
        case VectorAnswer():
            return pb.Answer(embedding=pb.Embedding(values=answer.values))
