"""Rows for the engine, each for one resident side network, and the events of rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from side_registry.specs.task import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ladder.stacked import Side
    from side_registry.manifest import Manifest
from collections.abc import Callable, Sequence
from math import ceil

from ladder.answering import Answerer, Generate, Row, Words
from ladder.answers import Answer
from ladder.backbone.tokenizer import Pair
from serving.engine.detokenizer import Piece
from serving.engine.request_times import RequestTimes

Key = tuple[str, int]
"""(task, version)."""

IMAGE_TOKENS = 10
"""Tokens of images that count as one token of text. In a side network, one costs a fiftieth to an eighth of a token of
text in the backbone (`ladder.side.cost`; t5-small to t5-large, reductions 4 and 8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One version on the device, verified and ready to answer."""

    task: str
    version: int
    spec: TaskSpec
    side: Side
    """In a slot of the server's bank, which is free again when nothing references this any more."""
    answerer: Answerer
    manifest: Manifest
    bytes: int
    """Bytes of its weights on the device."""
    since: float = field(default_factory=time.time, compare=False)
    """When it was loaded, in seconds since 1970."""

    @property
    def key(self) -> Key:
        """Task and version."""
        return self.task, self.version


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """An image as the server's vision encoder sees it."""

    name: str
    """Digest of its bytes: images of one name have equal features."""
    features: Tensor
    """(L, F): a grid of L tokens, row by row of the picture, on the engine's device."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineRow:
    """One tokenized input for one resident side network. Compared by identity; make a new one for each answer."""

    ids: tuple[int, ...]
    resident: Resident
    answerer: Answerer | None = None
    """None: the resident's."""
    salt: str = ""
    """The tenant's salt: rows of different tenants share no activations."""
    images: tuple[EncodedImage, ...] = ()
    """In the order of the spec's `images`; empty where the task reads text alone."""
    pair: Pair | None = None
    """Where the two texts of a pair lie among `ids`, for a side network that reads them apart."""
    streams: bool = False
    """Deliver its text piece by piece, and then whole."""
    words: Words | None = None
    """The words of its text, for a task that tags them."""
    times: RequestTimes | None = None
    """Where its stages' times are noted; None: nobody asks."""

    @property
    def how(self) -> Answerer:
        """Its answerer."""
        return self.answerer or self.resident.answerer

    @property
    def weight(self) -> int:
        """How many rows of a batch it counts as: each beam is one."""
        return self.how.generation.num_beams if isinstance(self.how, Generate) else 1

    @property
    def alone(self) -> bool:
        """Rows of the same tokens do not share one answer, because each text is sampled anew."""
        return isinstance(self.how, Generate) and self.how.generation.is_random

    @property
    def generates(self) -> bool:
        """Its answer is a text, which takes several turns."""
        return isinstance(self.how, Generate)

    @property
    def task(self) -> str:
        """The resident's task."""
        return self.resident.task

    @property
    def tokens(self) -> int:
        """How many token ids it has."""
        return len(self.ids)

    @property
    def image_names(self) -> tuple[str, ...]:
        """The names of its images, in their order."""
        return tuple([image.name for image in self.images])

    @property
    def image_tokens(self) -> int:
        """How many tokens of images its side network reads, after it has pooled them."""
        visual = self.resident.side.config.visual if self.images else None
        return sum(visual.tokens or len(image.features) for image in self.images) if visual else 0

    @property
    def image_work(self) -> int:
        """Tokens of text that its images count as, for fairness and estimates of time."""
        return ceil(self.image_tokens / IMAGE_TOKENS) if self.images else 0

    @property
    def side_tokens(self) -> int:
        """How many tokens its side network computes: those of the text and of the images."""
        return len(self.ids) + self.image_tokens if self.images else len(self.ids)

    @property
    def image_numbers(self) -> int:
        """How many numbers the features of its images are."""
        return sum(image.features.numel() for image in self.images) if self.images else 0

    @property
    def model_row(self) -> Row:
        """The row as `ladder.answering` takes it."""
        return Row(
            ids=self.ids,
            side=self.resident.side,
            answerer=self.how,
            salt=self.salt,
            images=self.image_names,
            pair=self.pair,
            words=self.words,
        )


Event = Piece | Answer | Exception
"""What happened to a row; an Answer or an Exception ends it."""

Deliver = Callable[[Sequence[tuple[EngineRow, Event]]], None]
"""Called on the device thread, several times a turn, as soon as there are events."""
