"""Frozen encoders: equal to transformers' own models, on tiny random weights.

CLIP's real weights are on no package registry, so its numbers are compared on random weights alone.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vision.folders import family_of, make_model, save
from tests.vision.images import noise
from vision import EncoderError, load_encoder
from vision.families import FAMILIES, identity

KINDS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "dinov2", "vit", "resnet")
CHANGED = {
    "clip": "encoder.layers.1.mlp.fc1.bias",
    "siglip": "encoder.layers.1.mlp.fc1.bias",
    "dinov2": "layer.1.norm1.bias",
    "vit": "layernorm_before.bias",
    "resnet": "stages.1.layers.0.layer.0.convolution.weight",
}
"""Part of the name of a weight that shapes the features."""
CLASS_TOKENS = {"clip": 1, "siglip": 0, "dinov2": 1, "vit": 1}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: make_model(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def folders(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: save(root / kind, kind, model) for kind, model in models.items()}


def tower_of(model: Any) -> Any:
    for name in ("vision_model", "vit", "resnet"):
        if hasattr(model, name):
            return getattr(model, name)
    return model


def expected(kind: str, model: Any, layer: int | None, pixels: torch.Tensor = PIXELS, **options: Any) -> torch.Tensor:
    """transformers' states, as (rows, tokens, width) without class token."""
    with torch.no_grad():
        outputs = tower_of(model)(pixels, output_hidden_states=True, **options)
    states = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    if family_of(kind) == "resnet":
        return states.flatten(2).transpose(1, 2)
    return states[:, CLASS_TOKENS[family_of(kind)] :]


@pytest.mark.parametrize("layer", [None, 0, 1, 2, -1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_transformers(kind: str, layer: int | None, models: dict[str, Any], folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders[kind], layer=layer)
    found = encoder(PIXELS)
    torch.testing.assert_close(found, expected(kind, models[kind], layer), rtol=1e-5, atol=1e-5)
    assert found.shape == (2, encoder.tokens, encoder.width)
    assert encoder.tokens == encoder.grid[0] * encoder.grid[1]


@pytest.mark.parametrize("kind", KINDS)
def test_images_go_all_the_way(kind: str, models: dict[str, Any], folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders[kind])
    pixels = encoder.preprocess([noise(40, 70), noise(33, 21)])
    torch.testing.assert_close(encoder(pixels), expected(kind, models[kind], None, pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit"])
def test_another_size_interpolates_positions(kind: str, models: dict[str, Any], folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders[kind], size=48)
    assert encoder.grid == (6, 6)
    pixels = encoder.preprocess([noise(40, 70)])
    assert pixels.shape == (1, 3, 48, 48)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    reference = expected(kind, models[kind], None, pixels, **options)
    torch.testing.assert_close(encoder(pixels), reference, rtol=1e-5, atol=1e-5)


def test_layers_above_the_chosen_one_are_not_kept(folders: dict[str, Path]) -> None:
    sizes = [sum(p.numel() for p in load_encoder(folders["vit"], layer=n).parameters()) for n in (1, 2, 3)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_an_encoder_is_frozen(kind: str, folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders[kind])
    before = encoder(PIXELS)
    assert not before.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(encoder(PIXELS + 0), before)
    head = torch.nn.Linear(encoder.width, 1)
    head(before).sum().backward()  # features are inputs to train on
    assert head.weight.grad is not None


def test_no_rows_give_no_rows(folders: dict[str, Path]) -> None:
    encoder = load_encoder(folders["vit"])
    assert encoder(encoder.preprocess([])).shape == (0, 16, 16)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(folders: dict[str, Path]) -> None:
    exact = load_encoder(folders["vit"])
    rough = load_encoder(folders["vit"], dtype="bfloat16")
    assert next(rough.parameters()).dtype == torch.bfloat16
    found = rough(PIXELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact(PIXELS), rtol=0.1, atol=0.1)
    assert rough.fingerprint == exact.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_names_what_shapes_the_features(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_encoder(folders[kind])
    assert encoder.fingerprint.startswith("sha256:")
    assert len(encoder.fingerprint) == 71
    assert load_encoder(folders[kind]).fingerprint == encoder.fingerprint
    copy = Path(shutil.copytree(folders[kind], tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    unused = {name: value + 1 for name, value in weights.items() if name.startswith(("classifier", "text_model"))}
    save_file({**weights, **unused}, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(copy).fingerprint == encoder.fingerprint
    name = next(name for name in weights if CHANGED[family_of(kind)] in name)
    save_file({**weights, name: weights[name] + 0.001}, copy / "model.safetensors", metadata={"format": "pt"})
    others = [load_encoder(copy), load_encoder(folders[kind], layer=1)]
    if kind != "resnet":
        others.append(load_encoder(folders[kind], size=48))
    prints = {encoder.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 1 + len(others)


def test_the_settings_in_a_fingerprint_stay_as_they_are() -> None:
    """A new version of transformers must not change this text: side networks name their encoder by it."""
    says = identity(FAMILIES["vit"], {"model_type": "vit", "hidden_size": 32, "dropout": 0.5, "id2label": {"0": "cat"}})
    assert says == (
        "vit(hidden_size=32, num_hidden_layers=12, num_attention_heads=12, patch_size=16, image_size=224, "
        "num_channels=3, hidden_act='gelu', layer_norm_eps=1e-12, intermediate_size=3072, qkv_bias=True)"
    )


def test_the_text_tower_does_not_change_the_fingerprint(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = make_model("clip")
    tower = make_model("clip_vision_model")
    tower.load_state_dict(whole.vision_model.state_dict())
    alone = save(tmp_path / "alone", "clip_vision_model", tower)
    assert load_encoder(alone).fingerprint == load_encoder(folders["clip"]).fingerprint


def test_missing_and_misshapen_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers alone would fill in random numbers for a missing weight."""
    copy = Path(shutil.copytree(folders["vit"], tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "layernorm_before.bias" in name)
    left = {key: value for key, value in weights.items() if key != name}
    save_file(left, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 1 weights"):
        load_encoder(copy)
    save_file({**weights, name: torch.zeros(5)}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="does not load as vit"):
        load_encoder(copy)


def test_what_cannot_be_loaded_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no config\.json"):
        load_encoder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(EncoderError, match="'t5'; the encoders here are clip"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EncoderError, match="JSON object"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EncoderError, match="JSON"):
        load_encoder(tmp_path)
    copy = Path(shutil.copytree(folders["vit"], tmp_path / "copy"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"no \*\.safetensors"):
        load_encoder(copy)
    (copy / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(EncoderError, match="not a whole safetensors file"):
        load_encoder(copy)
    with pytest.raises(EncoderError, match="hidden layers 0 to 3, got layer 4"):
        load_encoder(folders["vit"], layer=4)
    with pytest.raises(EncoderError, match="dtype must be"):
        load_encoder(folders["vit"], dtype="float16")
