"""What the conformance tests call: one registry with a tiny model's tasks, and the servers that follow it."""

import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch
from google.protobuf.json_format import MessageToDict
from google.rpc.error_details_pb2 import DESCRIPTOR as _DETAILS
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from ladder import Backbone, SideNetwork, Tokenizer
from ladder.answers import Answer
from protos import open_inference_pb2_grpc, sidecast_pb2_grpc
from serving.api.status import DETAILS_KEY
from serving.client.client import Client
from side_registry import GoldenExample, Manifest, Registry, TaskSpec
from tests.serving.kit import make_resident, make_run, make_spec
from tests.visual_runs import COLOURS, VISUAL_SPECS, VisualRuns
from training.evaluation import Model, predict

assert _DETAILS.pool.FindMessageTypeByName("google.rpc.ErrorInfo")  # so that details can be printed

LONG = 3000
"""Tokens of the longest text: seconds of work."""
MAX_MESSAGE_BYTES = 2**20
TENANT = "x-tenant"
TITLES = make_spec("titles", kind="text", max_new_tokens=8)
SPECS = (
    make_spec("sst2", max_rows=100),
    make_spec("stars", kind="regression", low=0.0, high=5.0),
    make_spec("meaning", kind="embedding", dimensions=8),
    make_spec("tags", kind="multilabel"),
    make_spec("names", kind="token_classification"),
    make_spec("passages", kind="ranking", max_rows=2),
    TITLES,
    make_spec("story", kind="text", max_new_tokens=1),
    make_spec("busy", kind="text", max_new_tokens=1),
)
TALES = ("story", "busy")
"""Tasks of SPECS that may make LONG texts. Their golden examples are short, so that they load at once."""
SETTINGS = {
    "dtype": "float32",
    "warmup_s": 0,
    "poll_s": 0.1,
    "tenant_header": TENANT,
    "max_message_bytes": MAX_MESSAGE_BYTES,
    "log_level": "WARNING",
    "keep_inputs": True,
    "task_limits": {"busy": {"max_task_requests": 1}},
}
"""Settings of every server, without backbone, registry and ports."""


class World:
    """A registry with one version of each of SPECS and VISUAL_SPECS, and the run folders that tests publish."""

    def __init__(self, folder: Path, backbone_folder: Path, backbone: Backbone, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.backbone_folder = backbone_folder
        self._backbone = backbone
        self._tokenizer = tokenizer
        self.registry = Registry.open(folder / "registry", create=True)
        self.visual = VisualRuns(folder / "visual", backbone, tokenizer)
        places = {"backbone": str(backbone_folder), "registry": str(folder / "registry")}
        self.settings = SETTINGS | places | self.visual.settings
        for spec in SPECS:
            self.publish(spec, edit=_longer if spec.name in TALES else None)
        for spec in VISUAL_SPECS:
            self.registry.publish(self.visual.run(spec))

    def run(self, spec: TaskSpec, seed: int = 1, **how: Any) -> Path:
        """Make a run folder to publish; `how` are arguments of `make_run`."""
        torch.manual_seed(seed)  # the side network's initial weights come from torch's generator
        return make_run(self.folder / f"{spec.name}-{seed}", self._backbone, self._tokenizer, spec, seed, **how)

    def publish(self, spec: TaskSpec, seed: int = 1, **how: Any) -> int:
        """Publish such a run; its version."""
        return self.registry.publish(self.run(spec, seed, **how)).version

    def expected(self, task: str, version: int = 1) -> tuple[GoldenExample, ...]:
        """The model's answers to each of kit.TEXTS, one at a time and without a server."""
        return self.registry.manifest(task, version).examples

    def model_answer(self, spec: TaskSpec, text: str, seed: int = 1) -> Answer:
        """The answer of the model of `run(spec, seed)` to one text, without a server or a cache."""
        torch.manual_seed(seed)
        resident = make_resident(self._backbone, self._tokenizer, spec, seed=seed)
        assert isinstance(resident.side, SideNetwork)
        model = Model(spec=spec, side=resident.side, answerer=resident.answerer)
        [found] = predict(model, self._backbone, self._tokenizer, [{"sentence": text}])
        return found

    def broken(self, spec: TaskSpec, seed: int = 9) -> int:
        """Publish a version that no server loads, because it was trained on another backbone."""
        return self.publish(spec, seed, edit=_of_another_backbone)


def _longer(manifest: Manifest) -> Manifest:
    spec = manifest.spec.model_copy(update={"max_new_tokens": LONG})
    return manifest.model_copy(update={"spec": spec, "examples": ()})


def _of_another_backbone(manifest: Manifest) -> Manifest:
    other = manifest.backbone.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    return manifest.model_copy(update={"backbone": other})


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its responses, or its error."""

    code: str
    details: str
    status: Any
    """google.rpc.Status as a document, or None."""
    responses: tuple[Any, ...] = ()

    @property
    def reason(self) -> str:
        """The reason in the error's ErrorInfo, or an empty string."""
        return next((detail["reason"] for detail in (self.status or {}).get("details", []) if "reason" in detail), "")


class Target:
    """A deployment to call: channel, client and stubs.

    Args:
        http: URL of its HTTP API.
        followers: number of its servers that follow the registry.
        metrics: returns the URL of each server's metrics.
    """

    def __init__(
        self, name: str, address: str, http: str, followers: int, metrics: Callable[[], Iterable[str]]
    ) -> None:
        self.name = name
        self.address = address
        self.http = http
        self.followers = followers
        self._metrics = metrics
        self.channel = grpc.insecure_channel(address, [("grpc.enable_retries", 0)])
        self.client = Client(address)
        self.native: Any = sidecast_pb2_grpc.SidecastStub(self.channel)
        self.admin: Any = sidecast_pb2_grpc.AdminStub(self.channel)
        self.oip: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    def own(self, name: str, **how: Any) -> TaskSpec:
        """The spec of a task that only this target's tests change."""
        return make_spec(self._own(name), **how)

    def own_visual(self, name: str) -> TaskSpec:
        """The same of a task that reads an image."""
        return COLOURS.model_copy(update={"name": self._own(name)})

    def _own(self, name: str) -> str:
        return f"{name}-{self.name.replace(' ', '-').lower()}"

    def counted(self, name: str, **labels: str) -> list[float]:
        """Sum of a metric over all series with these labels, for each server."""
        return [_sum(_read(url), name, labels) for url in self._metrics()]

    def close(self) -> None:
        self.client.close()
        self.channel.close()


def outcome(call: Callable[[], Any]) -> Outcome:
    """Make a call; if it returns a stream, read it to the end."""
    try:
        answered: Any = call()
        responses = tuple(answered) if hasattr(answered, "__next__") else (answered,)
        return Outcome("OK", "", None, responses)
    except grpc.RpcError as error:
        failed: Any = error
        trailers: dict[Any, Any] = dict(failed.trailing_metadata() or ())
        status = Status.FromString(trailers[DETAILS_KEY]) if DETAILS_KEY in trailers else None
        return Outcome(
            failed.code().name, failed.details() or "", status and _without_request_id(MessageToDict(status))
        )


def _without_request_id(status: dict[str, Any]) -> dict[str, Any]:
    """Each call has an id of its own."""
    details = [detail for detail in status.get("details", []) if "requestId" not in detail]
    return status | {"details": details}


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def _sum(text: str, name: str, labels: dict[str, str]) -> float:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())
