"""Rows that name an input and images: each is answered as alone, and what rows share is computed once."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ladder import Answer, Backbone, ClassAnswer, Classify, Generate, LabelTrie, Row, TextAnswer, answer, load_backbone
from ladder.answering.batch_plan import Image, plan
from ladder.answering.mixed_batch import score
from ladder.backbone import Images, run_backbone
from ladder.config import VisualConfig
from ladder.errors import InputsError
from ladder.stacked.bank import SideBank
from ladder.stacked.network import Side
from tests.ladder.stacks import make_sides

VISUAL = VisualConfig(features=6, tokens=4, positions=9)
CELLS = 9
IDS = [(5, 8, 13, 1), (40, 1), (5, 8, 13, 22, 17, 1)]
SEEN = [("a",), ("b",), ("a", "b"), ("c", "a"), ("b", "b")]
LINEAR = Classify(labels=("x", "y", "z"))
WORDS = Classify(labels=("x", "y", "z"), trie=LabelTrie(((7, 1), (9, 4, 1), (9, 5, 1))))
WRITES = Generate(max_new_tokens=3, decode=str)


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path) -> Backbone:
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tasks(backbone: Backbone) -> list[tuple[Side, Side, Any]]:
    """Tasks with images and without: a side network as it is computed, its module, and its answerer."""
    bank, made = SideBank(backbone), []
    ways: list[tuple[str, Any, dict[str, Any], bool]] = [
        ("linear", LINEAR, {"visual": VISUAL, "words": True}, True),
        ("linear", LINEAR, {"visual": VISUAL, "words": True}, True),
        ("linear", LINEAR, {"visual": VISUAL}, False),
        ("text", WORDS, {"visual": VISUAL}, True),
        ("text", WRITES, {"visual": VISUAL}, True),
        ("text", WRITES, {"visual": VISUAL}, False),
        ("linear", LINEAR, {}, True),
        ("text", WORDS, {}, True),
        ("text", WORDS, {}, False),
    ]
    for seed, (head, how, shape, stacked) in enumerate(ways):
        [module] = make_sides(backbone, 1, seed=seed, head=head, **shape)
        made.append((bank.add(module) if stacked else module, module, how))
    return made


def encode_images(images: Sequence[Image]) -> Images:
    """Features that depend on salt and name alone."""
    made = []
    for salt, name in images:
        made.append(torch.randn(1, CELLS, 10, generator=torch.Generator().manual_seed(ord(name) + 1000 * len(salt))))
    stacked = torch.stack(made)
    return Images.of(stacked[..., :6], stacked[..., 6:])


def same(ours: Answer | Exception, theirs: Answer | Exception) -> bool:
    match ours, theirs:
        case ClassAnswer(), ClassAnswer():
            return ours.scores == pytest.approx(theirs.scores, abs=1e-4)
        case TextAnswer(), TextAnswer():
            return ours == theirs
        case _:
            return False


row_strategy = st.tuples(st.integers(0, 8), st.sampled_from(IDS), st.sampled_from(SEEN), st.sampled_from(["", "salt"]))


@settings(max_examples=12, deadline=None)
@given(st.lists(row_strategy, min_size=1, max_size=14))
def test_any_mix_is_answered_as_each_row_by_its_module_alone(backbone: Backbone, tasks, picks) -> None:
    """Tasks of images and of texts, with shared questions, images, pairs and salts."""
    rows, expected = [], []
    for number, ids, names, salt in picks:
        held, module, how = tasks[number]
        images = names if held.config.visual else ()
        rows.append(Row(ids=ids, side=held, answerer=how, salt=salt, images=images))
        alone = Row(ids=ids, side=module, answerer=how, salt=salt, images=images)
        expected += answer(backbone, [alone], encode_images=encode_images)
    found = answer(backbone, rows, encode_images=encode_images)
    assert all(map(same, found, expected)), (found, expected)


def test_inputs_and_images_are_numbered_apart(tasks) -> None:
    """8 images of one question are one input; other salts share nothing; networks of texts have no images."""
    side, _, how = tasks[0]
    eight = [Row(ids=IDS[0], side=side, answerer=how, images=(name,)) for name in "abcdefgh"]
    salted = Row(ids=IDS[0], side=side, answerer=how, images=("a",), salt="s")
    text = Row(ids=IDS[1], side=tasks[6][0], answerer=how, images=("z",))
    planned = plan([*eight, salted, text])
    assert len(planned.inputs) == 3
    assert planned.images == [*(("", name) for name in "abcdefgh"), ("s", "a")]
    [group] = [group for group in planned.groups if group.images]
    assert (group.inputs, group.images) == ([0] * 8 + [1], [(number,) for number in range(9)])
    [part] = [group for group in planned.select([1]) if group.images]
    assert (part.inputs, part.images) == ([0], [(8,)])


def test_rows_with_too_few_or_too_many_images_fail_alone(backbone: Backbone, tasks) -> None:
    side, _, how = tasks[0]
    names = [("a",), (), ("a", "b", "c"), ("a", "b")]
    rows = [Row(ids=IDS[0], side=side, answerer=how, images=some) for some in names]
    found = answer(backbone, rows, encode_images=encode_images)
    assert [type(one) for one in found] == [ClassAnswer, InputsError, InputsError, ClassAnswer]
    assert "at most 2" in str(found[2])


class Work(TorchDispatchMode):
    """Counts tokens: in matrix products, by the shape of the weight; that are copied, by their width."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[int, int]] = Counter()
        self.copied: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            hidden, weight = args[-2:]
            self.products[tuple(weight.shape[-2:])] += hidden.numel() // hidden.shape[-1]
        elif name == "linear":
            self.products[tuple(args[1].T.shape)] += args[0].numel() // args[0].shape[-1]
        elif name in ("index_select", "index", "cat", "clone", "copy_", "repeat_interleave") and out.shape[-2:-1] > (
            1,
        ):
            self.copied[out.shape[-1]] += out.numel() // out.shape[-1]
        return out


def work_of(backbone: Backbone, rows: Sequence[Row]) -> Work:
    planned = plan(rows)
    backbone_pass = run_backbone(backbone, [ids for _, ids in planned.inputs], planned.depth)
    images = encode_images(planned.images) if planned.images else None
    outcomes: list[object] = []
    with torch.inference_mode(), Work() as work:
        score(backbone_pass, planned.groups, outcomes.extend, images)
    assert len(outcomes) == len(rows)
    assert all(isinstance(one, ClassAnswer) for _, one in outcomes)  # type: ignore[misc]
    return work


@pytest.mark.parametrize("stacked", [True, False])
def test_a_question_about_many_images_has_its_taps_once(backbone: Backbone, tasks, stacked: bool) -> None:
    """Each tap is downsampled once for the question, and each image projected once; no tap is copied."""
    side, module, how = tasks[0]
    rows = [Row(ids=IDS[0], side=side if stacked else module, answerer=how, images=(name,)) for name in "abcdefgh"]
    work = work_of(backbone, rows)
    width, taps = backbone.config.d_model, 1 + len(module.encoder.layers)
    down = (width, width // 4)
    behind = 8 * VISUAL.tokens * (2 if stacked else 1)  # features and boxes apart, or their sum
    assert work.products[down] == taps * len(IDS[0]) + behind
    assert work.products[6, width] == 8 * VISUAL.tokens
    if stacked:
        assert work.copied[width] == 0


@pytest.mark.parametrize("stacked", [True, False])
def test_an_image_is_projected_once_for_all_questions(backbone: Backbone, tasks, stacked: bool) -> None:
    """Alone and as part of pairs, in either place."""
    side, module, how = tasks[0]
    names = [("a",), ("a", "b"), ("b", "a")]
    rows = [
        Row(ids=ids, side=side if stacked else module, answerer=how, images=some) for ids in IDS for some in names[1:]
    ]
    assert work_of(backbone, rows).products[6, backbone.config.d_model] == 2 * VISUAL.tokens
    rows = [Row(ids=ids, side=side if stacked else module, answerer=how, images=names[0]) for ids in IDS]
    assert work_of(backbone, rows).products[6, backbone.config.d_model] == VISUAL.tokens


def test_each_side_network_projects_an_image_of_its_own(backbone: Backbone, tasks) -> None:
    """16 rows of two stacked side networks read 2 images; features are not copied for either."""
    rows = [
        Row(ids=IDS[number % 3], side=tasks[task][0], answerer=LINEAR, images=("ab"[number % 2],))
        for number in range(8)
        for task in (0, 1)
    ]
    work = work_of(backbone, rows)
    assert work.products[6, backbone.config.d_model] == 2 * 2 * VISUAL.tokens
    assert work.copied[backbone.config.d_model] == 0
