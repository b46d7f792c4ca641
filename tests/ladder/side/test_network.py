"""Side networks: equal to the slow reference, whatever the shape; rows of many tasks together."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ladder import (
    BackboneConfig,
    Classify,
    Generate,
    LabelError,
    LabelTrie,
    NotFiniteError,
    Regress,
    Row,
    SideConfig,
    SideConfigError,
    SideNetwork,
    Taps,
    answer,
    build_answerer,
    load_backbone,
    load_tokenizer,
    run_backbone,
)
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.side import as_served
from ladder.side.network import forward
from tests import tiny
from tests.reference.lst import SlowSide

SHAPES = {
    "all": SideConfig(head="text", reduction=4),
    "dropped": SideConfig(head="text", reduction=2, encoder_layers=(1,), decoder_layers=(0,)),
    "unequal": SideConfig(head="text", reduction=4, encoder_layers=(0, 2), decoder_layers=(1,), bias=False),
    "no rungs": SideConfig(head="text", reduction=8, encoder_layers=(), decoder_layers=()),
    "gate none": SideConfig(head="text", reduction=4, gate="none"),
    "gate one": SideConfig(head="text", reduction=4, gate="one"),
    "gate fixed": SideConfig(head="text", reduction=4, gate="fixed", gate_start=0.07),
    "mix after": SideConfig(head="text", reduction=4, mix_after=True),
    "temperature": SideConfig(head="text", reduction=4, gate_start=0.3, gate_temperature=0.5),
    "rms taps": SideConfig(head="text", reduction=4, tap_norm="rms"),
    "rms taps, no biases": SideConfig(head="text", reduction=4, tap_norm="rms", bias=False, mix_after=True),
}


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5):
    return load_tokenizer(tiny_t5)


def random_side(config: SideConfig, backbone: BackboneConfig, seed: int = 0) -> SideNetwork:
    """A side network whose every weight matters."""
    torch.manual_seed(seed)
    side = SideNetwork(config, backbone)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return side.eval().requires_grad_(False)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_slow_reference(tmp_path, shape, feed_forward):
    backbone = load_backbone(tiny.make_t5(tmp_path / "t5", feed_forward_proj=feed_forward))
    side = random_side(SHAPES[shape], backbone.config)
    slow = SlowSide(side.state_dict(), side.config, backbone.config)
    ids, decoder_ids = torch.randint(3, 250, (1, 6)), torch.tensor([[0, 40, 50]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    taps = backbone.encode(ids, mask)
    decoder_taps = backbone.decode(decoder_ids, taps.final, mask)
    memory = side.encode(taps)
    slow_memory = slow.encode(taps.embeddings[0], [block[0] for block in taps.blocks])
    assert_close(memory[0], slow_memory, atol=1e-4, rtol=1e-4)
    slow_state = slow.decode(decoder_taps.embeddings[0], [b[0] for b in decoder_taps.blocks], slow_memory)
    assert_close(side.decode(decoder_taps, memory, mask)[0], slow_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_decoding_equals_uncached(backbone, shape):
    side = random_side(SHAPES[shape], backbone.config)
    inputs = [[5, 6, 7, 8, 1], [9, 1]]
    given = run_backbone(backbone, inputs)
    decoder_ids = torch.tensor([[0, 40, 50, 60], [0, 70, 80, 90]])
    ids = torch.tensor([[5, 6, 7, 8, 1], [9, 1, 0, 0, 0]])
    whole = forward(backbone, side, ids, given.taps.mask, decoder_ids)
    memory, cache, side_cache = side.encode(given.taps), backbone.decoder_cache(), side.decoder_cache()
    steps = []
    for part in decoder_ids.split(1, 1):
        taps = backbone.decode(part, given.taps.final, given.taps.mask, cache)
        steps.append(backbone.logits(side.decode(taps, memory, given.taps.mask, side_cache)))
    assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


def test_merge_last_starts_half_way_to_the_backbones_answer(backbone):
    side = random_side(SideConfig(head="text", reduction=4, merge_last=True), backbone.config)
    side.merge_logit.fill_(-50.0)  # the side network has no say
    ids, decoder_ids = torch.tensor([[5, 6, 1]]), torch.tensor([[0, 9]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    taps = backbone.encode(ids, mask)
    bare = backbone.logits(backbone.decode(decoder_ids, taps.final, mask).final)
    assert_close(forward(backbone, side, ids, mask, decoder_ids), bare)


def test_dropout_is_in_the_side_network_alone_and_only_while_training(backbone):
    side = SideNetwork(SideConfig(head="linear", outputs=2, reduction=4, dropout=0.5), backbone.config)
    taps = run_backbone(backbone, [[5, 6, 7, 1]]).taps
    side.eval()
    assert torch.equal(side.encode(taps), side.encode(taps))
    side.train()
    assert not torch.equal(side.encode(taps), side.encode(taps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 0}, "reduction"),
        ({"gate": "sigmoid"}, "gate"),
        ({"encoder_layers": (2, 1)}, "ascending"),
        ({"head": "linear"}, "outputs"),
        ({"head": "text", "outputs": 2}, "outputs"),
        ({"dropout": 1.0}, "dropout"),
        ({"tap_norm": "layer"}, "tap_norm must be none or rms, got 'layer'"),
        ({"gate_temperature": 0}, "temperature"),
        ({"head": "linear", "outputs": 2, "merge_last": True}, "merge_last"),
    ],
)
def test_settings_that_make_no_side_network(settings, message):
    with pytest.raises(SideConfigError, match=message):
        SideConfig(**settings)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"reduction": 9}, "at most d_kv 8"), ({"encoder_layers": (3,)}, r"0\.\.2")]
)
def test_settings_that_do_not_fit_the_backbone(backbone, wrong, message):
    with pytest.raises(SideConfigError, match=message):
        SideNetwork(SideConfig(**wrong), backbone.config)


def test_unknown_settings_of_a_newer_format_are_refused():
    with pytest.raises(SideConfigError, match="newer"):
        SideConfig.from_dict({"reduction": 8, "rotary": True})


def test_normalized_taps_are_a_setting_of_new_files_alone():
    """Files from before the setting read as they were written, and files of raw taps are still written so."""
    config = SideConfig(reduction=4, tap_norm="rms")
    assert SideConfig.from_dict(config.to_dict()) == config
    assert "tap_norm" not in SideConfig(reduction=4).to_dict()
    assert SideConfig.from_dict({"reduction": 4}).tap_norm == "none"


def test_normalized_taps_may_have_any_scale(backbone):
    """Also the scale of the largest activations of a backbone in bfloat16, whose squares sum up to more than 2^16."""
    side = random_side(SideConfig(head="linear", outputs=2, reduction=4, tap_norm="rms"), backbone.config)
    taps = run_backbone(backbone, [[5, 6, 7, 1]]).taps
    scaled = [
        Taps(embeddings=taps.embeddings * s, blocks=tuple(t * s for t in taps.blocks), mask=taps.mask)
        for s in (100.0, 1e4)
    ]
    for other in scaled:
        assert_close(side.encode(other), side.encode(scaled[0]), atol=1e-5, rtol=1e-4)
    rough = as_served(side, torch.bfloat16)
    large = Taps(
        embeddings=scaled[1].embeddings.bfloat16(),
        blocks=tuple(tap.bfloat16() for tap in scaled[1].blocks),
        mask=taps.mask,
    )
    exact = side.encode(scaled[1])
    assert (rough.encode(large).float() - exact).norm() < 0.02 * exact.norm()


def test_normalizing_keeps_no_copy_of_a_tap_for_the_backward_pass(backbone):
    side = SideNetwork(SideConfig(head="linear", outputs=2, reduction=4, tap_norm="rms"), backbone.config)
    rung, tap = side.encoder.rungs[0], run_backbone(backbone, [[5, 6, 7, 1]]).taps.blocks[0]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        rung._down(tap)
    wide = [tensor for tensor in kept if tensor.shape[-1] == tap.shape[-1] and tensor.numel() == tap.numel()]
    assert wide
    assert all(tensor.data_ptr() == tap.data_ptr() for tensor in wide)


# labels as words


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple), min_size=2, max_size=6),
    st.integers(0, 10**6),
)
def test_label_scores_are_constrained_decoding(labels, seed):
    trie = LabelTrie(tuple((*label, 1) for label in labels))
    table: dict[tuple[int, ...], torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def logits(prefix: tuple[int, ...]) -> torch.Tensor:
        return table.setdefault(prefix, torch.randn(1, 6, generator=generator) * 2)

    ours = trie.log_probabilities(lambda prefix, tokens: logits(prefix)[:, list(tokens)])[0]
    for place, label in enumerate(trie.labels):
        expected = 0.0
        for depth in range(len(label)):
            going_on = [other for other in trie.labels if other[:depth] == label[:depth] and len(other) > depth]
            allowed = sorted({other[depth] for other in going_on})
            scores = torch.log_softmax(logits(label[:depth])[0, allowed], 0)
            expected += float(scores[allowed.index(label[depth])])
        assert float(ours[place]) == pytest.approx(expected, abs=1e-4)
    assert float(ours.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_labels_that_tokenize_alike_are_refused():
    with pytest.raises(LabelError, match="rename"):
        LabelTrie(((5, 1), (5, 1)))


def test_head_that_cannot_answer_is_refused(tokenizer):
    with pytest.raises(LabelError, match="linear"):
        build_answerer(
            kind="regression", labels=(), low=None, high=None, max_new_tokens=1, head="text", tokenizer=tokenizer
        )


# rows of many tasks


def make_tasks(backbone, tokenizer) -> list[tuple[SideNetwork, object]]:
    """Side networks of every kind of head, two of the same shape among them."""
    words = LabelTrie(tuple(tuple(tokenizer.encode(word)) for word in ("yes", "no", "yesterday")))
    labels = ("yes", "no", "yesterday")
    linear = SideConfig(head="linear", outputs=3, reduction=4, encoder_layers=(0, 1))
    return [
        (random_side(linear, backbone.config, 1), Classify(labels=labels)),
        (random_side(linear, backbone.config, 2), Classify(labels=labels)),
        (random_side(SHAPES["all"], backbone.config, 3), Classify(labels=labels, trie=words)),
        (random_side(SideConfig(head="linear", outputs=1, reduction=8), backbone.config, 4), Regress(low=-1, high=1)),
        (random_side(SHAPES["dropped"], backbone.config, 5), Generate(max_new_tokens=5, decode=tokenizer.decode)),
        (random_side(SHAPES["unequal"], backbone.config, 6), Generate(max_new_tokens=3, decode=tokenizer.decode)),
    ]


def numbers(outcome) -> list[float]:
    if hasattr(outcome, "scores"):
        return list(outcome.scores)
    return [outcome.value] if hasattr(outcome, "value") else list(map(float, outcome.tokens))


@pytest.mark.parametrize("mix", ["identical", "distinct", "uniform", "zipf"])
def test_mixed_batch_equals_each_row_alone(backbone, tokenizer, mix):
    tasks = make_tasks(backbone, tokenizer)
    pick = torch.Generator().manual_seed(7)
    order = {
        "identical": [2] * 9,
        "distinct": list(range(len(tasks))),
        "uniform": torch.randint(0, len(tasks), (14,), generator=pick).tolist(),
        "zipf": torch.multinomial(1 / torch.arange(1.0, len(tasks) + 1), 14, True, generator=pick).tolist(),
    }[mix]
    texts = ["a", "some longer text than the others", "mid size", "a"]
    rows = [
        Row(ids=tuple(tokenizer.encode(texts[place % 4])), side=tasks[task][0], answerer=tasks[task][1])
        for place, task in enumerate(order)
    ]
    together = answer(backbone, rows)
    for row, outcome in zip(rows, together, strict=True):
        [alone] = answer(backbone, [row])
        assert type(outcome) is type(alone)
        assert numbers(outcome) == pytest.approx(numbers(alone), abs=1e-4)
    shuffled = list(reversed(rows))
    for outcome, other in zip(together, reversed(answer(backbone, shuffled)), strict=True):
        assert numbers(outcome) == pytest.approx(numbers(other), abs=1e-4)


@pytest.mark.parametrize("broken", range(6))
@pytest.mark.parametrize("how", ["nan", "raises"])
def test_a_broken_side_network_fails_alone_neighbours_bit_identical(backbone, tokenizer, broken, how):
    ids = [tuple(tokenizer.encode(text)) for text in ("one text", "another")]
    tasks = make_tasks(backbone, tokenizer)
    rows = [Row(ids=each, side=side, answerer=answerer) for (side, answerer), each in itertools.product(tasks, ids)]
    healthy = answer(backbone, rows)
    side = tasks[broken][0]
    if how == "nan":
        for parameter in side.parameters():
            parameter.fill_(float("nan"))
    else:
        side.encoder.first_downsample = None
    for place, outcome in enumerate(answer(backbone, rows)):
        if place // 2 == broken:
            assert isinstance(outcome, NotFiniteError if how == "nan" else Exception)
        else:
            assert outcome == healthy[place]


def test_equal_inputs_of_all_tasks_cost_one_row_of_the_backbone(backbone, tokenizer, monkeypatch):
    shapes = []
    encode = type(backbone).encode
    monkeypatch.setattr(
        type(backbone), "encode", lambda self, ids, *rest: shapes.append(tuple(ids.shape)) or encode(self, ids, *rest)
    )
    ids = tuple(tokenizer.encode("the same words"))
    answer(backbone, [Row(ids=ids, side=side, answerer=how) for side, how in make_tasks(backbone, tokenizer)])
    assert shapes == [(1, len(ids))]


def test_only_needed_blocks_run(backbone, tokenizer, monkeypatch):
    depths = []
    encode = type(backbone).encode
    monkeypatch.setattr(
        type(backbone), "encode", lambda self, ids, mask, depth: depths.append(depth) or encode(self, ids, mask, depth)
    )
    tasks = make_tasks(backbone, tokenizer)
    answer(backbone, [Row(ids=(5, 1), side=side, answerer=how) for side, how in tasks[:2]])
    answer(backbone, [Row(ids=(5, 1), side=side, answerer=how) for side, how in tasks[:3]])
    assert depths == [2, None]


def test_generation_stops_at_the_end_token_and_at_the_limit(backbone):
    side = random_side(SHAPES["all"], backbone.config)
    taps = run_backbone(backbone, [[5, 6, 1], [7, 1]]).taps
    [none] = generate(backbone, [Segment(side=side, taps=taps, limit=0)])
    assert none == [(), ()]
    [some] = generate(backbone, [Segment(side=side, taps=taps, limit=6)])
    assert all(len(row) <= 6 and 1 not in row for row in some)


def test_one_row_that_is_not_finite_fails_alone_while_generating(backbone):
    side = random_side(SHAPES["all"], backbone.config)
    taps = run_backbone(backbone, [[5, 6, 1], [7, 1], [8, 9, 1]]).taps
    healthy = generate(backbone, [Segment(side=side, taps=taps, limit=5)])[0]
    taps.blocks[0][1] = float("nan")
    broken = generate(backbone, [Segment(side=side, taps=taps, limit=5)])[0]
    assert isinstance(broken[1], NotFiniteError)
    assert [broken[0], broken[2]] == [healthy[0], healthy[2]]


def test_regression_is_clipped_to_its_range(backbone):
    side = random_side(SideConfig(head="linear", outputs=1, reduction=8), backbone.config)
    side.head.bias.fill_(1e6)
    [outcome] = answer(backbone, [Row(ids=(5, 1), side=side, answerer=Regress(low=0, high=5))])
    assert outcome.value == 5


def test_no_rows_no_answers(backbone):
    assert answer(backbone, []) == []


def test_a_gate_per_channel_mixes_each_channel_by_its_own():
    backbone = BackboneConfig(
        d_model=16, d_kv=4, d_ff=32, num_heads=2, num_layers=1, num_decoder_layers=1, vocab_size=10
    )
    config = SideConfig(reduction=2, head="linear", outputs=1, gate_form="channel", dropout=0.0)
    rung = SideNetwork(config, backbone).encoder.rungs[0]
    with torch.no_grad():
        rung.gate_logit.copy_(torch.tensor([-9.0] * 4 + [9.0] * 4))
    side, down = torch.ones(1, 2, 8), torch.zeros(1, 2, 8)
    assert_close(rung.mix(side, down), torch.tensor([0.0] * 4 + [1.0] * 4).expand(1, 2, 8))


def test_an_mlp_head_reads_the_last_real_token():
    backbone = BackboneConfig(
        d_model=16, d_kv=4, d_ff=32, num_heads=2, num_layers=1, num_decoder_layers=1, vocab_size=10
    )
    side = SideNetwork(SideConfig(reduction=2, head="mlp", outputs=3), backbone).eval()
    memory, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    alone = side.head(side.upsample(torch.stack([memory[0, 2], memory[1, 4]])))
    assert_close(side.read(memory, mask), alone)
    assert_close(side.read(memory.roll(2, 1), mask.roll(2, 1))[:1], alone[:1])  # padded in front
