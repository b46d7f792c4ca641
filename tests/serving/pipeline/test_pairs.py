"""Tasks whose side network reads two texts apart: served as they are answered alone, in shadow too."""

from typing import Any

import pytest

from ladder import Backbone, ClassAnswer, Tokenizer
from serving.errors import InvalidInput
from serving.pipeline import Prompt
from side_registry.route import Route
from tests.serving.kit import make_resident, make_spec, predict
from tests.serving.rollout.shadow_kit import OTHER, OWN, House
from training.evaluation import Model, make_answerer
from training.evaluation import predict as answers_of

SPEC = make_spec("mrpc", template="one: {one} two: {two}")
ROWS: list[dict[str, Any]] = [
    {"one": "a gripping film", "two": "dull"},
    {"one": "a gripping", "two": "film two: dull"},
    {"one": "a gripping film", "two": "dull"},
]
"""The prompts of the first and the second differ; those of a template without names may not."""


@pytest.fixture
async def house(backbone: Backbone, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> House:
    def make(house: House, version: int) -> Any:
        return make_resident(backbone, tokenizer, house.spec, version, version, head="linear", pair=version != OTHER)

    monkeypatch.setattr(House, "make", make)
    return House(backbone, tokenizer, SPEC)


async def test_a_served_row_is_answered_as_alone(house: House) -> None:
    side: Any = house.residents[OWN].side
    model = Model(spec=SPEC, side=side, answerer=make_answerer(SPEC, side, house.tokenizer))
    expected = answers_of(model, house.backbone, house.tokenizer, ROWS)
    found = await predict(house.service, "mrpc", ROWS)
    scores = [each.scores for each in found.answers if isinstance(each, ClassAnswer)]
    assert scores == [pytest.approx(each.scores, abs=1e-5) for each in expected if isinstance(each, ClassAnswer)]
    assert len(set(scores)) == 2


async def test_equal_prompts_that_are_parted_elsewhere_are_other_rows(
    backbone: Backbone, tokenizer: Tokenizer, house: House
) -> None:
    plain = House(backbone, tokenizer, make_spec("mrpc", template="{one} {two}"))
    rows = [{"one": "a gripping", "two": "film"}, {"one": "a", "two": "gripping film"}]
    found = await predict(plain.service, "mrpc", rows)
    first, second = (each for each in found.answers if isinstance(each, ClassAnswer))
    assert first.scores != second.scores


async def test_a_whole_prompt_does_not_say_where_its_texts_are(house: House) -> None:
    with pytest.raises(InvalidInput, match="reads its two texts apart; give the fields one and two") as raised:
        await predict(house.service, "mrpc", [ROWS[0], Prompt("one: a two: b")])
    assert raised.value.field == "rows[1]"
    assert (await predict(house.service, "mrpc", [Prompt("one: a two: b")], version=OTHER)).answers


@pytest.mark.parametrize("apart", [OWN, OTHER])
async def test_a_shadow_reads_texts_as_its_own_side_network_does(house: House, apart: int) -> None:
    for version in (OWN, OTHER):
        made = make_resident(house.backbone, house.tokenizer, SPEC, version, head="linear", pair=version == apart)
        house.residents[version] = made
    house.route(Route(shadows=(OTHER,)))
    await predict(house.service, "mrpc", ROWS)
    await house.settle()
    compared = house.of(OTHER)
    assert (compared.rows, compared.failed) == (2, 0)  # equal rows are one
