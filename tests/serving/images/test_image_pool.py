"""The image pool: one decoding and one pass for each image, bounds, and faults that stay with their image."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from serving.config import ImageConfig
from serving.engine import EncodedImage
from serving.errors import DeadlineExpired, Draining, ImageFailed, InvalidInput, OutOfMemory, Overloaded
from serving.images import ImagePool, encoder_runner, name_of
from serving.metrics import Metrics
from tests.serving.images.kit import BAD, NOT_A_NUMBER, Decoding, Tower, colour_of, make_pool, picture, until
from vision import DEFAULT_LIMITS, ImageError


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[ImagePool, Tower, Metrics]]:
    pool, tower, metrics = make_pool(**settings)
    try:
        yield pool, tower, metrics
    finally:
        tower.open.set()
        pool.close()


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    counting = Decoding()
    monkeypatch.setattr(encoder_runner, "decode_image", counting)
    return counting


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"sidecast_{name}", labels) or 0.0


async def held(pool: ImagePool, tower: Tower, colour: int = 200) -> "asyncio.Task[list[Any]]":
    """Begin a pass over one image, which lasts until the tower is opened."""
    tower.open.clear()
    tower.entered.clear()
    first = asyncio.create_task(pool.encode([picture(colour)]))
    await until(tower.entered.is_set)
    return first


async def test_images_are_named_by_their_bytes_and_come_in_order_from_one_pass_each(decoding: Decoding) -> None:
    async with opened() as (pool, tower, metrics):
        images = [picture(3), picture(1), picture(3)]
        outcomes = await pool.encode(images)
        assert [colour_of(image) for image in outcomes] == [3, 1, 3]
        assert [image.name for image in outcomes if isinstance(image, EncodedImage)] == [
            hashlib.sha256(data).hexdigest() for data in images
        ]
        again = await pool.encode(images)
        assert again[0] is outcomes[0] is outcomes[2]
        assert (decoding.calls, sum(tower.passes)) == (2, 2)
        hits, misses = value(metrics, "image_cache_hits_total"), value(metrics, "image_cache_misses_total")
        assert (hits, misses) == (2, 2)
        assert value(metrics, "images_encoded_total") == 2
        assert value(metrics, "image_cache_entries") == 2
        assert value(metrics, "stage_seconds_count", stage="decode_image") == 2


async def test_two_callers_with_one_image_share_its_work_and_survive_each_other(decoding: Decoding) -> None:
    async with opened(image_cache_bytes=0) as (pool, tower, _):
        first = await held(pool, tower)
        second = asyncio.create_task(pool.encode([picture(200)]))
        third = asyncio.create_task(pool.encode([picture(200)]))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        tower.open.set()
        [image], [same] = await second, await third
        assert first.cancelled()
        assert image is same
        assert (colour_of(image), decoding.calls, tower.passes) == (200, 1, [1])
        await pool.encode([picture(200)])
        assert tower.passes == [1, 1], "nothing is cached in no bytes"


async def test_tenants_share_no_features() -> None:
    async with opened() as (pool, tower, _):
        [one] = await pool.encode([picture(1)], "a")
        [other] = await pool.encode([picture(1)], "b")
        assert one is not other
        assert (await pool.encode([picture(1)], "a"))[0] is one
        assert tower.passes == [1, 1]


async def test_images_gather_while_a_pass_runs() -> None:
    async with opened(image_batch=4) as (pool, tower, metrics):
        first = await held(pool, tower)
        others = [asyncio.create_task(pool.encode([picture(colour)])) for colour in range(5)]
        await until(lambda: value(metrics, "stage_seconds_count", stage="decode_image") == 6)
        assert value(metrics, "queued_images") == 6
        await asyncio.sleep(0.01)  # the last decoded image comes back to the loop
        tower.open.set()
        assert [colour_of(image) for [image] in await asyncio.gather(first, *others)] == [200, 0, 1, 2, 3, 4]
        assert tower.passes == [1, 4, 1]
        assert value(metrics, "queued_images") == 0


async def test_work_whose_callers_have_gone_is_dropped_before_its_next_step(decoding: Decoding) -> None:
    async with opened(image_threads=1) as (pool, tower, metrics):
        first = await held(pool, tower)
        decoding.open.clear()
        gone = [asyncio.create_task(pool.encode([picture(colour)])) for colour in (1, 2)]
        await until(lambda: decoding.calls == 2)  # the second image waits for the only thread
        for caller in gone:
            caller.cancel()
        await asyncio.wait(gone)
        decoding.open.set()
        tower.open.set()
        await first
        assert [colour_of(image) for image in await pool.encode([picture(3)])] == [3]
        assert (decoding.calls, tower.passes) == (3, [1, 1])
        assert value(metrics, "queued_images") == 0


async def test_a_deadline_is_kept() -> None:
    async with opened() as (pool, tower, _):
        now = asyncio.get_running_loop().time
        with pytest.raises(DeadlineExpired):
            await pool.encode([picture(1)], deadline=now() - 1)
        first = await held(pool, tower)
        with pytest.raises(DeadlineExpired):
            await pool.encode([picture(1)], deadline=now() + 0.01)
        tower.open.set()
        await first
        assert tower.passes == [1]
        assert colour_of((await pool.encode([picture(1)], deadline=now() + 10))[0]) == 1


async def test_the_queue_is_bounded_but_takes_anything_when_it_is_empty() -> None:
    async with opened(max_queued_images=3) as (pool, tower, metrics):
        tower.open.clear()
        many = asyncio.create_task(pool.encode([picture(colour) for colour in range(5)]))
        await until(tower.entered.is_set)
        with pytest.raises(Overloaded, match=r"5 images are waiting, the limit is 3; try again in 1\.00 s") as caught:
            await pool.encode([picture(9)])
        assert caught.value.retry_after_s > 0
        assert value(metrics, "shed_requests_total", reason="images") == 1
        joined = asyncio.create_task(pool.encode([picture(4)]))  # it needs no further place
        await asyncio.sleep(0)
        tower.open.set()
        assert [colour_of(image) for image in await many + await joined] == [0, 1, 2, 3, 4, 4]


async def test_few_images_are_decoded_at_once_and_few_wait_decoded(decoding: Decoding) -> None:
    async with opened(image_batch=2, image_threads=2) as (pool, tower, _):
        tower.open.clear()
        many = asyncio.create_task(pool.encode([picture(colour) for colour in range(20, 40)]))
        await until(lambda: decoding.calls == 5)  # one in the encoder, and two batches
        await asyncio.sleep(0.02)
        assert decoding.calls == 5
        tower.open.set()
        assert [colour_of(image) for image in await many] == list(range(20, 40))
        assert decoding.most <= 2
        assert max(tower.passes) == 2


async def test_a_faulty_image_does_not_disturb_its_neighbours() -> None:
    async with opened() as (pool, _, metrics):
        outcomes = await pool.encode([picture(1), b"http://x/cat.png", picture(2), picture(3)[:50]])
        assert [colour_of(image) for image in (outcomes[0], outcomes[2])] == [1, 2]
        assert isinstance(outcomes[1], InvalidInput)
        assert isinstance(outcomes[3], InvalidInput)
        assert outcomes[1].field == "image"
        assert "; " in outcomes[1].why, "what is wrong, and what to do"
        assert value(metrics, "image_faults_total", fault="not_an_image") == 1
        assert value(metrics, "image_faults_total", fault="damaged") == 1
        assert value(metrics, "image_cache_entries") == 2


async def test_limits_of_the_settings_hold() -> None:
    async with opened(max_image_pixels=63, max_image_bytes=5000) as (pool, _, _):
        large, heavy = await pool.encode([picture(1), b"\x89PNG\r\n\x1a\n" + bytes(5000)])
        assert "8 x 8 pixels, and at most 63 are taken" in str(large)
        assert "at most 5,000 are taken" in str(heavy)
    settings = ImageConfig()
    assert (settings.max_image_bytes, settings.max_image_pixels) == (
        DEFAULT_LIMITS.max_bytes,
        DEFAULT_LIMITS.max_pixels,
    )


async def test_without_memory_for_a_batch_its_halves_are_tried() -> None:
    async with opened() as (pool, tower, metrics):
        first = await held(pool, tower)
        many = asyncio.create_task(pool.encode([picture(colour) for colour in range(5)]))
        await until(lambda: value(metrics, "stage_seconds_count", stage="decode_image") == 6)
        await asyncio.sleep(0.01)
        tower.room = 2
        tower.open.set()
        await first
        assert [colour_of(image) for image in await many] == [0, 1, 2, 3, 4]
        assert tower.passes == [1, 5, 3, 2, 1, 2]
        tower.room = 0
        [outcome] = await pool.encode([picture(9)])
        assert isinstance(outcome, OutOfMemory)
        assert str(outcome) == "the device ran out of memory with this image; send smaller ones, or try again in 1.00 s"
        assert value(metrics, "image_faults_total", fault="memory") == 1


async def test_a_failure_of_the_encoder_stays_with_its_image(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (pool, tower, metrics):
        first = await held(pool, tower)
        many = asyncio.create_task(pool.encode([picture(colour) for colour in (1, BAD, NOT_A_NUMBER, 2)]))
        await until(lambda: value(metrics, "stage_seconds_count", stage="decode_image") == 5)
        await asyncio.sleep(0.01)
        tower.open.set()
        await first
        one, bad, not_a_number, two = await many
        assert (colour_of(one), colour_of(two)) == (1, 2)
        assert isinstance(bad, ImageFailed)
        assert isinstance(not_a_number, ImageFailed)
        assert (bad.why, not_a_number.why) == ("boom", "its features are not finite numbers")
        assert value(metrics, "image_faults_total", fault="encoder") == 2
        assert "the vision encoder failed with 1 images" in caplog.text


async def test_a_closed_pool_takes_no_images_and_those_that_wait_fail() -> None:
    async with opened() as (pool, tower, _):
        first = await held(pool, tower)
        second = asyncio.create_task(pool.encode([picture(1)]))
        await asyncio.sleep(0)
        pool.close()
        tower.open.set()
        for caller in (first, second, pool.encode([picture(2)])):
            with pytest.raises(Draining):
                await caller
        with pytest.raises(Draining):
            await asyncio.to_thread(pool.encode_now, [picture(3)])


async def test_large_images_are_digested_too() -> None:
    async with opened(max_image_bytes=100) as (pool, _, _):
        large = bytes(300_000)
        [outcome] = await pool.encode([large])
        assert "300,000 bytes" in str(outcome)
        assert name_of(large) == hashlib.sha256(large).hexdigest()


def test_golden_images_have_a_cache_of_their_own() -> None:
    pool, tower, _ = make_pool()
    images = pool.encode_now([picture(1), picture(2)])
    assert [colour_of(image) for image in images] == [1, 2]
    assert pool.encode_now([picture(2)])[0] is images[1]
    assert tower.passes == [1, 1]
    with pytest.raises(ImageError):
        pool.encode_now([b"no image"])
    with pytest.raises(ImageFailed):
        pool.encode_now([picture(BAD)])
    asyncio.run(pool.encode([picture(1)]))
    assert sum(tower.passes) == 4
    pool.close()


def test_decoding_threads_have_a_core_each_and_the_encoder_as_many_as_its_maker() -> None:
    cores = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        pool, _, _ = make_pool(image_threads=2)
        assert torch.get_num_threads() == 3
        assert pool._vision.submit(torch.get_num_threads).result() == 3
        assert [pool._decoders.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        pool.close()
    finally:
        torch.set_num_threads(cores)


def test_warming_up_runs_the_smallest_and_the_largest_pass_and_never_fails(caplog: pytest.LogCaptureFixture) -> None:
    pool, tower, _ = make_pool(image_batch=3)
    pool.warm_up()
    assert tower.passes == [1, 3]
    tower.room = 0
    with caplog.at_level(logging.ERROR):
        pool.warm_up()
    assert "warming up the vision encoder failed" in caplog.text
    pool.close()
