"""Checkpoints of side networks: equal to what was saved, nothing shared, and what does not fit says why."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ladder import (
    BackboneConfig,
    CheckpointError,
    SideConfig,
    SideNetwork,
    load_backbone,
    load_side,
    run_backbone,
    save_side,
)
from ladder.side import checkpoint
from ladder.side.checkpoint import as_served
from tests.ladder.side.test_network import SHAPES, random_side


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


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


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"encoder_layers": [0, 1, 2]', '"encoder_layers": [0, 1.0, 2]'),
        ('"encoder_layers": [0, 1, 2]', '"encoder_layers": [0, true, 2]'),
        ('"outputs": 2', '"outputs": 2.0'),
        ('"bias": true', '"bias": 1'),
        ('"dropout": 0.1', '"dropout": "0.1"'),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["first", "after a right one"])
def test_settings_that_only_equal_the_right_ones_are_refused_and_harm_no_later_file(
    tmp_path, backbone, right, wrong, known
):
    path = tmp_path / "side.safetensors"
    save_side(path, random_side(SideConfig(head="linear", outputs=2, reduction=4), backbone.config))
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header = good[8 : 8 + size].rstrip()
    changed = header.replace(json.dumps(right)[1:-1].encode(), json.dumps(wrong)[1:-1].encode())
    assert changed != header
    checkpoint._blueprint.cache_clear()
    if known:
        load_side(path, backbone.config)
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + good[8 + size :])
    with pytest.raises(CheckpointError, match=wrong[1:].split('"')[0]):
        load_side(path, backbone.config)
    path.write_bytes(good)
    assert list(map(type, load_side(path, backbone.config).encoder.layers)) == [int] * 3


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
    path = tmp_path / "side.safetensors"
    save_side(path, random_side(SHAPES["all"], backbone.config))
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["upsample.scale"] = tensors.pop("upsample.weight")
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"upsample.weight.*upsample.scale"):
        load_side(path, backbone.config)


def test_a_lying_header_takes_no_memory(tmp_path, backbone):
    path = tmp_path / "side.safetensors"
    save_side(path, random_side(SideConfig(head="linear", outputs=3, reduction=4), backbone.config))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"outputs\\": 3', b'\\"outputs\\": 9'))
    with pytest.raises(CheckpointError, match=r"head.* has shape"):
        load_side(path, backbone.config)


@pytest.mark.parametrize(
    "config", [{"head": "linear"}, {"head": "linear", "words": True}, {"head": "mlp"}, {"head": "attention"}], ids=str
)
def test_a_head_of_its_own_is_served_as_it_was_trained(tmp_path, backbone, config):
    """Rounding 3.14159 to bfloat16, whatever it is stored in afterwards, would move every answer by 0.001."""
    side = SideNetwork(SideConfig(outputs=1, reduction=4, **config), backbone.config)
    with torch.no_grad():
        getattr(side.head, "out", side.head).bias.fill_(3.14159)
    save_side(tmp_path / "side.safetensors", side)
    served = load_side(tmp_path / "side.safetensors", backbone.config, dtype=torch.bfloat16)
    for name, tensor in served.state_dict().items():
        own = name.startswith(("head.", "words."))
        assert tensor.dtype == (torch.float32 if own else torch.bfloat16)
        assert not own or torch.equal(tensor, side.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in served.parameters())
