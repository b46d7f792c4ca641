"""The servicer of the Open Inference Protocol, for `tritonclient.grpc` and other clients of it: a model is a task.

Turns messages into requests of the service, and its answers into messages; `tensors` reads and writes
the tensors. Errors are raised: the interceptor makes statuses of them.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from grpc.aio import ServicerContext

from ladder.answers import TextAnswer
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from serving.api.call import Tenants, counting, counting_tasks, deadline_of
from serving.api.call_context import CallContext
from serving.api.drain import Drain
from serving.api.guard import check_request, checked_group, may_read
from serving.api.inbox import Messages
from serving.api.open_inference.groups import GroupModel, group_of
from serving.api.open_inference.stream import FINAL, InferStream
from serving.api.open_inference.tensors import (
    WHOLE_PROMPT,
    count_rows,
    describe_config,
    describe_inputs,
    describe_outputs,
    flag_truncated,
    read_rows,
    requested_outputs,
    takes_whole_prompt,
    write_outputs,
)
from serving.api.permissions import GROUP, infer_rows
from serving.engine import Piece, Resident
from serving.errors import InvalidInput, NotServed
from serving.metrics import Answered, Metrics, installed_version
from serving.pipeline import (
    DecodingOverrides,
    Generated,
    Prediction,
    PredictRequest,
    PredictService,
    Refused,
    RequestOptions,
    Target,
)
from serving.versions import PoolState, SidePool
from side_registry.errors import RegistryError
from side_registry.groups import GroupVersion
from side_registry.specs.task import VERSION, TaskRef, TaskSpec
from side_registry.specs.task_kinds import KINDS

NAME = "sidecast"
EXTENSIONS = ("model_repository", "model_configuration", "schedule_policy", "parameters", "statistics")
READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
EMPTY_FINAL = "triton_enable_empty_final_response"

Answerable = TypeVar("Answerable", Target, Prediction)


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers calls of `inference.GRPCInferenceService`, with Triton's repository and configuration extensions."""

    def __init__(
        self, service: PredictService, pool: SidePool, metrics: Metrics, drain: Drain, tenants: Tenants | None = None
    ) -> None:
        self._service = service
        self._pool = pool
        self._metrics = metrics
        self._drain = drain
        self._tenants = tenants or Tenants()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: ServicerContext) -> pb.ServerLiveResponse:
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: CallContext) -> pb.ServerReadyResponse:
        """Say whether the tasks are known, and the server is not draining."""
        return pb.ServerReadyResponse(ready=self._ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: CallContext) -> pb.ModelReadyResponse:
        """Say whether this server can answer for a task, for one version or alias of it, or for a group."""
        try:
            if group_of(request.name) is not None:
                self._group_model(request.name, request.version, await self._checked_group(request.name))
            else:
                self._find(request.name, request.version)
        except (RegistryError, NotServed, InvalidInput):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: CallContext
    ) -> pb.ServerMetadataResponse:
        """Describe the server."""
        return pb.ServerMetadataResponse(name=NAME, version=installed_version("sidecast"), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: CallContext) -> pb.ModelMetadataResponse:
        """Describe the tensors, versions and settings of a task or a group."""
        if group_of(request.name) is not None:
            described = (await self._group(request.name, request.version, context)).metadata()
            described.platform = NAME
            return described
        resident = await self._arrived(request.name, request.version, context)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[model.version for model in _index(self._pool.snapshot(), request.name) if model.state == READY],
            platform=NAME,
            inputs=describe_inputs(resident.spec),
            outputs=describe_outputs(resident.spec),
            parameters=_describe(resident.spec, resident.version),
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: ServicerContext) -> pb.ModelConfigResponse:
        """Describe a task or a group as Triton's tools ask for it."""
        if group_of(request.name) is not None:
            config = (await self._group(request.name, request.version, context)).config()
        else:
            config = describe_config((await self._arrived(request.name, request.version, context)).spec)
        config.platform = config.backend = NAME
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: ServicerContext
    ) -> pb.ModelStatisticsResponse:
        """Count what versions have answered here: of one task or of all, of one version or of all that are resident."""
        state = self._pool.snapshot()
        if request.name:
            state.task_state(request.name)
        if request.version:
            keys = [self._find(request.name, request.version).key]
        else:
            keys = sorted(key for key in state.residents if request.name in ("", key[0]))
        return pb.ModelStatisticsResponse(model_stats=[_statistics(*key, self._metrics.answered(*key)) for key in keys])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: CallContext) -> pb.ModelInferResponse:
        """Answer rows of one task or group."""
        if group_of(request.model_name) is not None:
            return await self._infer_group(request, context)
        with counting(self._metrics, request.model_name) as counted:
            _, asked = await self._read(request, context)
            counted.deadline = asked.options.deadline
            prediction = await self._service.predict(asked)
            counted.version = prediction.version
            counted.rows = len(prediction.answers)
            return _respond(request, prediction)

    def ModelStreamInfer(
        self, requests: Messages[pb.ModelInferRequest], context: ServicerContext
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Answer each of a stream of requests as soon as it is ready."""
        return InferStream(partial(self._answer, context=context), self._drain).answer(requests)

    async def _answer(
        self, request: pb.ModelInferRequest, context: ServicerContext
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """One request of a stream: a text of one row piece by piece, everything else as ModelInfer would."""
        if group_of(request.model_name) is not None:
            await check_request(request)
            yield _final(await self._infer_group(request, context))
            return
        with counting(self._metrics, request.model_name) as counted:
            await check_request(request)
            target, asked = await self._read(request, context)
            counted.deadline = asked.options.deadline
            if not KINDS[target.resident.spec.kind].makes_text or len(asked.rows) > 1:
                prediction = await self._service.predict(asked)
                counted.version = prediction.version
                counted.rows = len(prediction.answers)
                yield _final(_respond(request, prediction))
                return
            async with aclosing(self._service.stream(asked)) as events:
                async for event in events:
                    if isinstance(event, Generated):
                        counted.version = event.prediction.version
                        counted.rows = 1
                        yield _end(request, event)
                    elif event.text:
                        yield _piece(request, event, target.resident)

    async def _read(self, request: pb.ModelInferRequest, context: CallContext) -> tuple[Target, PredictRequest]:
        """The version that answers, and the request to it: its rows are read by that version's spec."""
        options = self._options(request, context)
        target = await self._service.find(read_ref(request.model_name, request.model_version), options)
        spec = target.resident.spec
        requested_outputs(request, spec)  # raises before the rows are computed
        count = count_rows(request, spec)
        self._service.check_counts(1, count)
        return target, PredictRequest(targets=(target,), rows=await read_rows(request, spec, count), options=options)

    def _options(self, request: pb.ModelInferRequest, context: CallContext) -> RequestOptions:
        return RequestOptions(
            deadline=deadline_of(context, _timeout(request)),
            decoding=_decoding(request),
            priority=_whole_number(request, "priority"),
            tenant=self._tenants.of(context),
            route_key=_text(request, "route_key"),
            where="parameters.",
        )

    async def _infer_group(self, request: pb.ModelInferRequest, context: CallContext) -> pb.ModelInferResponse:
        """Answer rows of all tasks of a group. The fault of one task is that of the call."""
        with counting_tasks(self._metrics) as counted:
            group = await self._checked_group(request.model_name, infer_rows(request))
            counted.refs = group.refs
            options = self._options(request, context)
            counted.deadline = options.deadline
            targets = await self._service.find_tasks(group.refs, options)
            specs = [target.resident.spec for target in _answerable(targets)]
            model = GroupModel.of(request.model_name, group, specs)
            model.check_version(request.model_version)
            model.requested(request)  # raises before the rows are computed
            count = count_rows(request, model)
            self._service.check_counts(len(targets), count)
            rows = await read_rows(request, model, count)
            counted.outcomes = await self._service.predict_tasks(
                PredictRequest(targets=targets, rows=rows, options=options)
            )
            predictions = {prediction.task: prediction for prediction in _answerable(counted.outcomes)}
            return model.respond(request, predictions, min(one.generation for one in predictions.values()))

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: ServicerContext
    ) -> pb.RepositoryIndexResponse:
        """List the versions of every task, and their state."""
        _check_repository(request.repository_name)
        state = self._pool.snapshot()
        models = [model for name in sorted(state.tasks) for model in _index(state, name)]
        groups = {name: group.current for name, group in sorted(state.groups.items())}
        models += [self._group_state(*one) for one in groups.items() if all(may_read(r.task) for r in one[1].refs)]
        return pb.RepositoryIndexResponse(
            models=[model for model in models if model.state == READY or not request.ready]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        """Check that the task is loaded. What is loaded follows the registry."""
        _check_repository(request.repository_name)
        if request.parameters:
            fault = "are not supported: what is loaded is what was published"
            raise InvalidInput("parameters", fault)
        if group_of(request.model_name) is not None:
            await self._group(request.model_name, "", context)
        else:
            await self._arrived(request.model_name, "", context)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        """Refuse. What is loaded follows the registry."""
        _check_repository(request.repository_name)
        self._pool.snapshot().task_state(request.model_name)
        fault = "cannot be unloaded here: what is served follows the registry; retire its versions there"
        raise InvalidInput("model_name", fault)

    @property
    def _ready(self) -> bool:
        return self._service.ready and not self._drain.draining

    async def _checked_group(self, model: str, rows: int = 0) -> GroupVersion:
        """As `checked_group`, by the model's name."""
        return await checked_group(self._service.group, group_of(model) or "", rows)

    async def _group(self, name: str, version: str, context: CallContext) -> GroupModel:
        """As `_group_model`; first waits, up to the call's deadline, for versions that are still loading."""
        group = await self._checked_group(name)
        await asyncio.gather(*(self._service.arrived(ref, deadline_of(context)) for ref in group.refs))
        return self._group_model(name, version, group)

    def _group_model(self, name: str, version: str, group: GroupVersion) -> GroupModel:
        """A group whose tasks can all answer.

        Raises:
            what `_find` raises of one of its tasks.
            InvalidInput: another version than its current one.
        """
        state = self._pool.snapshot()
        specs = [state.resolve(ref.task, version=ref.version, alias=ref.alias).spec for ref in group.refs]
        model = GroupModel.of(name, group, specs)
        model.check_version(version)
        return model

    def _group_state(self, name: str, group: GroupVersion) -> pb.RepositoryIndexResponse.ModelIndex:
        model = pb.RepositoryIndexResponse.ModelIndex(name=GROUP + name, version=str(group.version), state=READY)
        try:
            self._group_model(model.name, "", group)
        except (RegistryError, NotServed) as error:
            model.state, model.reason = UNAVAILABLE, str(error)
        return model

    async def _arrived(self, name: str, version: str, context: CallContext) -> Resident:
        """As `_find`; first waits, up to the call's deadline, for a version that is still loading."""
        await self._service.arrived(read_ref(name, version), deadline_of(context))
        return self._find(name, version)

    def _find(self, name: str, version: str) -> Resident:
        """Raises UnknownTask, UnknownVersion, UnknownAlias, NotLoaded."""
        ref = read_ref(name, version)
        return self._pool.resolve(ref.task, version=ref.version, alias=ref.alias)


def _answerable(outcomes: Sequence[Answerable | Refused]) -> list[Answerable]:
    """The outcomes of all tasks. Raises the first fault among them."""
    answerable: list[Answerable] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        answerable.append(outcome)
    return answerable


def read_ref(model: str, version: str) -> TaskRef:
    """The task that a request names. As its version, a number is a version, other text an alias, "" is production."""
    if VERSION.fullmatch(version):
        return TaskRef(model, version=int(version))
    return TaskRef(model, alias=version or None)


def _piece(request: pb.ModelInferRequest, piece: Piece, resident: Resident) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version=str(resident.version),
        id=request.id,
        parameters={FINAL: pb.InferParameter(bool_param=False)},
    )
    answer = TextAnswer(text=piece.text, tokens=piece.tokens)
    raw = bool(request.raw_input_contents)
    write_outputs(response, requested_outputs(request, resident.spec), [answer], resident.spec, raw=raw)
    return response


def _end(request: pb.ModelInferRequest, generated: Generated) -> pb.ModelInferResponse:
    """The last response of a text. The pieces were the whole text, so it adds "", or has no outputs if asked so."""
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
    flag_truncated(response.outputs, prediction.truncated)
    return response


def _timeout(request: pb.ModelInferRequest) -> float | None:
    """Seconds, from the parameter's microseconds; 0 is none."""
    microseconds = _whole_number(request, "timeout")
    return microseconds / 1e6 if microseconds else None


def _decoding(request: pb.ModelInferRequest) -> DecodingOverrides:
    """The decoding settings among the request's parameters. One without a value is None, which no setting allows."""
    settings = {}
    for name in DecodingOverrides.NAMES:
        if name in request.parameters:
            parameter = request.parameters[name]
            settings[name] = getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
    return DecodingOverrides(settings, "parameters")


def _whole_number(request: pb.ModelInferRequest, name: str) -> int:
    """The value of a parameter; 0 where it is missing."""
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param") or getattr(parameter, choice) < 0:
        raise InvalidInput(f"parameters.{name}", "must be an int64_param or uint64_param of at least 0")
    return getattr(parameter, choice)


def _text(request: pb.ModelInferRequest, name: str) -> str:
    """The value of a parameter; "" where it is missing."""
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
    if spec.images:
        texts["images"] = json.dumps(spec.images, ensure_ascii=False)
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


def _statistics(task: str, version: int, answered: Answered) -> pb.ModelStatistics:
    success = pb.StatisticDuration(count=answered.requests, ns=round(answered.seconds * 1e9))
    return pb.ModelStatistics(
        name=task,
        version=str(version),
        last_inference=round(answered.at * 1000),
        inference_count=answered.rows,
        inference_stats=pb.InferStatistics(success=success),
    )


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInput("repository_name", "this server has one repository; leave the name empty")
