"""The shapes of other servers that clients speak: OpenAI's embeddings, completions and models, and vLLM's classify.

A model is a task: `sst2`, `sst2:7` or `sst2@canary`. A prompt or an input is the value of the task's only field.
"""

import base64
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from http import HTTPMethod
from typing import Annotated, Any, Literal, NotRequired, cast

import numpy as np
from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from ladder.answers import ClassAnswer, LabelsAnswer, TextAnswer, VectorAnswer
from protos import sidecast_pb2 as pb
from serving.engine import Piece
from serving.errors import InvalidInput
from serving.http.body import ROW_SCHEMA, Body, Int64, Name, read_input, read_inputs
from serving.http.call import HttpCall
from serving.http.operation import Operation, Reply
from serving.http.operations.tasks import GenerationSettings, renamed, told, which_of
from serving.http.problem import openai_error, problem_of
from serving.http.replies import EVENT_STREAM, begin, event, json_bytes, json_reply, with_member, write_list
from serving.http.services import Services
from serving.pipeline import Generated, Prediction
from side_registry.specs.task import PRODUCTION

JSON = "application/json"
OWNER = "sidecast"
DONE = b"data: [DONE]\n\n"

Texts = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]})
]
Rows = Annotated[Any, WithJsonSchema({"anyOf": [ROW_SCHEMA, {"type": "array", "items": ROW_SCHEMA, "minItems": 1}]})]


class _Request(Body):
    model: Name
    """A task, `TASK:VERSION` or `TASK@ALIAS`."""
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Where an alias's traffic is split, requests of one user get one version."""


class EmbeddingsBody(_Request):
    """A request of OpenAI's embeddings."""

    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int64 | None = None
    """Only the task's own number is possible."""


class ClassifyBody(_Request):
    """A request of vLLM's classify."""

    input: Rows


class StreamOptions(Body):
    """What a stream has besides its pieces."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class CompletionsBody(_Request):
    """A request of OpenAI's completions. What the server cannot do may only have the value that changes nothing."""

    prompt: Texts
    max_tokens: Int64 | None = None
    temperature: float | None = None
    """0: the most probable text; above: sampling. Not given: as the task is set."""
    top_p: float | None = None
    seed: Int64 | None = None
    """Of sampling."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    stop: Annotated[Any, WithJsonSchema({"enum": [None, []]})] = None
    suffix: None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    def generation(self) -> pb.Generation:
        """How the text is chosen. Raises InvalidInput."""
        if self.stop:
            raise InvalidInput("stop", "is not supported; the task itself ends its texts")
        if self.temperature == 0:
            return GenerationSettings(max_new_tokens=self.max_tokens, do_sample=False).message()
        if self.temperature is None and self.top_p is None:
            return GenerationSettings(max_new_tokens=self.max_tokens).message()
        return GenerationSettings(
            max_new_tokens=self.max_tokens,
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        ).message()


class Usage(TypedDict):
    """Tokens that were read, and with those that were made."""

    prompt_tokens: int
    completion_tokens: NotRequired[int]
    total_tokens: int


class EmbeddingData(TypedDict):
    """One embedding."""

    object: str
    index: int
    embedding: list[float] | str
    """With the encoding base64, the bytes of its float32 numbers, little-endian."""


class Embeddings(TypedDict):
    """The embeddings, in the inputs' order."""

    object: str
    model: str
    usage: Usage
    data: list[EmbeddingData]


class Choice(TypedDict):
    """One text."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: None


class Completion(TypedDict):
    """The texts, in the prompts' order."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: NotRequired[Usage | None]


class ClassData(TypedDict):
    """One row's class."""

    index: int
    label: str
    """The label with the highest probability."""
    labels: NotRequired[list[str]]
    """Of a multilabel task: those whose score reaches their threshold, highest first."""
    probs: list[float]
    """In the order of the task's labels. Those of a multilabel task do not sum to 1."""
    num_classes: int


class Classified(TypedDict):
    """The classes, in the inputs' order."""

    id: str
    object: str
    created: int
    model: str
    usage: Usage
    data: list[ClassData]


class Model(TypedDict):
    """A task."""

    id: str
    object: str
    created: int
    """When the version that answers was published, in seconds since 1970; 0: no version answers."""
    owned_by: str


class Models(TypedDict):
    """Every task."""

    object: str
    data: list[Model]


class OpenAI:
    """The operations in the shapes of other servers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """Predictions first."""
        yield _post("embeddings", "/v1/embeddings", "Embed texts", self.embeddings, EmbeddingsBody, Embeddings)
        yield Operation(
            name="completions",
            method=HTTPMethod.POST,
            path="/v1/completions",
            summary="Make texts",
            handler=self.completions,
            request=CompletionsBody,
            responses={JSON: Completion, EVENT_STREAM: str},
            counted=True,
            tag="OpenAI",
        )
        yield _post("classify", "/classify", "Classify rows", self.classify, ClassifyBody, Classified)
        for name, path, summary, handler, response, parameters in (
            ("listModels", "/v1/models", "List every task", self.list_models, Models, {}),
            ("getModel", "/v1/models/{model}", "Describe one task", self.get_model, Model, {"model": "A task."}),
        ):
            yield Operation(
                name=name,
                method=HTTPMethod.GET,
                path=path,
                summary=summary,
                handler=handler,
                responses={JSON: response},
                tag="OpenAI",
                parameters=parameters,
            )

    async def embeddings(self, call: HttpCall, body: EmbeddingsBody) -> Reply:
        """Embed texts."""
        prediction = await self._predict(call, body, read_texts(body.input, "input"), "input", ["embedding"])
        own = prediction.spec.dimensions
        if body.dimensions not in (None, own):
            raise InvalidInput("dimensions", f"must be {own}, the task's own number, got {body.dimensions}")
        document = {"object": "list", "model": body.model, "usage": usage_of(prediction.input_tokens)}

        def describe(index: int, answer: VectorAnswer) -> EmbeddingData:
            embedding: Any = answer.values
            if body.encoding_format == "base64":
                embedding = base64.b64encode(np.asarray(answer.values, "<f4").tobytes()).decode()
            return EmbeddingData(object="embedding", index=index, embedding=embedding)

        answers = cast(Sequence[VectorAnswer], prediction.answers)
        data = await write_list((describe(*each) for each in enumerate(answers)), own)
        return json_bytes(with_member(document, "data", data))

    async def classify(self, call: HttpCall, body: ClassifyBody) -> Reply:
        """Classify rows."""
        rows = body.input if isinstance(body.input, list) else [body.input]
        prediction = await self._predict(call, body, rows, "input", ["classification", "multilabel"])
        names = prediction.spec.labels

        def describe(index: int, answer: ClassAnswer | LabelsAnswer) -> ClassData:
            probs = list(answer.scores)
            if isinstance(answer, ClassAnswer):
                return ClassData(index=index, label=answer.label, probs=probs, num_classes=len(probs))
            best = names[max(range(len(probs)), key=probs.__getitem__)]
            return ClassData(index=index, label=best, labels=list(answer.labels), probs=probs, num_classes=len(probs))

        document = {
            "id": f"classify-{call.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": body.model,
            "usage": usage_of(prediction.input_tokens),
        }
        answers = cast(Sequence[ClassAnswer | LabelsAnswer], prediction.answers)
        data = await write_list((describe(*each) for each in enumerate(answers)), prediction.spec.outputs)
        return json_bytes(with_member(document, "data", data))

    async def completions(self, call: HttpCall, body: CompletionsBody) -> Reply:
        """Make texts, or stream one."""
        prompts = read_texts(body.prompt, "prompt")
        generation = body.generation()
        if body.stream:
            return await self._stream(call, body, prompts, generation)
        prediction = await self._predict(call, body, prompts, "prompt", ["text"], generation)
        limit = generation.max_new_tokens or prediction.spec.max_new_tokens

        def describe(index: int, answer: TextAnswer) -> Choice:
            return _choice(answer.text, "length" if len(answer.tokens) >= limit else "stop", index)

        answers = cast(Sequence[TextAnswer], prediction.answers)
        made = sum(len(answer.tokens) for answer in answers)
        head = {**self._head(call, body), "usage": usage_of(prediction.input_tokens, made)}
        choices = await write_list(describe(*each) for each in enumerate(answers))
        return json_bytes(with_member(head, "choices", choices))

    async def list_models(self, call: HttpCall) -> Reply:
        """List every task."""
        models = [_describe_model(task) for task in await self._services.list_tasks(call)]
        return json_bytes(with_member({"object": "list"}, "data", await write_list(models, 4)))

    async def get_model(self, call: HttpCall) -> Reply:
        """Describe one task."""
        request = pb.GetTaskRequest(**which_of(call.parameters["model"]))
        return json_reply(_describe_model(await self._services.get_task(call, request)))

    async def _predict(
        self,
        call: HttpCall,
        body: _Request,
        rows: Sequence[Any],
        where: str,
        kinds: Collection[str],
        generation: pb.Generation | None = None,
    ) -> Prediction:
        """Answer rows, which the request calls `where`, of a task of one of the kinds."""
        self._services.check_rows(len(rows))
        request = pb.PredictRequest(
            **which_of(body.model),
            rows=await read_inputs(rows, where),
            route_key=body.user or "",
            generation=generation,
        )
        try:
            return await self._services.predict(call, request, kinds)
        except InvalidInput as error:
            raise _renamed(error, where) from None

    async def _stream(
        self, call: HttpCall, body: CompletionsBody, prompts: Sequence[str], generation: pb.Generation
    ) -> Reply:
        if len(prompts) != 1:
            raise InvalidInput("prompt", f"has {len(prompts)} texts; one can be streamed")
        row = read_input(prompts[0], "prompt")
        request = pb.GenerateRequest(**which_of(body.model), row=row, route_key=body.user or "", generation=generation)

        def failed(error: Exception) -> bytes:
            return event({"error": openai_error(problem_of(told(error, "prompt"), call.request_id))})

        try:
            return await begin(self._events(call, body, request), failed)
        except InvalidInput as error:
            raise _renamed(error, "prompt") from None

    async def _events(
        self, call: HttpCall, body: CompletionsBody, request: pb.GenerateRequest
    ) -> AsyncGenerator[bytes, None]:
        head = self._head(call, body)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        none = {"usage": None} if with_usage else {}
        async with aclosing(await self._services.generate(call, request)) as events:
            async for one in events:
                if isinstance(one, Piece):
                    yield event({**head, "choices": [_choice(one.text, None)], **none})
                    continue
                yield event({**head, "choices": [_choice("", _finish(one))], **none})
                if with_usage:
                    [answer] = one.prediction.answers
                    assert isinstance(answer, TextAnswer)
                    usage = usage_of(one.prediction.input_tokens, len(answer.tokens))
                    yield event({**head, "choices": [], "usage": usage})
        yield DONE

    def _head(self, call: HttpCall, body: CompletionsBody) -> dict[str, Any]:
        return {
            "id": f"cmpl-{call.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }


def read_texts(value: Any, where: str) -> list[str]:
    """One text or several. Raises InvalidInput."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(where, "must be a text or a list of texts; lists of tokens are not supported")
    return texts


def _post(name: str, path: str, summary: str, handler: Any, request: Any, response: Any) -> Operation:
    return Operation(
        name=name,
        method=HTTPMethod.POST,
        path=path,
        summary=summary,
        handler=handler,
        request=request,
        responses={JSON: response},
        counted=True,
        tag="OpenAI",
    )


def _renamed(error: InvalidInput, where: str) -> InvalidInput:
    """The error in OpenAI's words for the parts of a request."""
    names = {"task": "model", "route_key": "user", "generation.max_new_tokens": "max_tokens"}
    field = names.get(error.field, error.field.removeprefix("generation."))
    return renamed(InvalidInput(field, error.why), where)


def usage_of(read: int, made: int | None = None) -> Usage:
    """Tokens that were read, and where texts were made those too."""
    if made is None:
        return Usage(prompt_tokens=read, total_tokens=read)
    return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)


def _choice(text: str, finish_reason: str | None, index: int = 0) -> Choice:
    return Choice(index=index, text=text, finish_reason=finish_reason, logprobs=None)


def _finish(generated: Generated) -> str:
    return "length" if generated.finish_reason == "length" else "stop"


def _describe_model(task: pb.TaskInfo) -> Model:
    serving = next((alias.serving for alias in task.aliases if alias.alias == PRODUCTION), 0)
    published = next((each.published_at for each in task.versions if each.version == serving), None)
    created = published.ToSeconds() if published is not None else 0
    return Model(id=task.task, object="model", created=created, owned_by=OWNER)
