"""Do all ways to compute the same agree on this device? Random weights, so any difference shows.

Differences are relative: the length of the difference of all numbers, by the length of the numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.inputs import Inputs
from benchmarks.harness.models import HEADS, Loaded, make_residents
from benchmarks.harness.peers import hugging_face, pad
from benchmarks.harness.samples import BenchmarkError
from ladder import SideNetwork, run_backbone
from ladder.answering import Generate
from ladder.answers import Answer, TextAnswer
from ladder.backbone import LINEARS, BackbonePass, Division, padded
from ladder.config import SideConfig
from ladder.stacked import SideBank, StackedSide
from ladder.stacked.network import StackedBatch
from serving.engine import EngineRow, Resident

MOST = {"float32": 1e-3, "bfloat16": 5e-2}
"""The largest relative difference, by dtype."""
LENGTHS = (5, 32, 17, 9, 24, 11)
"""Tokens of the rows, of which most are padded."""
PICKS = (2, 0, 1, 1, 0, 2)
"""The side network of each row."""
SHAPES = ((1, 32), (8, 32), (16, 32))
"""What is recorded."""

Comparison = Callable[[Loaded], tuple[Sequence[Tensor], Sequence[Tensor]]]


def compare(loaded: Loaded, comparison: Comparison) -> dict[str, Any]:
    """Return the relative difference of the two sides, and whether it is small enough."""
    with torch.inference_mode():
        ours, theirs = (
            torch.cat([part.detach().float().cpu().flatten() for part in side]) for side in comparison(loaded)
        )
    difference = float((ours - theirs).norm() / theirs.norm())
    most = MOST[loaded.dtype]
    return {"difference": difference, "most": most, "same": difference <= most}


def rows_of(loaded: Loaded) -> list[tuple[int, ...]]:
    """Return rows of several lengths."""
    inputs = Inputs(loaded)
    return [inputs.row(length) for length in LENGTHS]


def hugging_faces(loaded: Loaded) -> tuple[list[Tensor], list[Tensor]]:
    """Encoder and teacher-forced logits, here and in Hugging Face's T5 in float32."""
    rows = rows_of(loaded)
    mask = padded(loaded.backbone, rows)[1]
    targets = torch.tensor([row[:5] for row in rows], device=mask.device)
    theirs = hugging_face(loaded).float()
    taps = run_backbone(loaded.backbone, rows).taps
    assert taps.final is not None
    state = loaded.backbone.decode(targets, taps.final, mask).final
    assert state is not None
    answered = theirs(**pad(rows, mask.device), decoder_input_ids=targets)
    return [taps.final[mask], loaded.backbone.logits(state)], [
        answered.encoder_last_hidden_state[mask],
        answered.logits,
    ]


def packed(loaded: Loaded) -> tuple[list[Tensor], list[Tensor]]:
    """The encoder without padding, and with."""
    rows = rows_of(loaded)
    ids, mask = padded(loaded.backbone, rows)
    whole = loaded.backbone.encode(ids, mask).blocks[-1]
    division = Division.of([len(row) for row in rows])
    ours = loaded.backbone.encode_divided(ids, mask, None, division)
    order = [row for group in division.groups for row in group.rows]
    parts = [taps.blocks[-1][taps.mask] for taps in ours]
    return parts, [whole[row][mask[row]] for row in order]


def stacked(loaded: Loaded) -> tuple[list[Tensor], list[Tensor]]:
    """Side networks computed as one, and each as a module."""
    sides = _sides(loaded, 3)
    passed = run_backbone(loaded.backbone, rows_of(loaded))
    ours = _together(SideBank(loaded.backbone), sides, passed, range(passed.rows))
    theirs = [
        sides[pick].decode(alone.decoder_taps(), sides[pick].encode(alone.taps), alone.taps.mask)
        for row, pick in enumerate(PICKS)
        for alone in [passed.select([row])]
    ]
    return [ours], theirs


def recorded(loaded: Loaded) -> tuple[list[Tensor], list[Tensor]]:
    """Recorded passes and eager ones: of the backbone, of several side networks, of one, and of one input."""
    sides, rows, replayed = _sides(loaded, 3), rows_of(loaded), loaded.recorded(SHAPES)
    assert replayed.encoder is not None
    ids, mask = padded(loaded.backbone, rows)
    eager = run_backbone(loaded.backbone, rows)
    passed = BackbonePass(loaded.backbone, replayed.encoder(ids, mask, None))
    ours, theirs = [passed.taps.blocks[-1][mask]], [eager.taps.blocks[-1][mask]]
    banks = SideBank(loaded.backbone, replayed.sides), SideBank(loaded.backbone)
    for inputs in (range(len(rows)), [1] * len(rows)):
        ours.append(_together(banks[0], sides, passed, inputs))
        theirs.append(_together(banks[1], sides, eager, inputs))
    ours.append(_together(banks[0], sides[:1] * 3, passed, range(len(rows))))
    theirs.append(_together(banks[1], sides[:1] * 3, eager, range(len(rows))))
    return ours, theirs


def _together(bank: SideBank, sides: Sequence[SideNetwork], passed: BackbonePass, inputs: Sequence[int]) -> Tensor:
    """Upsampled states of a batch whose rows are of the side networks PICKS and read the rows `inputs` of a pass."""
    held = {id(side): side_in_bank for side in sides if isinstance(side_in_bank := bank.add(side), StackedSide)}
    batch = StackedBatch([held[id(sides[pick])] for pick in PICKS])
    read = passed.select(inputs)
    return batch.decode(read.decoder_taps(), batch.encode(passed.taps, inputs), read.taps.mask)


def mixed(loaded: Loaded) -> tuple[list[Tensor], list[Tensor]]:
    """A batch of several tasks, and each of its rows alone."""
    rows = _rows(loaded, make_residents(loaded, 3, HEADS["mixed"]))
    together, alone = loaded.engine(), loaded.engine()
    theirs = [answer for row in rows for answer in alone.predict([EngineRow(row.ids, row.resident)])]
    return _numbers(together.predict(rows)), _numbers(theirs)


def whole_numbers(loaded: Loaded) -> tuple[list[Tensor], list[Tensor]]:
    """A quantised product (w8a8) on this device and on a CPU."""
    layer = torch.nn.Linear(512, 1024, bias=False)
    hidden = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    on_cpu = LINEARS["w8a8"](layer)
    here = LINEARS["w8a8"](layer).to(loaded.backbone.device)
    return [here(hidden.to(loaded.backbone.device))], [on_cpu(hidden)]


COMPARISONS: Mapping[str, Comparison] = {
    "backbone / Hugging Face": hugging_faces,
    "without padding / with": packed,
    "stacked side networks / modules": stacked,
    "recorded / eager": recorded,
    "mixed batch / alone": mixed,
    "w8a8 / on a CPU": whole_numbers,
}


def texts(loaded: Loaded) -> dict[str, Any]:
    """Count the texts that are the same, token by token, recorded and eagerly; in bfloat16 some may differ."""
    few = make_residents(loaded, 2, ("generate",)), make_residents(loaded.recorded(SHAPES), 2, ("generate",))
    eager, ours = (_tokens(loaded, residents) for residents in few)
    same = sum(one == other for one, other in zip(eager, ours, strict=True))
    return {"texts": len(eager), "equal": same, "same": same == len(eager) or loaded.dtype != "float32"}


def _tokens(loaded: Loaded, residents: Sequence[Resident]) -> list[tuple[int, ...]]:
    rows = []
    for row in _rows(loaded, residents):
        assert isinstance(row.how, Generate)
        rows.append(EngineRow(row.ids, row.resident, replace(row.how, max_new_tokens=8)))
    answers = loaded.engine().predict(rows)
    return [answer.tokens for answer in answers if isinstance(answer, TextAnswer)]


def _rows(loaded: Loaded, residents: Sequence[Resident]) -> list[EngineRow]:
    return [EngineRow(ids, residents[index % len(residents)]) for index, ids in enumerate(rows_of(loaded))]


def _numbers(answers: Sequence[Answer | Exception]) -> list[Tensor]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise BenchmarkError(f"a row failed: {answer}")
    return [torch.tensor(getattr(answer, "scores", None) or [getattr(answer, "value", 0.0)]) for answer in answers]


def _sides(loaded: Loaded, count: int) -> list[SideNetwork]:
    """Side networks with a text head whose weights are far from their small start."""
    config = SideConfig(reduction=4, head="text")
    sides = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(count):
            side = SideNetwork(config, loaded.backbone.config).eval().requires_grad_(False)
            for parameter in side.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            sides.append(side.to(loaded.backbone.device, loaded.backbone.dtype))
    return sides
