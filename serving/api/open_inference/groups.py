"""A task group as a model of the Open Inference Protocol: `group/NAME`, with one output for each of its tasks.

Its inputs are those of all its tasks together. The output of a task has the task's name and holds the first column of
its answers: the label, the value, the text, the vector, or the labels as a JSON list. Other columns come where they are
asked for by name, as TASK.COLUMN.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protos import open_inference_pb2 as pb
from serving.api.open_inference.tensors import (
    MAX_OUTPUTS,
    check_output,
    config_output,
    describe_inputs,
    describe_output,
    flag_truncated,
    write_outputs,
)
from serving.api.permissions import GROUP
from serving.errors import InvalidInput
from serving.pipeline import Prediction
from side_registry.groups import GroupVersion
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS, AnswerColumn


def group_of(model: str) -> str | None:
    """The group that a model's name means; None for a task's name, which has no slash."""
    return model[len(GROUP) :] if model.startswith(GROUP) else None


@dataclass(frozen=True, slots=True)
class GroupModel:
    """A group with the specs of its tasks, as they are served now."""

    name: str
    """`group/NAME`."""
    version: int
    specs: Mapping[str, TaskSpec]
    """By task, in the group's order."""

    @classmethod
    def of(cls, name: str, group: GroupVersion, specs: Sequence[TaskSpec]) -> "GroupModel":
        """The model of a group whose tasks have these specs, in its order."""
        return cls(name, group.version, {spec.name: spec for spec in specs})

    @property
    def fields(self) -> tuple[str, ...]:
        """The text inputs of all tasks, each once."""
        return tuple(dict.fromkeys(name for spec in self.specs.values() for name in spec.fields))

    @property
    def images(self) -> tuple[str, ...]:
        """The image inputs of all tasks, each once."""
        return tuple(dict.fromkeys(name for spec in self.specs.values() for name in spec.images))

    @property
    def inputs(self) -> tuple[str, ...]:
        """All that a row needs."""
        return (*self.fields, *self.images)

    @property
    def max_rows(self) -> int:
        """Most rows of a request."""
        return min(spec.max_rows for spec in self.specs.values())

    @property
    def _firsts(self) -> dict[str, tuple[TaskSpec, AnswerColumn]]:
        return {name: (spec, KINDS[spec.kind].columns[0]) for name, spec in self.specs.items()}

    def metadata(self) -> pb.ModelMetadataResponse:
        """Its tensors, and its tasks."""
        outputs = [describe_output(column, spec, name) for name, (spec, column) in self._firsts.items()]
        return pb.ModelMetadataResponse(
            name=self.name,
            versions=[str(self.version)],
            inputs=describe_inputs(self),
            outputs=outputs,
            parameters={
                "tasks": pb.InferParameter(string_param=json.dumps(list(self.specs))),
                "version": pb.InferParameter(int64_param=self.version),
                "max_rows": pb.InferParameter(int64_param=self.max_rows),
            },
        )

    def config(self) -> pb.ModelConfig:
        """As Triton's tools ask for it."""
        return pb.ModelConfig(
            name=self.name,
            max_batch_size=self.max_rows,
            input=[pb.ModelInput(name=name, data_type="TYPE_STRING", dims=[1]) for name in self.inputs],
            output=[config_output(column, spec, name) for name, (spec, column) in self._firsts.items()],
        )

    def requested(self, request: pb.ModelInferRequest) -> list[tuple[str, str]]:
        """The outputs to answer with, as task and column; the first column of every task where none is named.

        Raises:
            InvalidInput: one that the group does not have.
        """
        firsts = {name: column.name for name, (_, column) in self._firsts.items()}
        known = list(firsts)
        for name, spec in self.specs.items():
            known += [f"{name}.{column.name}" for column in KINDS[spec.kind].columns]
        if len(request.outputs) > max(MAX_OUTPUTS, len(known)):
            raise InvalidInput("outputs", f"{len(request.outputs)} in one request; name each once")
        names = [check_output(request, index, known, self.name) for index in range(len(request.outputs))]
        split = [name.partition(".") for name in dict.fromkeys(names)] or [(name, "", "") for name in firsts]
        return [(task, column or firsts[task]) for task, _, column in split]

    def respond(
        self, request: pb.ModelInferRequest, predictions: Mapping[str, Prediction], generation: int
    ) -> pb.ModelInferResponse:
        """The answers of all tasks."""
        versions = {task: prediction.version for task, prediction in predictions.items()}
        response = pb.ModelInferResponse(
            model_name=self.name,
            model_version=str(self.version),
            id=request.id,
            parameters={
                "generation": pb.InferParameter(int64_param=generation),
                "versions": pb.InferParameter(string_param=json.dumps(versions)),
            },
        )
        named = [output.name for output in request.outputs]
        for index, (task, column) in enumerate(self.requested(request)):
            prediction = predictions[task]
            raw = bool(request.raw_input_contents)
            write_outputs(response, [column], prediction.answers, prediction.spec, raw=raw)
            response.outputs[-1].name = list(dict.fromkeys(named))[index] if named else task
            flag_truncated(response.outputs[-1:], prediction.truncated)
        return response

    def check_version(self, version: str) -> None:
        """Raises InvalidInput: a request names another version than the current one."""
        if version not in ("", str(self.version)):
            why = f"must be empty or {self.version}: a group answers with its current list of tasks"
            raise InvalidInput("model_version", why)
