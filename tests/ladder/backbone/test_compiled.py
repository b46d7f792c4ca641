"""The compiled encoder: its answers are the eager one's, and no call compiles once it is warm."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import Tensor

from ladder import Backbone, load_backbone
from ladder.backbone.compiled import CompiledEncoder, Limits
from ladder.backbone.model import Taps
from tests import tiny
from tests.ladder.counting import Counting
from tests.sidecast.cli_kit import ROOT

LIMITS = Limits(rows=4, tokens=128)


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5, dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def backend() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def warm(backbone: Backbone, backend: Counting) -> CompiledEncoder:
    """Tracing takes seconds, so once."""
    compiled = CompiledEncoder(backbone, LIMITS, backend)
    calls = backend.calls
    assert_same(compiled(*batch(2, 6)), backbone.encode(*batch(2, 6)))
    assert backend.calls == calls, "not before it is warm"
    with torch.inference_mode():
        assert compiled.warm_up()
    return compiled


def batch(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.arange(rows * tokens).view(rows, tokens) % 250 + 3
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[0, tokens // 2 + 1 :] = False
    return ids, mask


def layers(taps: Taps) -> list[Tensor]:
    assert taps.final is not None
    return [taps.embeddings, *taps.blocks, taps.final]


def assert_same(ours: Taps, theirs: Taps) -> None:
    assert torch.equal(ours.mask, theirs.mask)
    for one, other in zip(layers(ours), layers(theirs), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one[ours.mask], other[ours.mask], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_after_warm_up_nothing_is_compiled_and_answers_are_the_eager_ones(
    backbone: Backbone, warm: CompiledEncoder, backend: Counting
) -> None:
    before = backend.compiled
    assert before >= 1
    with torch.inference_mode():
        for rows, tokens in ((1, 7), (2, 16), (3, 40), (9, 5)):
            calls = backend.calls
            assert_same(warm(*batch(rows, tokens)), backbone.encode(*batch(rows, tokens)))
            assert backend.calls > calls
    assert backend.compiled == before


def test_a_pass_that_stops_early_runs_eagerly(warm: CompiledEncoder, backend: Counting) -> None:
    calls = backend.calls
    with torch.inference_mode():
        shallow = warm(*batch(2, 6), 1)
    assert backend.calls == calls
    assert (len(shallow.blocks), shallow.final) == (1, None)


def test_padded_rows_and_tokens_change_no_answer(backbone: Backbone) -> None:
    """As on a GPU, where each shape has a graph of its own. Not traced: that takes seconds, and is tested above."""
    compiled = CompiledEncoder(backbone, LIMITS, "eager")
    compiled._graphs, compiled._shapes, compiled._run = True, LIMITS.shapes(), compiled._layers
    with torch.inference_mode():
        assert compiled.warm_up()
        for rows, tokens in ((1, 16), (1, 7), (3, 20), (2, 64)):
            first = compiled(*batch(rows, tokens))
            assert_same(first, backbone.encode(*batch(rows, tokens)))
        assert_same(compiled(*batch(1, 200)), backbone.encode(*batch(1, 200)))


def test_the_shapes_are_bounded_and_within_the_budget() -> None:
    shapes = Limits(rows=64, tokens=8192).shapes()
    assert len(shapes) < 100
    assert all(rows <= 64 and rows * tokens <= 8192 for rows, tokens in shapes)
    assert max(shapes, key=lambda shape: shape[0] * shape[1]) in ((64, 128), (16, 512), (32, 256))


def test_where_nothing_can_be_compiled_it_runs_eagerly_and_says_so(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> tuple[Tensor, ...]:
        raise RuntimeError("no compiler here")

    compiled = CompiledEncoder(backbone, LIMITS, "eager")
    compiled._run = broken
    with caplog.at_level(logging.WARNING, "ladder.backbone.compiled"):
        assert not compiled.warm_up()
    assert "runs eagerly" in caplog.text
    ids, mask = batch(2, 6)
    assert_same(compiled(ids, mask), backbone.encode(ids, mask))


WITH_INDUCTOR = """
import sys
import torch
import torch._inductor.config
from ladder import load_backbone
from ladder.backbone.compiled import CompiledEncoder
from tests.ladder.backbone.test_compiled import LIMITS, assert_same, batch

torch.set_num_threads(1)
backbone = load_backbone(sys.argv[1], dtype="float32")
compiled = CompiledEncoder(backbone, LIMITS)
with torch.inference_mode(), torch._inductor.config.patch(compile_threads=1):  # in no pool of processes
    assert compiled.warm_up()
    for rows, tokens in ((1, 9), (3, 20)):
        assert_same(compiled(*batch(rows, tokens)), backbone.encode(*batch(rows, tokens)))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_with_inductor_it_says_what_the_eager_one_does(tmp_path: Path) -> None:
    """One block: the compiler's time grows with their number. In a process of its own, since the compiler imports
    setuptools, which fails where another test has imported distutils."""
    folder = tiny.make_t5(tmp_path / "t5", num_layers=1, num_decoder_layers=1)
    command = [sys.executable, "-c", WITH_INDUCTOR, str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
