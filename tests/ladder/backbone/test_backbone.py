"""Our backbone path equals Hugging Face's T5, block by block, and nothing can wake or change it."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import T5ForConditionalGeneration

from ladder import BackboneError, load_backbone, load_tokenizer
from tests import tiny
from tests.exact import CLOSE, float64

KINDS = {
    "T5 1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "T5 1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated and tied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": True},
    "deep decoder": {"num_layers": 1, "num_decoder_layers": 4, "d_kv": 16},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return tiny.make_t5(tmp_path_factory.mktemp("t5") / "model", seed=3, **KINDS[request.param])


def padded_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 250, (3, 40)), torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:], mask[2, 7:] = False, False
    return ids.masked_fill(~mask, 0), mask


def block_outputs(stack: torch.nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    for block in stack.block:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is looked up in /proc")
def test_weights_are_the_file_itself_where_its_dtype_is_computed_in(tmp_path):
    folder = tiny.make_t5(tmp_path / "model", tie_word_embeddings=True)
    mapped = str(folder / "model.safetensors")
    backbone = load_backbone(folder)
    assert mapped in Path("/proc/self/maps").read_text()
    assert backbone.head.data_ptr() == backbone.shared.data_ptr()
    assert not any(weight.requires_grad for weight in backbone.parameters())
    converted = load_backbone(folder, dtype="bfloat16")
    del backbone
    assert mapped not in Path("/proc/self/maps").read_text()
    assert converted.dtype is torch.bfloat16


def test_taps_and_logits_equal_hugging_face(folder):
    theirs = T5ForConditionalGeneration.from_pretrained(folder).double().eval()
    encoder_seen, decoder_seen = block_outputs(theirs.encoder), block_outputs(theirs.decoder)
    ours, (ids, mask) = load_backbone(folder).double(), padded_inputs()
    decoder_ids = torch.randint(3, 250, (3, 9))
    with torch.no_grad(), float64():
        out = theirs(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=decoder_ids)
        taps = ours.encode(ids, mask)
        decoder_taps = ours.decode(decoder_ids, taps.final, mask)
    real = mask[:, :, None]
    assert len(taps.blocks) == len(encoder_seen)
    for tap, expected in zip(taps.blocks, encoder_seen, strict=True):
        assert_close(tap * real, expected * real, **CLOSE)
    for tap, expected in zip(decoder_taps.blocks, decoder_seen, strict=True):
        assert_close(tap, expected, **CLOSE)
    assert_close(ours.logits(decoder_taps.final), out.logits, **CLOSE)


def test_float32_is_near_float64(folder):
    """A state's error, of its norm: a thousand roundings, where the CPUs we know make some ten."""
    (ids, mask), decoder_ids = padded_inputs(), torch.randint(3, 250, (3, 9))
    found = []
    for backbone in (load_backbone(folder), load_backbone(folder).double()):
        with float64() if backbone.dtype is torch.float64 else nullcontext():
            taps = backbone.encode(ids, mask)
            found.append([*taps.blocks, *backbone.decode(decoder_ids, taps.final, mask).blocks])
    for rough, exact in zip(*found, strict=True):
        assert (rough - exact).norm() <= 1e3 * torch.finfo(torch.float32).eps * exact.norm()


def test_cached_decoding_equals_uncached(folder):
    backbone, (ids, mask) = load_backbone(folder).double(), padded_inputs()
    with float64():
        taps, decoder_ids = backbone.encode(ids, mask), torch.randint(3, 250, (3, 8))
        whole = backbone.decode(decoder_ids, taps.final, mask)
        cache = backbone.decoder_cache()
        steps = [backbone.decode(part, taps.final, mask, cache) for part in decoder_ids.split([1, 1, 3, 1, 2], 1)]
    for layer, expected in enumerate(whole.blocks):
        assert_close(torch.cat([step.blocks[layer] for step in steps], 1), expected, **CLOSE)


def test_early_stop_gives_the_same_lower_taps(folder):
    backbone, (ids, mask) = load_backbone(folder), padded_inputs()
    full = backbone.encode(ids, mask)
    for depth in range(len(full.blocks) + 1):
        some = backbone.encode(ids, mask, depth)
        assert len(some.blocks) == depth
        assert (some.final is None) == (depth < len(full.blocks))
        for ours, expected in zip(some.blocks, full.blocks, strict=False):
            assert torch.equal(ours, expected)


def test_train_cannot_wake_its_dropout(tiny_t5):
    backbone, (ids, mask) = load_backbone(tiny_t5), padded_inputs()
    parent = torch.nn.Sequential(backbone)
    before = backbone.encode(ids, mask).final
    parent.train()
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(backbone.encode(ids, mask).final, before)


def test_no_gradient_enters_it(tiny_t5):
    backbone, (ids, mask) = load_backbone(tiny_t5), padded_inputs()
    taps = backbone.encode(ids, mask)
    assert not taps.blocks[0].requires_grad
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    state = taps.final.clone().requires_grad_()
    backbone.logits(state).sum().backward()
    assert state.grad is not None
    assert backbone.head.grad is None


def test_logits_of_some_tokens_are_those_of_all(tiny_t5):
    backbone = load_backbone(tiny_t5)
    state, tokens = torch.randn(2, 32), torch.tensor([7, 3, 99])
    assert_close(backbone.logits(state, tokens), backbone.logits(state)[:, tokens])


def test_fingerprint_names_weights_and_shape_whatever_the_dtype(tmp_path, tiny_t5):
    first, again = load_backbone(tiny_t5), load_backbone(tiny_t5, dtype="bfloat16")
    assert first.fingerprint == again.fingerprint
    assert again.dtype == torch.bfloat16
    other = shutil.copytree(tiny_t5, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["encoder.block.0.layer.0.SelfAttention.q.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert load_backbone(other).fingerprint != first.fingerprint


@pytest.mark.parametrize("zipped", [True, False], ids=["today's", "before torch 1.6"])
def test_torch_file_loads_as_safetensors_does(tmp_path, tiny_t5, zipped):
    other = shutil.copytree(tiny_t5, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    torch.save(weights, other / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (other / "model.safetensors").unlink()
    assert load_backbone(other).fingerprint == load_backbone(tiny_t5).fingerprint


@pytest.mark.parametrize("gone", ["model.safetensors", "pytorch_model.bin"])
def test_weights_come_from_the_hub_once(tmp_path, tiny_t5, monkeypatch, gone):
    """Most repositories hold them in both formats."""
    hub, here = shutil.copytree(tiny_t5, tmp_path / "hub"), tmp_path / "cache"
    torch.save(load_file(hub / "model.safetensors"), hub / "pytorch_model.bin")
    (hub / gone).unlink()
    (hub / "flax_model.msgpack").write_bytes(b"the same again")

    def download(name, allow_patterns):
        here.mkdir(exist_ok=True)
        for path in hub.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, here)
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_backbone("house/t5").fingerprint == load_backbone(tiny_t5).fingerprint
    assert not (here / "flax_model.msgpack").exists()
    if gone == "pytorch_model.bin":
        torch.save({}, hub / "pytorch_model.bin")
        load_backbone("house/t5")
        assert not (here / "pytorch_model.bin").exists()


def test_a_file_without_embeddings_is_told_by_its_name(tmp_path, tiny_t5):
    other = shutil.copytree(tiny_t5, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    tables = ("shared.weight", "lm_head.weight")
    save_file({n: t for n, t in weights.items() if n not in tables}, other / "model.safetensors")
    with pytest.raises(BackboneError, match=r"lacks 2 weights that its config\.json asks for, head the first"):
        load_backbone(other)


def test_sharded_weights_load(tmp_path, tiny_t5):
    other = shutil.copytree(tiny_t5, tmp_path / "other")
    weights = list(load_file(other / "model.safetensors").items())
    (other / "model.safetensors").unlink()
    save_file(dict(weights[:20]), other / "model-00001-of-00002.safetensors")
    save_file(dict(weights[20:]), other / "model-00002-of-00002.safetensors")
    assert load_backbone(other).fingerprint == load_backbone(tiny_t5).fingerprint


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "does not read as JSON"),
        (lambda f: change_config(f, model_type="bert"), "model_type 'bert'"),
        (lambda f: change_config(f, num_layers=5), "lacks"),
        (lambda f: change_config(f, d_ff=128), "config.json asks for"),
        (lambda f: change_config(f, vocab_size=5000), "rows"),
        (lambda f: change_config(f, feed_forward_proj="gated-silu"), "gated-silu"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]), "whole"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 5000), "whole"),
    ],
)
def test_spoilt_folders_say_what_is_wrong(tmp_path, tiny_t5, spoil, message):
    folder = shutil.copytree(tiny_t5, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(BackboneError, match=message):
        load_backbone(folder)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "no/such-model-anywhere"])
def test_sources_that_are_not_there(source):
    with pytest.raises(BackboneError, match="give a"):
        load_backbone(source)


def test_unknown_dtype_lists_the_known(tiny_t5):
    with pytest.raises(BackboneError, match="bfloat16"):
        load_backbone(tiny_t5, dtype="int3")


def test_folder_without_tokenizer_is_one_clear_error(tmp_path, tiny_t5):
    other = shutil.copytree(tiny_t5, tmp_path / "other")
    (other / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match="tokenizer"):
        load_tokenizer(other)


def test_tokenizer_cuts_and_always_ends(tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    short, long = tokenizer.encode_batch(["ab", "x" * 500], 10)
    assert short[-1] == long[-1] == 1
    assert len(short) == 3
    assert len(long) == 10
    assert tokenizer.decode(short) == "ab"
    assert tokenizer.encode_batch([]) == []


def test_tokenizer_says_which_texts_it_cuts(tiny_t5):
    tokenizer = load_tokenizer(tiny_t5)
    texts = ["ab", "x" * 500, "x" * 9, "x" * 10]
    whole = [len(ids) for ids in tokenizer.encode_batch(texts)]
    for limit in (None, 10, max(whole), max(whole) - 1):
        ids, cut = tokenizer.encode_cut(texts, limit)
        assert ids == tokenizer.encode_batch(texts, limit)
        assert cut == [limit is not None and length > limit for length in whole]
    assert tokenizer.encode_cut([]) == ([], [])


@pytest.mark.real_weights
@pytest.mark.slow
@pytest.mark.timeout(900)  # the backbone may have to be downloaded first
def test_real_backbone_equals_hugging_face(real_backbone):
    theirs = T5ForConditionalGeneration.from_pretrained(real_backbone, dtype=torch.float32).eval()
    encoder_seen = block_outputs(theirs.encoder)
    ours, tokenizer = load_backbone(real_backbone), load_tokenizer(real_backbone)
    rows = tokenizer.encode_batch(["a gripping film", "The quick brown fox jumps over the lazy dog, twice."])
    from ladder import run_backbone

    given = run_backbone(ours, rows)
    ids = torch.zeros(given.taps.mask.shape, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    with torch.no_grad():
        start = torch.zeros(2, 1, dtype=torch.long)
        out = theirs(input_ids=ids, attention_mask=given.taps.mask.long(), decoder_input_ids=start)
    for tap, expected in zip(given.taps.blocks, encoder_seen, strict=True):
        real = given.taps.mask[:, :, None]
        assert_close(tap * real, expected * real, atol=1e-2, rtol=1e-4)  # activations reach 10^4
    assert_close(ours.logits(given.decoder_taps().final), out.logits, atol=1e-3, rtol=1e-4)
