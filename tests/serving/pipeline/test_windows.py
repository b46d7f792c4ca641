"""Long texts whose words are tagged: windows on a real engine, each a row of its own, and shadows beside them."""

from dataclasses import replace
from pathlib import Path

import pytest

from ladder import Backbone, SpansAnswer, Tokenizer
from ladder.backbone.tokenizer import SentencePiece
from ladder.stacked.bank import SideBank
from serving.config import BatchConfig
from serving.engine.engine import Engine
from serving.pipeline.service import PredictService
from serving.scheduler.batcher import Batcher
from serving.versions.placement import add
from serving.versions.pool import PoolState, SidePool
from side_registry import TaskRef
from side_registry.route import Route
from tests import families
from tests.serving.kit import make_resident, make_spec, predict, predict_tasks
from tests.serving.rollout.shadow_kit import OTHER, House
from tests.serving.versions.test_pool import task_state
from training.evaluation import Model, predict_rows

NAMES = make_spec("names", kind="token_classification", template="find: {sentence}", max_source_tokens=48)
LONG = "".join(f"film {number} is the \u00e9tude of a cat; " for number in range(12))


async def test_windows_of_stacked_side_networks_answer_as_in_training(backbone: Backbone, tokenizer: Tokenizer) -> None:
    bank = SideBank(backbone)
    specs = [NAMES, make_spec("sst2"), NAMES.model_copy(update={"name": "pii", "labels": ("EMAIL",)})]
    residents = [make_resident(backbone, tokenizer, spec, seed=seed, bank=bank) for seed, spec in enumerate(specs)]
    state = PoolState(generation=1, wanted=1)
    for resident in residents:
        task = task_state(1, {"production": (1,)}, name=resident.task)
        state = add(replace(state, tasks={**state.tasks, resident.task: task}), resident)
    pool = SidePool()
    pool.replace(state)
    service = PredictService(pool, Batcher(Engine(backbone), BatchConfig(max_wait_s=0)), tokenizer)
    texts = [LONG, "a gripping film", LONG]
    answered = await predict_tasks(service, [TaskRef(spec.name) for spec in specs], texts)
    for resident, prediction in zip(residents, answered, strict=True):
        assert [*prediction.truncated][1:2] == [False]  # type: ignore[union-attr]
        if resident.task == "sst2":
            continue
        model = Model(spec=resident.spec, side=resident.side, answerer=resident.answerer)  # type: ignore[arg-type]
        wanted, truncated = predict_rows(model, backbone, tokenizer, [{"sentence": text} for text in texts])
        assert not any(truncated)
        for ours, theirs, text in zip(prediction.answers, wanted, texts, strict=True):  # type: ignore[union-attr]
            assert isinstance(ours, SpansAnswer)
            assert isinstance(theirs, SpansAnswer)
            assert ours.outside == pytest.approx(theirs.outside, abs=1e-4)
            assert [span.start for span in ours.spans] == [span.start for span in theirs.spans]
            assert all(text[span.start : span.end] == span.text for span in ours.spans)
    await service.close()


async def test_texts_of_the_same_tokens_keep_their_own_positions(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(families.sentence_piece())
    tokenizer = Tokenizer(SentencePiece(tmp_path / "spiece.model"), "pieces")
    pool = SidePool()
    resident = make_resident(backbone, tokenizer, NAMES)
    task = task_state(1, {"production": (1,)}, name="names")
    pool.replace(add(PoolState(generation=1, wanted=1, tasks={"names": task}), resident))
    service = PredictService(pool, Batcher(Engine(backbone), BatchConfig(max_wait_s=0)), tokenizer)
    texts = ["the cat sat on", "  the   cat sat on"]
    assert tokenizer.encode(texts[0]) == tokenizer.encode(texts[1])
    first, second = (await predict(service, "names", [{"sentence": text} for text in texts])).answers
    assert isinstance(first, SpansAnswer)
    assert isinstance(second, SpansAnswer)
    assert first.outside == second.outside
    assert len(first.spans) == len(second.spans) > 0
    for answer, text in zip((first, second), texts, strict=True):
        assert all(text[span.start : span.end] == span.text for span in answer.spans)
    await service.close()


async def test_a_shadow_reads_the_same_windows(backbone: Backbone, tokenizer: Tokenizer) -> None:
    house = House(backbone, tokenizer, NAMES)
    house.route(Route(shadows=(OTHER,)), twin=house.make(OTHER, seed=1))
    await house.ask([LONG, "short"])
    await house.settle()
    seen = house.of(OTHER)
    windows = seen.compared - 1
    assert windows > 2
    assert (seen.failed, seen.agreed, seen.drift) == (0, windows + 1, pytest.approx(0.0, abs=1e-6))
    shorter = house.make(OTHER, seed=1, max_source_tokens=24)
    house.route(Route(shadows=(OTHER,)), shorter=shorter)
    await house.ask([LONG])
    await house.settle()
    assert (house.of(OTHER).compared, house.of(OTHER).failed) == (windows, 0)
    await house.service.close()
    house.shadowing.close()
