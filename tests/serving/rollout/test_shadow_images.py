"""Rows with images in shadow: they keep their images, show digests alone, and hold a bounded amount of memory."""

import asyncio
import gc
import weakref
from dataclasses import replace

import pytest

from ladder import Backbone, Tokenizer
from serving.engine.rows import EngineRow, Resident
from serving.pipeline.observation import Observation
from serving.rollout import shadow
from serving.rollout.shadow import ShadowRunner
from side_registry.route import Route
from tests.serving.rollout.shadow_kit import OTHER, OWN, THIRD, House, Kept, seen_of
from tests.serving.visual_kit import encoded, visual_spec

RED, GREEN = encoded(b"red"), encoded(b"green")


@pytest.fixture
async def house(backbone: Backbone, tokenizer: Tokenizer) -> House:
    return House(backbone, tokenizer, visual_spec("sst2", images=("left", "right")))


def observed(house: House, *shadows: Resident) -> Observation:
    own = house.residents[OWN]
    row = EngineRow((3, 4, 1), own, salt="tenant", images=(RED, GREEN))
    [outcome] = house.engine.predict([replace(row)])
    inputs = ({"sentence": "p", "left": RED, "right": GREEN},)
    return seen_of(house, rows=(row,), outcomes=(outcome,), shadows=shadows, inputs=inputs)


async def ask(house: House, *shadows: Resident) -> Kept:
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(observed(house, *shadows))
    await asyncio.sleep(0)
    return kept


@pytest.fixture
async def routed(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(house, "alone", lambda *_: [])  # `seen_of` answers rows without images by it
    house.route(Route(shadows=(OTHER, THIRD)))
    return house


@pytest.mark.parametrize(
    ("images", "expected"),
    [(("left", "right"), (RED, GREEN)), (("right",), (GREEN,)), (("right", "left"), (GREEN, RED))],
)
async def test_a_version_gets_the_images_that_its_own_spec_names(routed: House, images, expected) -> None:
    [request] = (await ask(routed, routed.make(OTHER, images=images))).requests
    [row] = request.rows
    assert isinstance(row, EngineRow)
    assert row.images == expected
    assert (row.ids, row.salt) == ((3, 4, 1), "tenant")


async def test_a_version_of_text_alone_gets_no_images(routed: House) -> None:
    [request] = (await ask(routed, routed.make(OTHER, images=()))).requests
    assert [row.images for row in request.rows if isinstance(row, EngineRow)] == [()]


async def test_a_version_that_reads_an_image_which_callers_do_not_send_has_failed(routed: House) -> None:
    kept = await ask(routed, routed.make(OTHER, images=("left", "third")), routed.residents[THIRD])
    assert len(kept.requests) == 1
    assert (routed.of(OTHER).rows, routed.of(OTHER).failed) == (1, 1)


async def test_versions_are_compared_on_rows_with_images_and_kept_ones_show_digests(routed: House) -> None:
    """Also by a version that makes another prompt of them; a kept disagreement has no image in it."""
    seen = observed(routed, routed.residents[OTHER], routed.make(THIRD, template="say what {sentence} is"))
    routed.shadowing.observe(seen)
    await routed.settle()
    assert [(routed.of(version).rows, routed.of(version).failed) for version in (OTHER, THIRD)] == [(1, 0), (1, 0)]
    compared = routed.compared()
    assert routed.of(OTHER).compared == 1
    agreed = sum(comparison.agreed for comparison in compared.comparisons)
    assert len(compared.disagreements) == 2 - agreed
    for disagreement in compared.disagreements:
        assert disagreement.prompt == f"p [left: {RED.name}, right: {GREEN.name}]"
    await routed.service.close()
    routed.shadowing.close()


async def test_rows_with_images_over_the_bound_are_dropped(routed: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row holds its images once, also where two versions read them; what is over is free again."""
    held = RED.features.nbytes + GREEN.features.nbytes
    monkeypatch.setattr(shadow, "MAX_IMAGE_BYTES", 2 * held)
    kept = Kept()
    runner = ShadowRunner(kept, routed.comparisons, routed.tokenizer)
    for _ in range(3):
        runner.observe(observed(routed, routed.residents[OTHER]))
        await asyncio.sleep(0)
    assert (len(kept.requests), routed.of(OTHER).dropped) == (2, 1)
    kept.requests.pop().drop()
    runner.observe(observed(routed, routed.residents[OTHER]))
    await asyncio.sleep(0)
    assert len(kept.requests) == 2


async def test_what_was_answered_in_shadow_holds_no_images(routed: House) -> None:
    kept = await ask(routed, routed.residents[OTHER])
    request = weakref.ref(kept.requests[0])
    kept.requests.pop().drop()
    gc.collect()
    assert request() is None
