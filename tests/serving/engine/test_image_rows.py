"""Rows with images in the engine: any mix with rows of text is answered as each row alone, and faults stay alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import Answer, Backbone, ClassAnswer, Row, TextAnswer, Tokenizer, ValueAnswer, answer
from ladder.config import VisualConfig
from ladder.stacked.bank import SideBank
from serving.config import EngineConfig
from serving.engine import engine as engine_module
from serving.engine.engine import Engine
from serving.engine.rows import EncodedImage, EngineRow, Event, Resident
from serving.errors import PassTooLarge, SideFailed
from side_registry.specs.decoding_spec import GenerationSpec
from tests.serving.kit import ids_of, make_resident, make_spec
from tests.serving.visual_kit import CELLS, VISUAL, WIDTH, encoded, ladder_images, visual_spec

RED, GREEN, BLUE = (encoded(data) for data in (b"red", b"green", b"blue"))
TEXTS = ("what is it", "is the sky in this picture blue", "dull")
SEEN = ((RED,), (GREEN,), (RED, BLUE), (BLUE, RED), (GREEN, GREEN))
SAMPLED = GenerationSpec(do_sample=True, temperature=1.4, seed=5)
BEAMS = GenerationSpec(num_beams=3)


@pytest.fixture(scope="module")
def engine(backbone: Backbone) -> Engine:
    return Engine(backbone)


def residents_of(backbone: Backbone, tokenizer: Tokenizer, bank: SideBank | None) -> list[Resident]:
    """Tasks of every kind of answer, with images and without; with a bank, most are stacked in it."""
    specs = [
        (visual_spec("yes"), "text"),
        (visual_spec("flowers", labels=("rose", "tulip", "daisy")), "linear"),
        (visual_spec("counts", "regression"), "linear"),
        (visual_spec("captions", "text", max_new_tokens=4), "text"),
        (visual_spec("dreams", "text", max_new_tokens=4, generation=SAMPLED), "text"),
        (visual_spec("beams", "text", max_new_tokens=4, generation=BEAMS), "text"),
        (make_spec("sst2"), "text"),
        (make_spec("titles", "text", max_new_tokens=4), "text"),
        (make_spec("best", "text", max_new_tokens=4, generation=BEAMS), "text"),
    ]
    made = []
    for seed, (spec, head) in enumerate(specs):
        torch.manual_seed(seed)  # the initial weights are drawn from torch's generator
        shape = {"visual": VISUAL} if spec.images else {}
        own_bank = bank if seed % 4 != 3 else None
        made.append(make_resident(backbone, tokenizer, spec, seed=seed, head=head, bank=own_bank, **shape))
    return made


@pytest.fixture(scope="module")
def modules(backbone: Backbone, tokenizer: Tokenizer) -> list[Resident]:
    return residents_of(backbone, tokenizer, None)


@pytest.fixture(scope="module")
def residents(backbone: Backbone, tokenizer: Tokenizer) -> list[Resident]:
    return residents_of(backbone, tokenizer, SideBank(backbone))


def row_of(tokenizer: Tokenizer, resident: Resident, text: str = TEXTS[0], *images: EncodedImage) -> EngineRow:
    own = (images or (RED,)) if resident.spec.images else ()
    return EngineRow(ids_of(tokenizer, text), resident, images=own)


def alone(backbone: Backbone, row: EngineRow, module: Resident) -> Answer | Exception:
    """The answer of the row's module, in no batch and without the engine."""
    single = Row(ids=row.ids, side=module.side, answerer=module.answerer, salt=row.salt, images=row.image_names)
    return answer(backbone, [single], encode_images=ladder_images(row.images))[0]


def close(ours: Answer | Exception, theirs: Answer | Exception) -> bool:
    match ours, theirs:
        case ClassAnswer(), ClassAnswer():
            return ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        case ValueAnswer(), ValueAnswer():
            return ours.value == pytest.approx(theirs.value, abs=1e-4)
        case TextAnswer(), TextAnswer():
            return ours == theirs
        case _:
            return False


PICK = st.tuples(st.integers(0, 8), st.sampled_from(TEXTS), st.sampled_from(SEEN), st.sampled_from(["", "tenant"]))


@settings(max_examples=4, deadline=None)
@given(st.lists(PICK, min_size=1, max_size=10))
def test_any_mix_equals_each_row_alone(
    engine: Engine, backbone: Backbone, tokenizer: Tokenizer, residents, modules, picks
) -> None:
    """Inputs, images, pairs and salts are shared in any way. Texts are greedy, sampled from a seed, or of beams."""
    rows = [
        replace(row_of(tokenizer, residents[number], text, *images), salt=salt) for number, text, images, salt in picks
    ]
    expected = [alone(backbone, row, modules[pick[0]]) for row, pick in zip(rows, picks, strict=True)]
    found = engine.predict(rows)
    assert all(map(close, found, expected)), (found, expected)


def test_images_of_one_question_are_answered_differently(engine: Engine, residents, tokenizer: Tokenizer) -> None:
    """Else the tests here would compare nothing."""
    rows = [row_of(tokenizer, residents[1], TEXTS[0], image) for image in (RED, GREEN)]
    first, second = engine.predict(rows)
    assert isinstance(first, ClassAnswer)
    assert not close(first, second)


def odd(row: EngineRow, *images: EncodedImage) -> EngineRow:
    return replace(row, images=images)


ODD = {
    "another grid": ((encoded(b"odd", cells=4),), "shape (4, 6)"),
    "another width": ((encoded(b"odd", width=WIDTH + 2),), "shape (9, 8)"),
    "no image": ((), "give each row its images"),
    "too many": ((RED, GREEN, BLUE), "at most 2"),
    "not a number": ((EncodedImage("odd", torch.full((CELLS, WIDTH), float("nan"))),), ""),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("task", [0, 1, 3, 4, 5])
def test_an_image_that_does_not_fit_fails_its_row_alone(
    engine: Engine, residents, tokenizer: Tokenizer, what: str, task: int
) -> None:
    rows = [row_of(tokenizer, resident) for resident in residents]
    images, words = ODD[what]
    wrong = odd(row_of(tokenizer, residents[task]), *images)
    expected = engine.predict(rows)
    *found, failed = engine.predict([*[row_of(tokenizer, resident) for resident in residents], wrong])
    assert isinstance(failed, SideFailed)
    assert words in str(failed)
    assert all(map(close, found, expected))


def test_a_task_of_text_ignores_images(engine: Engine, residents, tokenizer: Tokenizer) -> None:
    row = row_of(tokenizer, residents[6])
    [expected, found] = engine.predict([row, odd(row, RED)])
    assert close(found, expected)


def test_rows_of_text_do_no_work_for_images(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("there are no images")

    for name in ("odd_rows", "stack_images"):
        monkeypatch.setattr(engine_module, name, never)
    found = engine.predict([row_of(tokenizer, resident) for resident in residents[6:]])
    assert not any(isinstance(one, Exception) for one in found)


def test_each_image_is_stacked_once(
    engine: Engine, residents, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked: list[list[str]] = []
    whole = engine_module.stack_images

    def counted(backbone: Backbone, rows: Sequence[EngineRow], images: Sequence[tuple[str, str]]):
        stacked.append([name for _, name in images])
        return whole(backbone, rows, images)

    monkeypatch.setattr(engine_module, "stack_images", counted)
    engine.predict([row_of(tokenizer, residents[number], text, RED) for number in (0, 1, 3) for text in TEXTS])
    assert stacked == [[RED.name]]


def test_a_cancelled_row_leaves_its_neighbours_alone(backbone: Backbone, residents, tokenizer: Tokenizer) -> None:
    engine = Engine(backbone)
    rows = [row_of(tokenizer, resident, TEXTS[0], GREEN) for resident in residents]
    expected = dict(zip(rows, engine.predict([replace(row) for row in rows]), strict=True))
    gone = {rows[3], rows[5]}
    ended: dict[EngineRow, Event] = {}
    running = engine.step(rows, (), ended.update)
    running = engine.step((), gone, ended.update)
    while running:
        running = engine.step((), (), ended.update)
    assert engine.running == 0
    left = [row for row in rows if row not in gone or row in ended]
    assert set(rows) - gone <= set(ended)
    assert all(close(ended[row], expected[row]) for row in left)  # type: ignore[arg-type]


def test_a_pass_counts_the_tokens_and_features_of_images(backbone: Backbone, residents, tokenizer: Tokenizer) -> None:
    """Where a pass has no room for all rows they go in parts; where one image is too large its row fails alone."""
    whole = Engine(backbone)
    rows = [row_of(tokenizer, residents[number], text, RED) for number in (0, 1, 6) for text in TEXTS]
    row = rows[0]
    assert (row.side_tokens, row.image_numbers) == (len(row.ids) + VISUAL.tokens, CELLS * WIDTH)
    limit = whole._estimate(3, max(row.side_tokens for row in rows), 3 * CELLS * WIDTH)
    small = Engine(backbone, config=EngineConfig(max_pass_bytes=limit))
    parts = small._parts(rows)
    assert len(parts) > 1
    assert sorted(map(id, rows)) == sorted(id(row) for part in parts for row in part)
    assert all(map(close, small.predict(rows), whole.predict([replace(row) for row in rows])))
    tight = Engine(backbone, config=EngineConfig(max_pass_bytes=whole._estimate(1, len(row.ids))))
    text, image = tight.predict([row_of(tokenizer, residents[6]), replace(row)])
    assert isinstance(text, ClassAnswer)
    assert isinstance(image, PassTooLarge)
    assert image.tokens == row.side_tokens


def test_what_an_image_counts_as(residents, tokenizer: Tokenizer) -> None:
    text, one, two = (
        row_of(tokenizer, residents[6]),
        row_of(tokenizer, residents[0], TEXTS[0], RED),
        row_of(tokenizer, residents[0], TEXTS[0], RED, BLUE),
    )
    assert [row.image_tokens for row in (text, one, two)] == [0, 4, 8]
    assert [row.image_work for row in (text, one, two)] == [0, 1, 1]
    assert (text.side_tokens, text.image_names) == (len(text.ids), ())
    grid = make_whole_grid(residents[0])
    assert EngineRow(one.ids, grid, images=(RED,)).image_tokens == CELLS


def make_whole_grid(resident: Resident) -> Resident:
    """A side network that reads the grid as it is."""

    class Side:
        config = replace(resident.side.config, visual=VisualConfig(features=WIDTH, tokens=0, positions=CELLS))

    return replace(resident, side=Side())
