"""Import: what is exported to the authors' names comes back bit for bit, whatever its shape; faults are named."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from ladder import Backbone, BackboneConfig, CheckpointError, SideConfig, SideNetwork
from ladder.lst_compat.checkpoint import import_side, read_checkpoint
from ladder.lst_compat.names import authors_name
from ladder.lst_compat.settings import Claims
from ladder.side.network import forward

LAYERS = 3


def make_backbone(**changes: object) -> Backbone:
    shape: dict[str, object] = {
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 36,
        "num_heads": 2,
        "num_layers": LAYERS,
        "num_decoder_layers": 2,
        "vocab_size": 30,
    }
    backbone = Backbone(BackboneConfig(**shape | changes), name="tiny")  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_(0, 0.3)
    return backbone


BACKBONE = make_backbone()


def layers(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, count - 1)).map(lambda found: tuple(sorted(found)))


configs = st.builds(
    SideConfig,
    reduction=st.integers(1, 6),
    encoder_layers=layers(LAYERS),
    decoder_layers=layers(2),
    gate=st.sampled_from(["learnable", "none", "one", "fixed"]),
    gate_form=st.sampled_from(["scalar", "channel"]),
    gate_temperature=st.sampled_from([0.1, 0.5, 1.0]),
    gate_start=st.sampled_from([0.0, 0.25]),
    mix_after=st.booleans(),
    merge_last=st.booleans(),
    bias=st.booleans(),
)


def random_side(config: SideConfig, backbone: Backbone = BACKBONE) -> SideNetwork:
    side = SideNetwork(config, backbone.config)
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.normal_(0, 0.3)
    return side.eval()


def export(side: SideNetwork, counts: tuple[int, int] = (LAYERS, 2)) -> dict[str, Tensor]:
    """As the authors' code would save it: gates of dropped layers too, and gates that are numbers as numbers."""
    config = side.config
    theirs = {}
    for name, tensor in side.state_dict().items():
        if not (name.endswith("gate_logit") and config.gate == "fixed"):
            theirs[authors_name(name, config)] = tensor.clone()
    if config.gate != "none":
        what = "side_gate_params." if config.gate == "learnable" else "side_gate_"
        number = 1.0 if config.gate != "fixed" else 1 / (1 + math.exp(-config.gate_start / config.gate_temperature))
        for stack, count in zip(("encoder", "decoder"), counts, strict=True):
            for layer in range(count):
                theirs.setdefault(f"{stack}.{what}{layer}", torch.full((1,), number))
    return theirs


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(configs)
def test_what_is_exported_comes_back_bit_for_bit(config: SideConfig) -> None:
    side = random_side(config)
    theirs = export(side)
    claims = Claims(gate=config.gate, gate_temperature=config.gate_temperature, mix_after=config.mix_after)
    found = import_side(theirs, BACKBONE, claims).side
    assert found.state_dict().keys() == side.state_dict().keys()
    for name, tensor in side.state_dict().items():
        if config.gate == "fixed" and name.endswith("gate_logit"):
            assert_close(found.state_dict()[name], tensor[:1])  # a number in float32, there and back
        else:
            assert torch.equal(found.state_dict()[name], tensor), name
    for name in ("encoder_layers", "decoder_layers", "gate", "mix_after", "merge_last", "bias"):
        assert getattr(found.config, name) == getattr(side.config, name), name


def test_what_comes_back_computes_the_same() -> None:
    config = SideConfig(reduction=4, encoder_layers=(0, 2), decoder_layers=(1,), gate="fixed", gate_start=0.07)
    side = random_side(config)
    found = import_side(export(side), BACKBONE).side
    ids, mask = torch.randint(3, 30, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    decoder_ids = torch.randint(3, 30, (2, 3))
    given = (BACKBONE, side, ids, mask, decoder_ids)
    assert_close(forward(BACKBONE, found, *given[2:]), forward(*given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.1, 0.5, 0.9, 1.0, 0.0])
def test_a_schedules_gate_is_the_number_in_the_file(value: float) -> None:
    theirs = export(random_side(SideConfig(reduction=2, gate="one")))
    theirs["encoder.side_gate_1"] = torch.tensor([value])
    theirs["encoder.side_gate_0"] = torch.tensor([0.7])
    side = import_side(theirs, BACKBONE).side
    assert side.config.gate == "fixed"
    gates = [torch.sigmoid(rung.gate_logit / 0.1).item() for rung in side.encoder.rungs]  # type: ignore[operator]
    assert gates == pytest.approx([0.7, value, 1.0], abs=1e-6)  # a few units of float32's last place


def test_a_bias_that_the_authors_never_read_is_zero() -> None:
    """Layers listed as 2,0: layer 2 has the table, and layer 0, which runs first, hands zeros on."""
    side = random_side(SideConfig(reduction=2, encoder_layers=(0, 2), decoder_layers=(0, 1)))
    theirs = export(side)
    name = "encoder.side_block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    theirs[name.format(2)] = theirs.pop(name.format(0))
    imported = import_side(theirs, BACKBONE, Claims(encoder_layers=(2, 0)))
    assert not imported.side.state_dict()["encoder.relative_bias.weight"].any()
    assert imported.side.state_dict()["decoder.relative_bias.weight"].any()
    [note] = imported.notes
    assert "the encoder's relative bias is zero: layer 2 holds the table, but layer 0 runs first" in note
    with pytest.raises(CheckpointError, match="encoder layer 0 is listed first, and the checkpoint's relative bias"):
        import_side(theirs, BACKBONE, Claims(encoder_layers=(0, 2)))


def test_widths_that_r_does_not_divide_are_rounded_down() -> None:
    side = random_side(SideConfig(reduction=5))
    assert side.encoder.first_downsample.weight.shape == (4, 24)  # 24 // 5
    assert import_side(export(side), BACKBONE).side.config.reduction == 5


def test_a_coarser_copy_of_the_backbone_is_the_same_backbone() -> None:
    theirs = export(random_side(SideConfig(reduction=2)))
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    exact = BACKBONE.state_dict()["encoder.blocks.1.attention.q.weight"]
    for copy in (exact, exact.bfloat16(), exact.half()):
        assert import_side(theirs | {name: copy}, BACKBONE).compared == 1
    with pytest.raises(CheckpointError, match=r"belongs to another backbone: its encoder.blocks.1.attention.q.weight"):
        import_side(theirs | {name: exact * 1.01}, BACKBONE)


GATED = make_backbone(feed_forward_proj="gated-gelu")


def test_gated_feed_forwards_come_back_too() -> None:
    side = random_side(SideConfig(reduction=2), GATED)
    found = import_side(export(side), GATED).side
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in side.state_dict().items())
    with pytest.raises(CheckpointError, match=r"it lacks decoder.side_block.0.layer.2.DenseReluDense.wi.weight"):
        import_side(export(side), BACKBONE)


BLOCK = "decoder.side_block.1.layer.1.EncDecAttention"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{BLOCK}.k.weight": None}, f"it lacks {BLOCK}.k.weight"),
        ({f"{BLOCK}.k.weight": torch.zeros(3, 3)}, f"the checkpoint's {BLOCK}.k.weight has shape (3, 3), and (6, 12)"),
        ({f"{BLOCK}.k.weight": torch.full((6, 12), torch.nan)}, f"{BLOCK}.k.weight holds values that are not finite"),
        ({f"{BLOCK}.k.weight": torch.ones(6, 12, dtype=torch.int8)}, f"{BLOCK}.k.weight holds values that are not"),
        ({"encoder.side_downsamples.7.weight": torch.ones(1)}, "it has encoder.side_downsamples.7.weight besides"),
        ({"encoder.side_gate_params.9": torch.ones(1)}, "it has encoder.side_gate_params.9 besides"),
        ({"encoder.side_gate_0": torch.ones(1)}, "two kinds of gates"),
        ({"encoder.side_downsample_pool.weight": torch.ones(1)}, "it has encoder.side_downsample_pool.weight besides"),
        ({"side_final_upsample.bias": None}, "it lacks side_final_upsample.bias"),
        ({"encoder.side_first_downsample.weight": None}, "lacks encoder.side_first_downsample.weight"),
        ({"encoder.side_first_downsample.weight": torch.ones(12, 25)}, "has shape (12, 25), and this backbone's width"),
        ({"encoder.side_first_downsample.weight": torch.ones(11, 24)}, "widths are not this backbone's"),
        ({"classifier.weight": torch.ones(1)}, "has classifier.weight, which is no part of a T5"),
        ({"shared.weight": torch.ones(31, 24)}, "shared has 31 rows, and this backbone's has 30"),
        ({"encoder.block.9.layer.0.layer_norm.weight": torch.ones(24)}, "encoder.block.9.layer.0.layer_norm.weight"),
    ],
)
def test_a_fault_names_the_tensor_as_the_authors_do(change: dict[str, Tensor | None], message: str) -> None:
    theirs: dict[str, Tensor | None] = {**export(random_side(SideConfig(reduction=2))), **change}
    with pytest.raises(CheckpointError) as caught:
        import_side({name: tensor for name, tensor in theirs.items() if tensor is not None}, BACKBONE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_kind_of_backbone_is_refused() -> None:
    other = make_backbone(model_type="mt5")
    with pytest.raises(CheckpointError, match="their side networks read a T5, and tiny is a mt5"):
        import_side(export(random_side(SideConfig(reduction=2))), other)


def test_a_backbone_alone_has_no_side_network() -> None:
    with pytest.raises(CheckpointError, match="no side network: no name in it has 'side_'"):
        import_side({"shared.weight": BACKBONE.state_dict()["shared"]}, BACKBONE)


class Surprise:
    """What a torch file must not be able to run."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole"),
        (b"no tensors in here at all", "not a whole|no torch file"),
        ({"side": Surprise()}, "what else is in it is not run"),
        ([torch.ones(1)], "holds no state dict"),
        ({"a": torch.ones(1), "lr": 0.1}, "'lr' is no tensor"),
        ({"w.a": torch.ones(1), "w.module.a": torch.ones(1)}, "has a twice"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is sparse, quantised or lacks values"),
        ({"a": torch.ones(2, device="meta")}, "'a' is sparse, quantised or lacks values"),
        ({"a": torch.ones(1).expand(1 << 40)}, "'a' is sparse, quantised or lacks values"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: object, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    for ending in ("bin", "safetensors"):
        path = tmp_path / f"checkpoint.{ending}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif ending == "bin":
            torch.save(content, path)
        else:
            continue
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)
    assert capfd.readouterr().out == ""


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.bin")
    with pytest.raises(CheckpointError, match="is a folder; name the file in it"):
        read_checkpoint(tmp_path)


def test_stored_activations_beside_weights_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    save_file({"w.encoder.side_gate_0": torch.ones(1), "act.logits": torch.ones(2)}, path)
    assert list(read_checkpoint(path)) == ["encoder.side_gate_0"]
