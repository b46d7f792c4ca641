"""Answer rows of many tasks with one backbone pass: what the trainer's evaluation and the server's engine both call.

Rows with the same tokens share the pass, whatever their tasks. A row's failure is its own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ladder.answerers import Generate
from ladder.answers import Answer
from ladder.backbone import Backbone
from ladder.backbone_pass import BackbonePass, run_backbone
from ladder.decoding import Segment, generate
from ladder.scoring import Deliver, Row, score
from ladder.stack_runs import arrange
from ladder.stacked import Side, StackedSide

__all__ = ["Deliver", "Observe", "Plan", "Row", "answer", "plan", "score"]

Observe = Callable[[str, float], None]
"""Told a stage ("backbone", "side", "decode") and its seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch needs of the backbone."""

    inputs: list[tuple[str, tuple[int, ...]]]
    """The distinct inputs: salt and tokens. Ordered as side networks are computed, so that they read them in place."""
    places: list[int]
    """Of each row, the input that it reads."""
    depth: int | None
    """The deepest block that any side network reads; None where one needs the decoder."""


def plan(rows: Sequence[Row]) -> Plan:
    """The distinct inputs of rows of any tasks, and how deep the backbone must run for them."""
    inputs: dict[tuple[str, tuple[int, ...]], int] = {}
    places = [0] * len(rows)
    for row in _in_order(rows):
        places[row] = inputs.setdefault((rows[row].salt, rows[row].ids), len(inputs))
    depths = [row.side.encoder_depth for row in rows]
    known = [depth for depth in depths if depth is not None]
    return Plan(list(inputs), places, max(known, default=0) if len(known) == len(depths) else None)


def _in_order(rows: Sequence[Row]) -> list[int]:
    """The rows in the order in which they will be computed, as far as that is known."""
    alike: dict[object, list[int]] = {}
    modules: dict[int, int] = {}
    for place, row in enumerate(rows):
        kind = row.side.shape if isinstance(row.side, StackedSide) else None
        alike.setdefault((kind, isinstance(row.answerer, Generate)), []).append(place)
    ordered = []
    for members in alike.values():
        inside, _ = arrange([_slot(rows[place].side, modules) for place in members])
        ordered.extend(members[each] for each in inside)
    return ordered


def _slot(side: Side, modules: dict[int, int]) -> tuple[int, int]:
    """Where it is computed among others: a module, when it first comes."""
    return side.place if isinstance(side, StackedSide) else (-1, modules.setdefault(id(side), len(modules)))


@dataclass(slots=True, eq=False)
class _Texts:
    """The rows of one side network whose texts are made alike."""

    side: Side
    answerer: Generate
    places: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)


@torch.inference_mode()
def answer(backbone: Backbone, rows: Sequence[Row], observe: Observe | None = None) -> list[Answer | Exception]:
    """Answers in the rows' order; an exception in place of a row that its side network failed."""
    if not rows:
        return []
    planned = plan(rows)
    clock = _Clock(observe, backbone.device)
    with clock.stage("backbone"):
        given = run_backbone(backbone, [ids for _, ids in planned.inputs], planned.depth)
    results: list[Answer | Exception] = [RuntimeError("not answered")] * len(rows)

    def deliver(answered: Sequence[tuple[int, Answer | Exception]]) -> None:
        for place, outcome in answered:
            results[place] = outcome

    with clock.stage("side"):
        score(given, rows, planned.places, deliver)
    texts = _texts(rows, planned.places)
    if texts:
        with clock.stage("decode"):
            _generate(backbone, given, texts, deliver)
    return results


def _texts(rows: Sequence[Row], inputs: Sequence[int]) -> list[_Texts]:
    groups: dict[tuple[int, Generate], _Texts] = {}
    for place, row in enumerate(rows):
        if isinstance(row.answerer, Generate):
            key = id(row.side), row.answerer.unseeded
            group = groups.setdefault(key, _Texts(row.side, row.answerer))
            group.places.append(place)
            group.inputs.append(inputs[place])
            group.seeds.append(row.answerer.generation.seed)
    return list(groups.values())


def _generate(backbone: Backbone, given: BackbonePass, groups: Sequence[_Texts], deliver: Deliver) -> None:
    segments = []
    for group in groups:
        limit, how = group.answerer.max_new_tokens, group.answerer.generation
        taps = given.select(group.inputs).taps
        segments.append(Segment(side=group.side, taps=taps, limit=limit, generation=how, seeds=group.seeds))
    for group, decoded in zip(groups, generate(backbone, segments), strict=True):
        deliver(list(zip(group.places, group.answerer.finish(decoded), strict=True)))


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
