"""The Open Inference Protocol's door, for `tritonclient.grpc` and its like: a model is a task.

Turns messages into calls of the service, and back; what tensors hold is in `open_inference_tensors`. Raises what
is wrong; the interceptor makes statuses of it.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from grpc.aio import ServicerContext

from ladder.answers import TextAnswer
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from serving.api.call import Service, Tenants, counting, deadline_of
from serving.api.drain import Drain
from serving.api.open_inference_stream import FINAL, InferStream
from serving.api.open_inference_tensors import (
    WHOLE_PROMPT,
    describe_config,
    describe_inputs,
    describe_outputs,
    read_rows,
    requested_outputs,
    takes_whole_prompt,
    write_outputs,
)
from serving.engine import Piece, Resident
from serving.errors import InvalidInput, NotServed
from serving.metrics import Metrics
from serving.pipeline import FIELDS, DecodingOverrides, Generated, InputRow, Prediction, check_priority, resolve
from serving.versions import PoolState, SidePool
from side_registry.errors import RegistryError
from side_registry.task import VERSION, TaskRef, TaskSpec
from side_registry.task_kinds import KINDS

NAME = "sidecast"
EXTENSIONS = ("model_repository", "model_configuration", "schedule_policy", "parameters")
READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
EMPTY_FINAL = "triton_enable_empty_final_response"


class Which(NamedTuple):
    version: int | None
    alias: str | None


class RequestOptions(NamedTuple):
    """A request, read."""

    rows: list[InputRow]
    spec: TaskSpec
    how: dict[str, Any]
    """The service's named arguments."""


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(
        self, service: Service, pool: SidePool, metrics: Metrics, drain: Drain, tenants: Tenants | None = None
    ) -> None:
        self._service, self._pool, self._metrics, self._drain = service, pool, metrics, drain
        self._tenants = tenants or Tenants()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: ServicerContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: ServicerContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: ServicerContext) -> pb.ModelReadyResponse:
        try:
            self._find(request.name, request.version)
        except (RegistryError, NotServed):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=NAME, version=_own_version(), extensions=EXTENSIONS)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: ServicerContext
    ) -> pb.ModelMetadataResponse:
        found = self._find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[model.version for model in _index(self._pool.snapshot(), request.name) if model.state == READY],
            platform=NAME,
            inputs=describe_inputs(found.spec),
            outputs=describe_outputs(found.spec),
            parameters=_describe(found.spec, found.version),
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: ServicerContext) -> pb.ModelConfigResponse:
        config = describe_config(self._find(request.name, request.version).spec)
        config.platform = config.backend = NAME
        return pb.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: ServicerContext) -> pb.ModelInferResponse:
        with counting(self._metrics, request.model_name) as counted:
            wish = self._read(request, context)
            counted.deadline = wish.how["deadline"]
            prediction = await self._service.predict(request.model_name, wish.rows, **wish.how)
            counted.version = prediction.version
            return _respond(request, prediction)

    def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: ServicerContext
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        return InferStream(partial(self._tell, context=context), self._drain).answer(requests)

    async def _tell(
        self, request: pb.ModelInferRequest, context: ServicerContext
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """One request of a stream: a text of one row piece by piece, everything else as ModelInfer would."""
        with counting(self._metrics, request.model_name) as counted:
            wish = self._read(request, context)
            counted.deadline = wish.how["deadline"]
            if not KINDS[wish.spec.kind].makes_text or len(wish.rows) > 1:
                prediction = await self._service.predict(request.model_name, wish.rows, **wish.how)
                counted.version = prediction.version
                yield _final(_respond(request, prediction))
                return
            async with aclosing(self._service.stream(request.model_name, wish.rows[0], **wish.how)) as events:
                async for event in events:
                    if isinstance(event, Generated):
                        counted.version = event.prediction.version
                        yield _end(request, event)
                    elif event.text:
                        yield _piece(request, event, wish)

    def _read(self, request: pb.ModelInferRequest, context: ServicerContext) -> RequestOptions:
        priority = _whole_number(request, "priority")
        check_priority(priority, "parameters.priority")
        which, key = parse_version(request.model_version), _text(request, "route_key")
        ref, generation = TaskRef(request.model_name, which.alias, which.version), _generation(request)
        target = resolve(self._pool.snapshot(), ref, generation, key=key)
        if isinstance(target, Exception):
            raise target
        spec = target.resident.spec
        requested_outputs(request, spec)
        how = {
            "version": which.version,
            "alias": which.alias,
            "target": target,  # the rows are read by its spec, so it answers them, whatever is swapped
            "deadline": deadline_of(context, _timeout(request)),
            "generation": generation,
            "priority": priority,
            "tenant": self._tenants.of(context),
            "route_key": key,
        }
        return RequestOptions(read_rows(request, spec), spec, how)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: ServicerContext
    ) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        state = self._pool.snapshot()
        models = [model for name in sorted(state.tasks) for model in _index(state, name)]
        return pb.RepositoryIndexResponse(models=[each for each in models if each.state == READY or not request.ready])

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        _check_repository(request.repository_name)
        if request.parameters:
            fault = "are not supported: what is loaded is what was published"
            raise InvalidInput("parameters", fault)
        self._find(request.model_name, "")
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        _check_repository(request.repository_name)
        self._pool.snapshot().task_state(request.model_name)
        fault = "cannot be unloaded here: what is served follows the registry; retire its versions there"
        raise InvalidInput("model_name", fault)

    @property
    def _ready(self) -> bool:
        return self._service.ready and not self._drain.draining

    def _find(self, name: str, version: str) -> Resident:
        """Raises UnknownTask, UnknownVersion, UnknownAlias, NotLoaded."""
        which = parse_version(version)
        return self._pool.resolve(name, version=which.version, alias=which.alias)


def parse_version(text: str) -> Which:
    """`model_version`: a number is a version, anything else an alias, nothing is production."""
    if VERSION.fullmatch(text):
        return Which(int(text), None)
    return Which(None, text or None)


def _piece(request: pb.ModelInferRequest, piece: Piece, wish: RequestOptions) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version=str(wish.how["target"].resident.version),
        id=request.id,
        parameters={FINAL: pb.InferParameter(bool_param=False)},
    )
    answer, raw = TextAnswer(text=piece.text, tokens=piece.tokens), bool(request.raw_input_contents)
    write_outputs(response, requested_outputs(request, wish.spec), [answer], wish.spec, raw=raw)
    return response


def _end(request: pb.ModelInferRequest, generated: Generated) -> pb.ModelInferResponse:
    """The last response of a text: the pieces have told it all, so it adds "", or has no outputs if that was asked."""
    prediction = replace(generated.prediction, answers=(TextAnswer(text="", tokens=()),))
    response = _final(_respond(request, prediction))
    response.parameters["finish_reason"].string_param = generated.finish_reason
    if request.parameters[EMPTY_FINAL].bool_param:
        response.ClearField("outputs")
        response.ClearField("raw_output_contents")
    return response


def _final(response: pb.ModelInferResponse) -> pb.ModelInferResponse:
    response.parameters[FINAL].bool_param = True
    return response


def _respond(request: pb.ModelInferRequest, prediction: Prediction) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=prediction.task,
        model_version=str(prediction.version),
        id=request.id,
        parameters={"generation": pb.InferParameter(int64_param=prediction.generation)},
    )
    names, raw = requested_outputs(request, prediction.spec), bool(request.raw_input_contents)
    write_outputs(response, names, prediction.answers, prediction.spec, raw=raw)
    return response


def _timeout(request: pb.ModelInferRequest) -> float | None:
    """Seconds, from the parameter's microseconds; 0 is none."""
    microseconds = _whole_number(request, "timeout")
    return microseconds / 1e6 if microseconds else None


def _generation(request: pb.ModelInferRequest) -> DecodingOverrides:
    """Out of the request's parameters."""
    given = {name: request.parameters[name] for name in FIELDS if name in request.parameters}
    settings = {name: getattr(each, each.WhichOneof("parameter_choice") or "", None) for name, each in given.items()}
    return DecodingOverrides(settings, "parameters")


def _whole_number(request: pb.ModelInferRequest, name: str) -> int:
    """Of a parameter; 0 where it is missing."""
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param") or getattr(parameter, choice) < 0:
        raise InvalidInput(f"parameters.{name}", "must be an int64_param or uint64_param of at least 0")
    return getattr(parameter, choice)


def _text(request: pb.ModelInferRequest, name: str) -> str:
    """Of a parameter; "" where it is missing."""
    if name not in request.parameters:
        return ""
    parameter = request.parameters[name]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise InvalidInput(f"parameters.{name}", "must be a string_param")
    return parameter.string_param


def _describe(spec: TaskSpec, version: int) -> dict[str, pb.InferParameter]:
    texts = {"kind": spec.kind, "template": spec.template, "description": spec.description}
    if spec.labels:
        texts["labels"] = json.dumps(spec.labels, ensure_ascii=False)
    if takes_whole_prompt(spec):
        texts["whole_prompt_input"] = WHOLE_PROMPT
    dimensions = {"dimensions": spec.dimensions} if spec.dimensions else {}
    numbers = dimensions | {"max_rows": spec.max_rows, "max_chars": spec.max_chars, "version": version}
    described = {name: pb.InferParameter(string_param=text) for name, text in texts.items()}
    return described | {name: pb.InferParameter(int64_param=number) for name, number in numbers.items()}


def _index(state: PoolState, name: str) -> list[pb.RepositoryIndexResponse.ModelIndex]:
    """The task's versions, oldest first."""
    return [_version_state(state, name, number) for number in state.task_state(name).live]


def _version_state(state: PoolState, name: str, number: int) -> pb.RepositoryIndexResponse.ModelIndex:
    model = pb.RepositoryIndexResponse.ModelIndex(name=name, version=str(number), state=LOADING)
    if (name, number) in state.residents:
        model.state = READY
    elif failure := state.failed.get((name, number)):
        model.state, model.reason = UNAVAILABLE, failure.why
    return model


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInput("repository_name", "this server has one repository; leave the name empty")


def _own_version() -> str:
    try:
        return version("sidecast")
    except PackageNotFoundError:
        return "0"
