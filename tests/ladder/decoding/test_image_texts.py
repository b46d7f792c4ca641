"""Running texts of rows that read images: each is as if it were alone, whatever it shares a step with."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ladder import Answer, Backbone, Generate, Generation, Row, SideNetwork, TextAnswer, answer, run_backbone
from ladder.answering.batch_plan import Image
from ladder.backbone import Images
from ladder.config import VisualConfig
from ladder.decoding.continuous import RunningTexts, Text
from ladder.errors import InputsError
from ladder.stacked.bank import SideBank
from ladder.stacked.network import Side
from tests.ladder import decoding_kit
from tests.ladder.decoding.continuous_kit import INPUTS

VISUAL = VisualConfig(features=6, tokens=4, positions=9)
NAMES = "abc"
SEEN = [("a",), ("b",), ("a", "b"), ("c", "a"), ("b", "b")]
SETTINGS = [
    Generation(),
    Generation(do_sample=True, temperature=1.5, seed=3),
    Generation(num_beams=3),
    Generation(num_beams=2, min_new_tokens=4),
]
SHAPES = [
    (VISUAL, True),
    (VISUAL, True),
    (VISUAL, False),
    (replace(VISUAL, tokens=0), True),
    (None, True),
    (None, False),
]
LIMIT = 7


@dataclass(frozen=True)
class Tasks:
    backbone: Backbone
    modules: list[SideNetwork]
    sides: list[Side]
    """As they are computed."""

    def expected(self, task: int, how: int, number: int, names: tuple[str, ...]) -> Answer | Exception:
        row = Row(
            ids=INPUTS[number], side=self.modules[task], answerer=writes(SETTINGS[how]), images=self.images(task, names)
        )
        return answer(self.backbone, [row], encode_images=encode_images)[0]

    def images(self, task: int, names: tuple[str, ...]) -> tuple[str, ...]:
        return names if self.modules[task].config.visual else ()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    backbone = decoding_kit.make_backbone(Path(tmp_path_factory.mktemp("images") / "t5"))
    modules = [decoding_kit.make_side(backbone, seed, visual=visual) for seed, (visual, _) in enumerate(SHAPES)]
    bank = SideBank(backbone)
    sides = [bank.add(side) if stacked else side for side, (_, stacked) in zip(modules, SHAPES, strict=True)]
    return Tasks(backbone, modules, sides)


def writes(how: Generation) -> Generate:
    return Generate(max_new_tokens=LIMIT, decode=str, generation=how)


def encode_images(images: list[Image]) -> Images:
    made = [torch.randn(9, 6, generator=torch.Generator().manual_seed(ord(name))) for _, name in images]
    return Images(features=torch.stack(made), rows=[(index,) for index in range(len(made))])


ALL = encode_images([("", name) for name in NAMES])


def text_of(tasks: Tasks, task: int, how: int) -> Text:
    return Text(tasks.sides[task], SETTINGS[how], LIMIT, writes(SETTINGS[how]).finish, SETTINGS[how].seed, None)


def numbered(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(map(NAMES.index, names))


PICK = st.tuples(
    st.integers(0, len(SHAPES) - 1),
    st.integers(0, len(SETTINGS) - 1),
    st.integers(0, len(INPUTS) - 1),
    st.sampled_from(SEEN),
)


JOINS = st.lists(st.lists(PICK, min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(JOINS, st.sets(st.integers(0, 12), max_size=3))
def test_texts_of_images_and_of_texts_that_join_and_leave_equal_each_alone(tasks: Tasks, joins, gone) -> None:
    """Greedy, sampled and beams; rows of one join share inputs and images, in any order."""
    play(tasks, joins, gone)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(JOINS, st.sets(st.integers(0, 12), max_size=3))
def test_texts_of_images_and_of_texts_that_join_and_leave_equal_each_alone_many_times(tasks, joins, gone) -> None:
    play(tasks, joins, gone)


def test_texts_of_one_question_about_many_images_equal_each_alone(tasks: Tasks) -> None:
    """And many questions about one image; each in one join."""
    play(
        tasks, [[(0, how, 0, names) for names in SEEN for how in (0, 1)], [(1, 0, n, ("a",)) for n in range(3)]], set()
    )


def play(tasks: Tasks, joins: list[list[tuple[int, int, int, tuple[str, ...]]]], gone: set[int]) -> None:
    """Each list joins at once; after every second one, a step comes before the next."""
    running = RunningTexts(tasks.backbone)
    expected: dict[Text, Answer | Exception] = {}
    ends: dict[Text, Answer | Exception] = {}

    def step() -> None:
        ends.update({text: ending for text, _, ending in running.step() if ending is not None})

    for number_of_join, picks in enumerate(joins):
        texts = [text_of(tasks, task, how) for task, how, _, _ in picks]
        seen = [numbered(tasks.images(task, names)) for task, _, _, names in picks]
        backbone_pass = run_backbone(tasks.backbone, INPUTS)
        running.join(texts, backbone_pass, [number for _, _, number, _ in picks], ALL.of_rows(seen))
        expected |= {text: tasks.expected(*pick) for text, pick in zip(texts, picks, strict=True)}
        if number_of_join % 2 == 0:
            step()
    leaving = [text for index, text in enumerate(expected) if index in gone and text not in ends]
    running.leave(leaving)
    while not running.is_idle:
        step()
    assert ends == {text: ending for text, ending in expected.items() if text not in leaving}


@pytest.mark.parametrize("how", [0, 2])
def test_texts_with_too_few_or_too_many_images_fail_alone(tasks: Tasks, how: int) -> None:
    running = RunningTexts(tasks.backbone)
    names = [("a",), (), ("a", "b", "c"), ("a", "b")]
    texts = [text_of(tasks, 0, how) for _ in names]
    running.join(texts, run_backbone(tasks.backbone, INPUTS), [0] * 4, ALL.of_rows([*map(numbered, names)]))
    ends: dict[Text, Answer | Exception] = {}
    while not running.is_idle:
        ends |= {text: ending for text, _, ending in running.step() if ending is not None}
    assert [type(ends[text]) for text in texts] == [TextAnswer, InputsError, InputsError, TextAnswer]
    assert ends[texts[0]] == tasks.expected(0, how, 0, ("a",))
    assert ends[texts[3]] == tasks.expected(0, how, 0, ("a", "b"))


def test_a_search_that_has_begun_holds_no_features(tasks: Tasks) -> None:
    running = RunningTexts(tasks.backbone)
    running.join([text_of(tasks, 0, 2)], run_backbone(tasks.backbone, INPUTS), [0], ALL.of_rows([(0,)]))
    [search] = running._searches
    assert [one.segment.taps.images for one in search._searches] == [None]
