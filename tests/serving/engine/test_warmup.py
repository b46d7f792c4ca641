"""Warm-up: every kind of resident, batches of several sizes, one decoder step, and never a failed start."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ladder import Backbone, Tokenizer
from ladder.backbone.model import Taps
from serving.config import BatchConfig, EngineConfig
from serving.engine import warmup
from serving.engine.rows import Resident
from serving.engine.warmup import one_of_each, shapes_of, warm_up
from tests.serving.kit import make_resident, make_spec
from tests.serving.visual_kit import VISUAL, visual_spec

BATCH = BatchConfig(max_batch_rows=16, max_batch_tokens=1024)
LONG = EngineConfig(warmup_s=1000)


class Encoder:
    """The backbone's, and the shapes that it ran."""

    def __init__(self, backbone: Backbone, before: Callable[[], None] = lambda: None) -> None:
        self._backbone, self._before = backbone, before
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, ids: Tensor, mask: Tensor, depth: int | None) -> Taps:
        self._before()
        self.shapes.append(tuple(ids.shape))
        assert torch.is_inference_mode_enabled()
        return self._backbone.encode(ids, mask, depth)


@pytest.fixture(scope="module")
def residents(backbone: Backbone, tokenizer: Tokenizer) -> list[Resident]:
    specs = [
        make_spec("sst2"),
        make_spec("cola"),
        make_spec("stars", "regression"),
        make_spec("titles", "text", max_new_tokens=100),
        make_spec("meaning", "embedding", dimensions=6),
    ]
    return [make_resident(backbone, tokenizer, spec, seed=seed) for seed, spec in enumerate(specs)]


def test_warm_up_runs_one_row_and_several(backbone: Backbone, residents: list[Resident]) -> None:
    encoder = Encoder(backbone)
    assert warm_up(backbone, residents, BATCH, LONG, encoder) == len(encoder.shapes)
    assert encoder.shapes == [(1, 8), *shapes_of(BATCH, backbone)]
    assert encoder.shapes == [(1, 8), (1, 8), (8, 8)]


def test_on_a_gpu_it_runs_full_batches_within_the_limits_too(backbone: Backbone) -> None:
    shapes = shapes_of(BATCH, backbone, full=True)
    assert {(1, 8), (8, 32), (16, 8), (16, 32), (1, 128), (8, 128)} <= set(shapes)
    assert all(rows <= 16 and rows * tokens <= 1024 for rows, tokens in shapes)
    assert shapes_of(BatchConfig(max_batch_rows=4, max_batch_tokens=16), backbone, full=True)[-1] == (1, 128)


def test_every_warm_up_batch_has_every_kind_of_resident(
    backbone: Backbone, residents: list[Resident], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    turn = warmup.Engine.step

    def watched(self: warmup.Engine, rows: list[warmup.EngineRow], *others: object) -> bool:
        asked.append({row.task for row in rows})
        return turn(self, rows, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(warmup.Engine, "step", watched)
    warm_up(backbone, residents, BATCH, LONG)
    assert all(tasks in (set(), {"sst2", "stars", "titles", "meaning"}) for tasks in asked)
    assert len(one_of_each(residents)) == 4


def test_warm_up_runs_one_step_of_a_text(
    backbone: Backbone, residents: list[Resident], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    decode = backbone.decode

    def counting(ids: Tensor, *args: object) -> Taps:
        steps.append(len(ids))
        return decode(ids, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "decode", counting)
    done = warm_up(backbone, residents[3:4], BATCH, LONG)
    assert len(steps) == done


def test_versions_that_read_images_are_warmed_with_blank_ones(
    backbone: Backbone, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    specs = [visual_spec("eyes"), visual_spec("pairs", images=("left", "right")), make_spec("sst2")]
    shapes = [{"visual": VISUAL}, {"visual": replace(VISUAL, tokens=0)}, {}]
    made = [
        make_resident(backbone, tokenizer, spec, **shape)  # type: ignore[arg-type]
        for spec, shape in zip(specs, shapes, strict=True)
    ]
    assert one_of_each(made) == made
    with caplog.at_level(logging.ERROR, "serving.engine"):
        assert warm_up(backbone, made, BATCH, LONG) == 3
    assert not caplog.records


def test_without_residents_the_backbone_alone_is_warmed(backbone: Backbone) -> None:
    encoder = Encoder(backbone)
    assert warm_up(backbone, [], BATCH, LONG, encoder) == len(encoder.shapes) == 3


def test_warm_up_ends_at_its_time_limit(
    backbone: Backbone, residents: list[Resident], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(warmup.time, "monotonic", lambda: now[0])

    def wait() -> None:
        now[0] += 1.0

    encoder = Encoder(backbone, wait)
    assert warm_up(backbone, residents, BATCH, replace(LONG, warmup_s=3.5), encoder) == 2
    assert encoder.shapes == [(1, 8), (1, 8)], "the next one would be four times as large"
    assert warm_up(backbone, residents, BATCH, replace(LONG, warmup_s=0.5), encoder) == 1


def test_a_failure_is_logged_and_the_server_starts_all_the_same(
    backbone: Backbone, residents: list[Resident], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Taps:
        raise ZeroDivisionError("a bug")

    with caplog.at_level(logging.ERROR, "serving.engine.warmup"):
        assert warm_up(backbone, residents, BATCH, LONG, broken) == 0
    assert "serving all the same" in caplog.text
