"""Embeddings: the vectors, the loss against one that goes through the pairs by hand, and a failure that stays alone."""

import math

import pytest
import torch
from torch.testing import assert_close

from ladder import (
    Embed,
    LabelError,
    NotFiniteError,
    Row,
    SideConfig,
    SideConfigError,
    SideNetwork,
    VectorAnswer,
    answer,
    build_answerer,
    load_backbone,
    load_side,
    load_tokenizer,
    run_backbone,
    save_side,
)

TEXTS = ("a cat", "one cat sat down here", "dogs", "a dog", "a cat", "tree")


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5):
    return load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def inputs(tokenizer) -> list[tuple[int, ...]]:
    return [tuple(tokenizer.encode(text)) for text in TEXTS]


def make_side(backbone, head: str = "linear", words: bool = False) -> SideNetwork:
    torch.manual_seed(0)
    config = SideConfig(head=head, outputs=5, reduction=4, words=words)  # type: ignore[arg-type]
    side = SideNetwork(config, backbone.config)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return side.eval()


def slow_loss(vectors: list[list[float]], texts: list[str], temperature: float) -> float:
    """InfoNCE from both sides, pair by pair."""
    count = len(texts) // 2
    pairs = [(place, place + count) for place in range(count)]

    def similarity(one: int, other: int) -> float:
        return sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True)) / temperature

    losses = []
    for first, second in pairs:
        others = [pair for pair in pairs if not {texts[pair[0]], texts[pair[1]]} & {texts[first], texts[second]}]
        own = similarity(first, second)
        forth = [own] + [similarity(first, other) for _, other in others]
        back = [own] + [similarity(other, second) for other, _ in others]
        losses += [math.log(sum(math.exp(score) for score in scores)) - own for scores in (forth, back)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "texts",
    [
        ("a cat", "dogs", "tree", "one cat sat down here", "a dog", "leaf"),
        ("a cat", "a cat", "tree", "one cat sat down here", "kitten", "leaf"),  # one text first in two pairs
        ("a cat", "dogs", "tree", "leaf", "a dog", "leaf"),  # second in two
        ("a cat", "dogs", "tree", "dogs", "wolf", "a cat"),  # first in one and second in another
        ("a cat", "a cat", "kitten", "kitten"),  # no negatives at all
    ],
)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_loss_is_that_of_the_pairs_one_by_one(backbone, tokenizer, texts, temperature):
    side, answerer = make_side(backbone), Embed(temperature=temperature)
    given = run_backbone(backbone, [tuple(tokenizer.encode(text)) for text in texts], side.encoder_depth)
    numbers = torch.tensor([texts.index(text) for text in texts])
    loss = answerer.loss(given, side, numbers)
    assert loss.item() == pytest.approx(
        slow_loss(answerer.vectors(given, side).tolist(), list(texts), temperature), rel=1e-4, abs=1e-5
    )
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in side.parameters())


@pytest.mark.parametrize(("head", "words"), [("linear", False), ("linear", True), ("mlp", False)])
def test_answers_have_length_1_and_their_own_text_alone_decides_them(backbone, inputs, head, words):
    side, answerer = make_side(backbone, head, words), Embed()
    rows = [Row(ids=ids, side=side, answerer=answerer) for ids in inputs]
    together = answer(backbone, rows)
    for row, found in zip(rows, together, strict=True):
        assert isinstance(found, VectorAnswer)
        assert len(found.values) == 5
        assert math.hypot(*found.values) == pytest.approx(1, abs=1e-5)
        [alone] = answer(backbone, [row])
        assert isinstance(alone, VectorAnswer)
        assert found.values == pytest.approx(alone.values, abs=1e-5)
    assert together[0] == together[4]
    assert together[0] != together[1]


def test_words_add_the_mean_of_the_real_tokens_embeddings(backbone, inputs):
    side = make_side(backbone, words=True)
    given = run_backbone(backbone, inputs[:2], side.encoder_depth)
    plain = side.read(side.encode(given.taps), given.taps.mask)
    for row, ids in enumerate(inputs[:2]):
        outputs = plain[row] + side.words.weight @ backbone.shared[list(ids)].mean(0)
        assert_close(Embed().vectors(given, side)[row], outputs / outputs.norm(), atol=1e-5, rtol=1e-4)


def test_words_are_for_the_linear_head_and_are_kept_in_float32(tmp_path, backbone):
    with pytest.raises(SideConfigError, match="words needs the linear head, got a mlp head"):
        SideConfig(head="mlp", outputs=2, words=True)
    save_side(tmp_path / "side", make_side(backbone, words=True))
    again = load_side(tmp_path / "side", backbone.config, dtype=torch.bfloat16)
    assert again.config.words
    assert {p.dtype for p in (again.words.weight, again.head.weight)} == {torch.float32}
    assert again.encoder.final_norm.weight.dtype is torch.bfloat16


def test_no_decoder_is_made_or_run(backbone, inputs, monkeypatch):
    side = make_side(backbone)
    monkeypatch.setattr(type(backbone), "decode", lambda *_, **__: pytest.fail("decoded"))
    assert not side.config.has_decoder
    assert len(answer(backbone, [Row(ids=ids, side=side, answerer=Embed()) for ids in inputs])) == len(inputs)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1e38])
def test_a_vector_without_a_direction_is_a_failure(backbone, inputs, value):
    broken, whole = make_side(backbone), make_side(backbone)
    assert isinstance(broken.head, torch.nn.Linear)
    with torch.no_grad():
        broken.head.weight.fill_(value)
        broken.head.bias.fill_(value)
    failed, fine = answer(backbone, [Row(ids=inputs[0], side=side, answerer=Embed()) for side in (broken, whole)])
    assert isinstance(failed, NotFiniteError)
    assert isinstance(fine, VectorAnswer)


def test_a_text_head_has_no_vectors(tokenizer):
    def build(head: str) -> object:
        return build_answerer(
            kind="embedding", labels=(), low=None, high=None, max_new_tokens=1, head=head, tokenizer=tokenizer
        )

    assert isinstance(build("linear"), Embed)
    assert isinstance(build("mlp"), Embed)
    with pytest.raises(LabelError, match="use linear"):
        build("text")
