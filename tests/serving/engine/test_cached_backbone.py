"""The engine with its activation cache: cached answers are the uncached ones, and cost no backbone."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from ladder import Answer, Backbone, ClassAnswer, SideConfig, SideNetwork, TextAnswer, Tokenizer, ValueAnswer
from ladder.answering.answerers import Regress
from ladder.backbone.model import Taps
from ladder.backbone.passes import run_backbone
from ladder.stacked.bank import SideBank
from serving.config import BatchConfig, EngineConfig
from serving.engine.activation_cache import ActivationCache
from serving.engine.cached_backbone import CachedBackbone
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow, Resident
from serving.metrics import Metrics
from serving.scheduler.batcher import Batcher
from tests.marks import slow
from tests.serving.kit import ids_of, make_resident, make_spec

TEXTS = ["dull", "a gripping film", "x" * 40, "it is neither good nor bad, but far too long"]


class Counted:
    """A backbone whose encoder rows and decoder rows are counted."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded = self.decoded = 0
        encode, divided, decode = backbone.encode, backbone.encode_divided, backbone.decode

        def counting_encode(ids: torch.Tensor, *args: Any) -> Taps:
            self.encoded += len(ids)
            return encode(ids, *args)

        def counting_divided(ids: torch.Tensor, *args: Any) -> list[Taps]:
            self.encoded += len(ids)
            return divided(ids, *args)

        def counting_decode(ids: torch.Tensor, *args: Any) -> Taps:
            self.decoded += len(ids)
            return decode(ids, *args)

        monkeypatch.setattr(backbone, "encode", counting_encode)
        monkeypatch.setattr(backbone, "encode_divided", counting_divided)
        monkeypatch.setattr(backbone, "decode", counting_decode)

    def take(self) -> tuple[int, int]:
        """(encoder rows, decoder rows) since the last call."""
        found, self.encoded, self.decoded = (self.encoded, self.decoded), 0, 0
        return found


@pytest.fixture
def counted(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(backbone, monkeypatch)


@pytest.fixture
def engine(backbone: Backbone, counted: Counted) -> Engine:
    return Engine(backbone, Metrics())


@pytest.fixture(scope="module", params=["stacked", "alone"])
def residents(backbone: Backbone, tokenizer: Tokenizer, request: pytest.FixtureRequest) -> list[Resident]:
    specs = [
        make_spec("sst2"),
        make_spec("cola", labels=("unacceptable", "acceptable", "unclear")),
        make_spec("stars", "regression"),
        make_spec("titles", "text", max_new_tokens=5),
        make_spec("meaning", "embedding", dimensions=6),
    ]
    made = [make_resident(backbone, tokenizer, spec, seed=seed) for seed, spec in enumerate(specs)]
    made.append(shallow(make_resident(backbone, tokenizer, make_spec("shallow", "regression")), backbone))
    if request.param == "stacked":
        bank = SideBank(backbone)
        made = [replace(resident, side=bank.add(resident.side)) for resident in made]  # type: ignore[arg-type]
    return made


def shallow(resident: Resident, backbone: Backbone) -> Resident:
    """It reads one backbone block alone."""
    torch.manual_seed(3)
    config = SideConfig(reduction=4, head="linear", outputs=1, encoder_layers=(0,))
    side = SideNetwork(config, backbone.config).eval().requires_grad_(False)
    return replace(resident, side=side, answerer=Regress())


def row(tokenizer: Tokenizer, text: str, resident: Resident, salt: str = "") -> EngineRow:
    return EngineRow(ids_of(tokenizer, text), resident, salt=salt)


def numbers(answer: Answer | Exception) -> Sequence[float]:
    match answer:
        case ClassAnswer():
            return answer.scores
        case ValueAnswer():
            return [answer.value]
        case TextAnswer():
            return answer.tokens
        case Exception():
            raise answer
        case _:
            return answer.values


def same(ours: Sequence[Answer | Exception], theirs: Sequence[Answer | Exception]) -> bool:
    return [numbers(one) for one in ours] == [pytest.approx(numbers(other), abs=1e-4) for other in theirs]


@pytest.fixture
def fresh(backbone: Backbone) -> Engine:
    """Remembers nothing."""
    return Engine(backbone, config=EngineConfig(cache_bytes=0))


def test_cached_answers_are_the_uncached_ones_and_cost_no_encoder(
    engine: Engine, fresh: Engine, residents, tokenizer: Tokenizer, counted: Counted
) -> None:
    engine.predict([row(tokenizer, text, residents[0]) for text in TEXTS])
    for resident in residents:
        rows = [row(tokenizer, text, resident) for text in TEXTS]
        expected = fresh.predict([row(tokenizer, text, resident) for text in TEXTS])
        counted.take()
        assert same(engine.predict(rows), expected)
        encoded, decoded = counted.take()
        assert encoded == 0
        if resident.task not in ("titles", "cola"):  # its labels part at a later token than the first
            assert decoded == 0


@pytest.mark.parametrize("known", [slow([0]), [1, 3], slow([0, 1, 2]), []])
def test_a_batch_of_known_and_new_inputs_runs_the_new_ones(
    engine: Engine, fresh: Engine, residents, tokenizer: Tokenizer, counted: Counted, known: list[int]
) -> None:
    for index in known:
        engine.predict([row(tokenizer, TEXTS[index], residents[index % len(residents)])])
    for text in (TEXTS, TEXTS[::-1]):
        rows = [row(tokenizer, line, resident) for line in text for resident in residents]
        expected = fresh.predict([row(tokenizer, line, resident) for line in text for resident in residents])
        counted.take()
        assert same(engine.predict(rows), expected)
        assert counted.take()[0] == len(TEXTS) - len(known)
        known = list(range(len(TEXTS)))


def test_a_pass_that_stopped_early_is_run_again_if_deeper_blocks_are_needed(
    engine: Engine, fresh: Engine, residents, tokenizer: Tokenizer, counted: Counted
) -> None:
    deep, text, low = residents[2], residents[3], residents[5]
    for resident, encoded in ((low, 1), (low, 0), (deep, 1), (low, 0), (text, 0)):
        expected = fresh.predict([row(tokenizer, "dull", resident)])
        counted.take()
        assert same(engine.predict([row(tokenizer, "dull", resident)]), expected)
        assert counted.take()[0] == encoded


def test_the_first_decoder_step_is_taken_once(
    engine: Engine, fresh: Engine, residents, tokenizer: Tokenizer, counted: Counted
) -> None:
    sst2, stars = residents[0], residents[2]
    engine.predict([row(tokenizer, text, stars) for text in TEXTS[:2]])
    assert counted.take() == (2, 0)
    expected = fresh.predict([row(tokenizer, text, sst2) for text in TEXTS[:3]])
    counted.take()
    for cost in ((1, 3), (0, 0)):
        assert same(engine.predict([row(tokenizer, text, sst2) for text in TEXTS[:3]]), expected)
        assert counted.take() == cost


def test_a_cached_input_that_needs_the_first_step_in_a_batch_with_a_new_one_that_does_not(
    engine: Engine, fresh: Engine, residents, tokenizer: Tokenizer, counted: Counted
) -> None:
    sst2, stars = residents[0], residents[2]
    engine.predict([row(tokenizer, "dull", stars)])
    asked = [("dull", sst2), ("a gripping film", stars)]
    expected = fresh.predict([row(tokenizer, *pair) for pair in asked])
    counted.take()
    assert same(engine.predict([row(tokenizer, *pair) for pair in asked]), expected)
    assert counted.take() == (1, 1)


def test_a_swap_keeps_the_activation_cache(
    engine: Engine, fresh: Engine, backbone: Backbone, residents, tokenizer: Tokenizer, counted: Counted
) -> None:
    engine.predict([row(tokenizer, "dull", residents[0])])
    newer = make_resident(backbone, tokenizer, make_spec("sst2"), version=2, seed=77)
    expected = fresh.predict([row(tokenizer, "dull", newer)])
    counted.take()
    assert same(engine.predict([row(tokenizer, "dull", newer)]), expected)
    assert counted.take() == (0, 0)


def test_tenants_share_no_cached_pass(engine: Engine, residents, tokenizer: Tokenizer, counted: Counted) -> None:
    engine.predict([row(tokenizer, "dull", residents[2], salt) for salt in ("one", "two", "one")])
    assert counted.take()[0] == 2
    engine.predict([row(tokenizer, "dull", residents[2], "three")])
    engine.predict([row(tokenizer, "dull", residents[2], "two")])
    assert counted.take()[0] == 1


def test_what_the_backbone_ran_is_counted_and_nothing_else(backbone: Backbone, residents, tokenizer: Tokenizer) -> None:
    metrics = Metrics()
    engine = Engine(backbone, metrics)

    def read(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"sidecast_{name}")

    rows = [(text, resident) for text in ("dull", "a gripping film") for resident in residents[:3]]
    for _ in range(2):
        engine.predict([row(tokenizer, text, resident) for text, resident in rows])
    assert (read("batch_rows_count"), read("batch_rows_sum")) == (1, 2)
    assert (read("batch_tokens_sum"), read("padding_tokens_total")) == (16 + 5, 0)  # each in a part of its own
    assert (read("cache_hits_total"), read("cache_misses_total")) == (2, 2)


async def test_equal_inputs_in_one_batch_cost_one_backbone_row(
    backbone: Backbone, residents, tokenizer: Tokenizer, counted: Counted
) -> None:
    metrics = Metrics()
    engine = Engine(backbone, metrics)
    batcher = Batcher(engine, BatchConfig(), metrics)
    tasks = [residents[0], residents[1], residents[2], residents[4]] * 6
    found = await asyncio.gather(*(batcher.submit([row(tokenizer, "dull", resident)]) for resident in tasks))
    await batcher.close()
    assert not any(isinstance(outcome, Exception) for outcomes in found for outcome in outcomes)
    assert counted.take()[0] == 1
    assert metrics.registry.get_sample_value("sidecast_batch_rows_sum") == 1


@pytest.mark.parametrize("limit", [1_000_000, 40_000, 0])
@pytest.mark.parametrize("seed", range(2))
def test_a_pass_equals_the_backbones_whatever_is_cached(backbone: Backbone, seed: int, limit: int) -> None:
    dice = random.Random(seed)
    cached = CachedBackbone(backbone, ActivationCache(limit), Metrics())
    inputs = [tuple(range(start, start + dice.randint(1, 9))) for start in range(3, 15)]
    with torch.inference_mode():
        for _ in range(40):
            keys = [(dice.choice(["", "other"]), ids) for ids in dice.sample(inputs, dice.randint(1, 6))]
            depth = dice.choice([1, 2, None])
            needs_first_step = [index for index in range(len(keys)) if depth is None and dice.random() < 0.5]
            readings = cached.read(keys, depth, needs_first_step)
            assert sorted(index for reading in readings for index in reading.inputs) == list(range(len(keys)))
            for reading in readings:
                found = reading.backbone_pass
                expected = run_backbone(backbone, [keys[index][1] for index in reading.inputs], depth)
                assert torch.equal(found.taps.mask, expected.taps.mask)
                assert_same_taps(found.taps, expected.taps, depth)
                rows = torch.tensor([row for row, index in enumerate(reading.inputs) if index in needs_first_step])
                if len(rows):
                    assert_same_taps(found.decoder_taps().select(rows), expected.decoder_taps().select(rows), None)


@pytest.mark.parametrize("alike", [True, False])
def test_a_batch_that_comes_again_is_read_without_a_copy(backbone: Backbone, alike: bool) -> None:
    """In any order; where lengths differ, of the groups that were computed together."""
    cached = CachedBackbone(backbone, ActivationCache(50_000_000), Metrics())
    lengths = [6] * 24 if alike else [4] * 12 + [60] * 12
    keys = [("", tuple(range(3 + row, 3 + row + length))) for row, length in enumerate(lengths)]
    with torch.inference_mode():
        first = cached.read(keys, None, range(len(keys)))
        again = cached.read(keys[::-1], None, range(len(keys)))
        assert len(first) == (1 if alike else 2)
        memory = {reading.backbone_pass.taps.blocks[0].data_ptr() for reading in first}
        assert {reading.backbone_pass.taps.blocks[0].data_ptr() for reading in again} == memory
        for reading in again:
            expected = run_backbone(backbone, [keys[::-1][index][1] for index in reading.inputs])
            assert_same_taps(reading.backbone_pass.taps, expected.taps, None)
            assert_same_taps(reading.backbone_pass.decoder_taps(), expected.decoder_taps(), None)


def test_a_batch_that_comes_again_for_a_decoder_takes_its_first_step(backbone: Backbone, counted: Counted) -> None:
    cached = CachedBackbone(backbone, ActivationCache(1_000_000), Metrics())
    keys = [("", (3, 4, row)) for row in range(5, 9)]
    with torch.inference_mode():
        cached.read(keys, None, [])
        counted.take()
        for expected in ((0, 4), (0, 0)):
            cached.read(keys, None, range(4))
            assert counted.take() == expected


def assert_same_taps(ours: Taps, theirs: Taps, depth: int | None) -> None:
    layers = [(ours.embeddings, theirs.embeddings), *zip(ours.blocks[:depth], theirs.blocks[:depth], strict=True)]
    if depth is None:
        assert ours.final is not None
        assert theirs.final is not None
        layers.append((ours.final, theirs.final))
    for one, other in layers:
        torch.testing.assert_close(one[ours.mask], other[theirs.mask], atol=1e-4, rtol=1e-4)
