"""`/v1/tasks` and `/v1/predict`: rows of one task, the same rows for many tasks, texts as events, and what there is."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from http import HTTPMethod
from time import perf_counter
from types import MappingProxyType
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import to_json
from typing_extensions import TypedDict

from ladder.answers import Answer
from protos import sidecast_pb2 as pb
from serving.api.native import AnsweredTasks
from serving.engine import Piece, RequestTimes
from serving.errors import InvalidInput, detached
from serving.http.body import Body, Int64, Name, Priority, Row, Seconds, Version, read_input, read_inputs
from serving.http.call import HttpCall
from serving.http.documents import RouteDocument, Timings, describe, describe_times
from serving.http.operation import Operation, Reply
from serving.http.problem import Problem, problem_of
from serving.http.replies import EVENT_STREAM, begin, event, json_bytes, json_reply, with_member, write_list
from serving.http.services import Services
from serving.pipeline import Generated, Prediction
from side_registry.specs.task import TaskRef
from side_registry.specs.task_kinds import KINDS

JSON = "application/json"
TASK = "A task, `TASK:VERSION` or `TASK@ALIAS`."


EarlyStopping = Annotated[Any, WithJsonSchema({"enum": [True, False, "never", None]})]


class GenerationSettings(Body):
    """How a text is chosen, over the task's own settings."""

    num_beams: Int64 | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
    seed: Int64 | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: Int64 | None = None
    min_new_tokens: Int64 | None = None
    max_new_tokens: Int64 | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping = None

    def message(self) -> pb.Generation:
        """As gRPC has it."""
        settings = self.model_dump(exclude_none=True)
        if "early_stopping" in settings:
            settings["early_stopping"] = str(settings["early_stopping"]).lower()
        return pb.Generation(**settings)


class Options(Body):
    """What a request asks for besides its tasks and rows."""

    timeout: Seconds | None = None
    """Seconds that the caller waits. The nearer of this and the header X-Request-Timeout holds."""
    priority: Priority = 0
    """1, the highest, to 4; 0: the server's default."""
    route_key: Annotated[str, Field(max_length=1000)] = ""
    """Where an alias's traffic is split, requests of one key get one version; empty: at random."""
    generation: GenerationSettings | None = None
    """For text tasks."""
    timings: bool = False
    """Say where the time went."""

    def fields(self) -> dict[str, Any]:
        """Fields of a message, but for the time, which the call itself keeps."""
        fields: dict[str, Any] = {"priority": self.priority, "route_key": self.route_key}
        if self.generation:
            fields["generation"] = self.generation.message()
        return fields


class PredictBody(Options):
    """Rows of one task."""

    inputs: Annotated[list[Row], Field(min_length=1)]
    version: Version | None = None
    """The version to ask; not given: the alias's."""
    alias: Name | None = None
    """The alias to ask; not given: production."""
    stream: bool = False
    """Send the text of one row as server-sent events while it is made."""


class TaskChoice(Body):
    """One task to ask."""

    task: Name
    version: Version | None = None
    alias: Name | None = None


def _of_name(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


TaskName = Annotated[
    TaskChoice,
    BeforeValidator(_of_name),
    WithJsonSchema({"anyOf": [{"type": "string", "description": TASK}, TaskChoice.model_json_schema()]}),
]


class PredictTasksBody(Options):
    """The same rows for many tasks."""

    tasks: Annotated[list[TaskName], Field(min_length=1)]
    inputs: Annotated[list[Row], Field(min_length=1)]


class Entity(TypedDict):
    """A part of a text, in characters (code points) of the text that was sent."""

    start: int
    end: int
    label: str
    score: float
    text: str


class Answered(TypedDict):
    """One row's answer. Which members it has follows from the task's kind."""

    label: NotRequired[str]
    labels: NotRequired[list[str]]
    """Those whose score reaches their threshold, highest first."""
    score: NotRequired[float]
    scores: NotRequired[list[float]]
    value: NotRequired[float]
    relevance: NotRequired[float]
    text: NotRequired[str]
    embedding: NotRequired[list[float]]
    spans: NotRequired[list[Entity]]
    truncated: bool
    """The row's text was longer than the task's max_source_tokens: its end was not read."""


class Predicted(TypedDict):
    """The answers of one task, in the rows' order."""

    task: str
    version: int
    generation: int
    """The registry's generation that was served."""
    alias: str | None
    """The alias that led to the version; null where the version was asked for."""
    labels: NotRequired[list[str]]
    """In the order of each answer's scores."""
    timings: NotRequired[Timings]
    answers: list[Answered]


class TaskResult(TypedDict):
    """One task's answers, or what is wrong with it."""

    task: str
    prediction: NotRequired[Predicted]
    error: NotRequired[Problem]


class Results(TypedDict):
    """One result for each task, in their order."""

    timings: NotRequired[Timings]
    """Of all tasks together."""
    results: list[TaskResult]


class TaskVersion(TypedDict):
    """One published version."""

    version: int
    published_at: str | None
    author: str
    message: str
    retired: bool
    resident: bool
    """Loaded on this server."""
    failure: str
    """Why this server could not load it."""
    untrained: bool
    """No training has changed its weights."""


class TaskDocument(TypedDict):
    """A task of the registry, as this server serves it."""

    task: str
    kind: NotRequired[str]
    """This and what follows of the spec is missing while no version is resident."""
    template: NotRequired[str]
    fields: NotRequired[list[str]]
    images: NotRequired[list[str]]
    labels: NotRequired[list[str]]
    low: NotRequired[float]
    high: NotRequired[float]
    dimensions: NotRequired[int]
    max_rows: NotRequired[int]
    max_chars: NotRequired[int]
    max_source_tokens: NotRequired[int]
    max_new_tokens: NotRequired[int]
    description: NotRequired[str]
    aliases: dict[str, int]
    """The version that answers for each alias here; 0: none."""
    routes: dict[str, RouteDocument]
    """How each alias's traffic is split, as the registry has it."""
    versions: list[TaskVersion]


class TaskList(TypedDict):
    """Every task."""

    tasks: list[TaskDocument]


class Tasks:
    """The operations on tasks."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """Those on tasks, predictions first."""
        task = {"task": TASK}
        yield Operation(
            name="predict",
            method=HTTPMethod.POST,
            path="/v1/tasks/{task}:predict",
            summary="Answer rows of one task",
            handler=self.predict,
            request=PredictBody,
            responses={JSON: Predicted, EVENT_STREAM: str},
            counted=True,
            tag="tasks",
            parameters=task,
        )
        yield Operation(
            name="predictTasks",
            method=HTTPMethod.POST,
            path="/v1/predict",
            summary="Answer the same rows for many tasks, with one pass of the backbone",
            handler=self.predict_tasks,
            request=PredictTasksBody,
            responses={JSON: Results},
            counted=True,
            tag="tasks",
        )
        yield Operation(
            name="listTasks",
            method=HTTPMethod.GET,
            path="/v1/tasks",
            summary="Describe every task",
            handler=self.list_tasks,
            responses={JSON: TaskList},
            tag="tasks",
        )
        yield Operation(
            name="getTask",
            method=HTTPMethod.GET,
            path="/v1/tasks/{task}",
            summary="Describe one task",
            handler=self.get_task,
            responses={JSON: TaskDocument},
            tag="tasks",
            parameters=task,
        )

    async def predict(self, call: HttpCall, body: PredictBody) -> Reply:
        """Answer rows of one task, or stream the text of one."""
        call.limit(body.timeout)
        began = _begin(call, body)
        which = which_of(call.parameters["task"], body.version, body.alias)
        if body.stream or EVENT_STREAM in call.headers.get("accept", ""):
            if len(body.inputs) != 1:
                raise InvalidInput("inputs", f"has {len(body.inputs)} rows; a stream is the text of one row")
            row = read_input(body.inputs[0], "inputs[0]")
            return await self._stream(call, pb.GenerateRequest(**which, row=row, **body.fields()))
        self._services.check_rows(len(body.inputs))
        rows = await read_inputs(body.inputs)
        request = pb.PredictRequest(**which, rows=rows, **body.fields())
        try:
            prediction = await self._services.predict(call, request)
        except InvalidInput as error:
            raise renamed(error, "inputs") from None
        return json_bytes(await write_prediction(prediction, _timings(call, began)))

    async def predict_tasks(self, call: HttpCall, body: PredictTasksBody) -> Reply:
        """Answer the same rows for many tasks."""
        call.limit(body.timeout)
        began = _begin(call, body)
        self._services.check_rows(len(body.inputs) * len(body.tasks))
        refs = [pb.TaskRef(**which_of(choice.task, choice.version, choice.alias)) for choice in body.tasks]
        request = pb.PredictTasksRequest(tasks=refs, rows=await read_inputs(body.inputs), **body.fields())
        try:
            answered = await self._services.predict_tasks(call, request)
        except InvalidInput as error:
            raise renamed(error, "inputs") from None
        written = await write_outcomes(answered, call.request_id)
        timings = _timings(call, began)
        return json_bytes(with_member(timings, "results", written) if timings else b'{"results":' + written + b"}")

    async def list_tasks(self, call: HttpCall) -> Reply:
        """Describe every task."""
        tasks = await self._services.list_tasks(call)
        return json_bytes(b'{"tasks":' + await write_list(map(describe_task, tasks), 32) + b"}")

    async def get_task(self, call: HttpCall) -> Reply:
        """Describe one task."""
        request = pb.GetTaskRequest(**which_of(call.parameters["task"]))
        return json_reply(describe_task(await self._services.get_task(call, request)))

    async def _stream(self, call: HttpCall, request: pb.GenerateRequest) -> Reply:
        def failed(error: Exception) -> bytes:
            return event(problem_of(told(error, "inputs"), call.request_id), "error")

        try:
            return await begin(self._events(call, request), failed)
        except InvalidInput as error:
            raise renamed(error, "inputs") from None

    async def _events(self, call: HttpCall, request: pb.GenerateRequest) -> AsyncGenerator[bytes, None]:
        began = perf_counter()
        async with aclosing(await self._services.generate(call, request)) as events:
            async for one in events:
                if isinstance(one, Piece):
                    yield event({"text": one.text, "tokens": one.tokens}, "piece")
                else:
                    yield event(_describe_text(one) | _timings(call, began), "result")


def which_of(text: str, version: int | None = None, alias: str | None = None) -> dict[str, Any]:
    """Fields of a message that names a task: `sst2`, `sst2:7` or `sst2@canary`, or the version or alias apart.

    Raises:
        InvalidName: the text is no reference.
        InvalidInput: it says the version or alias twice.
    """
    ref = TaskRef.parse(text)
    if (ref.version, ref.alias, version, alias).count(None) < 3:
        raise InvalidInput("version" if version else "alias", "is given twice, or beside the other; name one of them")
    which = {"version": ref.version or version, "alias": ref.alias or alias}
    return {"task": ref.task} | {name: value for name, value in which.items() if value is not None}


def renamed(error: InvalidInput, inputs: str) -> InvalidInput:
    """The same error, with `inputs` as the name of the request's rows: `inputs[3].sentence` for `rows[3].sentence`."""
    for rows, name in (("rows", inputs), ("row", f"{inputs}[0]")):
        if error.field == rows or error.field.startswith((f"{rows}[", f"{rows}.")):
            return InvalidInput(name + error.field.removeprefix(rows), error.why)
    return error


def told(error: Exception, inputs: str) -> Exception:
    """The error in the words of a request whose rows are called `inputs`."""
    return renamed(error, inputs) if isinstance(error, InvalidInput) else detached(error)


def _begin(call: HttpCall, body: Options) -> float:
    """Have the call timed where the body asks for it; returns the time."""
    call.times = RequestTimes() if body.timings else None
    return perf_counter()


def _timings(call: HttpCall, began: float) -> dict[str, Any]:
    """The member of a response that says where the time went; empty where nobody asks."""
    return {"timings": describe_times(call.times, perf_counter() - began)} if call.times else {}


async def write_outcomes(answered: AnsweredTasks, request_id: str) -> bytes:
    """The JSON list of what many tasks answer."""
    results = []
    for ref, outcome in zip(answered.refs, answered.outcomes, strict=True):
        if isinstance(outcome, Exception):
            member, value = "error", to_json(problem_of(told(outcome, "inputs"), request_id))
        else:
            member, value = "prediction", await write_prediction(outcome)
        results.append(with_member({"task": ref.task}, member, value))
    return b"[" + b",".join(results) + b"]"


async def write_prediction(prediction: Prediction, more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """The JSON of one task's answers.

    Args:
        more: further members.
    """
    head: dict[str, Any] = {
        **more,
        "task": prediction.task,
        "version": prediction.version,
        "generation": prediction.generation,
        "alias": prediction.alias,
    }
    if prediction.spec.labels:
        head["labels"] = prediction.spec.labels
    columns = KINDS[prediction.spec.kind].columns

    def describe(answer: Answer, truncated: bool) -> Mapping[str, Any]:
        values = {column.name: getattr(answer, column.attribute) for column in columns}
        return values | {"truncated": truncated}

    rows = zip(prediction.answers, prediction.truncated, strict=True)
    answers = await write_list((describe(*row) for row in rows), max(prediction.spec.outputs, 1))
    return with_member(head, "answers", answers)


def _describe_text(generated: Generated) -> dict[str, Any]:
    prediction = generated.prediction
    [answer] = prediction.answers
    return {
        "task": prediction.task,
        "version": prediction.version,
        "generation": prediction.generation,
        "alias": prediction.alias,
        "text": answer.text,  # type: ignore[union-attr]
        "finish_reason": generated.finish_reason,
        "token_count": len(answer.tokens),  # type: ignore[union-attr]
        "truncated": prediction.truncated[0],
    }


SPEC = ("kind", "template", "max_rows", "max_chars", "max_source_tokens", "description")
"""Members that every spec has."""


def describe_task(info: pb.TaskInfo) -> TaskDocument:
    """A task as a document."""
    document: dict[str, Any] = {"task": info.task}
    if info.HasField("spec"):
        spec = info.spec
        document |= {name: getattr(spec, name) for name in SPEC} | {"fields": list(spec.fields)}
        document |= {name: list(getattr(spec, name)) for name in ("images", "labels") if getattr(spec, name)}
        document |= {name: getattr(spec, name) for name in ("low", "high") if spec.HasField(name)}
        if spec.dimensions:
            document["dimensions"] = spec.dimensions
        if spec.kind in KINDS and KINDS[spec.kind].makes_text:
            document["max_new_tokens"] = spec.max_new_tokens
    document["aliases"] = {alias.alias: alias.serving for alias in info.aliases}
    document["routes"] = {alias.alias: describe(alias.route) for alias in info.aliases}
    document["versions"] = [_describe_version(version) for version in info.versions]
    return document  # type: ignore[return-value]


def _describe_version(version: pb.Version) -> TaskVersion:
    return TaskVersion(
        version=version.version,
        published_at=version.published_at.ToJsonString() if version.HasField("published_at") else None,
        author=version.author,
        message=version.message,
        retired=version.retired,
        resident=version.resident,
        failure=version.failure,
        untrained=version.untrained,
    )
