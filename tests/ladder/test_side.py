"""Side networks: equal to the slow reference, whatever the shape; checkpoints; rows of many tasks together."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ladder import (
    BackboneConfig,
    CheckpointError,
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
    answer,
    build_answerer,
    checkpoint,
    load_backbone,
    load_side,
    load_tokenizer,
    run_backbone,
    save_side,
)
from ladder.checkpoint import as_served
from ladder.decoding import Segment, generate
from ladder.side import forward
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


def test_a_checkpoint_is_read_without_a_random_start(tmp_path, backbone, monkeypatch):
    save_side(tmp_path / "side.safetensors", random_side(SideConfig(head="text"), backbone.config))
    checkpoint._blueprint.cache_clear()
    monkeypatch.setattr(SideNetwork, "reset", lambda *_: pytest.fail("drawn"))
    monkeypatch.setattr("torch.nn.init._no_grad_uniform_", lambda *_: pytest.fail("drawn"))
    load_side(tmp_path / "side.safetensors", backbone.config)


@pytest.mark.parametrize("shape", [*SHAPES.values(), SideConfig(head="linear", outputs=3, reduction=4)], ids=repr)
def test_checkpoint_round_trip(tmp_path, backbone, shape):
    side = random_side(shape, backbone.config)
    save_side(tmp_path / "side.safetensors", side)
    again = load_side(tmp_path / "side.safetensors", backbone.config)
    assert again.config == side.config
    assert not again.training
    for name, tensor in side.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_side_networks_of_one_shape_share_nothing(tmp_path, backbone):
    shape, path = SideConfig(head="text", reduction=4, gate="fixed"), tmp_path / "side.safetensors"
    save_side(path, random_side(shape, backbone.config))
    one, other = load_side(path, backbone.config), load_side(path, backbone.config)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    one.encoder.rungs[0].register_forward_hook(lambda *_: pytest.fail("the other's hook"))
    one.train().requires_grad_(True)
    one.decoder.rungs[0].block = torch.nn.Identity()
    with torch.no_grad():
        for tensor in one.state_dict().values():
            tensor.fill_(9)
    taps = run_backbone(backbone, [[5, 6, 1]]).taps
    assert torch.isfinite(other.encode(taps)).all()
    assert not any(module.training for module in other.modules())
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert before.keys() == other.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_a_file_whose_layers_are_no_whole_numbers_harms_no_later_one(tmp_path, backbone):
    path = tmp_path / "side.safetensors"
    save_side(path, random_side(SideConfig(head="linear", outputs=2, reduction=4, merge_last=False), backbone.config))
    good = path.read_bytes()
    for wrong in (b"[0, 1.0, 2]", b"[0, true, 2]"):
        size, text = int.from_bytes(good[:8], "little"), good[8:]
        header = text[:size].rstrip().replace(b"[0, 1, 2]", wrong, 1)
        path.write_bytes(len(header).to_bytes(8, "little") + header + text[size:])
        with pytest.raises(CheckpointError, match="whole numbers"):
            load_side(path, backbone.config)
    path.write_bytes(good)
    assert load_side(path, backbone.config).encoder.layers == (0, 1, 2)


def test_what_is_served_while_training_is_a_copy(backbone):
    side = SideNetwork(SideConfig(head="linear", outputs=2, reduction=4), backbone.config).train()
    served = as_served(side, torch.float32)
    before = served.head.weight.clone()
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(1)
    assert torch.equal(served.head.weight, before)
    assert side.training
    assert all(parameter.requires_grad for parameter in side.parameters())
    assert not served.training
    assert not any(parameter.requires_grad for parameter in served.parameters())


def test_checkpoints_that_do_not_fit_say_why(tmp_path, backbone):
    path = tmp_path / "side.safetensors"
    side = random_side(SHAPES["all"], backbone.config)
    save_side(path, side)
    good = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # no longer mapped to the file

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_side(path, backbone.config)

    path.write_bytes(good[: len(good) // 2])
    refused("whole safetensors")
    path.write_bytes(b"\xff" * 200)
    refused("whole safetensors")
    save_file(tensors, path)
    refused("no side network of ours")
    path.write_bytes(good.replace(b'\\"schema\\": 1', b'\\"schema\\": 9'))
    refused("update Sidecast")
    path.write_bytes(good)
    with pytest.raises(CheckpointError, match="does not fit this backbone"):
        load_side(path, BackboneConfig(**{**config_values(backbone), "num_layers": 1}))
    with pytest.raises(CheckpointError, match="shape"):
        load_side(path, BackboneConfig(**{**config_values(backbone), "d_model": 64}))
    side.upsample.weight[0, 0] = float("nan")
    save_side(path, side)
    refused("not finite")


def config_values(backbone) -> dict:
    return {name: getattr(backbone.config, name) for name in backbone.config.__slots__}


def test_missing_and_unknown_weights_are_named(tmp_path, backbone):
    from safetensors import safe_open

    path = tmp_path / "side.safetensors"
    save_side(path, random_side(SHAPES["all"], backbone.config))
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["upsample.scale"] = tensors.pop("upsample.weight")
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"upsample.weight.*upsample.scale"):
        load_side(path, backbone.config)


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


def test_a_lying_header_takes_no_memory(tmp_path, backbone):
    path = tmp_path / "side.safetensors"
    save_side(path, random_side(SideConfig(head="linear", outputs=3, reduction=4), backbone.config))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"outputs\\": 3', b'\\"outputs\\": 9'))
    with pytest.raises(CheckpointError, match=r"head.* has shape"):
        load_side(path, backbone.config)


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


@pytest.mark.parametrize("config", [{"head": "linear"}, {"head": "linear", "words": True}, {"head": "mlp"}], ids=str)
def test_a_head_of_its_own_is_served_as_it_was_trained(tmp_path, backbone, config):
    """Rounding 3.14159 to bfloat16, whatever it is stored in afterwards, would move every answer by 0.001."""
    side = SideNetwork(SideConfig(outputs=1, reduction=4, **config), backbone.config)
    with torch.no_grad():
        (side.head.out if config["head"] == "mlp" else side.head).bias.fill_(3.14159)
    save_side(tmp_path / "side.safetensors", side)
    served = load_side(tmp_path / "side.safetensors", backbone.config, dtype=torch.bfloat16)
    for name, tensor in served.state_dict().items():
        own = name.startswith(("head.", "words."))
        assert tensor.dtype == (torch.float32 if own else torch.bfloat16)
        assert not own or torch.equal(tensor, side.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in served.parameters())
