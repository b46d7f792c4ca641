"""Images of all requests: each is decoded and encoded once, however many callers wait for it, and then cached.

Threads decode; one thread has the encoder, and takes what is decoded when it is free, up to `image_batch` images. So
images gather while a pass runs, and none waits for others. An image whose callers have all gone is dropped before the
next of these steps.
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from serving.config import ImageConfig
from serving.engine import EncodedImage
from serving.errors import DeadlineExpired, Draining, InvalidInput, Overloaded, ServingError
from serving.images.encoder_runner import EncoderRunner
from serving.images.feature_cache import FeatureCache, Key
from serving.metrics import Metrics
from serving.tracing import current_trace
from vision import ImageError, ImageLimits, VisionEncoder

log = logging.getLogger(__name__)

FIELD = "image"
"""The field that a faulty image's error names. The caller knows the right one."""
DIGEST_HERE_BYTES = 256 * 1024
"""Images of more bytes together are digested on a thread, so that other calls go on."""
PREPARED_BATCHES = 2
"""Decoded images that are kept for the encoder, in batches."""
GOLDEN_BYTES = 32 * 2**20
"""Bytes of cached features of golden examples, on the device. Later versions with the same examples load faster."""
UNKNOWN_RETRY_S = 1.0
MIN_RETRY_S, MAX_RETRY_S = 0.05, 30.0
PACE_SHARE = 0.2
"""How much the last pass counts in the average time of an image."""

ImageOutcome = EncodedImage | ServingError
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Job:
    """One image that is not encoded yet."""

    key: Key
    data: bytes
    future: "asyncio.Future[ImageOutcome]"
    callers: int = 0
    """Callers who wait for it."""


class ImagePool:
    """One vision encoder, the threads in front of it, and the features that it made.

    `encode` is for one event loop, and so is `close`; `encode_now` and `warm_up` are for any other thread.

    Args:
        encoder: features are kept on its device, in its dtype.
    """

    def __init__(self, encoder: VisionEncoder, config: ImageConfig, metrics: Metrics) -> None:
        self.name = encoder.name
        self.fingerprint = encoder.fingerprint
        self.width = encoder.width
        """Features of one token."""
        limits = ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        self._runner = EncoderRunner(encoder, limits, metrics)
        self._config = config
        self._metrics = metrics
        self._cache = FeatureCache(config.image_cache_bytes)
        self._golden = FeatureCache(min(GOLDEN_BYTES, config.image_cache_bytes))
        self._golden_lock = threading.Lock()
        self._decoders = ThreadPoolExecutor(config.image_threads, thread_name_prefix="image-decoder")
        self._vision = ThreadPoolExecutor(1, thread_name_prefix="vision")
        self._jobs: dict[Key, _Job] = {}
        """All that are not done."""
        self._waiting: dict[_Job, None] = {}
        """Not decoded yet, the oldest first."""
        self._decoding = 0
        self._prepared: dict[_Job, Tensor] = {}
        """Decoded, the oldest first."""
        self._is_encoding = False
        self._pace_s: float | None = None
        """Average time of an image in the encoder, in seconds."""
        self._closed = False
        self._start_threads()

    async def encode(
        self, images: Sequence[bytes], tenant: str = "", deadline: float | None = None
    ) -> list[ImageOutcome]:
        """Encode images, or find them in the cache; an image's own fault stands in its place.

        Args:
            images: the bytes of image files. A repeated one is encoded once.
            tenant: callers of different tenants share no features.
            deadline: time.monotonic() seconds, which is an event loop's clock too.

        Returns:
            For each image its features, InvalidInput with the field `image` where it is no image that can be read,
            OutOfMemory or ImageFailed.

        Raises:
            Overloaded: too many images wait. DeadlineExpired. Draining: the pool is closed.
        """
        keys = [(tenant, name) for name in await _names(images)]
        if self._closed:
            raise Draining()
        outcomes: dict[Key, ImageOutcome] = {}
        missing: dict[Key, bytes] = {}
        for key, data in zip(keys, images, strict=True):
            if (known := self._cache.find(key)) is not None:
                outcomes[key] = known
            else:
                missing[key] = data
        self._metrics.image_cache_hits.inc(len(outcomes))
        self._metrics.image_cache_misses.inc(len(missing))
        if missing:
            outcomes |= await self._encode_missing(missing, deadline)
        return [outcomes[key] for key in keys]

    def encode_now(self, images: Sequence[bytes]) -> list[EncodedImage]:
        """Encode the images of golden examples, one at a time. Blocks: never on the event loop.

        They have a small cache of their own, in which no caller's image is found.

        Raises:
            ImageError: bytes that are no image which can be read.
            OutOfMemory, ImageFailed, Draining.
        """
        with self._golden_lock:
            return [self._encode_golden(data) for data in images]

    def warm_up(self) -> None:
        """Do the first-use work of the device. Call it before any image comes; blocks for seconds.

        Never raises: it logs the error, and the first image will show it.
        """
        try:
            for images in sorted({1, self._config.image_batch}):
                self._vision.submit(self._runner.warm_up, images).result()
        except Exception:
            log.exception("warming up the vision encoder failed; serving all the same")

    def close(self) -> None:
        """Take no more images. Those that wait fail with Draining; a decoding or a pass that has begun is finished."""
        self._closed = True
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._vision.shutdown(wait=False, cancel_futures=True)
        self._waiting.clear()
        self._prepared.clear()
        for job in list(self._jobs.values()):
            self._finish(job, Draining())

    def _start_threads(self) -> None:
        """Start all threads: on one core each those that decode, on as many as this thread the encoder's.

        A new thread starts with the number of cores that was set last, by whichever thread, and then keeps its own.
        """
        cores = torch.get_num_threads()
        barrier = threading.Barrier(self._config.image_threads)
        started = [self._decoders.submit(_begin_on_one_core, barrier) for _ in range(self._config.image_threads)]
        for thread in started:
            thread.result()
        torch.set_num_threads(cores)
        self._vision.submit(torch.get_num_threads).result()

    async def _encode_missing(self, images: Mapping[Key, bytes], deadline: float | None) -> dict[Key, ImageOutcome]:
        loop = asyncio.get_running_loop()
        if deadline is not None and deadline <= loop.time():
            raise DeadlineExpired()
        self._check_room(sum(key not in self._jobs for key in images))
        began = loop.time()
        jobs = [self._join(key, data, loop) for key, data in images.items()]
        self._advance()
        try:
            timeout = None if deadline is None else deadline - loop.time()
            _, late = await asyncio.wait([job.future for job in jobs], timeout=timeout)
        finally:
            for job in jobs:
                self._leave(job)
            if (trace := current_trace.get()) is not None:
                trace.stage("vision", began, loop.time(), **{"sidecast.images": len(jobs)})
        if self._closed:
            raise Draining()
        if late:
            raise DeadlineExpired()
        return {job.key: job.future.result() for job in jobs}

    def _check_room(self, more: int) -> None:
        """Reject what there is no room for. Where no image waits, any number is accepted."""
        queued = len(self._jobs)
        if queued and more and queued + more > self._config.max_queued_images:
            self._metrics.shed("images")
            raise Overloaded(queued, self._config.max_queued_images, self._retry_after_s(), "images")

    def _retry_after_s(self) -> float:
        if self._pace_s is None:
            return UNKNOWN_RETRY_S
        return min(max(self._pace_s * len(self._jobs), MIN_RETRY_S), MAX_RETRY_S)

    def _join(self, key: Key, data: bytes, loop: asyncio.AbstractEventLoop) -> _Job:
        """Wait for an image with its other callers, or as the first."""
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(key, data, loop.create_future())
            self._waiting[job] = None
        job.callers += 1
        return job

    def _leave(self, job: _Job) -> None:
        """A caller waits no more. Work that nothing has begun on is dropped with its last caller."""
        job.callers -= 1
        if not job.callers and (job in self._waiting or job in self._prepared):
            self._waiting.pop(job, None)
            self._prepared.pop(job, None)
            self._forget(job)
            self._advance()

    def _advance(self) -> None:
        """Begin all that can begin now."""
        self._metrics.queued_images.set(len(self._jobs))
        if self._closed:
            return
        most = min(self._config.image_threads, PREPARED_BATCHES * self._config.image_batch - len(self._prepared))
        while self._waiting and self._decoding < most:
            job = next(iter(self._waiting))
            del self._waiting[job]
            self._decoding += 1
            self._decoders.submit(self._decode, job)
        if self._prepared and not self._is_encoding:
            batch = list(islice(self._prepared.items(), self._config.image_batch))
            for job, _ in batch:
                del self._prepared[job]
            self._is_encoding = True
            self._vision.submit(self._encode, batch)

    def _decode(self, job: _Job) -> None:
        """Runs on a decoding thread."""
        outcome = self._runner.prepare(job.data)
        with suppress(RuntimeError):  # the loop was closed meanwhile: no caller waits
            job.future.get_loop().call_soon_threadsafe(self._on_decoded, job, outcome)

    def _on_decoded(self, job: _Job, outcome: Tensor | ServingError | ImageError) -> None:
        self._decoding -= 1
        job.data = b""
        if self._closed:
            return
        if isinstance(outcome, ImageError):
            self._finish(job, InvalidInput(FIELD, str(outcome)))
        elif isinstance(outcome, ServingError):
            self._finish(job, outcome)
        elif job.callers:
            self._prepared[job] = outcome
        else:
            self._forget(job)
        self._advance()

    def _encode(self, batch: Sequence[tuple[_Job, Tensor]]) -> None:
        """Runs on the encoder's thread."""
        began = perf_counter()
        outcomes = self._runner.encode([pixels for _, pixels in batch])
        seconds = perf_counter() - began
        jobs = [job for job, _ in batch]
        loop = jobs[0].future.get_loop()
        with suppress(RuntimeError):  # as in `_decode`
            loop.call_soon_threadsafe(self._on_encoded, jobs, outcomes, seconds)

    def _on_encoded(self, jobs: Sequence[_Job], outcomes: Sequence[Tensor | ServingError], seconds: float) -> None:
        self._is_encoding = False
        pace_s = seconds / len(jobs)
        self._pace_s = pace_s if self._pace_s is None else (1 - PACE_SHARE) * self._pace_s + PACE_SHARE * pace_s
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Tensor):
                image = EncodedImage(job.key[1], outcome)
                self._metrics.image_cache_evictions.inc(self._cache.keep(job.key, image))
                self._finish(job, image)
            else:
                self._finish(job, outcome)
        self._metrics.image_cache_bytes.set(self._cache.bytes)
        self._metrics.image_cache_entries.set(len(self._cache))
        self._advance()

    def _finish(self, job: _Job, outcome: ImageOutcome) -> None:
        self._forget(job)
        if not job.future.done():
            job.future.set_result(outcome)

    def _forget(self, job: _Job) -> None:
        self._jobs.pop(job.key, None)

    def _encode_golden(self, data: bytes) -> EncodedImage:
        key = "", name_of(data)
        if (known := self._golden.find(key)) is not None:
            return known
        pixels = self._run(self._decoders, lambda: self._runner.prepare(data))
        if isinstance(pixels, Exception):
            raise pixels
        [features] = self._run(self._vision, lambda: self._runner.encode([pixels]))
        if isinstance(features, Exception):
            raise features
        image = EncodedImage(key[1], features)
        self._golden.keep(key, image)
        return image

    def _run(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        try:
            return threads.submit(work).result()
        except (RuntimeError, CancelledError) as error:
            if self._closed:
                raise Draining() from None
            raise error


def name_of(data: bytes) -> str:
    """The name of an image: a digest of its bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


async def _names(images: Sequence[bytes]) -> list[str]:
    if sum(map(len, images)) <= DIGEST_HERE_BYTES:
        return _digest(images)
    return await asyncio.to_thread(_digest, images)


def _digest(images: Sequence[bytes]) -> list[str]:
    return [name_of(data) for data in images]


def _begin_on_one_core(all_threads: threading.Barrier) -> None:
    """Runs on each decoding thread: `all_threads` waits for the others, so that none of them runs it twice."""
    torch.get_num_threads()  # a thread takes the number that was set last when it first asks, and then keeps its own
    torch.set_num_threads(1)
    all_threads.wait()
