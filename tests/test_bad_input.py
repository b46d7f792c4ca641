"""Bad run folders: every way to publish refuses them with one clear error, little memory and nothing written.

Then bad versions that were written into a registry without these checks: a server refuses to load them, says why, and
keeps the old version.
"""

import hashlib
import json
import shutil
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_status import rpc_status
from safetensors.torch import load_file, save_file

from ladder import Backbone, Tokenizer, load_backbone, load_tokenizer
from ladder.side.checkpoint import HEADER
from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving.client.client import Client
from serving.client.errors import SidecastError, from_status
from serving.config import LoadConfig
from serving.errors import CorruptSide, LoadError, SideTooLarge
from serving.metrics import Metrics
from serving.versions.loader import Loader
from serving.versions.pool import PoolState, SidePool
from serving.versions.reconciler import Reconciler
from side_registry import MANIFEST, SIDE_NETWORK, Registry, RegistryError, TaskRef, read_artifact
from side_registry.blobs import Blobs
from side_registry.log import Publish, SetAlias
from side_registry.manifest import MAX_MANIFEST_BYTES
from tests.serving.api_kit import Parlour
from tests.serving.kit import make_run, make_spec
from tests.side_registry import runs
from tests.sidecast.cli_kit import sidecast

MOST_BYTES = 200 << 20
"""The most memory that Python may use for a bad run, whose largest file is five times that."""
MOST_LETTERS = 1500
"""The longest error message."""

Publisher = Callable[[Path], str]
"""Publishes a run that must be refused, and returns the refusal."""


# --- ways to publish


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    with Parlour(tmp_path_factory.mktemp("parlour")).open() as opened:
        yield opened


@pytest.fixture(params=["command", "registry", "server"])
def refused(request: pytest.FixtureRequest, parlour: Parlour) -> Publisher:
    """Publishes in one way and checks that nothing is written."""
    by = {"command": by_command, "registry": by_registry, "server": by_server}[request.param]

    def publish(run: Path) -> str:
        before = written(parlour)
        tracemalloc.start()
        try:
            message = by(parlour, run)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert written(parlour) == before
        assert peak < MOST_BYTES
        assert "\n" not in message
        assert len(message) < MOST_LETTERS
        return message

    return publish


def by_command(parlour: Parlour, run: Path) -> str:
    return sidecast("publish", run, "--registry", parlour.registry.url).mistake


def by_registry(parlour: Parlour, run: Path) -> str:
    with pytest.raises(RegistryError) as caught:
        parlour.registry.publish(run)
    return str(caught.value)


def by_server(parlour: Parlour, run: Path) -> str:
    """Send the raw messages, because our client would refuse some of them itself."""
    with (run / MANIFEST).open("rb") as file:
        requests = [pb.PublishRequest(header=pb.PublishRequest.Header(manifest=file.read(MAX_MANIFEST_BYTES + 1)))]
    with (run / SIDE_NETWORK).open("rb") as file:
        while data := file.read(1 << 20):
            requests.append(pb.PublishRequest(chunk=pb.PublishRequest.Chunk(file=SIDE_NETWORK, data=data)))
    with grpc.insecure_channel(parlour.address) as channel, pytest.raises(grpc.RpcError) as caught:
        sidecast_pb2_grpc.AdminStub(channel).Publish(iter(requests))
    return str(from_status(rpc_status.from_call(caught.value)))


def written(parlour: Parlour) -> set[str]:
    folder = Path(parlour.registry.url)
    return {str(path.relative_to(folder)) for part in ("blobs", "log") for path in (folder / part).rglob("*")}


def edit(run: Path, **changes: Any) -> Path:
    """Change fields of the manifest's JSON by path (`spec__name`); `...` removes a field."""
    document = json.loads((run / MANIFEST).read_bytes())
    for name, value in changes.items():
        *parents, last = name.split("__")
        holder = document
        for parent in parents:
            holder = holder[parent]
        if value is ...:
            del holder[last]
        else:
            holder[last] = value
    (run / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    return run


def with_side(run: Path, data: bytes, size: int | None = None) -> Path:
    """Replace the side network and describe it correctly in the manifest; `size` makes the file longer with a hole."""
    path = run / SIDE_NETWORK
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size or len(data))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return edit(run, files={SIDE_NETWORK: {"sha256": digest, "size": path.stat().st_size}})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A good run, which a test then changes."""
    return runs.make_run(tmp_path / "run", payload=tmp_path.name.encode())


# --- manifests

NAMES = {
    "slash": "a/b",
    "up": "../sst2",
    "dot": ".",
    "dots": "..",
    "dotted": "sst2.v1",
    "cyrillic": "ѕst2",
    "wide": "ｓst2",
    "joined": "sst\u200b2",
    "turned": "\u202esst2",
    "composed": "sst\u0301",
    "digits": "sst٢",
    "long": "x" * 10_000,
    "nothing": "",
    "line": "sst2\n",
    "alias": "sst2@canary",
    "version": "sst2:1",
    "nul": "sst2\0",
    "option": "-sst2",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_task_is_not_named_so(run: Path, refused: Publisher, name: str) -> None:
    assert "must be 1 to 64 of the letters" in refused(edit(run, task=name, spec__name=name))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "other"}, "task 'other' and spec.name 'sst2' must be the same"),
        ({"task": ...}, "task: Field required"),
        ({"spec": ...}, "spec: Field required"),
        ({"backbone": ...}, "backbone: Field required"),
        ({"tokenizer_fingerprint": ...}, "tokenizer_fingerprint: Field required"),
        ({"side": ...}, "side: Field required"),
        ({"spec__template": ...}, "spec.template: Field required"),
        ({"schema_version": 2}, "newer than this program's 1, upgrade sidecast"),
        ({"schema_version": "x"}, "schema_version: "),
        ({"task": 7}, "task: "),
        ({"spec": []}, "spec: "),
        ({"spec__labels": "ab"}, "spec.labels: "),
        ({"spec__max_rows": 10**18}, "spec.max_rows: "),
        ({"spec__max_chars": 1.5}, "spec.max_chars: "),
        ({"side": "linear"}, "side: "),
        ({"metrics": {"accuracy": "good"}}, "metrics.accuracy: "),
        ({"examples": {}}, "examples: "),
        ({"examples": [{"fields": {"sentence": 3}, "expected": {}}]}, "examples.0.fields.sentence: "),
        ({"files": []}, "files: "),
        ({"files": {}}, f"does not name {SIDE_NETWORK}"),
        ({"files": {SIDE_NETWORK: {"sha256": "0" * 64, "size": 10**18}}}, str(10**18)),
        ({"files": {SIDE_NETWORK: {"sha256": "0" * 64, "size": 10**30}}}, str(10**30)),
        ({"files": {SIDE_NETWORK: {"sha256": "0" * 64, "size": -1}}}, "size: "),
        ({"files": {SIDE_NETWORK: {"sha256": "../" * 21 + "x", "size": 1}}}, "sha256: "),
        ({"files": {"../x": {"sha256": "0" * 64, "size": 1}}}, "not a plain file name"),
        ({"files": {f"x{n}": {"sha256": "0" * 64, "size": 0} for n in range(65)}}, "at most 64 items"),
        ({"backbone__fingerprint": "x" * 10_000}, "backbone.fingerprint: "),
        ({"provenance": {"run_id": "x" * 10_000}}, "provenance.run_id has 10000 characters"),
        ({"spec__labels": [str(number) for number in range(100_000)]}, "spec.labels: "),
        ({"spec__labels": ["a", "b" * 10_000]}, "labels must have at most 1000 characters"),
        ({"examples": [{"fields": {}, "expected": {}}] * 2_000}, "at most 1024 items"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_manifest_is_refused_by_its_field(run: Path, refused: Publisher, changes: dict[str, Any], says: str) -> None:
    assert says in refused(edit(run, **changes))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1]", b"\xff\xfe{}", b"[" * 1_000_000, b'{"a":' * 1_000_000, b'{"task": "\\ud800"}'],
    ids=["empty", "half", "null", "list", "not UTF-8", "deep lists", "deep objects", "half a pair"],
)
def test_a_manifest_that_does_not_read(run: Path, refused: Publisher, content: bytes) -> None:
    (run / MANIFEST).write_bytes(content)
    assert MANIFEST in refused(run)


def test_a_manifest_of_a_gigabyte_is_not_read(run: Path, refused: Publisher) -> None:
    with (run / MANIFEST).open("ab") as file:
        file.truncate(1 << 30)
    assert "larger than" in refused(run)


def test_fields_of_a_newer_program_are_kept_to_the_byte(run: Path, parlour: Parlour, tmp_path: Path) -> None:
    spec = json.loads((run / MANIFEST).read_bytes())["spec"]
    edit(run, task="newer", spec=spec | {"name": "newer", "inputs": {"image": "png"}}, signature={"by": ["ada"]})
    published = parlour.registry.publish(run)
    copy = parlour.registry.download("newer", published.version, tmp_path / "copy")
    assert copy.manifest_bytes == (run / MANIFEST).read_bytes()
    manifest = parlour.registry.manifest("newer", published.version)
    assert manifest.model_extra == {"signature": {"by": ["ada"]}}
    assert json.loads(manifest.to_json())["spec"]["inputs"] == {"image": "png"}


@pytest.mark.parametrize(
    "alias", ["7", "007", "1e3", "٧", "-1", "+1", "a" * 33, "Production", "", "ａ", "a/b", "..", "x\n"]
)
def test_no_alias_looks_like_a_version(run: Path, parlour: Parlour, alias: str) -> None:
    before = written(parlour)
    with pytest.raises(RegistryError, match="is no valid alias: use 1 to 32"):
        parlour.registry.publish(run, alias=alias)
    with pytest.raises(RegistryError, match="is no valid alias: use 1 to 32"):
        parlour.registry.set_alias("sst2", alias, 1)
    with pytest.raises(RegistryError):
        TaskRef.parse(f"sst2@{alias}")
    if alias:  # none named is production
        with Client(parlour.address) as client, pytest.raises(SidecastError):
            client.publish(run, alias=alias)
    assert sidecast("publish", run, "--registry", parlour.registry.url, f"--alias={alias}").mistake
    assert written(parlour) == before


@pytest.mark.parametrize(
    "url",
    ["ftp://a/b", "http://127.0.0.1:1/r", "ssh://a/b", "x://", "", "s3://", "file:///etc/passwd", "~nobody_here/r"],
)
def test_addresses_that_are_no_registry(url: str) -> None:
    with pytest.raises(RegistryError) as caught:
        Registry.open(url, create=True)
    assert "is not a registry" in str(caught.value)
    if url:  # none named is another mistake
        assert "is not a registry" in sidecast("tasks", f"--registry={url}").mistake


def test_a_registry_is_not_made_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(RegistryError, match="it holds other files"):
        Registry.open(tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- side networks whose header lies

WEIGHT = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def framed(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES = {
    "empty": (b"", "header would have"),
    "seven bytes": (b"1234567", "header would have"),
    "no header": (b"12345678", "header would have"),
    "header beyond the file": (framed({"a": WEIGHT}, length=1000), "its header would have 1000 bytes"),
    "a terabyte of header": (framed({"a": WEIGHT}, length=10**12), f"its header would have {10**12} bytes"),
    "all ones": (b"\xff" * 64, "header would have"),
    "no JSON": (framed(b"{'a': 1}"), "no JSON object"),
    "not UTF-8": (framed(b'{"\xff": 1}'), "no JSON object"),
    "a list": (framed([1]), "no JSON object"),
    "deep": (framed(b'{"a":' * 10_000), "no JSON object"),
    "twice": (framed(b'{"a": 1, "a": 2}'), "comes twice"),
    "no entry": (framed({"a": 1}), "'a' lacks a dtype"),
    "no offsets": (framed({"a": {"dtype": "F32", "shape": [4]}}), "'a' lacks a dtype"),
    "unknown dtype": (framed({"a": WEIGHT | {"dtype": "F31"}}), "unknown dtype 'F31'"),
    "a list for a dtype": (framed({"a": WEIGHT | {"dtype": ["F32"]}}), "unknown dtype"),
    "a shape that does not fit": (
        framed({"a": WEIGHT | {"shape": [2, 3]}}),
        "has 16 bytes, its shape and dtype need 24",
    ),
    "an absurd shape": (
        framed({"a": WEIGHT | {"shape": [1 << 40, 1 << 40]}}),
        "has 16 bytes, its shape and dtype need",
    ),
    "a negative shape": (framed({"a": WEIGHT | {"shape": [-2, -2]}}), "no lists of whole numbers"),
    "a broken shape": (framed({"a": WEIGHT | {"shape": [2.0, 2]}}), "no lists of whole numbers"),
    "a true shape": (framed({"a": WEIGHT | {"shape": [True, 4]}}), "no lists of whole numbers"),
    "many dimensions": (framed({"a": WEIGHT | {"shape": [1] * 10_000}}), "no lists of whole numbers"),
    "offsets beyond": (framed({"a": WEIGHT | {"shape": [5], "data_offsets": [0, 20]}}), "end at byte 20 of 16"),
    "offsets far beyond": (framed({"a": WEIGHT | {"data_offsets": [0, 1 << 62]}}), "no lists of whole numbers"),
    "backwards": (framed({"a": WEIGHT | {"data_offsets": [16, 0]}}), "has -16 bytes"),
    "three offsets": (framed({"a": WEIGHT | {"data_offsets": [0, 8, 16]}}), "no lists of whole numbers"),
    "overlap": (framed({"a": WEIGHT, "b": WEIGHT}), "'b' begins at byte 0, the one before it ends at 16"),
    "a gap": (framed({"a": WEIGHT | {"data_offsets": [4, 20]}}, bytes(20)), "begins at byte 4"),
    "bytes of no tensor": (framed({"a": WEIGHT}, bytes(17)), "end at byte 16 of 17"),
    "cut off": (framed({"a": WEIGHT}, bytes(15)), "end at byte 16 of 15"),
}


@pytest.mark.parametrize(("data", "says"), LIES.values(), ids=LIES)
def test_a_side_network_that_lies_about_itself_is_not_published(
    run: Path, refused: Publisher, data: bytes, says: str
) -> None:
    message = refused(with_side(run, data))
    assert f"{SIDE_NETWORK} is no whole safetensors file" in message
    assert says in message


def test_a_header_of_many_megabytes_is_not_read(run: Path, refused: Publisher) -> None:
    message = refused(with_side(run, struct.pack("<Q", 5 << 20), size=(5 << 20) + 8))
    assert "at most 4194304 are read" in message or "this server takes 100000" in message


# --- written into the registry without checks


class Writer:
    """Writes any run into a registry, with correct digests, and follows it as a server does."""

    def __init__(self, folder: Path, backbone: Backbone, tokenizer: Tokenizer, most_bytes: int) -> None:
        self.registry = Registry.open(folder / "registry", create=True)
        self.runs = [make_run(folder / str(seed), backbone, tokenizer, make_spec(), seed) for seed in (1, 2)]
        config = LoadConfig(max_side_bytes=most_bytes, poll_s=1e-9, retry_s=1000.0, max_retry_s=1000.0)
        self.loader = Loader(self.registry, backbone, tokenizer, config)
        self.pool, self.metrics = SidePool(), Metrics()
        self.reconciler = Reconciler(self.registry, self.pool, self.loader.load, config, self.metrics)
        self.registry.publish(self.runs[0])
        self.follow()

    def follow(self) -> PoolState:
        """Step until the server has followed the whole log."""
        while self.reconciler.step():
            pass
        return self.pool.snapshot()

    def run(self, folder: Path) -> Path:
        """A good second version, which a test then changes."""
        return Path(shutil.copytree(self.runs[1], folder / "run"))

    def force(self, run: Path) -> int:
        """Commit a run as the production version without any check."""
        blobs = Blobs(self.registry.store)
        manifest = (run / MANIFEST).read_bytes()
        blobs.add((run / SIDE_NETWORK).read_bytes())
        state = self.registry.state()
        version = state.task("sst2").last_version + 1
        published = Publish(
            task="sst2", version=version, manifest_sha256=blobs.add(manifest), kind="classification", backbone="x"
        )
        actions = (published, SetAlias(task="sst2", alias="production", version=version))
        self.registry.commit(lambda _: (actions, None), "mallory", "")
        return version

    def refusal(self, run: Path) -> LoadError:
        """Commit a bad version; the server's error. Checks that it is counted and that version 1 still answers."""
        version = self.force(run)
        before = self.failures()
        state = self.follow()
        assert state.resolve("sst2").version == 1
        assert (state.generation, state.wanted) == (self.registry.state().generation,) * 2
        failure = state.failed["sst2", version]
        assert self.failures()[failure.reason] == before[failure.reason] + 1
        with pytest.raises(LoadError) as caught:
            self.loader.load("sst2", version)
        assert failure.why == str(caught.value)
        assert len(failure.why) < MOST_LETTERS
        assert "\n" not in failure.why
        self.registry.set_alias("sst2", "production", 1)
        self.registry.retire("sst2", version)
        return caught.value

    def failures(self) -> Counter[str]:
        """Failures so far, by reason."""
        [metric] = [family for family in self.metrics.registry.collect() if family.name == "sidecast_load_failures"]
        totals = [one for one in metric.samples if one.name.endswith("_total") and one.labels["task"] == "sst2"]
        return Counter({total.labels["reason"]: int(total.value) for total in totals})


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(tiny_t5: Path) -> Tokenizer:
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, tokenizer: Tokenizer) -> Writer:
    """A server that serves version 1 before and after each test."""
    return Writer(tmp_path_factory.mktemp("writer"), backbone, tokenizer, most_bytes=1 << 20)


@pytest.mark.parametrize(
    "lie", ["a terabyte of header", "overlap", "an absurd shape", "unknown dtype", "cut off", "deep"]
)
def test_a_server_refuses_a_side_network_that_lies(tmp_path: Path, writer: Writer, lie: str) -> None:
    data, says = LIES[lie]
    error = writer.refusal(with_side(writer.run(tmp_path), data))
    assert isinstance(error, CorruptSide)
    assert says in str(error)


def rewritten(run: Path, change: Callable[[dict[str, torch.Tensor]], None], header: str | None = None) -> Path:
    """Change a side network's tensors; the file stays whole."""
    path = run / SIDE_NETWORK
    data = path.read_bytes()
    settings = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][HEADER]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={HEADER: settings if header is None else header})
    return with_side(run, path.read_bytes())


def set_first(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["upsample.weight"].view(-1)[0] = value

    return change


def widen(tensors: dict[str, torch.Tensor]) -> None:
    """Finite here, and infinite in float32."""
    tensors["upsample.weight"] = tensors["upsample.weight"].double() * 1e300


CHANGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "NaN": (set_first(float("nan")), "not finite numbers"),
    "infinite": (set_first(float("inf")), "not finite numbers"),
    "minus infinite": (set_first(float("-inf")), "not finite numbers"),
    "too large for float32": (widen, "not finite numbers"),
    "whole numbers": (lambda t: t.update({"upsample.weight": t["upsample.weight"].long()}), "not finite numbers"),
    "eight bits": (
        lambda t: t.update({"upsample.weight": t["upsample.weight"].to(torch.float8_e4m3fn)}),
        "not finite numbers",
    ),
    "one too few": (lambda t: t.pop("upsample.weight"), "lacks ['upsample.weight']"),
    "one too many": (lambda t: t.update(extra=torch.zeros(1)), "has unknown ['extra']"),
    "a long name": (lambda t: t.update({"x" * 100_000: torch.zeros(1)}), "has unknown ['xxx"),
    "turned": (lambda t: t.update({"upsample.weight": t["upsample.weight"].T.contiguous()}), "has shape (8, 32)"),
    "none": (lambda t: t.clear(), "lacks ["),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_server_refuses_weights_that_do_not_fit(tmp_path: Path, writer: Writer, change: Any, says: str) -> None:
    error = writer.refusal(rewritten(writer.run(tmp_path), change))
    assert isinstance(error, CorruptSide)
    assert says in str(error)


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", "null", "[" * 100_000, '{"schema": 1}', '{"schema": 2, "config": {}}', '{"schema": 1, "config": 3}',
     '{"schema": 1, "config": {"reduction": "8"}}', '{"schema": 1, "config": {"head": "linear", "outputs": 1e30}}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_server_refuses_settings_in_the_file_that_do_not_read(tmp_path: Path, writer: Writer, header: str) -> None:
    assert isinstance(writer.refusal(rewritten(writer.run(tmp_path), lambda _: None, header)), CorruptSide)


@pytest.mark.parametrize(
    "side",
    [{"reduction": 0}, {"reduction": 10**30}, {"reduction": 2.5}, {"reduction": None}, {"encoder_layers": ["a"]},
     {"encoder_layers": {"0": 1}}, {"encoder_layers": list(range(100_000))}, {"head": ["text"]}, {"dropout": "x"},
     {"head": "linear", "outputs": 10**30}, {"head": "linear", "outputs": 3}, {"gate_temperature": "NaN"}, {"new": 1}],
    ids=lambda side: str(side)[:40],
)  # fmt: skip
def test_a_server_refuses_settings_that_make_no_side_network(tmp_path: Path, writer: Writer, side: dict) -> None:
    assert isinstance(writer.refusal(edit(writer.run(tmp_path), side=side)), CorruptSide)


@pytest.mark.parametrize("size", [10**18, (1 << 20) + 1])
def test_a_server_fetches_nothing_that_says_it_is_too_large(tmp_path: Path, writer: Writer, size: int) -> None:
    error = writer.refusal(edit(writer.run(tmp_path), files__side_network={"sha256": "0" * 64, "size": size}))
    assert isinstance(error, SideTooLarge)


def test_a_server_refuses_a_version_of_another_task(tmp_path: Path, writer: Writer) -> None:
    run = writer.run(tmp_path)
    spec = json.loads((run / MANIFEST).read_bytes())["spec"]
    error = writer.refusal(edit(run, task="other", spec=spec | {"name": "other"}))
    assert "its manifest is of task 'other'" in str(error)


@pytest.mark.parametrize("which", ["the manifest", "the side network"])
def test_what_was_tampered_with_is_served_once_it_is_published_again(
    tmp_path: Path, writer: Writer, which: str
) -> None:
    run = edit(writer.run(tmp_path), provenance={"run_id": which})
    digest = read_artifact(run).manifest.files[SIDE_NETWORK].sha256
    if which == "the manifest":
        digest = hashlib.sha256((run / MANIFEST).read_bytes()).hexdigest()
    version = writer.registry.publish(run, alias="production").version
    blob = Path(writer.registry.url, "blobs", "sha256", digest)
    blob.write_bytes(blob.read_bytes().replace(b"e", b"f"))
    state = writer.follow()
    assert state.resolve("sst2").version == 1
    failure = state.failed["sst2", version]
    assert (failure.reason, failure.transient, digest in failure.why) == ("CORRUPT_SIDE", True, True)
    assert writer.registry.publish(run).already  # and mends it
    writer.registry.set_alias("sst2", "again", version)  # the task changed: it is looked at anew
    state = writer.follow()
    assert (state.resolve("sst2").version, state.failed) == (version, {})
    writer.registry.set_alias("sst2", "production", 1)
    assert writer.follow().resolve("sst2").version == 1
