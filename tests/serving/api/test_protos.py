"""The generated code is that of the protos, and open_inference.proto is the protocol that tritonclient speaks."""

import json
import subprocess
import sys

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from protos import open_inference_pb2, sidecast_pb2
from protos.generate import stale

OURS_ALONE = {("inference.ModelMetadataResponse", "parameters")}
"""What MLServer has and Triton does not."""

PARTLY = {
    "inference.ModelConfig",
    "inference.ModelInput",
    "inference.ModelOutput",
    "inference.ModelStatistics",
    "inference.InferStatistics",
}
"""Messages of Triton's of which we have some fields."""

DUMP = """
import json
from tests.serving.api.test_protos import describe
from tritonclient.grpc import model_config_pb2, service_pb2
theirs = describe(service_pb2.DESCRIPTOR)
theirs["messages"] |= describe(model_config_pb2.DESCRIPTOR)["messages"]
print(json.dumps(theirs))
"""


def describe(file) -> dict:
    """Messages to fields to (number, type, repeated, message type); services to methods to their types."""
    messages: dict = {}
    for message in file.message_types_by_name.values():
        _describe(message, messages)
    methods = {
        method.full_name: [method.input_type.full_name, method.output_type.full_name]
        for service in file.services_by_name.values()
        for method in service.methods
    }
    return {"messages": messages, "methods": methods}


def _describe(message: Descriptor, found: dict) -> None:
    found[message.full_name] = {field.name: _field(field) for field in message.fields}
    for nested in message.nested_types:
        _describe(nested, found)


def _field(field: FieldDescriptor) -> list:
    oneof = field.containing_oneof.name if field.containing_oneof else None
    kind = field.message_type.full_name if field.message_type else None
    return [field.number, field.type, field.is_repeated, kind, oneof]


def test_generated_code_is_fresh() -> None:
    assert stale() == []


def test_numbers_and_types_are_those_of_tritonclient() -> None:
    """In another process: both define the package `inference`, and one pool cannot hold both."""
    code = "import protos; import sys; sys.modules['protos.open_inference_pb2'] = protos\n" + DUMP
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    theirs, ours = json.loads(result.stdout), describe(open_inference_pb2.DESCRIPTOR)
    for name, fields in ours["messages"].items():
        for field, found in fields.items():
            if (name, field) not in OURS_ALONE and not name.startswith("inference.ModelMetadataResponse.Parameters"):
                assert theirs["messages"][name][field] == found, (name, field)
        assert name in PARTLY or theirs["messages"].get(name, {}).keys() <= fields.keys(), name
    for method, types in ours["methods"].items():
        assert theirs["methods"][method] == types


def test_no_method_has_the_bare_name_of_one_in_the_other_protocol() -> None:
    def names(file) -> set[str]:
        return {method.name for service in file.services_by_name.values() for method in service.methods}

    assert not names(open_inference_pb2.DESCRIPTOR) & names(sidecast_pb2.DESCRIPTOR)
