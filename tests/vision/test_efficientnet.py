"""EfficientNet-Lite: its shapes, TensorFlow's padding, the folded norms, and its folder."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from vision import EncoderError, load_encoder
from vision.efficientnet import LAYERS, Convolution, EfficientNetLite, scaled_channels
from vision.loading import EFFICIENTNET_LITE

TINY = {"width": 0.1, "depth": 0.4}


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    torch.manual_seed(0)
    network = EfficientNetLite(**TINY)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.data = 0.5 + torch.rand(buffer.shape)
    return network.eval()


@pytest.fixture(scope="module")
def folder(network: EfficientNetLite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lite")
    weights = {n: value.contiguous() for n, value in network.state_dict().items() if "num_batches" not in n}
    save_file(weights, folder / "model.safetensors")
    config = {**TINY, "model_type": EFFICIENTNET_LITE, "image_size": 65}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_lite2_has_its_published_shape() -> None:
    with torch.device("meta"):
        network = EfficientNetLite(width=1.1, depth=1.2)
    assert [len(stage) for stage in network.stages] == [1, 3, 3, 4, 4, 5, 1]  # type: ignore[arg-type]
    assert [scaled_channels(c, 1.1) for c in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]
    convolutions = sum(p.numel() for p in network.parameters())
    assert convolutions == 6_092_072 - 1_281_000  # of all, without the classifier
    assert network(torch.zeros(1, 3, 260, 260, device="meta")).shape == (1, 1280, 9, 9)


@pytest.mark.parametrize(
    ("length", "kernel", "stride"), [(9, 3, 2), (8, 3, 2), (9, 5, 2), (8, 5, 2), (8, 5, 1), (3, 1, 1)]
)
def test_padding_is_tensorflow_s(length: int, kernel: int, stride: int) -> None:
    """Output i of a SAME convolution is over the inputs from i * stride - total // 2 on; outside the image is zero."""
    module = Convolution(2, 2, kernel=kernel, stride=stride, groups=2).eval()
    module.norm = torch.nn.Identity()
    image = torch.randn(1, 2, length, length)
    outputs = math.ceil(length / stride)
    total = max(0, (outputs - 1) * stride + kernel - length)
    canvas = functional.pad(image, [10] * 4)
    first = 10 - total // 2
    expected = torch.zeros(1, 2, outputs, outputs)
    for y in range(outputs):
        for x in range(outputs):
            top, left = first + y * stride, first + x * stride
            window = canvas[:, :, top : top + kernel, left : left + kernel]
            expected[..., y, x] = (window * module.conv.weight[:, 0]).sum((2, 3))
    torch.testing.assert_close(module(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [None, 0, 1, 4, LAYERS, -1, -2])
def test_a_folder_gives_the_network_s_grid(layer: int | None, network: EfficientNetLite, folder: Path) -> None:
    encoder = load_encoder(folder, layer=layer)
    pixels = torch.randn(2, 3, 65, 65)
    last = LAYERS if layer is None else layer % (LAYERS + 1)
    states = [functional.relu6(network.stem(pixels))]
    for stage in network.stages:
        states.append(stage(states[-1]))
    assert network.head is not None
    states.append(functional.relu6(network.head(states[-1])))
    torch.testing.assert_close(network(pixels), states[-1])
    expected = states[last].flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-4, atol=1e-4)
    assert encoder.grid == tuple(states[last].shape[2:])


def test_the_fingerprint_names_layer_and_weights(network: EfficientNetLite, folder: Path) -> None:
    prints = [load_encoder(folder, layer=layer).fingerprint for layer in (None, LAYERS, -1, 3)]
    assert prints[0] == prints[1] == prints[2] != prints[3]


def test_a_folder_may_name_its_layer(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer": 3}))
    named = load_encoder(tmp_path)
    assert named.fingerprint == load_encoder(folder, layer=3).fingerprint
    pixels = torch.randn(1, 3, 65, 65)
    assert torch.equal(named(pixels), load_encoder(folder, layer=3)(pixels))
    assert load_encoder(tmp_path, layer=-1).fingerprint == load_encoder(folder).fingerprint  # an argument comes first
    for layer in (9, "7", True, 1.0):
        (tmp_path / "config.json").write_text(json.dumps({**config, "layer": layer}))
        with pytest.raises(EncoderError, match=r"config\.json has layer"):
            load_encoder(tmp_path)


def test_the_input_is_scaled_as_tensorflow_s(folder: Path) -> None:
    import numpy as np

    pixels = load_encoder(folder).preprocess([np.full((65, 65, 3), 255, np.uint8)])
    torch.testing.assert_close(pixels, torch.ones(1, 3, 65, 65))  # (255 - 127) / 128


def test_a_folder_that_does_not_fit_is_refused(network: EfficientNetLite, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for changes, says in (({"depth": 1.2}, "lacks"), ({"width": 1.0}, "size mismatch"), ({"width": "x"}, "usable")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(EncoderError, match=says):
            load_encoder(tmp_path)
    with pytest.raises(EncoderError, match="hidden layers 0 to 8"):
        load_encoder(folder, layer=9)
