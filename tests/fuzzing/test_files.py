"""Files and bodies of any content end in an error of ours, and take no more memory than their size allows.

Manifests, safetensors files, signatures, TOML files of settings, tokens and trust, bodies of HTTP requests. Messages of
gRPC, tensors, tokens and JWTs, and images have such tests of their own, next to what reads them.
"""

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladder import Backbone, load_backbone, load_side, save_side
from ladder.config import SideConfig
from ladder.errors import LadderError
from serving.access.tokens import read_tokens
from serving.access.trust import read_trust
from serving.config import ConfigError, read_config
from serving.errors import ServingError
from serving.http.body import parse
from serving.http.operations.open_inference import InferBody
from serving.http.operations.tasks import PredictBody
from side_registry.errors import ArtifactError, InvalidSignature
from side_registry.manifest import MANIFEST, parse_manifest
from side_registry.signing import SigningKey, TrustedKeys, check_signature
from side_registry.weights import frame_fault
from tests.ladder.side.test_network import random_side
from tests.side_registry.runs import make_run, weights
from tests.side_registry.signing.signing_kit import make_key

pytestmark = pytest.mark.slow

MANY = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
SEEDS = st.integers(0, 2**32)
DEEP = 100_000
"""Brackets in a row: more than Python's parsers may recurse."""
MOST_BYTES = 64 << 20
"""Python memory that a file of some kilobytes may take at most."""


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with a few of them changed, cut, repeated or made up."""
    how = random.Random(seed)
    changed = bytearray(data)
    for _ in range(how.randint(1, 4)):
        start = how.randrange(len(changed) + 1)
        end = start + how.randint(1, 8)
        match how.randrange(4):
            case 0:
                changed[start:end] = b""
            case 1:
                changed[start:start] = how.randbytes(how.randint(1, 8))
            case 2:
                changed[start:start] = changed[start:end] * how.randint(1, 50)
            case _:
                changed[start : start + 1] = bytes([how.randrange(256)])
    return bytes(changed)


def replaced(document: Any, seed: int, value: Any) -> Any:
    """The document with one of its values, somewhere inside, replaced."""
    how = random.Random(seed)
    copy = json.loads(json.dumps(document))
    at = copy
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = how.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and how.random() < 0.7:
            at = at[key]
            continue
        at[key] = value
        return copy


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


@pytest.fixture
def manifest(tmp_path: Path) -> bytes:
    return (make_run(tmp_path / "run") / MANIFEST).read_bytes()


@MANY
@given(seed=SEEDS, value=JSON)
def test_any_manifest(manifest: bytes, seed: int, value: Any) -> None:
    for data in (mutated(manifest, seed), json.dumps(replaced(json.loads(manifest), seed, value)).encode()):
        with suppress(ArtifactError):
            assert parse_manifest(data, "here").task


def test_a_deep_or_huge_manifest_is_refused() -> None:
    for data in (b"[" * DEEP, b'{"a":' * DEEP, b'{"schema_version":' + b"9" * DEEP + b"}"):
        with bounded(), pytest.raises(ArtifactError):
            parse_manifest(data, "here")


HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    JSON
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "F4", ""]),
            "shape": st.lists(st.integers(-1, 2**62), max_size=9),
            "data_offsets": st.lists(st.integers(-1, 2**62), max_size=3),
        }
    ),
    max_size=3,
)


@MANY
@given(header=HEADERS, length=st.none() | st.integers(0, 2**64 - 1), seed=SEEDS)
def test_any_safetensors_frame(tmp_path: Path, header: Any, length: int | None, seed: int) -> None:
    file = tmp_path / "any.safetensors"
    data = json.dumps(header).encode()
    file.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data + b"1234")
    assert isinstance(frame_fault(file), str) or header.keys() - {"__metadata__"}
    file.write_bytes(mutated(weights(b"weights"), seed))
    frame_fault(file)


def test_a_frame_that_promises_much_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    for length, data in ((2**62, b"{}"), (DEEP, b"[" * DEEP), (6 * DEEP, b'{"a":' * DEEP + b" " * DEEP)):
        file.write_bytes(length.to_bytes(8, "little") + data)
        with bounded():
            assert frame_fault(file)


@MANY
@given(seed=SEEDS)
def test_any_side_network(tmp_path: Path, backbone: Backbone, seed: int) -> None:
    whole, file = tmp_path / "side.safetensors", tmp_path / "any.safetensors"
    if not whole.exists():
        save_side(whole, random_side(SideConfig(head="linear", outputs=2), backbone.config))
    data = whole.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(mutated(data[:end], seed) + data[end:])
    if frame_fault(file) is None:
        with suppress(LadderError):
            load_side(file, backbone.config)


@MANY
@given(seed=SEEDS, value=JSON)
def test_any_signature(signed: tuple[bytes, TrustedKeys], seed: int, value: Any) -> None:
    bundle, trusted = signed
    for data in (mutated(bundle, seed), json.dumps(replaced(json.loads(bundle), seed, value)).encode()):
        with suppress(InvalidSignature):
            assert len(check_signature(data)) == 64
        with suppress(InvalidSignature):
            trusted.check(data, "sst2", DIGESTS)
        with pytest.raises(InvalidSignature):
            trusted.check(data, "sst2", DIGESTS | {MANIFEST: "2" * 64})


DIGESTS = {MANIFEST: "1" * 64}


@pytest.fixture
def signed(tmp_path: Path) -> tuple[bytes, TrustedKeys]:
    pair = make_key(tmp_path)
    return SigningKey(key=pair.private).sign("sst2", DIGESTS), TrustedKeys([pair.public])


READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings": (
        lambda path: read_config({"backbone": "b", "registry": "r"}, environ={}, file=path),
        'port = 8001\n[batch]\nmax_batch_rows = 64\n[limits.sst2]\nmax_task_rows = 5\n[access]\ntrust = "x"\n',
    ),
    "tokens": (read_tokens, f'[[token]]\nname = "a"\nhash = "sha256:{"0" * 64}"\nscopes = ["read"]\n'),
    "trust": (read_trust, '[[trust]]\ntasks = "a*"\nunsigned = true\nkeys = []\n'),
}


@pytest.mark.parametrize("name", READERS)
@MANY
@given(seed=SEEDS, line=st.text(max_size=60))
def test_any_toml(tmp_path: Path, name: str, seed: int, line: str) -> None:
    read, text = READERS[name]
    file = tmp_path / "any.toml"
    for data in (mutated(text.encode(), seed), f"{text}{line}".encode(errors="replace")):
        file.write_bytes(data)
        with suppress(ConfigError, ValueError):
            assert read(file)


@pytest.mark.parametrize("name", READERS)
def test_deep_toml_is_refused(tmp_path: Path, name: str) -> None:
    read, _ = READERS[name]
    file = tmp_path / "deep.toml"
    for text in ("a = " + "[" * 5000, "a = " + "{b = " * 5000, "[" + "a." * 5000 + "a]"):
        file.write_text(text)
        with bounded(), pytest.raises((ConfigError, ValueError)):
            read(file)


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (PredictBody, {"inputs": ["a", {"sentence": "b"}], "timeout": 1.5, "priority": 1}),
        (InferBody, {"inputs": [{"name": "s", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "id": "1"}),
    ],
    ids=["native", "open inference"],
)
@MANY
@given(seed=SEEDS, value=JSON)
def test_any_body(model: Any, document: Any, seed: int, value: Any) -> None:
    data = json.dumps(document).encode()
    for body in (mutated(data, seed), json.dumps(replaced(document, seed, value)).encode(), b"[" * (seed % DEEP)):
        with suppress(ServingError):
            assert parse(body, model)
