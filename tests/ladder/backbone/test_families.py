"""Every family equals Hugging Face's, block by block; and its side networks train, save, load and answer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BartModel,
    MT5ForConditionalGeneration,
    RobertaConfig,
    RobertaForMaskedLM,
    T5ForConditionalGeneration,
    UMT5ForConditionalGeneration,
)
from transformers.models.bart.modeling_bart import BartEncoderLayer

from ladder import (
    Backbone,
    BackboneConfig,
    BackboneError,
    Row,
    SideConfig,
    SideConfigError,
    SideNetwork,
    answer,
    build_answerer,
    load_backbone,
    load_side,
    load_tokenizer,
    run_backbone,
    save_side,
)
from ladder.backbone.families import FAMILIES, read_config
from ladder.backbone.loading import fingerprint
from ladder.side.network import forward
from ladder.side.structural_init import initialize, magnitude
from tests import families, tiny
from tests.exact import CLOSE, float64
from tests.ladder.side.test_network import random_side

THEIRS = {
    "t5": T5ForConditionalGeneration,
    "mt5": MT5ForConditionalGeneration,
    "umt5": UMT5ForConditionalGeneration,
    "bart": BartForConditionalGeneration,
}
SPEAKING = ("t5", "byt5", "mt5", "umt5")
"""Those with a decoder here."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: families.make(kind, tmp_path_factory.mktemp(kind) / "model") for kind in families.MAKERS}


@pytest.fixture(params=families.MAKERS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(folders, kind):
    return folders[kind]


def inputs(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(5, 250, (3, 40)), torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:], mask[2, 7:] = False, False
    return ids.masked_fill(~mask, backbone.config.pad_token_id), mask


def oracle(folder) -> torch.nn.Module:
    return THEIRS[AutoConfig.from_pretrained(folder).model_type].from_pretrained(folder).eval()


def outputs_of(blocks: torch.nn.ModuleList) -> list[torch.Tensor]:
    """What each of their blocks will say."""
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


@pytest.mark.parametrize("padded", [True, False])
def test_encoder_taps_equal_hugging_face(folder, padded):
    ours, theirs = load_backbone(folder).double(), oracle(folder).double().get_encoder()
    ids, mask = inputs(ours)
    if not padded:
        ids, mask = ids[:1], mask[:1]
    seen = outputs_of(theirs.layers if hasattr(theirs, "layers") else theirs.block)
    with torch.no_grad(), float64():
        out = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        taps, real = ours.encode(ids, mask), mask[:, :, None]
    assert len(taps.blocks) == len(seen) == ours.config.num_layers
    assert_close(taps.embeddings * real, out.hidden_states[0] * real, **CLOSE)
    for tap, expected in zip(taps.blocks, seen, strict=True):
        assert_close(tap * real, expected * real, **CLOSE)
    assert_close(taps.final * real, out.last_hidden_state * real, **CLOSE)
    assert torch.equal(ours.embed(ids), taps.embeddings)
    assert_close(ours.embed(ids[0]), taps.embeddings[0])


@pytest.mark.parametrize("kind", SPEAKING)
def test_decoder_taps_and_logits_equal_hugging_face(folder):
    ours, theirs = load_backbone(folder).double(), oracle(folder).double()
    ids, mask = inputs(ours)
    decoder_ids, seen = torch.randint(3, 250, (3, 9)), outputs_of(theirs.decoder.block)
    with torch.no_grad(), float64():
        out = theirs(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=decoder_ids)
        taps = ours.decode(decoder_ids, ours.encode(ids, mask).final, mask)
        at_once = ours(ids, mask, decoder_ids)
    assert len(taps.blocks) == len(seen) == ours.config.num_decoder_layers
    for tap, expected in zip(taps.blocks, seen, strict=True):
        assert_close(tap, expected, **CLOSE)
    assert_close(ours.logits(taps.final), out.logits, **CLOSE)
    assert_close(at_once, out.logits, **CLOSE)


@pytest.mark.parametrize("kind", SPEAKING)
def test_cached_decoding_equals_uncached_of_backbone_and_side_network(folder):
    backbone = load_backbone(folder).double()
    side = random_side(SideConfig(head="text", reduction=4), backbone.config).double()
    ids, mask = inputs(backbone)
    decoder_ids = torch.randint(3, 250, (3, 6))
    with float64():
        whole = forward(backbone, side, ids, mask, decoder_ids)
        taps, cache, side_cache = backbone.encode(ids, mask), backbone.decoder_cache(), side.decoder_cache()
        memory, steps = side.encode(taps), []
        for part in decoder_ids.split([1, 1, 3, 1], 1):
            decoded = backbone.decode(part, taps.final, mask, cache)
            steps.append(backbone.logits(side.decode(decoded, memory, mask, side_cache)))
    assert_close(torch.cat(steps, 1), whole, **CLOSE)


@pytest.mark.parametrize("kind", SPEAKING)
def test_greedy_output_is_what_single_steps_say(folder):
    backbone, tokenizer = load_backbone(folder), load_tokenizer(folder)
    side = random_side(SideConfig(head="text", reduction=4), backbone.config)
    rows = [tuple(tokenizer.encode(text)) for text in ("a cat", "a film, and a mat")]
    how = build_answerer(
        kind="text", labels=(), low=None, high=None, max_new_tokens=5, head="text", tokenizer=tokenizer
    )
    answers = answer(backbone, [Row(ids=row, side=side, answerer=how) for row in rows])
    for row, given in zip(rows, answers, strict=True):
        ids, said = torch.tensor([row]), [backbone.config.decoder_start_token_id]
        for _ in range(5):
            logits = forward(backbone, side, ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([said]))
            said.append(int(logits[0, -1].argmax()))
        expected = said[1:]
        expected = expected[: expected.index(1)] if 1 in expected else expected
        assert list(given.tokens) == expected


def test_a_rows_answer_does_not_depend_on_its_padding(folder):
    backbone = load_backbone(folder)
    side = random_side(SideConfig(head="linear", outputs=3, reduction=4), backbone.config)
    ids = (5, 9, 17, backbone.config.eos_token_id)
    alone = run_backbone(backbone, [ids])
    padded = run_backbone(backbone, [ids, (7,) * 30])
    expected = side.read(side.encode(alone.taps), alone.taps.mask)
    assert_close(side.read(side.encode(padded.taps), padded.taps.mask)[:1], expected, atol=1e-4, rtol=1e-4)


def test_early_stop_gives_the_same_lower_taps(folder):
    backbone = load_backbone(folder)
    ids, mask = inputs(backbone)
    full = backbone.encode(ids, mask)
    for depth in range(len(full.blocks) + 1):
        some = backbone.encode(ids, mask, depth)
        assert len(some.blocks) == depth
        assert (some.final is None) == (depth < len(full.blocks))
        for ours, expected in zip(some.blocks, full.blocks, strict=False):
            assert torch.equal(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head"),
    [*((kind, "text") for kind in SPEAKING), ("umt5", "mlp"), ("bart", "linear"), ("bart scaled", "mlp")],
)
def test_a_side_network_trains_saves_loads_and_answers(tmp_path, folder, head):
    backbone, tokenizer = load_backbone(folder), load_tokenizer(folder)
    torch.manual_seed(0)
    config = SideConfig(head=head, outputs=0 if head == "text" else 2, reduction=4, dropout=0.0)
    side = SideNetwork(config, backbone.config)
    how = build_answerer(
        kind="classification",
        labels=("good", "dull"),
        low=None,
        high=None,
        max_new_tokens=1,
        head=head,
        tokenizer=tokenizer,
    )
    rows = tokenizer.encode_batch(["a gripping film", "dull", "slow and dull", "indeed a film"])
    targets, optimizer = torch.tensor([0, 1, 1, 0]), torch.optim.AdamW(side.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = how.loss(run_backbone(backbone, rows), side, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in side.parameters())
    side.eval()
    save_side(tmp_path / "side.safetensors", side)
    again = load_side(tmp_path / "side.safetensors", backbone.config)
    given = [answer(backbone, [Row(ids=tuple(row), side=each, answerer=how) for row in rows]) for each in (side, again)]
    assert given[0] == given[1]
    assert all(outcome.label in ("good", "dull") for outcome in given[0])


def test_bfloat16_runs_and_keeps_the_fingerprint(folder):
    exact, rough = load_backbone(folder), load_backbone(folder, dtype="bfloat16")
    assert exact.fingerprint == rough.fingerprint
    ids, mask = inputs(exact)
    taps = rough.encode(ids, mask)
    assert taps.blocks[-1].dtype == torch.bfloat16
    assert alike(taps.blocks[0], exact.encode(ids, mask).blocks[0]) > 0.99


def test_int8_runs(folder):
    exact, rough = load_backbone(folder), load_backbone(folder, quantize="int8")
    ids, mask = inputs(exact)
    assert alike(rough.encode(ids, mask).blocks[0], exact.encode(ids, mask).blocks[0]) > 0.99


def test_a_side_network_starts_as_its_backbone_cut_down(folder):
    backbone = load_backbone(folder)
    head = (
        SideConfig(head="text", reduction=4) if backbone.has_decoder else SideConfig(head="mlp", outputs=2, reduction=4)
    )
    side = SideNetwork(head, backbone.config)
    initialize(side, backbone, magnitude(backbone), order="consistent")
    for ours, theirs in zip(side.encoder.rungs, backbone.encoder.blocks, strict=True):
        cut, whole = dict(ours.block.named_parameters()), dict(theirs.named_parameters())
        assert all(torch.isin(cut[name], whole[name]).all() for name in whole)


def alike(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), 0).item()


# what is special to one family


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "6068f741436128e63d1c27a4d3f93ab5d65406c98a3b2d4f9a64f3e9ea76ea69"),
        (
            {"feed_forward_proj": "relu", "tie_word_embeddings": True},
            "55d34f49924b7b2dc755ddb93395c25e58c154575bd67ac7b38cdd5970dd5e05",
        ),
    ],
    ids=["T5 1.1", "T5 1.0"],
)
def test_fingerprints_of_t5_are_those_of_the_first_release(changes, expected):
    """Published side networks name them: a new field of BackboneConfig must not move them."""
    values = {name: value for name, value in tiny.t5_config(**changes).to_dict().items() if name != "dtype"}
    config = read_config(values)
    weights = {
        name: torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) / 7
        for name, parameter in Backbone(config).named_parameters()
    }
    assert fingerprint(config, weights) == f"sha256:{expected}"


def test_a_field_that_came_later_counts_where_it_is_set():
    shape = {"d_model": 4, "d_kv": 2, "d_ff": 8, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    plain = BackboneConfig(**shape, vocab_size=5)
    assert "model_type" not in plain.identity()
    assert BackboneConfig(**shape, vocab_size=5, model_type="umt5").identity() != plain.identity()
    assert BackboneConfig(**shape, vocab_size=5, max_positions=9).identity() != plain.identity()


def test_every_block_of_umt5_has_a_bias_of_its_own_and_so_has_every_rung(folders):
    backbone = load_backbone(folders["umt5"])
    biases = [block.relative_bias.weight for block in backbone.encoder.blocks]
    assert not any(torch.equal(biases[0], other) for other in biases[1:])
    side = SideNetwork(SideConfig(head="text", reduction=4), backbone.config)
    names = [name for name in side.state_dict() if name.endswith("relative_bias.weight")]
    assert names == [f"encoder.rungs.{i}.block.relative_bias.weight" for i in range(3)] + [
        f"decoder.rungs.{i}.block.relative_bias.weight" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("kind", "tied", "scaled"), [("mt5", True, False), ("umt5", True, True), ("umt5", False, False)]
)
def test_multilingual_heads_are_scaled_as_their_configs_mean(folders, kind, tied, scaled):
    values = json.loads((folders[kind] / "config.json").read_text())
    assert read_config(values | {"tie_word_embeddings": tied}).scale_output is scaled


def test_an_untied_head_of_mt5_is_its_own(tmp_path, folders):
    folder = tmp_path / "untied"
    folder.mkdir()
    (folder / "config.json").write_text((folders["mt5"] / "config.json").read_text())
    weights = load_file(folders["mt5"] / "model.safetensors")
    weights["lm_head.weight"] = weights["shared.weight"] * 0.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    backbone = load_backbone(folder)
    assert_close(backbone.head, backbone.shared * 0.5)


def test_shared_embeddings_may_stand_in_a_stack_alone(tmp_path, folders):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "config.json").write_text((folders["mt5"] / "config.json").read_text())
    weights = load_file(folders["mt5"] / "model.safetensors")
    weights["decoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_backbone(folder).fingerprint == load_backbone(folders["mt5"]).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("model", [BartModel, BartForConditionalGeneration, BartForSequenceClassification])
def test_bart_loads_under_any_of_its_prefixes(tmp_path, model):
    families.save(model, BartConfig(**families.BART_SHAPE), tmp_path)
    backbone = load_backbone(tmp_path)
    theirs = model.from_pretrained(tmp_path).eval()
    encoder = theirs.encoder if model is BartModel else theirs.model.encoder
    ids, mask = inputs(backbone)
    with torch.no_grad():
        expected = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert_close(backbone.encode(ids, mask).final * mask[..., None], expected * mask[..., None], atol=1e-4, rtol=1e-4)
    assert not any(name.startswith(("decoder", "head")) for name in backbone.state_dict())


def test_bart_says_that_it_has_no_decoder(folders):
    backbone = load_backbone(folders["bart"])
    with pytest.raises(SideConfigError, match="no decoder here"):
        SideNetwork(SideConfig(head="text"), backbone.config)
    with pytest.raises(SideConfigError, match="left out"):
        SideNetwork(SideConfig(head="linear", outputs=2, decoder_layers=(0,)), backbone.config)
    for wanted in (backbone.decoder_cache, lambda: backbone.logits(torch.zeros(1, 32))):
        with pytest.raises(BackboneError, match="no decoder here"):
            wanted()
    with pytest.raises(BackboneError, match="no decoder here"):
        backbone.decode(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 32), torch.ones(1, 1, dtype=torch.bool))


def test_bart_reads_no_more_tokens_than_it_has_positions(folders):
    backbone = load_backbone(folders["bart"])
    ids = torch.full((1, 65), 7)
    with pytest.raises(BackboneError, match="at most 64"):
        backbone.encode(ids, torch.ones_like(ids, dtype=torch.bool))
    assert backbone.encode(ids[:, :64], torch.ones(1, 64, dtype=torch.bool)).final.shape == (1, 64, 32)


@pytest.mark.parametrize("gate", ["learnable", "none", "one"])
def test_barts_side_network_is_barts_layers_at_a_fraction_of_the_width(folders, gate):
    """LST's table 2, against Hugging Face's own encoder layer."""
    backbone = load_backbone(folders["bart"])
    side = random_side(SideConfig(head="mlp", outputs=2, reduction=4, gate=gate), backbone.config)
    narrow = BartConfig(**families.BART_SHAPE | {"d_model": 8, "encoder_ffn_dim": 16})
    ids, mask = inputs(backbone)
    ids, mask = ids[:1], mask[:1]
    taps = backbone.encode(ids, mask)
    state = side.encoder.first_downsample(taps.embeddings)
    for rung, tap in zip(side.encoder.rungs, taps.blocks, strict=True):
        layer = BartEncoderLayer(narrow).eval()
        layer.load_state_dict({THEIR_NAMES[name]: tensor for name, tensor in rung.block.state_dict().items()})
        down = rung.downsample(tap)
        keep = {"none": None, "one": 1.0, "learnable": None}[gate]
        if gate == "learnable":
            keep = torch.sigmoid(rung.gate_logit / 0.1)
        state = state + down if keep is None else keep * state + (1 - keep) * down
        out = layer(state, None)
        state = out[0] if isinstance(out, tuple) else out
    assert_close(side.encode(taps), state, atol=1e-4, rtol=1e-4)
    top = torch.tanh(side.head.dense(side.upsample(state[:, -1])))
    assert_close(side.read(side.encode(taps), mask), side.head.out(top), atol=1e-4, rtol=1e-4)


THEIR_NAMES = {
    f"{ours}.{what}": f"{theirs}.{what}"
    for what in ("weight", "bias")
    for ours, theirs in {
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "feed_forward.wi": "fc1",
        "feed_forward.wo": "fc2",
        "feed_norm": "final_layer_norm",
    }.items()
}


def test_random_starts_are_the_authors(folders):
    for kind, inside, outside in (("bart", 0.02, 0.02), ("umt5", 32**-0.5, 0.01)):
        backbone = load_backbone(folders[kind])
        torch.manual_seed(0)
        side = SideNetwork(SideConfig(head="mlp", outputs=2, reduction=2), backbone.config)
        block = side.encoder.rungs[0].block
        assert block.attention.k.weight.std().item() == pytest.approx(inside, rel=0.2)
        assert side.upsample.weight.std().item() == pytest.approx(outside, rel=0.2)
        assert torch.equal(block.feed_norm.weight, torch.ones(16))
        assert not side.upsample.bias.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "one of bart, mt5, t5, umt5"),
        ({}, "one of bart, mt5, t5, umt5"),
        ({"model_type": "bart", "activation_function": "swish"}, "swish"),
        ({"model_type": "bart", "d_model": 32}, "encoder_attention_heads"),
        ({"model_type": "umt5", "d_model": 32}, "incomplete"),
    ],
)
def test_configs_that_make_no_backbone(values, message):
    with pytest.raises(BackboneError, match=message):
        read_config(values)


# the page on adding one


@pytest.fixture
def roberta(tmp_path, monkeypatch):
    """The example of docs/guides/new-backbone.md as a module, registered; and a tiny folder for it."""
    page = (Path(__file__).parents[3] / "docs" / "guides" / "new-backbone.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    example: dict[str, Any] = {}
    exec(compile(code, "docs/guides/new-backbone.md", "exec"), example)
    monkeypatch.setitem(FAMILIES, "roberta", example["Roberta"]())
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = RobertaConfig(**shape, intermediate_size=64, max_position_embeddings=66, type_vocab_size=1)
    families.save(RobertaForMaskedLM, config, tmp_path)
    families.byte_pairs().save_model(str(tmp_path))
    return tmp_path


def test_the_pages_example_is_roberta(roberta):
    backbone, theirs = load_backbone(roberta), RobertaForMaskedLM.from_pretrained(roberta).eval().roberta
    ids, mask = inputs(backbone)
    with torch.no_grad():
        out = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    taps, real = backbone.encode(ids, mask), mask[:, :, None]
    for ours, expected in zip((taps.embeddings, *taps.blocks), out.hidden_states, strict=True):
        assert_close(ours * real, expected * real, atol=1e-4, rtol=1e-4)
    assert load_tokenizer(roberta).encode("the cat")[0] == 0
    side = random_side(SideConfig(head="mlp", outputs=2, reduction=4), backbone.config)
    assert side.read(side.encode(taps), mask).shape == (3, 2)
    with pytest.raises(BackboneError, match="hidden_act"):
        read_config({"model_type": "roberta"})
