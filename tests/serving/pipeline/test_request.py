"""A request's settings for texts over its task's, and that the spec and the decoder mean the same by them."""

from dataclasses import fields, replace
from typing import Any

import pytest

from ladder import Generate, Generation
from serving.engine.rows import Resident
from serving.errors import InvalidInput
from serving.pipeline.request import DecodingOverrides
from side_registry import GenerationSpec
from tests.serving.kit import empty_resident, make_spec


def resident(**generation: Any) -> Resident:
    spec = make_spec("titles", kind="text", max_new_tokens=20, generation=GenerationSpec(**generation))
    answerer = Generate(max_new_tokens=20, decode=str, generation=Generation(**spec.generation.settings))
    return replace(empty_resident("titles", spec=spec), answerer=answerer)


def made(given: dict[str, Any], **spec: Any) -> Generation:
    answerer = DecodingOverrides(given).answerer(resident(**spec))
    assert isinstance(answerer, Generate)
    return answerer.generation


def test_a_spec_says_what_the_decoder_knows_with_the_same_defaults() -> None:
    theirs = {each.name: each.default for each in fields(Generation)}
    ours = {name: each.default for name, each in GenerationSpec.model_fields.items()}
    assert theirs == ours | {"legacy_beams": False}


def test_a_spec_allows_nothing_that_the_decoder_refuses() -> None:
    for name, field in GenerationSpec.model_fields.items():
        bounds = [getattr(each, "ge", getattr(each, "le", None)) for each in field.metadata]
        assert bounds or name in ("do_sample", "early_stopping", "seed")
        for bound in bounds:
            Generation(**GenerationSpec(**{name: bound}).settings)
            step = -1 if bound == min(bounds) else 1
            with pytest.raises(ValueError, match=name):
                Generation(**{name: bound + step})


def test_what_the_request_does_not_name_stays_as_the_spec_says() -> None:
    spec: dict[str, Any] = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3}
    assert made({}, **spec) == Generation(**spec)
    assert made({"length_penalty": 0.5}, **spec) == Generation(**spec | {"length_penalty": 0.5})
    assert made({"num_beams": 1, "do_sample": True, "seed": 2}, **spec) == Generation(
        length_penalty=2.0, no_repeat_ngram_size=3, do_sample=True, seed=2
    )
    assert made({"do_sample": False}, do_sample=True, temperature=0.5) == Generation(temperature=0.5)


def test_without_settings_the_answerer_is_the_residents_own() -> None:
    own = resident(num_beams=2)
    assert DecodingOverrides().answerer(own) is own.answerer


@pytest.mark.parametrize(
    ("given", "spec", "says"),
    [
        ({"num_beams": 2}, {"do_sample": True}, "here.num_beams: must be 1 where do_sample is on, got 2"),
        ({"do_sample": True}, {"num_beams": 2}, "here.num_beams: must be 1 where do_sample is on, got 2"),
        ({"seed": 1}, {}, "here.seed: is for sampling; set do_sample too"),
        ({"early_stopping": True}, {"num_beams": 4, "length_penalty": 2.0}, ""),
        ({"early_stopping": True}, {}, "here.early_stopping: is for beams; set num_beams above 1 too"),
        ({"max_new_tokens": 21}, {}, "here.max_new_tokens: must be 1 to 20, the task's own limit, got 21"),
        ({"max_new_tokens": "9" * 99}, {}, "here.max_new_tokens: must be 1 to 20"),
    ],
)
def test_what_has_no_effect_or_contradicts_is_refused(given: dict[str, Any], spec: dict[str, Any], says: str) -> None:
    if not says:
        DecodingOverrides(given, "here").answerer(resident(**spec))
        return
    with pytest.raises(InvalidInput) as caught:
        DecodingOverrides(given, "here").answerer(resident(**spec))
    assert says in str(caught.value)
