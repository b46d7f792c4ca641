"""The engine on a tiny random T5: a row's answer does not depend on the other rows of its batch."""

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ladder import Answer, Backbone, ClassAnswer, TextAnswer, Tokenizer, ValueAnswer, VectorAnswer
from serving.engine.engine import Engine
from serving.engine.request_times import RequestTimes
from serving.engine.rows import EngineRow, Resident
from serving.errors import SideFailed
from serving.metrics import Metrics
from tests.marks import slow
from tests.serving.kit import ids_of, make_resident, make_spec

MIXES = ["identical", "distinct", "uniform", "zipf"]


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Engine:
    return Engine(backbone)


@pytest.fixture(scope="module")
def residents(backbone: Backbone, tokenizer: Tokenizer) -> list[Resident]:
    """Tasks of every kind and head, and two versions of one of them."""
    specs = [
        make_spec("sst2"),
        make_spec("cola", labels=("unacceptable", "acceptable", "unclear")),
        make_spec("stsb", "regression"),
        make_spec("titles", "text", max_new_tokens=5),
        make_spec("linear"),
        make_spec("meaning", "embedding", dimensions=6),
    ]
    made = [
        make_resident(backbone, tokenizer, spec, seed=seed, head="linear" if spec.name == "linear" else None)
        for seed, spec in enumerate(specs)
    ]
    return [*made, make_resident(backbone, tokenizer, specs[0], version=2, seed=99)]


def make_rows(mix: str, residents: list[Resident], tokenizer: Tokenizer, count: int = 14) -> list[EngineRow]:
    dice = random.Random(mix)
    weights = [1 / (rank + 1) ** 2 for rank in range(len(residents))]
    picks = {
        "identical": lambda n: residents[0],
        "distinct": lambda n: residents[n % len(residents)],
        "uniform": lambda n: dice.choice(residents),
        "zipf": lambda n: dice.choices(residents, weights)[0],
    }[mix]
    texts = ["dull", "a gripping film", "x" * 40, "it is neither good nor bad, but far too long"]
    return [EngineRow(ids_of(tokenizer, dice.choice(texts)), picks(n)) for n in range(count)]


def close(ours: Answer | Exception, theirs: Answer | Exception) -> bool:
    match ours, theirs:
        case ClassAnswer(), ClassAnswer():
            return ours.label == theirs.label and ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        case VectorAnswer(), VectorAnswer():
            return ours.values == pytest.approx(theirs.values, abs=1e-4)
        case ValueAnswer(), ValueAnswer():
            return ours.value == pytest.approx(theirs.value, abs=1e-4)
        case TextAnswer(), TextAnswer():
            return ours == theirs
        case _:
            return False


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixed_batch_equals_each_row_alone(engine: Engine, residents, tokenizer: Tokenizer, mix: str) -> None:
    rows = make_rows(mix, residents, tokenizer)
    alone = [engine.predict([row])[0] for row in rows]
    together = engine.predict(rows)
    assert all(close(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


@pytest.mark.parametrize("mix", MIXES)
def test_the_order_of_rows_does_not_matter(engine: Engine, residents, tokenizer: Tokenizer, mix: str) -> None:
    rows = make_rows(mix, residents, tokenizer)
    backwards = engine.predict(rows[::-1])[::-1]
    assert all(close(ours, theirs) for ours, theirs in zip(engine.predict(rows), backwards, strict=True))


def test_side_networks_answer_differently(engine: Engine, residents, tokenizer: Tokenizer) -> None:
    """Else the tests above would compare nothing."""
    ids = ids_of(tokenizer, "a gripping film")
    first, second = engine.predict([EngineRow(ids, residents[0]), EngineRow(ids, residents[-1])])
    assert isinstance(first, ClassAnswer)
    assert isinstance(second, ClassAnswer)
    assert abs(first.score - second.score) > 1e-3


def break_weights(resident: Resident, value: float) -> Resident:
    with torch.no_grad():
        for parameter in resident.side.parameters():
            parameter.fill_(value)
    return resident


def raising(resident: Resident) -> Resident:
    class Broken(torch.nn.Module):
        def forward(self, *_: object, **__: object) -> None:
            raise IndexError("a rung is missing")

    resident.side.encoder.rungs[1] = Broken()
    return resident


FAULTS: dict[str, Callable[[Resident], Resident]] = {
    "NaN": lambda resident: break_weights(resident, float("nan")),
    "infinite": lambda resident: break_weights(resident, float("inf")),
    "raises": raising,
    "wrong shape": lambda resident: replace(resident, answerer=replace(resident.answerer, labels=())),
}


@pytest.mark.parametrize("kind", ["classification", "regression", "text", "embedding"])
@pytest.mark.parametrize("fault", ["NaN", slow("infinite"), "raises"])
def test_a_broken_side_network_fails_alone_and_its_neighbours_are_bit_identical(
    engine: Engine, backbone: Backbone, residents, tokenizer: Tokenizer, fault: str, kind: str, caplog
) -> None:
    sound = make_resident(backbone, tokenizer, make_spec("bad", kind), version=3, seed=5)
    rows = make_rows("distinct", residents, tokenizer, count=8)
    both = [*rows[:3], EngineRow(ids_of(tokenizer, "dull"), sound), *rows[3:]]
    expected = engine.predict(both)
    broken = FAULTS[fault](sound)
    with caplog.at_level(logging.ERROR, "serving.engine.outcomes"):
        found = engine.predict([replace(row, resident=broken) if row.resident is sound else row for row in both])
    assert isinstance(found[3], SideFailed)
    assert (found[3].task, found[3].version) == ("bad", 3)
    assert found[:3] + found[4:] == expected[:3] + expected[4:]
    assert len(caplog.records) == 1


def test_several_rows_of_a_broken_side_network_are_logged_once(
    engine: Engine, backbone: Backbone, tokenizer: Tokenizer, caplog
) -> None:
    broken = raising(make_resident(backbone, tokenizer, make_spec("bad")))
    found = engine.predict([EngineRow(ids_of(tokenizer, text), broken) for text in ("one", "two", "three")])
    assert all(isinstance(item, SideFailed) for item in found)
    assert "a rung is missing" in str(found[0])
    assert len(caplog.records) == 1


def test_stages_are_timed(backbone: Backbone, residents, tokenizer: Tokenizer) -> None:
    metrics = Metrics()
    Engine(backbone, metrics).predict(make_rows("distinct", residents, tokenizer))
    counts = {
        stage: metrics.registry.get_sample_value("sidecast_stage_seconds_count", {"stage": stage})
        for stage in ("backbone", "side", "decode")
    }
    assert (counts["backbone"], counts["side"]) == (1, 1)
    assert 1 <= counts["decode"] <= 5  # type: ignore[operator]


def test_a_request_is_told_where_its_time_went(backbone: Backbone, residents, tokenizer: Tokenizer) -> None:
    metrics = Metrics()
    metrics.know([resident.task for resident in residents])
    engine = Engine(backbone, metrics)

    def ask(*texts: str) -> RequestTimes:
        times = RequestTimes()
        chosen = [residents[0], residents[2], residents[3]]  # two that score and one that makes a text
        rows = [EngineRow(ids_of(tokenizer, text), resident, times=times) for text in texts for resident in chosen]
        engine.predict([*rows, EngineRow(ids_of(tokenizer, "of somebody else"), residents[1])])
        return times

    first = ask("a film")
    assert min(first.backbone, first.side, first.decode) > 0
    assert (first.inputs, first.cached_inputs, first.batch_rows) == (1, 0, 4)
    assert 1 <= first.steps <= 5
    second = ask("a film", "another")
    assert (second.inputs, second.cached_inputs) == (2, 1)
    cached = metrics.registry.get_sample_value("sidecast_cached_rows_total", {"task": "sst2", "version": "1"})
    assert cached == 1


def test_predicting_does_not_change_the_backbone_or_make_gradients(
    backbone: Backbone, residents, tokenizer: Tokenizer
) -> None:
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    Engine(backbone).predict(make_rows("uniform", residents, tokenizer))
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
