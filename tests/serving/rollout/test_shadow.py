"""Answers beside callers' answers: what they are compared with, and that no caller ever notices. On a tiny T5."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ladder import Answer, Backbone, TextAnswer, Tokenizer
from ladder.answering.answerers import Generate
from serving.engine.rows import EngineRow
from serving.errors import Draining
from serving.pipeline.request import DecodingOverrides
from serving.rollout.shadow import SHADOW_FAILURES, ShadowRunner
from side_registry import GenerationSpec
from side_registry.route import Bounds, Route
from tests.serving.kit import make_spec, stream
from tests.serving.rollout.shadow_kit import OTHER, OWN, TEXTS, THIRD, House, Kept, breaks, seen_of


@pytest.fixture
async def house(backbone: Backbone, tokenizer: Tokenizer) -> AsyncIterator[House]:
    house = House(backbone, tokenizer)
    yield house
    await house.service.close()
    house.shadowing.close()


async def test_a_shadow_is_compared_on_every_row(house: House) -> None:
    pairs = list(zip(house.alone(OWN), house.alone(OTHER), strict=True))
    agreed = sum(left.label == right.label for left, right in pairs)
    drift = sum(abs(left.scores[0] - right.scores[0]) for left, right in pairs) / len(pairs)
    house.route(Route(shadows=(OTHER,)))
    await house.ask()
    await house.ask_all()
    await house.settle()
    await house.ask(version=OWN)  # the turns before have ended, and their time is known
    seen = house.of(OTHER)
    assert (seen.rows, seen.failed, seen.compared, seen.agreed) == (16, 0, 16, 2 * agreed)
    assert seen.drift == pytest.approx(drift, abs=1e-4)
    assert (seen.answers, seen.latency_seconds, seen.dropped) == (False, 0.0, 0)
    assert seen.cost_seconds > 0
    own = house.of(OWN)
    assert (own.rows, own.failed, own.compared, own.answers) == (16, 0, 0, True)
    assert own.latency_seconds > 0
    assert house.counted(OTHER, "agreed") + house.counted(OTHER, "disagreed") == 16
    assert house.counted(OTHER, "agreed") == seen.agreed


async def test_a_shadow_with_the_same_weights_agrees_to_the_last_bit(house: House) -> None:
    house.route(Route(shadows=(OTHER,)), twin=house.make(OTHER, seed=OWN))
    await house.ask_all()
    await house.settle()
    assert (house.of(OTHER).agreed, house.of(OTHER).drift) == (8, pytest.approx(0.0, abs=1e-6))


async def test_disagreements_are_kept_with_their_prompts(house: House) -> None:
    flipped = house.make(OTHER, seed=OWN, labels=("positive", "negative"))
    house.route(Route(shadows=(OTHER,)), flipped=flipped)
    [own] = house.alone(OWN, TEXTS[:1])
    await house.ask(TEXTS[:1])
    await house.settle()
    if own.label == house.alone(OTHER, TEXTS[:1])[0].label:
        assert not house.compared().disagreements
    else:
        [told] = house.compared().disagreements
        assert (told.version, told.prompt) == (OTHER, TEXTS[0])
        assert told.expected.startswith(own.label)
        assert not told.found.startswith(own.label)


async def test_answers_are_the_same_bits_with_and_without_shadows(house: House) -> None:
    """Sent one by one, so that a row's batch is the same; only shadows come between."""
    before = await house.ask_all(2)
    house.engine.cache.clear()
    house.route(Route(shadows=(OTHER, THIRD)))
    beside: list[Answer] = []
    for text in TEXTS + TEXTS:
        beside += (await house.ask([text]))[1]
        await house.settle()
    assert beside == before
    assert house.of(OTHER).compared == house.of(THIRD).compared == 16


async def test_a_canary_is_compared_with_the_own_version_that_answers_beside_it(house: House) -> None:
    route = Route(shares={OTHER: 5000}, shadows=(THIRD,), bounds=Bounds(disagreement=0.5, min_rows=1))
    house.route(route)
    versions = [(await house.ask([text], route_key=f"{n}"))[0] for n, text in enumerate(TEXTS * 2)]
    await house.settle()
    canary, own, shadow = house.of(OTHER), house.of(OWN), house.of(THIRD)
    answered = versions.count(OTHER)
    assert 0 < answered < 16
    assert (canary.rows, canary.compared, canary.answers) == (answered, answered, True)
    assert (own.rows, own.answered) == (16, 16 - answered)
    assert (shadow.rows, shadow.compared) == (16, 16)  # beside the canary's rows too: the main version is there
    agree = [left.label == right.label for left, right in zip(house.alone(OWN), house.alone(THIRD), strict=True)]
    assert shadow.agreed == 2 * sum(agree)
    assert canary.latency_seconds > 0


async def test_without_a_bound_on_it_nobody_is_asked_beside_a_canary(house: House) -> None:
    house.route(Route(shares={OTHER: 9999}, shadows=(THIRD,), bounds=Bounds(error_rate=0.1)))
    keys = [f"{n}" for n in range(5)]
    assert [(await house.ask(TEXTS[:1], route_key=key))[0] for key in keys] == [OTHER] * 5
    await house.settle()
    assert (house.of(OTHER).rows, house.of(OTHER).compared, house.of(OWN).rows, house.of(THIRD).rows) == (5, 0, 0, 0)


@pytest.mark.parametrize("beside", ["shadow", "canary's own"])
async def test_a_version_that_makes_no_numbers_is_counted_and_hurts_nobody(house: House, beside: str) -> None:
    expected = await house.ask_all()
    broken = breaks(house.make(OTHER))
    if beside == "shadow":
        house.route(Route(shadows=(OTHER, THIRD)), broken=broken)
        assert await house.ask_all() == expected
        await house.settle()
        assert (house.of(OTHER).rows, house.of(OTHER).failed, house.of(OTHER).compared) == (8, 8, 0)
        assert (house.of(THIRD).failed, house.of(THIRD).compared) == (0, 8)
        assert house.counted(OTHER, "failed") == 8
    else:
        house.route(Route(shares={OTHER: 9999}, bounds=Bounds(disagreement=0.1)), broken=broken)
        for n in range(5):
            with pytest.raises(Exception, match="finite"):
                await house.ask(TEXTS[:1], route_key=f"{n}")
        await house.settle()
        assert (house.of(OTHER).rows, house.of(OTHER).failed, house.of(OTHER).compared) == (5, 5, 0)
        assert (house.of(OWN).rows, house.of(OWN).failed) == (5, 0)


async def test_a_version_with_another_template_gets_its_own_prompt(house: House) -> None:
    other = house.make(OTHER, template="review: {sentence} It was")
    house.route(Route(shadows=(OTHER,)), other=other)
    expected = [left.label == right.label for left, right in zip(house.alone(OWN), house.alone(OTHER), strict=True)]
    await house.ask()
    await house.settle()
    assert (house.of(OTHER).compared, house.of(OTHER).agreed) == (8, sum(expected))


async def test_a_version_whose_template_needs_more_than_callers_send_fails(house: House) -> None:
    house.route(Route(shadows=(OTHER,)), other=house.make(OTHER, template="{sentence} {title}"))
    await house.ask()
    await house.settle()
    assert (house.of(OTHER).rows, house.of(OTHER).failed) == (8, 8)


async def test_texts_are_made_as_their_caller_wanted_them(backbone: Backbone, tokenizer: Tokenizer) -> None:
    house = House(backbone, tokenizer, make_spec("titles", kind="text", max_new_tokens=6))
    house.route(Route(shadows=(OTHER,)))
    few = DecodingOverrides({"max_new_tokens": 2})
    _, found = await house.ask(TEXTS[:3], decoding=few)
    await house.settle()
    owns, others = [house.alone(version, TEXTS[:3]) for version in (OWN, OTHER)]
    assert [answer.tokens for answer in found if isinstance(answer, TextAnswer)] == [own.tokens[:2] for own in owns]
    agreed = sum(own.tokens[:2] == other.tokens[:2] for own, other in zip(owns, others, strict=True))
    assert (house.of(OTHER).compared, house.of(OTHER).agreed) == (3, agreed)
    assert all(len(each.found) <= 8 for each in house.compared().disagreements)
    await house.ask(
        TEXTS[:3], decoding=DecodingOverrides({"do_sample": True})
    )  # drawn anew each time: nothing to compare
    await house.settle()
    assert (house.of(OTHER).rows, house.of(OWN).rows) == (3, 6)
    patient = house.make(OTHER, generation=GenerationSpec(num_beams=2))
    house.route(Route(shadows=(OTHER,)), patient=patient)
    await house.ask(TEXTS[:3])  # the version's own settings, where the caller has none
    await house.settle()
    others = house.alone(OTHER, TEXTS[:3])
    agreed = sum(own.text == other.text for own, other in zip(owns, others, strict=True))
    assert (house.of(OTHER).compared, house.of(OTHER).agreed) == (3, agreed)
    streamed = [event async for event in stream(house.service, "titles", TEXTS[0])]
    assert streamed
    await house.settle()
    assert house.of(OTHER).compared == 4
    await house.service.close()
    house.shadowing.close()


async def test_pinned_requests_and_those_of_an_earlier_route_are_not_seen(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    await house.ask(version=OWN)
    late = asyncio.create_task(house.ask())
    await asyncio.sleep(0)  # it is admitted
    house.route(Route(shadows=(THIRD,)))
    await late
    await house.settle()
    assert [(each.version, each.rows) for each in house.compared().comparisons] == [(OWN, 0), (THIRD, 0)]


async def test_a_swap_does_not_disturb_what_is_being_compared(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    await house.ask()
    house.route(Route())
    del house.residents[OTHER]
    await house.settle()
    assert house.comparisons.read("sst2", "production") is None


async def test_inputs_are_read_from_the_cache_and_not_encoded_again(house: House) -> None:
    value = house.metrics.registry.get_sample_value
    house.route(Route(shadows=(OTHER, THIRD)))
    await house.ask()
    await house.settle()
    assert value("sidecast_batch_rows_sum") == 8
    assert value("sidecast_cache_hits_total") == 8  # both shadows in one turn


async def test_a_tenants_rows_are_asked_with_its_salt(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(seen_of(house))
    assert not kept.requests  # not before the caller has its answer
    await asyncio.sleep(0)
    [request] = kept.requests
    assert [(each.ids, each.salt) for each in request.rows] == [((3, 4, 1), "tenant")]
    assert request.rows[0] is not seen_of(house).rows[0]


async def test_what_load_ended_is_dropped_and_no_failure(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer, metrics=house.metrics).observe(seen_of(house))
    await asyncio.sleep(0)
    kept.requests[0].settle(0, Draining())
    assert (house.of(OTHER).failed, house.of(OTHER).dropped, house.counted(OTHER, "dropped")) == (0, 1, 1)


async def test_a_failed_turn_is_no_failure_of_the_version_but_it_rests_when_there_are_many(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    shadowing = ShadowRunner(kept, house.comparisons, house.tokenizer, metrics=house.metrics)
    for _ in range(SHADOW_FAILURES + 1):
        shadowing.observe(seen_of(house))
        await asyncio.sleep(0)
        if len(kept.requests) <= SHADOW_FAILURES and not kept.requests[-1].is_over:
            kept.requests[-1].settle(0, RuntimeError("the turn failed"))
    assert (house.of(OTHER).failed, house.of(OTHER).dropped, len(kept.requests)) == (
        0,
        SHADOW_FAILURES + 1,
        SHADOW_FAILURES,
    )


async def test_a_caller_who_left_counts_for_latency_alone(house: House) -> None:
    house.route(Route(shares={OTHER: 5000}, shadows=(THIRD,)))
    kept = Kept()
    left = seen_of(house, outcomes=(), prompts=(), inputs=(), seconds=0.7, is_abandoned=True)
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(left)
    await asyncio.sleep(0)
    assert (house.of(OWN).latency_seconds, house.of(OWN).answered, house.of(OWN).rows) == (0.7, 1, 0)
    assert kept.requests == []


async def test_inputs_that_a_canary_makes_no_prompt_of_count_as_failed_and_take_no_time(house: House) -> None:
    house.route(Route(shares={OTHER: 5000}))
    nothing = {"rows": (), "outcomes": (), "prompts": (), "inputs": (), "seconds": 0.0}
    house.shadowing.observe(seen_of(house, resident=house.residents[OTHER], unrendered=3, **nothing))
    await asyncio.sleep(0)
    found = house.of(OTHER)
    assert (found.rows, found.failed, found.error_rate, found.latency_seconds) == (3, 3, 1.0, 0.0)


async def test_rows_of_a_route_that_is_over_are_not_wanted(house: House) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(seen_of(house))
    await asyncio.sleep(0)
    assert kept.requests[0].is_wanted
    house.route(Route(shadows=(OTHER, THIRD)))
    assert not kept.requests[0].is_wanted


async def test_another_version_answers_by_its_own_settings_with_what_the_request_sets(
    backbone: Backbone, tokenizer: Tokenizer
) -> None:
    house = House(backbone, tokenizer, make_spec("titles", kind="text", max_new_tokens=6))
    patient = house.make(OTHER, max_new_tokens=4, generation=GenerationSpec(num_beams=2))
    house.route(Route(shadows=(OTHER,)), patient=patient)
    kept = Kept()
    shadowing = ShadowRunner(kept, house.comparisons, tokenizer)
    for limit in (3, 5):  # it makes no 5 tokens, so there is nothing to compare
        overrides = DecodingOverrides({"max_new_tokens": limit})
        rows = (EngineRow((3, 4, 1), house.residents[OWN], overrides.answerer(house.residents[OWN])),)
        shadowing.observe(seen_of(house, rows=rows, overrides=overrides))
        await asyncio.sleep(0)
    [request] = kept.requests
    how = request.rows[0].how  # type: ignore[attr-defined]
    assert isinstance(how, Generate)
    assert (how.generation.num_beams, how.max_new_tokens) == (2, 3)
    await house.service.close()
    house.shadowing.close()


async def test_a_comparison_that_fails_is_logged_and_no_more(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.route(Route(shadows=(OTHER,)))
    kept = Kept()
    ShadowRunner(kept, house.comparisons, house.tokenizer).observe(seen_of(house))
    await asyncio.sleep(0)
    [answer] = house.alone(OTHER, TEXTS[:1])
    kept.requests[0].settle(0, replace(answer, scores=(1.0,)))  # fewer scores than labels
    assert "cannot be compared" in caplog.text


async def test_a_version_that_fails_over_and_over_is_left_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.route(Route(shadows=(OTHER,)), broken=breaks(house.make(OTHER)))
    for _ in range(SHADOW_FAILURES // len(TEXTS) + 1):
        await house.ask()
        await house.settle()
    assert (house.of(OTHER).failed, house.of(OTHER).dropped) == (SHADOW_FAILURES, len(TEXTS))
    assert f"in shadow, sst2:2 failed {SHADOW_FAILURES} times in a row" in caplog.text


async def test_all_versions_of_a_slow_step_are_left_alone(
    backbone: Backbone, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(backbone, tokenizer, shadow_timeout_s=1e-9)
    house.route(Route(shadows=(OTHER, THIRD)))
    for _ in range(3):
        await house.ask()
        await house.settle()
    for version in (OTHER, THIRD):
        seen = house.of(version)
        assert (seen.compared, seen.dropped, seen.failed) == (8, 16, 0)
        assert re.search(rf"sst2:{version} took .* s for a step of shadow rows, .*\(shadow_timeout_s\)", caplog.text)
    await house.service.close()
    house.shadowing.close()
