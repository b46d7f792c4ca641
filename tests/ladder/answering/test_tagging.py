"""Tags of words: entities out of them, repaired where they make no sense, and the loss that teaches them."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ladder import NotFiniteError, SpansAnswer, load_backbone, run_backbone
from ladder.answering import IGNORED, TagWords, Words
from tests.ladder.stacks import make_sides

TAG = {"O": 0, "B-PER": 1, "B-LOC": 2, "I-PER": 3, "I-LOC": 4}
ANSWERER = TagWords(labels=("PER", "LOC"))


@dataclass
class Reading:
    """Outputs of a head, as answerers read them."""

    logits: Tensor
    mask: Tensor
    words: list[Words | None]

    def token_outputs(self) -> tuple[Tensor, Tensor]:
        return self.logits, self.mask


def found(tags: str, *, left: int = 0) -> list[tuple[str, str]]:
    """The entities of words a, b, c ... that have these tags; `left`: columns of padding before them."""
    names = tags.split()
    logits = torch.zeros(1, left + len(names), 5)
    for index, name in enumerate(names):
        logits[0, left + index, TAG[name]] = 9
    mask = torch.arange(left + len(names))[None] >= left
    text = " ".join("abcdefgh"[: len(names)])
    words = Words(text, tuple((2 * index, 2 * index + 1) for index in range(len(names))), tuple(range(len(names))))
    [answer] = ANSWERER.answers(Reading(logits, mask, [words]))  # type: ignore[arg-type]
    assert isinstance(answer, SpansAnswer)
    assert all(text[span.start : span.end] == span.text for span in answer.spans)
    assert all(span.score > 0.99 for span in answer.spans)
    return [(span.text, span.label) for span in answer.spans]


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("a b", "PER"), ("d", "LOC")]),
        ("B-PER B-PER I-PER", [("a", "PER"), ("b c", "PER")]),
        ("I-PER I-PER O", [("a b", "PER")]),
        ("B-PER I-LOC I-LOC", [("a", "PER"), ("b c", "LOC")]),
        ("O I-LOC B-LOC", [("b", "LOC"), ("c", "LOC")]),
    ],
)
def test_tags_become_entities_and_bad_sequences_are_repaired(tags: str, entities: list[tuple[str, str]]) -> None:
    assert found(tags) == entities
    assert found(tags, left=3) == entities


def test_a_label_counts_by_its_beginning_and_its_inside_together() -> None:
    probabilities = torch.tensor([0.4, 0.35, 0.0, 0.25, 0.0]).clamp(min=1e-9)
    words = Words("a", ((0, 1),), (0,))
    reading = Reading(probabilities.log()[None, None], torch.ones(1, 1, dtype=torch.bool), [words])
    [answer] = ANSWERER.answers(reading)  # type: ignore[arg-type]
    assert isinstance(answer, SpansAnswer)
    assert [span.label for span in answer.spans] == ["PER"]
    assert answer.spans[0].score == pytest.approx(0.6, abs=1e-4)
    assert answer.outside == pytest.approx((0.4,), abs=1e-4)


def test_what_is_not_finite_is_an_error_of_its_row() -> None:
    logits = torch.zeros(2, 1, 5)
    logits[1] = math.nan
    words = Words("a", ((0, 1),), (0,))
    sound, sick = ANSWERER.answers(Reading(logits, torch.ones(2, 1, dtype=torch.bool), [words, words]))  # type: ignore[arg-type]
    assert isinstance(sound, SpansAnswer)
    assert isinstance(sick, NotFiniteError)


def test_the_loss_is_of_the_taught_tokens_alone(tiny_t5: Path) -> None:
    backbone = load_backbone(tiny_t5, dtype="float32")
    [side] = make_sides(backbone, 1, head="linear", outputs=5)
    backbone_pass = run_backbone(backbone, [(5, 8, 13, 1), (40, 1)])
    targets = torch.tensor([[1, IGNORED, 3], [0, IGNORED, IGNORED]])
    outputs = side.read_tokens(side.encode(backbone_pass.taps))
    log = torch.log_softmax(outputs, -1)
    by_hand = -(log[0, 0, 1] + log[0, 2, 3] + log[1, 0, 0]) / 3
    assert ANSWERER.loss(backbone_pass, side, targets).item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert ANSWERER.loss(backbone_pass, side, torch.full((2, 2), IGNORED)).item() == 0
