"""Feeds readers of what comes from outside with bytes that are led by the code that they reach: libFuzzer, by Atheris.

    python -m tests.fuzzing.guided FOLDER OPTIONS...

OPTIONS are libFuzzer's. An error that is none of ours, a reader that hangs, or memory that grows ends it with an exit
code that is not 0, and the input is left in a file. Inputs that reach new code are kept in FOLDER. The first byte of an
input says who reads it.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris
from google.protobuf.message import DecodeError

OURS = ("serving.access", "serving.api", "serving.http.body", "serving.config", "side_registry")
"""Packages whose code leads the fuzzer."""

with atheris.instrument_imports(include=list(OURS)):
    from protos import open_inference_pb2 as oip
    from protos import sidecast_pb2 as pb
    from serving.access import Access
    from serving.access.jwt_tokens import parse_keys
    from serving.access.tokens import read_tokens
    from serving.access.trust import read_trust
    from serving.api.native import read_rows as read_native
    from serving.api.open_inference.tensors import count_rows, read_rows
    from serving.api.wire import check_values
    from serving.config import AccessConfig, ConfigError, read_config
    from serving.errors import ServingError
    from serving.http.body import parse
    from serving.http.operations.open_inference import InferBody
    from serving.http.operations.tasks import PredictBody
    from side_registry import TaskSpec
    from side_registry.errors import ArtifactError, InvalidSignature
    from side_registry.manifest import parse_manifest
    from side_registry.signing import check_signature
    from side_registry.weights import frame_fault
    from tests.serving.access.test_jwt_tokens import AUDIENCE, ISSUER, JWKS, signed
    from tests.side_registry.runs import weights


SPEC = TaskSpec(
    name="vqa", kind="classification", template="{question}", images=("image",), labels=("no", "yes"), max_rows=4
)
TENSOR = oip.ModelInferRequest.InferInputTensor

Reader = Callable[[bytes], object]


def awaited(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run what waits for nothing but its turn."""
    with suppress(StopIteration):
        while True:
            coroutine.send(None)


class Readers:
    """Everything that is fed.

    Args:
        folder: for the files that readers of files read.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "any"
        keys = folder / "jwks.json"
        keys.write_text(json.dumps(JWKS))
        self._access = Access(AccessConfig(jwt_keys=str(keys), jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
        self.all: list[tuple[Reader, tuple[type[Exception], ...], bytes]] = [
            (lambda data: parse_manifest(data, "here"), (ArtifactError,), b'{"schema_version": 1, "task": "sst2"}'),
            (check_signature, (InvalidSignature,), b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}'),
            (self._of_file(frame_fault), (), weights(b"weights")),
            (self._of_file(read_tokens), (ValueError,), b'[[token]]\nname = "a"\nscopes = ["read"]\n'),
            (self._of_file(read_trust), (ValueError,), b'[[trust]]\ntasks = "a*"\nunsigned = true\n'),
            (self._of_file(self._settings), (ConfigError,), b"port = 1\n[batch]\nmax_batch_rows = 2\n"),
            (lambda data: parse(data, PredictBody), (ServingError,), b'{"inputs": ["a", {"b": "c"}], "priority": 1}'),
            (lambda data: parse(data, InferBody), (ServingError,), b'{"inputs": [{"name": "s", "shape": [1]}]}'),
            (self._native, (ServingError, DecodeError), _native().SerializeToString()),
            (self._tensors, (ServingError, DecodeError), _tensors().SerializeToString()),
            (self._jwt, (ServingError,), signed().encode()),
            (parse_keys, (ValueError,), json.dumps(JWKS).encode()),
        ]
        """Who reads, the errors that it may raise, and something like what it reads."""

    def feed(self, data: bytes) -> None:
        """Have one of them read it. Raises what is a fault of ours."""
        if not data:
            return
        read, errors, _ = self.all[data[0] % len(self.all)]
        with suppress(*errors):
            read(data[1:])

    def _of_file(self, read: Callable[[Path], object]) -> Reader:
        def write_and_read(data: bytes) -> object:
            self._file.write_bytes(data)
            return read(self._file)

        return write_and_read

    def _settings(self, path: Path) -> object:
        return read_config({"backbone": "b", "registry": "r"}, environ={}, file=path)

    def _native(self, data: bytes) -> None:
        check_values(data, pb.PredictRequest.DESCRIPTOR)
        awaited(read_native(pb.PredictRequest.FromString(data).rows))

    def _tensors(self, data: bytes) -> None:
        check_values(data, oip.ModelInferRequest.DESCRIPTOR)
        request = oip.ModelInferRequest.FromString(data)
        awaited(read_rows(request, SPEC, count_rows(request, SPEC)))

    def _jwt(self, data: bytes) -> None:
        token = data.decode("latin-1")
        asyncio.run(self._access.authenticate({"authorization": f"Bearer {token}"}))


def _native() -> pb.PredictRequest:
    return pb.PredictRequest(task="vqa", rows=[pb.Row(fields={"question": "a"}, images={"image": b"\xff"})])


def _tensors() -> oip.ModelInferRequest:
    inputs = [
        TENSOR(name=name, datatype="BYTES", shape=[1], contents={"bytes_contents": [b"a"]}) for name in SPEC.inputs
    ]
    raw = oip.ModelInferRequest(model_name="vqa", inputs=inputs)
    raw.raw_input_contents.append(b"\1\0\0\0a")
    return raw


def main(arguments: list[str]) -> None:
    """Feed until libFuzzer ends the process."""
    corpus, *options = arguments
    readers = Readers(Path(tempfile.mkdtemp(prefix="sidecast-fuzz-")))
    for number, (_, _, example) in enumerate(readers.all):
        (Path(corpus) / str(number)).write_bytes(bytes([number]) + example)
    atheris.Setup([sys.argv[0], *options, corpus], readers.feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
