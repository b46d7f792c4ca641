"""Encoders of timm: equal to timm's own features and transforms, on tiny random weights. They skip where timm is not.

What is said where timm is missing is tested everywhere.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.vision.images import noise
from vision import EncoderError, load_encoder

try:
    import timm
except (ImportError, RuntimeError):  # a torchvision that does not fit torch raises RuntimeError
    timm: Any = None
NEEDED = "needs timm and a torchvision that fits: pip install 'sidecast[timm]'"
needs_timm = pytest.mark.skipif(timm is None, reason=NEEDED)
PRETRAINED = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
}
VIT, RESNET, SWIN = "vit_tiny_patch16_224", "resnet10t", "swin_tiny_patch4_window7_224"
KINDS: dict[str, dict[str, Any]] = {
    VIT: {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2},
    RESNET: {},
    SWIN: {"img_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
}


def save(folder: Path, name: str, changes: dict[str, Any] | None = None) -> Path:
    """A folder as timm writes it, with a classifier in it."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5, **KINDS[name])
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": name, "num_classes": 5, "model_args": KINDS[name], "pretrained_cfg": PRETRAINED}
    (folder / "config.json").write_text(json.dumps({**config, **(changes or {})}))
    return folder


def own_model(folder: Path, name: str) -> Any:
    model = timm.create_model(name, pretrained=False, num_classes=5, **KINDS[name])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@needs_timm
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layer", [None, 1, 2, -1])
def test_equal_to_timm(name: str, layer: int | None, tmp_path: Path) -> None:
    folder = save(tmp_path / "encoder", name)
    encoder, model = load_encoder(folder, layer=layer), own_model(folder, name)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        indices = [(layer or len(model.feature_info)) - 1] if layer != -1 else [len(model.feature_info) - 1]
        [grid] = model.forward_intermediates(pixels, indices=indices, norm=layer is None, intermediates_only=True)
    torch.testing.assert_close(encoder(pixels), grid.flatten(2).transpose(1, 2))
    assert encoder.grid == tuple(grid.shape[2:])
    if layer is None and name.startswith("vit"):
        torch.testing.assert_close(encoder(pixels), model.forward_features(pixels)[:, model.num_prefix_tokens :])


@needs_timm
def test_images_are_prepared_as_timm_does(tmp_path: Path) -> None:
    encoder = load_encoder(save(tmp_path / "encoder", RESNET))
    transform = timm.data.create_transform(
        input_size=(3, 32, 32), interpolation="bicubic", crop_pct=0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    image = noise(57, 43)
    torch.testing.assert_close(encoder.preprocess([image])[0], transform(Image.fromarray(image)), atol=1e-6, rtol=0)


@needs_timm
def test_a_timm_fingerprint_names_layer_and_weights_but_no_classifier(tmp_path: Path) -> None:
    folder = save(tmp_path / "encoder", VIT)
    whole = load_encoder(folder).fingerprint
    assert load_encoder(folder, layer=3).fingerprint != whole
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, folder / "model.safetensors")
    assert load_encoder(folder).fingerprint == whole
    save_file({**weights, "norm.bias": weights["norm.bias"] + 1}, folder / "model.safetensors")
    assert load_encoder(folder).fingerprint != whole


@needs_timm
def test_another_size_of_a_timm_encoder(tmp_path: Path) -> None:
    assert load_encoder(save(tmp_path / "vit", VIT), size=48).grid == (6, 6)
    assert load_encoder(save(tmp_path / "resnet", RESNET), size=64).grid == (2, 2)
    with pytest.raises(EncoderError, match="does not take images of 30 x 30 pixels"):
        load_encoder(tmp_path / "vit", size=30)


@needs_timm
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_of_tomorrow"}, "has no architecture 'vit_of_tomorrow'"),
        ({"model_args": {**KINDS[VIT], "depth": 5}}, "lacks 24 weights"),
        ({"model_args": {"colour": 1}}, "timm does not make vit_tiny_patch16_224"),
        ({"pretrained_cfg": {}}, "no usable 'input_size'"),
        ({"pretrained_cfg": {**PRETRAINED, "crop_mode": "border"}}, "by 'border', which is not supported"),
    ],
)
def test_timm_folders_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(save(tmp_path / "encoder", VIT, changes))


@needs_timm
def test_a_layer_that_timm_has_not(tmp_path: Path) -> None:
    folder = save(tmp_path / "encoder", VIT)
    for layer in (0, 4, -4):
        with pytest.raises(EncoderError, match=f"has the layers 1 to 3, got layer {layer}"):
            load_encoder(folder, layer=layer)


def test_a_timm_folder_without_timm_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": RESNET, "pretrained_cfg": PRETRAINED}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"pip install 'sidecast\[timm\]'"):
        load_encoder(tmp_path)
