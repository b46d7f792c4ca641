"""Answer rows of many tasks with one backbone pass: what the trainer's evaluation and the server's engine both call.

Rows with the same tokens share the pass, whatever their tasks. A row's failure is its own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ladder.answerers import Answerer, Generate
from ladder.answers import Answer
from ladder.backbone import Backbone
from ladder.backbone_pass import BackbonePass, run_backbone
from ladder.decoding import Segment, generate
from ladder.side import SideNetwork

Observe = Callable[[str, float], None]
"""Told a stage ("backbone", "side", "decode") and its seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One input for one side network."""

    ids: tuple[int, ...]
    """Token ids with the end token, not padded, at least one."""
    side: SideNetwork
    answerer: Answerer


@dataclass(slots=True, eq=False)
class _Group:
    """The rows of one side network."""

    side: SideNetwork
    answerer: Answerer
    places: list[int]
    """Where its rows stand among all rows."""
    inputs: list[int]
    """Which distinct input each of them has."""
    seeds: list[int | None] = field(default_factory=list)
    """Generating: each row's."""

    @property
    def generates(self) -> bool:
        return isinstance(self.answerer, Generate)


@torch.inference_mode()
def answer(backbone: Backbone, rows: Sequence[Row], observe: Observe | None = None) -> list[Answer | Exception]:
    """Answers in the rows' order; an exception in place of a row that its side network failed."""
    if not rows:
        return []
    inputs, groups = _plan(rows)
    clock = _Clock(observe, backbone.device)
    with clock.stage("backbone"):
        given = run_backbone(backbone, inputs, _depth(groups))
    results: list[Answer | Exception] = [RuntimeError("not answered")] * len(rows)
    with clock.stage("side"):
        _score(given, groups, results)
    generating = [group for group in groups if group.generates]
    if generating:
        with clock.stage("decode"):
            _generate(backbone, given, generating, results)
    return results


def _plan(rows: Sequence[Row]) -> tuple[list[tuple[int, ...]], list[_Group]]:
    """The distinct inputs, and the rows of each side network."""
    inputs: dict[tuple[int, ...], int] = {}
    groups: dict[tuple[int, Generate | int], _Group] = {}
    for place, row in enumerate(rows):
        alike, seed = id(row.answerer), None
        if isinstance(row.answerer, Generate):
            alike, seed = row.answerer.unseeded, row.answerer.generation.seed
        group = groups.setdefault((id(row.side), alike), _Group(row.side, row.answerer, [], []))
        group.places.append(place)
        group.inputs.append(inputs.setdefault(row.ids, len(inputs)))
        group.seeds.append(seed)
    return list(inputs), list(groups.values())


def _depth(groups: Sequence[_Group]) -> int | None:
    """The deepest block that any side network reads; None where one needs the decoder."""
    depths = [group.side.encoder_depth for group in groups]
    known = [depth for depth in depths if depth is not None]
    return max(known) if len(known) == len(depths) else None


def _score(given: BackbonePass, groups: Sequence[_Group], results: list[Answer | Exception]) -> None:
    """Answer all but the generating groups. The decoder's first step is for the inputs alone that need one."""
    speaking = [group for group in groups if group.side.config.has_decoder and not group.generates]
    needed = sorted({place for group in speaking for place in group.inputs})
    spoken = given.select(needed) if speaking else given
    where = {place: index for index, place in enumerate(needed)}
    for group in groups:
        if group in speaking:
            _place(results, group, _answer_group(spoken, group, [where[place] for place in group.inputs]))
        elif not group.generates:
            _place(results, group, _answer_group(given, group, group.inputs))


def _answer_group(given: BackbonePass, group: _Group, inputs: Sequence[int]) -> list[Answer | Exception]:
    try:
        return group.answerer.answer(given.select(inputs), group.side)
    except torch.OutOfMemoryError:
        raise  # the device's fault, not this side network's
    except Exception as error:  # a side network's fault must not reach its neighbours
        return [error] * len(group.places)


def _generate(
    backbone: Backbone, given: BackbonePass, groups: Sequence[_Group], results: list[Answer | Exception]
) -> None:
    segments = []
    for group in groups:
        assert isinstance(group.answerer, Generate)
        limit, how = group.answerer.max_new_tokens, group.answerer.generation
        taps = given.select(group.inputs).taps
        segments.append(Segment(side=group.side, taps=taps, limit=limit, generation=how, seeds=group.seeds))
    for group, decoded in zip(groups, generate(backbone, segments), strict=True):
        assert isinstance(group.answerer, Generate)
        _place(results, group, group.answerer.finish(decoded))


def _place(results: list[Answer | Exception], group: _Group, answers: Sequence[Answer | Exception]) -> None:
    for place, outcome in zip(group.places, answers, strict=True):
        results[place] = outcome


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
