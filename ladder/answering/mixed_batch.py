"""Answers of a mixed batch: rows of many tasks read one backbone pass; stacked side networks are computed together.

The rows are grouped once, by `ladder.answering.batch_plan`; `score` takes its groups in their order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ladder.answering.answerers import Generate, Scoring
from ladder.answering.batch_plan import Answered, Group, Image, Prefix, Row, plan
from ladder.answering.reading import SingleReading
from ladder.answering.words import Words
from ladder.answers import Answer
from ladder.backbone.images import Images
from ladder.backbone.model import Backbone, Taps
from ladder.backbone.passes import BackbonePass, DecoderTaps, run_backbone
from ladder.backbone.rows import take
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.errors import is_out_of_memory
from ladder.side.network import mean_of_real, mean_of_words
from ladder.side.pairs import pair_tensor, text_and_images
from ladder.stacked.grouping import Grouping
from ladder.stacked.heads import StackedLinear
from ladder.stacked.network import StackedBatch, StackedSide

Deliver = Callable[[Sequence[tuple[int, Answer | Exception]]], None]
"""Called with indices of rows, and their answers or why they have none."""
Observe = Callable[[str, float], None]
"""Called with a stage ("backbone", "side", "decode") and its seconds."""
Encode = Callable[[Sequence[Image]], Images]
"""Makes the features of distinct images: row i is image i."""
ReadInputs = Callable[[Backbone, Sequence[Sequence[int]], int | None], BackbonePass]
"""Makes the pass over distinct inputs (token ids) with so many blocks, as `run_backbone` does."""


class _Decoder:
    """The backbone decoder's taps after each prefix, run once for all the inputs that need it, and for them alone."""

    def __init__(self, backbone_pass: BackbonePass, groups: Sequence[Group]) -> None:
        self._pass = backbone_pass
        self._inputs: dict[Prefix, set[int]] = {}
        self._taps: dict[Prefix, DecoderTaps] = {}
        for group in groups:
            for part in group.parts:
                for prefix in part.prefixes:
                    self._inputs.setdefault(prefix, set()).update(group.inputs[at] for at in part.positions)

    def after(self, prefix: Prefix) -> DecoderTaps:
        if prefix not in self._taps:
            self._taps[prefix] = self._pass.decode_prefix(sorted(self._inputs[prefix]), prefix)
        return self._taps[prefix]


def score(backbone_pass: BackbonePass, groups: Sequence[Group], deliver: Deliver, images: Images | None = None) -> None:
    """Answer the rows of groups that make no texts; the others are left out.

    Args:
        groups: of a `Plan`, in their order.
        deliver: called for the rows of each side network and answerer, as soon as they are answered.
        images: row i is the plan's image i.
    """
    scored = [group for group in groups if not group.makes_texts]
    decoder = _Decoder(backbone_pass, scored)
    for group in scored:
        if group.is_stacked:
            _score_stacked(backbone_pass, decoder, group, deliver, images)
            continue
        for part in group.parts:
            _deliver(group, part, partial(_single_reading, backbone_pass, decoder, group, part, images), deliver)


def _score_stacked(
    backbone_pass: BackbonePass, decoder: _Decoder, group: Group, deliver: Deliver, images: Images | None
) -> None:
    try:
        readings = _StackedGroup(backbone_pass, group, images).readings(decoder)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if len(group.parts) == 1:
            deliver([(index, error) for index in group.indices])
            return
        for part in group.parts:  # one of them is at fault: alone, it fails alone
            _score_stacked(backbone_pass, decoder, group.select(part.positions), deliver, images)
        return
    for part, reading in zip(group.parts, readings, strict=True):
        _deliver(group, part, lambda reading=reading: reading, deliver)


def _single_reading(
    backbone_pass: BackbonePass, decoder: _Decoder, group: Group, part: Answered, images: Images | None
) -> SingleReading:
    inputs = [group.inputs[position] for position in part.positions]

    def decoder_taps(prefix: Prefix) -> Taps:
        return decoder.after(prefix).select(inputs)

    if not group.images:
        pairs = _pairs(group, part.positions, backbone_pass.backbone.device)
        selected = backbone_pass.select(inputs)
        return SingleReading(selected, part.side, decoder_taps, pairs=pairs, words=_words(group, part))
    distinct = sorted(set(inputs))
    reads = [distinct.index(row) for row in inputs]
    read = _images(group, part.positions, images)
    return SingleReading(backbone_pass.select(distinct), part.side, decoder_taps, reads, read)


def _words(group: Group, part: Answered) -> list[Words | None]:
    return [group.rows[position].words for position in part.positions]


def _images(group: Group, positions: Sequence[int], images: Images | None) -> Images | None:
    """The images of some rows of a group that name images."""
    return None if images is None else images.of_rows([group.images[position] for position in positions])


def _pairs(group: Group, positions: Sequence[int], device: torch.device) -> Tensor | None:
    """Where the two texts of some rows lie, for a side network that reads them apart."""
    rows = [group.rows[position] for position in positions]
    config = rows[0].side.config
    return pair_tensor([row.pair for row in rows], device) if config.reads_two_texts else None


def _deliver(
    group: Group, part: Answered, read: "Callable[[], SingleReading | StackedReading]", deliver: Deliver
) -> None:
    """Answer some rows of a group; what is raised is theirs alone."""
    answerer = part.answerer
    assert isinstance(answerer, Scoring)
    try:
        outcomes: Sequence[Answer | Exception] = answerer.answers(read())
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the device's fault, not this side network's
        outcomes = [error] * len(part.positions)
    deliver([(group.indices[at], outcome) for at, outcome in zip(part.positions, outcomes, strict=True)])


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedReading:
    """A `ladder.answering.reading.Reading` of rows that were computed in a group of stacked side networks."""

    backbone: Backbone
    side: StackedSide
    memory: Tensor
    mask: Tensor
    means: Tensor | None
    """(B, d), of a linear head: the mean of the side encoder's real tokens."""
    pairs: Callable[[], Tensor | None]
    """(B, 2, 2), for a side network that reads two texts apart; see `Taps.pairs`."""
    mean_words: Callable[[], Tensor]
    """(B, D): the mean of the real tokens' embeddings."""
    states: dict[Prefix, Tensor]
    words: Sequence[Words | None]

    def outputs(self) -> Tensor:
        """The head's outputs, (B, outputs) in float32."""
        head = self.side.head
        assert head is not None
        if isinstance(head, StackedLinear) and self.means is not None:
            return head.of_mean(self.means)
        return head.read(self.memory, self.mask, self.pairs())

    def all_outputs(self) -> Tensor:
        """As `outputs`, and what `SideConfig.words` adds."""
        head = self.side.head
        outputs = self.outputs()
        if isinstance(head, StackedLinear) and head.words is not None:
            outputs = outputs + head.of_words(self.mean_words())
        return outputs

    def token_outputs(self) -> tuple[Tensor, Tensor]:
        """A linear head's outputs for every token, (B, S, outputs) in float32, and which tokens are real."""
        return self.side.read_tokens(self.memory), self.mask

    def state_after(self, prefix: Prefix) -> Tensor:
        """The state (B, D) from which the token after the start token and `prefix` is predicted."""
        return self.states[prefix]


class _StackedGroup:
    """A group of stacked side networks whose side encoders have run."""

    def __init__(self, backbone_pass: BackbonePass, group: Group, images: Images | None) -> None:
        self._pass = backbone_pass
        self._group = group
        self._sides = [row.side for row in group.rows if isinstance(row.side, StackedSide)]
        self._tokens = backbone_pass.taps.mask.shape[1]
        every = len(self._sides)
        self._batch = StackedBatch(self._sides, Grouping(range(every), group.runs), every * self._tokens)
        read = _images(group, range(len(self._sides)), images) if group.images else None
        self._memory = self._batch.encode(backbone_pass.taps, group.inputs, read)
        self._mask = self._batch.memory_mask(backbone_pass.taps, group.inputs, read)

    def readings(self, decoder: _Decoder) -> list[StackedReading]:
        """What each part of the group reads."""
        parts = self._group.parts
        means = None
        if any(isinstance(side.head, StackedLinear) for side in self._sides):
            means = mean_of_real(self._memory, self._mask)
        prefixes = dict.fromkeys(prefix for part in parts for prefix in part.prefixes)
        states = {prefix: self._states(prefix, decoder) for prefix in prefixes}
        return [
            StackedReading(
                backbone=self._pass.backbone,
                side=self._sides[part.positions[0]],
                memory=take(self._memory, part.positions),
                mask=take(self._mask, part.positions),
                means=None if means is None else take(means, part.positions),
                pairs=partial(self._pairs, part.positions),
                mean_words=partial(self._mean_words, part.positions),
                states={prefix: states[prefix][part] for prefix in part.prefixes},
                words=_words(self._group, part),
            )
            for part in parts
        ]

    def _pairs(self, positions: Sequence[int]) -> Tensor | None:
        if self._group.images:
            return text_and_images(take(self._mask, positions), self._pass.taps.mask.shape[1])
        return _pairs(self._group, positions, self._memory.device)

    def _mean_words(self, positions: Sequence[int]) -> Tensor:
        inputs = [self._group.inputs[position] for position in positions]
        taps = self._pass.taps
        if self._group.images:  # several rows may read one input
            return mean_of_words(taps, inputs)
        return mean_of_real(take(taps.embeddings, inputs), take(taps.mask, inputs))

    def _states(self, prefix: Prefix, decoder: _Decoder) -> dict[Answered, Tensor]:
        """The states (rows, D) after a prefix, for each part that needs it."""
        parts = [part for part in self._group.parts if prefix in part.prefixes]
        positions = sorted(position for part in parts for position in part.positions)
        taps = decoder.after(prefix).select([self._group.inputs[position] for position in positions])
        batch = self._batch
        if len(positions) < len(self._sides):
            few = [self._sides[position] for position in positions]
            batch = StackedBatch(few, tokens=len(few) * self._tokens)
        states = batch.decode(taps, take(self._memory, positions), take(self._mask, positions))[:, -1]
        row_of = {position: row for row, position in enumerate(positions)}
        return {part: take(states, [row_of[position] for position in part.positions]) for part in parts}


@torch.inference_mode()
def answer(
    backbone: Backbone,
    rows: Sequence[Row],
    observe: Observe | None = None,
    encode_images: Encode | None = None,
    read_inputs: ReadInputs = run_backbone,
) -> list[Answer | Exception]:
    """Answer rows of any tasks, texts too, in one go.

    Args:
        encode_images: for rows that name images; without it, side networks that read images fail.
        read_inputs: runs the backbone, or returns an earlier pass over the same inputs.

    Returns:
        Answers in the rows' order; an exception in place of a row that its side network failed.
    """
    if not rows:
        return []
    planned = plan(rows)
    clock = _Clock(observe, backbone.device)
    with clock.stage("backbone"):
        backbone_pass = read_inputs(backbone, [ids for _, ids in planned.inputs], planned.depth)
        images = encode_images(planned.images) if encode_images is not None and planned.images else None
    results: list[Answer | Exception] = [RuntimeError("not answered")] * len(rows)

    def deliver(outcomes: Sequence[tuple[int, Answer | Exception]]) -> None:
        for index, outcome in outcomes:
            results[index] = outcome

    with clock.stage("side"):
        score(backbone_pass, planned.groups, deliver, images)
    texts = [group for group in planned.groups if group.makes_texts]
    if texts:
        with clock.stage("decode"):
            _generate(backbone_pass, texts, deliver, images)
    return results


def _generate(backbone_pass: BackbonePass, groups: Sequence[Group], deliver: Deliver, images: Images | None) -> None:
    """Make the texts of all rows; those of one side network and equal settings, but for the seed, are one segment."""
    segments: list[Segment] = []
    members: list[tuple[Generate, list[int]]] = []
    for group in groups:
        alike: dict[tuple[int, Generate], list[int]] = {}
        for position, row in enumerate(group.rows):
            assert isinstance(row.answerer, Generate)
            alike.setdefault((id(row.side), row.answerer.unseeded), []).append(position)
        for (_, answerer), positions in alike.items():
            taps = backbone_pass.select([group.inputs[position] for position in positions]).taps
            if group.images:
                taps = replace(taps, images=_images(group, positions, images))
            segments.append(
                Segment(
                    side=group.rows[positions[0]].side,
                    taps=taps,
                    limit=answerer.max_new_tokens,
                    decoding=answerer.generation,
                    seeds=[_seed(group.rows[position]) for position in positions],
                )
            )
            members.append((answerer, [group.indices[position] for position in positions]))
    decoded = generate(backbone_pass.backbone, segments)
    for (answerer, indices), texts in zip(members, decoded, strict=True):
        deliver(list(zip(indices, answerer.finish(texts), strict=True)))


def _seed(row: Row) -> int | None:
    assert isinstance(row.answerer, Generate)
    return row.answerer.generation.seed


@dataclass(frozen=True, slots=True)
class _Clock:
    """Times stages for an observer, if there is one; on a GPU until the work is done, not until it is launched."""

    observe: Observe | None
    device: torch.device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.observe is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.observe(name, time.perf_counter() - started)
